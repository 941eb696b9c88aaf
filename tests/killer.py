#!/usr/bin/env python
"""Kill a training script at random moments, resume it each time, and compare with the uninterrupted run.

Started by tests/test_resume.py. The script's modules are imported once and every run is a fork of this
process, so that a kill costs no import of torch. Prints what it did as JSON.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from utils.command_line import cli
from utils.common.randomness import derive_seed
from utils.networks.archive import checksum
from utils.training import ahead
from utils.training.classification import Classification
from utils.training.mixing import MixedBatch

WORKERS = (0, 1, 4)


def start(script: str, flags: Sequence[str], processes: int) -> list[int]:
    """Fork the processes of a run; returns their ids."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [fork(script, flags, rank, processes, port) for rank in range(processes)]


def fork(script: str, flags: Sequence[str], rank: int, processes: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)  # its data workers are killed with it
    log = Path("run.log").open("a")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    place = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "MASTER_PORT": port}
    if processes > 1:
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in place.items()}})
    sys.argv = [f"{script}.py", *flags]
    code = 1
    try:
        cli.run(importlib.import_module(script).main)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def spoil(seed: int, batches: Sequence[Sequence[int]]) -> None:
    """Make the images of some batches nan, each given by epoch, batch and rank; no host looks in between."""
    seeds = {derive_seed(seed, "mix", *batch) for batch in batches}
    prepare = Classification.prepare

    def spoiled(task: Classification, images: Tensor, targets: Tensor, seed: int) -> MixedBatch:
        return prepare(task, images * float("nan") if seed in seeds else images, targets, seed)

    Classification.prepare = spoiled  # type: ignore[assignment, method-assign]
    ahead.LOOK_SECONDS = 1e9


def wait(children: Sequence[int], seconds: float) -> list[int | None]:
    """Exit codes so far, when all have ended or the time is up."""
    codes: dict[int, int | None] = dict.fromkeys(children)
    end = time.monotonic() + seconds
    while None in codes.values() and time.monotonic() < end:
        for child in [child for child, code in codes.items() if code is None]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return list(codes.values())


def kill(children: Sequence[int], codes: Sequence[int | None], chosen: int) -> None:
    """SIGKILL one process of the run, and its others soon after, as torchrun does."""
    running = [child for child, code in zip(children, codes, strict=True) if code is None]
    os.kill(running[chosen % len(running)], signal.SIGKILL)
    time.sleep(0.05)
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def fingerprint(folder: str) -> dict[str, str]:
    """What must not depend on interruptions: the last and the best checkpoint, log.txt."""
    found = {"log.txt": Path(folder, "log.txt").read_text()}
    for name in ("checkpoint", "model_best"):
        saved = torch.load(f"{folder}/{name}.pth.tar", weights_only=True)
        own = {"checksum", "arguments", "command", "commit", "versions"}
        found[name] = checksum({key: value for key, value in saved.items() if key not in own})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("script")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    text = "epoch, batch and rank of a batch whose images are nan; the run's seed is 7"
    parser.add_argument("--spoil", type=int, nargs=3, action="append", default=[], help=text)
    parser.add_argument("--rest", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    importlib.import_module(args.script)
    if args.spoil:
        spoil(7, args.spoil)
    choose = random.Random(args.seed)
    began = time.monotonic()
    codes = wait(start(args.script, [*args.rest, "-c", "whole", "-j", "1"], args.processes), 240)
    assert set(codes) == {0}, Path("run.log").read_text()[-3000:]
    duration = time.monotonic() - began
    left_out = Path("run.log").read_text().count("the step is left out")
    expected, kills, chain, differing = fingerprint("whole"), 0, 0, []
    while kills < args.kills or Path(f"chain-{chain}").exists():
        flags = ["-c", f"chain-{chain}", "--resume", "auto", "-j", str(choose.choice(WORKERS))]
        children = start(args.script, [*args.rest, *flags], args.processes)
        patience = choose.uniform(0, duration) if kills < args.kills else 240
        codes = wait(children, patience)
        if None in codes:
            assert kills < args.kills, "it hangs"
            kill(children, codes, choose.randrange(8))
            kills += 1
        else:
            assert set(codes) == {0}, Path("run.log").read_text()[-3000:]
            differing += [] if fingerprint(f"chain-{chain}") == expected else [chain]
            chain += 1
    found = {"kills": kills, "runs": chain, "differing": differing, "left out": left_out}
    print(json.dumps({**found, "seconds": duration}))


if __name__ == "__main__":
    main()
