"""200 changed bits and 200 truncations of a file in each format, read by a process that watches itself.

A file of ours is never silently another one, nothing runs, and time and memory stay within what the file's
size grants.
"""

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start_process
from safetensors.torch import save_file

from utils.networks import archive, checkpoint

FORMS = ("zip", "legacy", "safetensors", "tar", "foreign zip", "foreign legacy", "foreign safetensors")
COUNT = 200  # of each damage
SIZE = 250_000  # numbers of the largest weight: a file of a megabyte

# Reads each file, and prints its outcome, and at the end how much its memory grew, in bytes. The limit of
# processor time ends it (SIGXCPU). Any call that does more than read a file is printed.
READER = """
import os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from utils.common.errors import UserError
from utils.networks import archive, checkpoint
ALLOWED = {"object.__getattr__", "mmap.__new__", "import"}
watching = False

def watch(event, arguments):
    reads = event == "open" and arguments[1] in ("r", "rb", None)
    if watching and not (reads or event in ALLOWED):
        print("CALL", event, arguments, flush=True)

sys.addaudithook(watch)
paths = sorted(Path(sys.argv[2]).iterdir())
checkpoint.load(sys.argv[3]) if sys.argv[3] else None  # imports what reading needs
before = resource.getrusage(resource.RUSAGE_SELF)
resource.setrlimit(resource.RLIMIT_CPU, [int(before.ru_utime + before.ru_stime + 5 * len(paths))] * 2)
watching = True
for path in paths:
    try:
        found = archive.checksum(checkpoint.load(str(path)))
    except UserError as error:
        found = f"refused: {error}"
    print(path.name, found, flush=True)
watching = False
print("GREW", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss) * 1024)
"""


def content() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(3, 4, generator=generator) for i in range(6)}
    weights["fc.weight"] = torch.randn(SIZE, generator=generator)
    return {"epoch": 3, "arch": "resnet18", "classes": ["cat", "dog"], "state_dict": weights, "seed": 7}


def write(path: Path, form: str) -> None:
    """A file of ours, or one without a checksum."""
    fields = content()
    if form in ("zip", "legacy"):
        checkpoint.write(fields, path, form == "zip")
    elif form.startswith("foreign ") and "safetensors" not in form:
        torch.save(fields, path, _use_new_zipfile_serialization="zip" in form)
    elif form == "tar":
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:  # as torch wrote before 0.2
            for name in ("sys_info", "pickle", "tensors", "storages"):
                info = tarfile.TarInfo(name)
                info.size = 2000
                tar.addfile(info, io.BytesIO(bytes(range(200)) * 10))
    else:
        weights = fields.pop("state_dict")
        save_file(weights, path, archive.metadata(fields, weights) if form == "safetensors" else None)


def damages(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Half of the changed bits are outside the large weight, where the structure is."""
    choose, edge = random.Random(0), 6000
    structure = [*range(min(edge, len(whole))), *range(max(len(whole) - edge, 0), len(whole))]
    for i in range(COUNT):
        position = choose.choice(structure) if i % 2 else choose.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << choose.randrange(8)
        yield f"bit-{i:03}-{position}", bytes(damaged)
    for i in range(COUNT):
        length = choose.choice(structure) if i % 2 else choose.randrange(len(whole))
        yield f"cut-{i:03}-{length}", whole[:length]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(tmp_path: Path, form: str) -> None:
    suffix = ".safetensors" if "safetensors" in form else ".pth"
    whole = tmp_path / f"whole{suffix}"
    write(whole, form)
    expected = "" if form == "tar" else archive.checksum(checkpoint.load(str(whole)))
    (tmp_path / "damaged").mkdir()
    for name, data in damages(whole.read_bytes()):
        (tmp_path / "damaged" / f"{name}{suffix}").write_bytes(data)
    repository = Path(__file__).parent.parent
    read = start_process(tmp_path, "-c", READER, repository, "damaged", whole if expected else "")
    assert read.returncode == 0, read.stderr
    *outcomes, grew = read.stdout.splitlines()
    assert len(outcomes) == 2 * COUNT, [line for line in outcomes if line.startswith("CALL")][:3]
    changed = 0
    for line in outcomes:
        name, _, found = line.partition(" ")
        refused = found.startswith("refused: --resume")
        changed += not refused and found != expected
        assert refused or not name.startswith("cut"), line
        assert refused or form != "tar", line
    if form.startswith("foreign") and form != "foreign zip":
        assert changed < COUNT  # nothing says what was written
    else:
        assert changed == 0
    assert int(grew.removeprefix("GREW ")) < 2 * whole.stat().st_size + 200_000_000
