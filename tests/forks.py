"""Processes that begin with torch and the training scripts imported, which at every start takes seconds.

They are forks of a server, which imports all that once for a test process. Apart from the imports each is
like a process of a new interpreter, with its own arguments, environment, folder, outputs, session, signals
and exit code. What is to be a new interpreter, tests start by ``conftest.start_process``.
"""

import atexit
import io
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tiny_net import WITH_TINY

import models

SERVER = multiprocessing.get_context("forkserver")
SCRIPTS = ("imagenet", "imagenet_fast", "imagenet_mobile", "killer", "torch.distributed.run")
LATER = ("matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.datasets")  # what they import late
SERVER.set_forkserver_preload(["pytest", "forks", *SCRIPTS, *LATER])
PATIENCE = 300  # seconds


def play(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], outputs: Sequence[Path]
) -> None:
    """Be the process of ``python COMMAND``, a script or ``-m`` and a module."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in a shell's background ignore it
    multiprocessing.set_start_method(None, force=True)  # for its own children that of a new interpreter
    multiprocessing.set_forkserver_preload([])
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    if encoding := environment.get("PYTHONIOENCODING"):  # read when an interpreter starts
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding=encoding)
    os.chdir(folder)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    models._OWN = WITH_TINY
    try:
        if command[0] == "-m":
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as at the end of an interpreter; forks of multiprocessing leave them out


class Job:
    """One or several processes of a command; each leads a process group.

    Args:
        folder: where they start.
        outputs: a folder for what they print, which they share.
        command: a script or ``-m`` and a module, and arguments.
        environments: what each process's environment has beside this process's.
    """

    def __init__(
        self,
        folder: Path,
        outputs: Path,
        command: Sequence[object],
        environments: Sequence[Mapping[str, object]] = ({},),
    ) -> None:
        self.command = list(map(str, command))
        self.outputs = (outputs / "stdout", outputs / "stderr")
        for output in self.outputs:
            output.touch()
        self.processes = []
        for further in environments:
            environment = {**os.environ, **{key: str(value) for key, value in further.items()}}
            process = SERVER.Process(target=play, args=(self.command, folder, environment, self.outputs))
            process.start()
            self.processes.append(process)

    @property
    def pid(self) -> int:
        assert self.processes[0].pid
        return self.processes[0].pid

    @property
    def returncode(self) -> int | None:
        """That of the first process that failed, or else 0; None while one runs."""
        codes = [process.exitcode for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    @property
    def running(self) -> bool:
        return any(process.exitcode is None for process in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            if process.exitcode is None and process.pid:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its data workers too

    def read(self) -> tuple[str, str]:
        """What they have written so far."""
        out, err = (output.read_text(errors="surrogateescape") for output in self.outputs)
        return out, err

    def wait_for(self, pattern: str) -> None:
        """Until they have written a line that matches."""
        while not re.search(pattern, self.read()[0]):
            assert self.running, self.read()[1]
            time.sleep(0.02)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """What they have written when all have ended; if one fails, the others are stopped as by torchrun."""
        end = time.monotonic() + timeout
        while self.running:
            if self.returncode:
                for process in self.processes:
                    process.terminate()
                end = min(end, time.monotonic() + 10)
                for process in self.processes:
                    process.join(max(0, end - time.monotonic()))
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.command, timeout, *map(str.encode, self.read()))
            self.processes[0].join(0.02) if self.processes[0].exitcode is None else time.sleep(0.02)
        return self.read()

    def complete(self) -> subprocess.CompletedProcess[str]:
        out, err = self.communicate()
        assert self.returncode is not None
        return subprocess.CompletedProcess(self.command, self.returncode, out, err)
