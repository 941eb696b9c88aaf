"""Fixtures: small image folders, and the scripts as a user starts them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes that share cores must not spin

import gc
import importlib
import multiprocessing
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Job
from PIL import Image
from tiny_net import WITH_TINY
from torch.utils.data._utils import signal_handling

from utils.command_line import cli

REPOSITORY = Path(__file__).parent.parent
# matplotlib lists the fonts into its cache once; in the cache of every test (below) it would list them anew.
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"matplotlib-tests-{os.getuid()}"))
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """All tests but those of tests/test_gpu.py see no GPU: their results are the same on every machine."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """The garbage collector does not look through torch and all tests each time: a tenth of the time."""
    gc.collect()
    gc.freeze()


def start_process(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Start a Python command line in ``folder``, by a new interpreter, and wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test's processes keep their indices, in place of the user's cache; it is not there yet."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home / "cache" / "pytorch-insight"


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Job]]:
    """Start a command in an empty folder, in one or several processes, and do not wait for it."""
    jobs: list[Job] = []

    def begin(*command: object, environments: Sequence[Mapping[str, object]] = ({},)) -> Job:
        jobs.append(Job(tmp_path, tmp_path_factory.mktemp("outputs"), command, environments))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


@pytest.fixture(autouse=True)
def same_folder() -> Iterator[None]:
    """Each test begins where the first one did."""
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture
def run(start: Callable[..., Job]) -> Run:
    """Start ``python SCRIPT ARGUMENTS`` in an empty folder, as a fork, and wait for it."""

    def begin(*arguments: object, script: str = "imagenet.py") -> subprocess.CompletedProcess[str]:
        return start(REPOSITORY / script, *arguments).complete()

    return begin


@pytest.fixture
def launch(start: Callable[..., Job]) -> Run:
    """Start a script in several processes, forks that have a launcher's environment, and wait for them."""

    def begin(script: Path | str, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
        return start(REPOSITORY / script, *arguments, environments=places(processes)).complete()

    return begin


def places(processes: int) -> list[dict[str, object]]:
    """What a launcher tells each of the processes of a job."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, **address} for rank in range(processes)
    ]


def free_port() -> int:
    """A port that no other test's job uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """The same as ``run``, within this process: where many lines are tried, and a test replaces something.

    The curves at the end of a run are drawn, but not into pixels, which takes longer than the run.
    """

    def begin(*arguments: object, script: str = "imagenet.py") -> subprocess.CompletedProcess[str]:
        main = importlib.import_module(".".join(Path(script).with_suffix("").parts)).main
        if script.startswith("imagenet"):
            if sys.modules.get("matplotlib.figure", "not yet imported"):
                monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
            if "-j" not in arguments:
                arguments = (*arguments, "-j", 0)  # of so many runs the data workers would pile up here
        command = [script, *map(str, arguments)]
        monkeypatch.setattr("models._OWN", WITH_TINY)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        end_data_workers()
        output = capsys.readouterr()
        return subprocess.CompletedProcess(command, int(ended.value.code or 0), output.out, output.err)

    yield begin
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()


def end_data_workers() -> None:
    """In a script its end ends them; here they would wait for the garbage collector, and it for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a failure
    signal_handling._SIGCHLD_handler_set = False  # the next loader sets it again
    for process in multiprocessing.active_children():
        if process.daemon:  # no job of the test
            process.kill()
            process.join()


def write_images(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    """Random JPEGs whose colour depends on the seed, so that classes can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    colour = np.random.default_rng(seed % 100).integers(0, 200, 3)
    for i in range(count):
        pixels = generator.integers(0, 56, (*size, 3)) + colour
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.JPEG", quality=95)


def write_classes(root: Path, training: int, split: str = "val", size: tuple[int, int] = (40, 48)) -> Path:
    """A folder of three classes: so many training images and 7 validation images of each."""
    for label, name in enumerate(("cat", "dog", "owl")):
        write_images(root / "train" / name, training, label, size)
        write_images(root / split / name, 7, label + 100)
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """8 training images of each class."""
    return write_classes(tmp_path / "images", 8, "valf")


def write_no_files(folder: Path) -> list[str]:
    """Names of images that are none: a pipe, a link to an endless device, a file of 8 GB of holes.

    Whoever opens the first waits for ever, and whoever reads the others fills the memory.
    """
    os.mkfifo(folder / "pipe.JPEG")
    (folder / "endless.JPEG").symlink_to("/dev/zero")
    with (folder / "sparse.JPEG").open("wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(8 * 10**9)
    return ["endless.JPEG", "pipe.JPEG", "sparse.JPEG"]


def assert_one_line_error(result: subprocess.CompletedProcess[str], *fragments: str) -> None:
    """The command ended as a user's mistake must: code 2, one line on stderr that holds the fragments."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
