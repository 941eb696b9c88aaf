"""imagenet_fast.py's training step in several processes: images per second and efficiency.

    python scripts/benchmark.py scaling sge_resnet50 --processes 1 2 4 8 --opt-level O1
    python scripts/benchmark.py scaling resnet18 --processes 1 2 --batch 16 --device cpu

Every measurement starts so many processes with torch.distributed.run. On CUDA each has a GPU of its own, on a
CPU an equal share of the cores. The images are on the device already.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.lib import benchmark_measure as measure
from scripts.lib import benchmark_training as training
from scripts.lib.benchmark_report import Result, Table
from utils.command_line import cli
from utils.common import distributed
from utils.common.devices import gpu_count, process_device
from utils.common.errors import UserError
from utils.common.text import plural

SCRIPT = Path(__file__).parent.parent / "benchmark.py"


def add_arguments(parser: cli.Parser) -> None:
    training.add_arguments(parser)
    text = "numbers of processes; the efficiency is relative to the first one (default: 1 2)"
    parser.add_argument("--processes", type=cli.count_of, nargs="+", default=[1, 2], metavar="N", help=text)
    text = "auto: CUDA if there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    parser.add_argument("--result", metavar="FILE", help=argparse.SUPPRESS)  # of a started process
    measure.add_round_arguments(parser, rounds=3)


class Job(NamedTuple):
    """A number of processes, and what each of them computes on."""

    processes: int
    threads: int  # of the CPU, for each
    on_gpus: bool  # each on a GPU

    @property
    def shares(self) -> int:
        """GPUs in use, or cores."""
        return self.processes * (1 if self.on_gpus else self.threads)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def images_per_second(job: Job) -> float:
    """Run a job, and return the images per second of all its processes.

    Raises:
        UserError: a process ended with such an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}")
        command = [sys.executable, *launcher, str(SCRIPT), *sys.argv[1:], "--result", str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(job.threads, 1))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith(f"{SCRIPT.name}: error: ")]
            if not said:
                raise RuntimeError(done.stderr)
            raise UserError(said[0].partition(": error: ")[2])
        return float(result.read_text())


def main(args: argparse.Namespace) -> list[Table]:
    training.check(args)
    if args.result:  # this is one of the processes
        with distributed.start(args.device, args.local_rank) as ranks:
            trainer, loader = training.create(args, None, ranks)
            slowest = max(ranks.gather(training.time_epoch(trainer, loader, 0, args.steps)))
            if ranks.main:
                Path(args.result).write_text(f"{loader.batches.samples_per_step / slowest}")
        return []
    device = process_device(args.device, 0, under_slurm=False)
    have = gpu_count() if device.type == "cuda" else cores()
    if max(args.processes) > have:
        what = plural(have, "GPU" if device.type == "cuda" else "core")
        raise UserError(f"--processes {max(args.processes)}: there are {what} for them")
    jobs = [Job(n, cores() // n, device.type == "cuda") for n in dict.fromkeys(args.processes)]
    turns: list[Any] = [lambda turn, job=job: images_per_second(job) for job in jobs]
    speeds = measure.interleave(turns, args.rounds, args.warmup_rounds, "scaling")
    what = f"batch {args.train_batch} of each process, {args.img_size} px, on {device.type.upper()}"
    note = f"efficiency: images/s per {'GPU' if device.type == 'cuda' else 'core'}, relative to the first row"
    title = f"training step of {args.arch}, {what}"
    return [Table(title, "images/s", compare(jobs, speeds), best=max, notes=[note])]


def compare(jobs: Sequence[Job], speeds: Sequence[Sequence[float]]) -> list[Result]:
    """Return a row for each job; efficiency is the median images/s per share, relative to the first job."""
    own = [statistics.median(rounds) / job.shares for job, rounds in zip(jobs, speeds, strict=True)]
    return [
        Result(
            plural(job.processes, "process"),
            rounds,
            {"threads each": job.threads, "efficiency": per / own[0]},
        )
        for job, rounds, per in zip(jobs, speeds, own, strict=True)
    ]
