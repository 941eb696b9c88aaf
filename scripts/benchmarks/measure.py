"""Taking turns; the time and the memory of a step."""

import argparse
import ctypes
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from utils.command_line import cli
from utils.common import distributed
from utils.common.errors import UserError


def add_round_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """How often everything is measured."""
    parser.add_argument(
        "--rounds", type=cli.count_of, default=rounds, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--warmup",
        dest="warmup_rounds",
        type=cli.whole,
        default=1,
        metavar="N",
        help="rounds before, not counted (default: 1)",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """What computes."""
    text = "threads of the CPU (default: torch's)"
    parser.add_argument("--threads", type=cli.count_of, metavar="N", help=text)
    text = "auto: CUDA if there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device of ``--device``, with ``--threads`` set.

    Raises:
        UserError: there is no GPU.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    return distributed.process_device(args.device, 0, under_slurm=False)


def wait(device: torch.device) -> None:
    """Until the device has computed everything; a CPU has when its calls return."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds of a step, the mean of ``repeats`` in a row."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - started) / repeats


def interleave(measures: Sequence[Callable[[int], Any]], args: argparse.Namespace) -> list[list[Any]]:
    """What each candidate's measurement, given the round from 0, returned in the rounds after the warm-up."""
    taken: list[list[Any]] = [[] for _ in measures]
    rounds = args.warmup_rounds + args.rounds
    with tqdm(total=rounds * len(measures), desc=args.kind, leave=False, disable=None) as bar:
        for turn in range(rounds):
            for measure, own in zip(measures, taken, strict=True):
                value = _in_memory(measure, turn)
                bar.update()
                if turn >= args.warmup_rounds:
                    own.append(value)
    return taken


def _in_memory(measure: Callable[[int], Any], turn: int) -> Any:
    try:
        return measure(turn)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory; give a smaller --batch ({str(error).split('. ')[0]})") from error


class Watch:
    """Seconds by part of a step, each part waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wait(self.device)
        started = time.perf_counter()
        yield
        wait(self.device)
        self.seconds[name] += time.perf_counter() - started

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose calls count as a part."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return watched


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that operators read and write, each once for an operator, as if without cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            leaves = tree_leaves((args, kwargs, out))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return out


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy kernel reads and writes, the median of nine copies."""
    source = torch.ones(2**26 if device.type == "cuda" else 2**25, device=device)  # 256, 128 MiB
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(10)]
    return 2 * source.nbytes / statistics.median(times[1:])


def step_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that a step holds at a time beyond those held before it; None where it can't be told.

    On CUDA by torch's allocator; on a CPU by the kernel's peak of resident memory, which Linux lets a process
    reset.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps of earlier steps would hide this one's
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        step()
        return _resident("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
