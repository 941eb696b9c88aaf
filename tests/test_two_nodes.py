"""The commands for several machines on two of them: namespaces of this machine, joined by a cable.

Slow: twelve minutes on two cores that other jobs used as well (load 9), most of it the start of torchrun and
torch in new interpreters.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPOSITORY, Run, write_classes
from killer import fingerprint
from nodes import Node, Pair, skip_unless_possible
from test_docs import several_machines

pytestmark = pytest.mark.slow
NET = ("-a", "shufflenetv2_05x", "--img-size", "32", "--train-batch", "4", "--test-batch", "7", "-j", "0")
SMALL = (*NET, "--epochs", "2", "--manualSeed", "7", "--save-every", "1", "-p", "1")
PLACE = "checkpoints/imagenet/sge_resnet101"
LINES = [command.words for command in several_machines() if command.words[0] != "srun"]
TORCHRUN = next(words for words in LINES if words[0] == "torchrun")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where both machines start: a folder that they share."""
    skip_unless_possible()
    write_classes(tmp_path / "images", 48, size=(32, 36))
    return tmp_path


def typed(words: Sequence[str], rank: int, *more: object) -> list[str]:
    """A page's line on one of the machines, with two processes each, a small net and small images."""
    changed = {"--nproc_per_node=8": "--nproc_per_node=2", "--node_rank=0": f"--node_rank={rank}"}
    changed |= {"/path/to/imagenet1k/": "images", "imagenet_fast.py": str(REPOSITORY / "imagenet_fast.py")}
    line = [changed.get(word, word).replace("NODE0", "node0") for word in words]
    return [*line, *SMALL, *map(str, more)]


class Started:
    """A command on one machine; what it prints goes into files."""

    def __init__(self, node: Node, folder: Path, command: Sequence[str]) -> None:
        self.folder, self.name = folder, node.name
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
        line = node.within("env", "-C", str(folder), *command)
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(line, env=environment, stdout=out, stderr=err)

    @property
    def out(self) -> Path:
        return self.folder / f"{self.name}.out"

    @property
    def err(self) -> Path:
        return self.folder / f"{self.name}.err"

    def wait_for(self, text: str) -> None:
        while text not in self.out.read_text():
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.05)

    def wait_for_lines(self, seconds: float = 240) -> list[str]:
        """What the scripts, not torchrun, say is wrong; not until they have said something or have ended."""
        end = time.monotonic() + seconds
        while not (
            lines := re.findall(r"^imagenet_fast.py: error: (.*)$", self.err.read_text(), re.MULTILINE)
        ):
            if self.process.poll() is not None:
                break
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.05)
        return lines


def start(nodes: Sequence[Node], folder: Path, words: Sequence[str], *more: object) -> list[Started]:
    return [Started(node, folder, typed(words, rank, *more)) for rank, node in enumerate(nodes)]


def finish(jobs: Sequence[Started]) -> None:
    assert [job.process.wait(240) for job in jobs] == [0, 0], [job.err.read_text() for job in jobs]


def on_one_machine(launch: Run, folder: Path, *more: object) -> dict[str, str]:
    """The fingerprint of the run by four processes here."""
    result = launch("imagenet_fast.py", "--data", "images", *SMALL, "-c", "whole", *more, processes=4)
    assert result.returncode == 0, result.stderr
    os.chdir(folder)
    return fingerprint("whole")


def test_two_machines_are_as_good_as_one(launch: Run, folder: Path) -> None:
    """Bit for bit; also over a cable that delays packets by 20 ms and loses one in a hundred."""
    expected = on_one_machine(launch, folder)
    for number, words in enumerate(LINES):
        slow = {"delay": 0.02, "loss": 0.01} if words is TORCHRUN else {}
        pair = Pair(folder, **slow)
        with pair as nodes:
            jobs = start(nodes, folder, words, "-c", f"out{number}")
            finish(jobs)
            assert pair.relay is None or pair.relay.lost > 0
        assert [job.out.read_text().count("4 processes, each on CPU") for job in jobs] == [1, 0]
        assert fingerprint(f"out{number}") == expected, words


def test_a_machine_whose_processes_die_and_one_that_stays_away(launch: Run, folder: Path) -> None:
    """The other ends in one line; the same command goes on, exactly; and so does one machine alone."""
    expected = on_one_machine(launch, folder)
    with Pair(folder) as nodes:
        here, _ = start(nodes, folder, TORCHRUN)
        here.wait_for("epoch 1/2: batch 2/9")
        nodes[1].kill_processes()
        (line,) = here.wait_for_lines()
        assert "another process has ended" in line
        assert "--resume auto goes on" in line
        assert here.process.wait(60) != 0
    with Pair(folder) as nodes:
        jobs = start(nodes, folder, TORCHRUN)
        finish(jobs)
        assert re.search(r"continuing .* in epoch 1 after \d+ images", jobs[0].out.read_text())
        assert fingerprint(PLACE) == expected
        alone = [word.replace("--nnodes=2", "--nnodes=1") for word in TORCHRUN]
        job = Started(nodes[0], folder, typed(alone, 0, "--epochs", 3))
        assert job.process.wait(240) == 0, job.err.read_text()
        assert (
            "note: that run had 4 processes and steps of 16 images, this one 2 and 8" in job.out.read_text()
        )


def test_a_pulled_cable(folder: Path) -> None:
    """Nothing says that the other machine is gone: the time-out ends both."""
    with Pair(folder) as nodes:
        jobs = start(nodes, folder, TORCHRUN, "--epochs", 500, "--timeout", 0.25)
        jobs[0].wait_for("epoch 1/500: batch 2/9")
        nodes[1].pull_cable()
        for job in jobs:
            line = job.wait_for_lines(60)[0]
            assert "for 0.25 minutes (--timeout)" in line or "out of reach" in line
        assert jobs[0].process.wait(60) != 0
        assert "Traceback" not in jobs[0].err.read_text().split("torch/distributed/elastic")[0]


def test_machines_that_differ_are_refused(folder: Path) -> None:
    """In flags, code, data, the address of its name: both say so in one line; nothing is written."""
    engine = REPOSITORY / "utils" / "training" / "engine.py"
    (folder / "engine.py").write_text(engine.read_text() + "# changed\n")
    write_classes(folder / "others", 3, size=(32, 36))
    with Pair(folder) as nodes:
        other = nodes[1]

        def refused(*more: object) -> str:
            commands = [typed(TORCHRUN, 0, "-c", "out"), typed(TORCHRUN, 1, "-c", "out", *more)]
            jobs = [Started(node, folder, words) for node, words in zip(nodes, commands, strict=True)]
            (line,), (same,) = (job.wait_for_lines() for job in jobs)
            assert line == same
            assert [job.process.wait(60) for job in jobs] == [1, 1]  # torchrun's
            assert [job.err.read_text().count("exitcode  : 2 ") for job in jobs] == [1, 1]
            return line

        assert refused("--lr", 0.5).startswith("--lr is 0.5 on rank 2 (node1) and 0.1 on rank 0 (node0)")
        other.do("mount", "--bind", str(folder / "engine.py"), str(engine))
        line = refused()
        assert re.match(r"the code in utils/training/engine.py is \w{8}.* on rank 2 \(node1\) and ", line)
        other.do("umount", str(engine))
        other.do("mount", "--bind", str(folder / "others"), str(folder / "images"))
        assert re.match(r"--data is 9 training images.* on rank 2 \(node1\) and 144 training", refused())
        other.do("umount", str(folder / "images"))
        other.name_resolves_to("127.0.1.1")
        line = refused()
        assert line.startswith("rank 2: the name of its machine, node1, leads to 127.0.1.1")
        assert "GLOO_SOCKET_IFNAME" in line
        assert not (folder / "out").exists()
