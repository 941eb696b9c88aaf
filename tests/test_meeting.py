"""Processes that differ end in one line on each machine, before anything that could hang or go wrong."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, places
from forks import Job
from test_flags import OF_FAST
from tiny_net import WITH_TINY

import imagenet_fast
from detection import options
from utils.command_line.sameness import OF_A_MACHINE, READ, compared
from utils.common import distributed
from utils.common.errors import UserError
from utils.common.meeting import Told, disagreement, loopback_address
from utils.runs import provenance

ALIKE = ("--data", "images", "-a", "tiny_resnet", "--img-size", "32", "--epochs", "3", "--train-batch", "8")
# What stands in test_flags.py in another way, or not at all.
OTHERS: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    **{"--test-batch": ((), (3,)), "--save-every": ((), (1,)), "-c": ((), ("other",)), "--keep": ((), (1,))},
    **{"--on-nan": ((), ("skip",)), "--max-bad": ((), (0.5,)), "--print-freq": ((), (1,))},
    **{
        "--deterministic": ((), ()),
        "--channels-last": ((), ()),
        "--compile": ((), ()),
        "--sync-bn": ((), ()),
    },
    **{"--resume": (("-c", "out"), ("auto",)), "--timeout": ((), (1,)), "--decoder": ((), ("pil",))},
    **{"--overwrite": ((), ()), "--dry-run": ((), ()), "--pretrained": ((), ())},
    **{"-e": (("--resume", "teacher.pth"), ()), "--fresh-optimizer": (("--resume", "teacher.pth"), ())},
}
# Of evaluations, and of what is tried as another flag.
LEFT = {"outputs", "real", "per_class", "confusion", "print_always", "amp_backend", "per_iter", "data"}


def facts(monkeypatch: pytest.MonkeyPatch, *flags: object) -> dict[str, str]:
    monkeypatch.setattr("sys.argv", ["imagenet_fast.py", *map(str, (*ALIKE, *flags))])
    args, parser = imagenet_fast.parse_arguments(None, imagenet_fast.DEFAULTS)
    return dict(compared(parser, args))


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("models._OWN", WITH_TINY)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_registered")
def test_every_flag_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those of OF_A_MACHINE; both values are named."""
    for name in ("sources", "versions", "commit"):
        monkeypatch.setattr(f"utils.command_line.sameness.{name}", type(getattr(provenance, name)()))
    parser = imagenet_fast.create_parser()
    tried = {**OF_FAST, **OTHERS}
    for flag, (context, value) in tried.items():
        before, after = facts(monkeypatch, *context), facts(monkeypatch, *context, flag, *value)
        name = parser._option_string_actions[flag].option_strings[0]
        only = Told("gpu1", {name: before[name]}), Told("gpu2", {name: after[name]})
        line = f"{name} is {after[name]} on rank 1 (gpu2) and {before[name]} on rank 0 (gpu1)"
        assert disagreement(only).startswith(line), flag
    dests = {action.dest for action in parser._actions} - {"help", *OF_A_MACHINE}
    assert {parser._option_string_actions[flag].dest for flag in tried} >= dests - LEFT


@pytest.mark.usefixtures("_registered")
def test_what_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = facts(monkeypatch)
    assert (
        facts(monkeypatch, "--data", "/another/place", "-j", 3, "--no-cache", "--device", "cpu") == expected
    )
    names = {action.dest for action in imagenet_fast.create_parser()._actions}
    names |= {action.dest for action in options.create_parser(None)._actions}
    assert {*OF_A_MACHINE, *READ} <= names, "a name that no parser has"


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--finetune", "{}"),
        ("--resume", "{}"),
        ("--class-list", "{}"),
        ("--teacher", "tiny:{}"),
        ("--gate-file", "{}:Gate"),
    ],
)
def test_files_are_compared_by_their_content(monkeypatch: pytest.MonkeyPatch, flag: str, value: str) -> None:
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        Path(name).write_text(content)
    a, b, c, missing = (facts(monkeypatch, flag, value.format(name)) for name in ("a", "b", "c", "missing"))
    assert a == b
    assert f"{flag} is" in disagreement([Told("x", a), Told("y", c)])
    assert "missing, which is no file on rank 1 (y)" in disagreement([Told("x", a), Told("y", missing)])


def test_code_and_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {**provenance.versions(), **provenance.sources()}
    assert {"torch", "torchvision", "numpy", "imagenet_fast.py", "utils/training/engine.py"} <= set(before)
    assert not [name for name in before if "site-packages" in name]
    for name in ("torch", "utils/training/engine.py"):
        line = disagreement([Told("x", before), Told("y", {**before, name: "another"})])
        assert line.startswith(f"{name} is another on rank 1 (y) and {before[name]} on rank 0 (x): ")
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"changed" if path.name == "engine.py" else b"")
    assert provenance.sources()["utils/training/engine.py"] != before["utils/training/engine.py"]


def test_several_differences_and_mistakes() -> None:
    first, other = (Told(host, dict.fromkeys("abcde", value)) for host, value in (("x", "1"), ("y", "2")))
    assert disagreement([first, first, first]) == ""
    line = disagreement([first, other])
    assert line.startswith("a is 2 on rank 1 (y) and 1 on rank 0 (x); b, c and 2 more differ too: ")
    fewer = Told("y", dict.fromkeys("abd", "1"))
    assert disagreement([first, fewer]).startswith(
        "c is absent on rank 1 (y) and 1 on rank 0 (x); e differs too"
    )
    assert disagreement([fewer, first]).startswith("c is 1 on rank 1 (x) and absent on rank 0 (y); e differs")
    # One that cannot take part may not have come to all that is compared.
    assert disagreement([first, fewer._replace(mistake="no GPU")]) == "rank 1 (y): no GPU"
    assert disagreement([fewer._replace(mistake="no GPU"), first]) == "no GPU"


def test_a_machine_that_tells_others_an_address_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian's /etc/hosts has it; nothing is wrong with it as long as there is one machine."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for address, found in (
        ("127.0.1.1", "127.0.1.1"),
        ("::1", "::1"),
        ("10.0.0.1", ""),
        ("fe80::1%eth0", ""),
    ):
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, a=address, **__: [(0, 0, 0, "", (a, 0))])
        assert loopback_address() == found

    def unknown(*_: object, **__: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    assert loopback_address() == "no address"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert loopback_address() == ""
    here, there = Told("x", {}, "", "127.0.1.1"), Told("y", {})
    assert disagreement([here, here]) == ""
    line = disagreement([there, here])
    assert line.startswith("rank 1: the name of its machine, x, leads to 127.0.1.1")
    assert "GLOO_SOCKET_IFNAME" in line


def machines(start: Callable[..., Job], *given: tuple[object, ...]) -> list[Job]:
    """Start imagenet_fast.py on as many machines, of one process each, as there are command lines."""
    alone = [{**place, "LOCAL_RANK": 0} for place in places(len(given))]
    script = REPOSITORY / "imagenet_fast.py"
    return [start(script, *flags, environments=[place]) for flags, place in zip(given, alone, strict=True)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--train-batch", 3), "error: --train-batch is 3 on rank 1 ("),  # would hang
        (("-a", "tiny_resnet"), "error: -a is tiny_resnet on rank 1 ("),
        (("--resume", "auto"), "error: --resume is auto on rank 1 ("),  # would exchange more
        (("--device", "cuda"), "--device cuda: no CUDA GPU is available"),
        (("--lrr", 1), "unrecognized arguments: --lrr 1"),
    ],
)
def test_machines_that_were_started_otherwise(
    start: Callable[..., Job], images: Path, tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    """Each of them ends in one line and with code 2, and nothing is written."""
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "--train-batch", 4, "-j", 0, "-c", "out")
    jobs = machines(start, flags, (*flags, *more))
    for result in [job.complete() for job in jobs]:
        assert result.returncode == 2, result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_machine_that_does_not_come(start: Callable[..., Job], images: Path) -> None:
    (place, _) = places(2)
    flags = ("--data", images, "-a", "tiny", "--timeout", 0.02)
    result = start(REPOSITORY / "imagenet_fast.py", *flags, environments=[place]).complete()
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "[c10d]" not in line]
    assert "another process has not answered for 0.02 minutes (--timeout)" in line


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e300"])
def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(SystemExit):
        imagenet_fast.create_parser().parse_args(["--data", "x", "--timeout", text])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1", "has ended"),
        ("[gloo/transport/tcp/pair.cc:1] writev [10.0.0.2]:1: No route to host", "has ended"),
        ("writev [10.0.0.2]:1: Network is unreachable", "has ended"),
        ("Timed out waiting 600000ms for recv operation to complete", "for 10 minutes (--timeout)"),
        ("something else", None),
    ],
)
def test_a_lost_process_is_one_line(monkeypatch: pytest.MonkeyPatch, message: str, said: str | None) -> None:
    """Of every process, but only the first of a machine says it at once."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    for local in range(2):
        expected = pytest.raises(UserError if said else RuntimeError, match=re.escape(said or message))
        with expected, distributed._losses_in_one_line(3, local, distributed.TIMEOUT):
            raise RuntimeError(message)
    assert len(waits) == (1 if said else 0)


@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        ("imagenet_fast.py", signal.SIGINT, 130),
        ("imagenet_fast.py", signal.SIGTERM, -signal.SIGTERM),
        *((name, signal.SIGUSR1, 0) for name in ("imagenet.py", "imagenet_fast.py", "imagenet_mobile.py")),
        ("detection/train.py", signal.SIGUSR1, 0),
    ],
)
def test_a_signal_while_torch_is_imported(
    tmp_path: Path, script: str, number: signal.Signals, code: int
) -> None:
    """By a new interpreter, as soon as it listens."""
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "  # not so in a background
    listening += "import os; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", listening, str(REPOSITORY / script), "--data", "images"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen(command, cwd=tmp_path, text=True, **pipes)  # type: ignore[call-overload]
    mask = 1 << (signal.SIGUSR1 - 1)
    while (
        not int(re.findall(r"SigCgt:\s+(\w+)", Path(f"/proc/{started.pid}/status").read_text())[0], 16) & mask
    ):
        assert started.poll() is None
        time.sleep(0.002)
    started.send_signal(number)
    output, errors = started.communicate(timeout=60)
    assert started.returncode == code
    assert output == ""
    said = f"stopped by {number.name} before training began\n"
    assert errors == ("" if number == signal.SIGTERM else said)
    assert not list(tmp_path.iterdir())
