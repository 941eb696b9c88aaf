"""Measuring candidates in turns; the time, the memory traffic and the memory of a step."""

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
from utils.common.devices import process_device
from utils.common.errors import UserError


def add_round_arguments(parser: cli.Parser, rounds: int) -> None:
    """Add the flags that say how often everything is measured."""
    text = "how often everything is measured (default: %(default)s)"
    parser.add_argument("--rounds", type=cli.count_of, default=rounds, metavar="N", help=text)
    text = "rounds before these, which do not count (default: 1)"
    parser.add_argument("--warmup", dest="warmup_rounds", type=cli.whole, default=1, metavar="N", help=text)


def add_device_arguments(parser: cli.Parser) -> None:
    """Add the flags that say what computes."""
    text = "threads of the CPU (default: torch's)"
    parser.add_argument("--threads", type=cli.count_of, metavar="N", help=text)
    text = "auto: CUDA if there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)


def choose_device(device: str, threads: int | None) -> torch.device:
    """Return the device of ``--device``, and have torch use so many threads of the CPU (None: its default).

    Raises:
        UserError: there is no GPU.
    """
    if threads:
        torch.set_num_threads(threads)
    return process_device(device, 0, under_slurm=False)


def wait(device: torch.device) -> None:
    """Wait until the device has computed everything; on a CPU every call already has when it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Return the seconds of a step, the mean of ``repeats`` in a row."""
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


def interleave(
    measures: Sequence[Callable[[int], Any]], rounds: int, warmup: int, title: str
) -> list[list[Any]]:
    """Measure every candidate once in each round, and return each candidate's values.

    Args:
        measures: one for each candidate; it takes the number of the round, from 0.
        rounds: how many values are kept.
        warmup: rounds before these, whose values are dropped.
        title: of the progress bar.

    Raises:
        UserError: the GPU's memory is too small.
    """
    taken: list[list[Any]] = [[] for _ in measures]
    turns = warmup + rounds
    with tqdm(total=turns * len(measures), desc=title, leave=False, disable=None) as bar:
        for turn in range(turns):
            for measure, own in zip(measures, taken, strict=True):
                value = _in_memory(measure, turn)
                bar.update()
                if turn >= warmup:
                    own.append(value)
    return taken


def _in_memory(measure: Callable[[int], Any], turn: int) -> Any:
    """Measure, and turn a lack of GPU memory into a UserError."""
    try:
        return measure(turn)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory; give a smaller --batch ({str(error).split('. ')[0]})") from error


class Watch:
    """Seconds of each part of a step; the device is waited for before and after a part."""

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
        """Return the same function, with the time of its calls added to a part."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return watched


class Traffic(TorchDispatchMode):
    """Count the bytes of the tensors that operators read and write, as if there were no cache."""

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
    """Return the bytes per second that a copy reads and writes, the median of nine copies."""
    source = torch.ones(2**26 if device.type == "cuda" else 2**25, device=device)  # 256, 128 MiB
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(10)]
    return 2 * source.nbytes / statistics.median(times[1:])


def step_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Return the most bytes that a step holds at a time, less those held before it.

    CUDA: from torch's allocator. CPU: from the peak of resident memory, which a process can reset on Linux;
    None on other systems.
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
