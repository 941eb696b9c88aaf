"""Running what is missing of a study: some runs at once, each in a process of its own."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from tqdm import tqdm

from scripts.lib.study_file import Study
from scripts.lib.study_recording import ROOT, code_of, facts_of, load_run, record
from scripts.lib.study_records import LOG, check_alike, check_row, read_records
from utils.common.errors import UserError
from utils.common.signals import Signals
from utils.runs import provenance
from utils.runs.folder import candidates
from utils.runs.log import LOG as RUN_LOG
from utils.runs.log import read_rows

OUTPUT = "output.txt"  # what a run prints, in its folder
_PATIENCE = 120.0  # seconds for a run that is told to stop, or that still stops after its study was killed
_LOOK = 0.2  # seconds between two looks at the processes
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Process(Protocol):
    """What is needed of a subprocess."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[Sequence[str], Path, dict[str, str]], Process]


@dataclass(frozen=True)
class Todo:
    """A run that is missing."""

    row: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"


def missing(study: Study, runs: Path) -> list[Todo]:
    """Return the runs without a record, seed by seed, so that all rows grow alike."""
    named = [(row, seed, f"{row}-{seed}") for seed in study.seeds for row in study.rows]
    return [
        Todo(row, seed, runs / name)
        for row, seed, name in named
        if not (study.folder / f"{name}{LOG}").exists()
    ]


def remove_halves(study: Study, todo: Sequence[Todo]) -> None:
    """Remove the facts that a killed study has written without their log."""
    for one in todo:
        (study.folder / f"{one.row}-{one.seed}.json").unlink(missing_ok=True)


@contextmanager
def only_one(study: Study) -> Iterator[None]:
    """Keep other processes from working on the same study.

    Raises:
        UserError: one does already, or the folder cannot be made.
    """
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
        with (study.folder / ".lock").open("w") as lock:
            fcntl.lockf(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # not of children, which may outlive this process
            yield
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"{study.path}: another process works on this study, or its folder is read-only"
        ) from None
    except OSError as error:
        raise UserError(f"{study.folder}: {error.strerror}") from None


def check_code(study: Study) -> None:
    """Check before anything runs that its runs could be recorded, and compared with those that are.

    Raises:
        UserError: the code is not committed, or it or the versions have changed since a run was recorded.
    """
    commit = provenance.commit()
    if not commit or commit.endswith("+"):
        state = "has changes that are not committed" if commit else "is of no commit (no git)"
        raise UserError(f"this code {state}, so that no run could be traced back to it: commit it first")
    recorded = [run for row in read_records(study).values() for run in row]
    if recorded:
        now = {"code": code_of(commit), "commit": commit, "versions": provenance.origin({})["versions"]}
        before = recorded[0]
        try:
            check_alike(before.facts, {**before.facts, **now}, (str(before.log), "what would run now"))
        except UserError as error:
            raise UserError(f"{error}: check out that commit, or copy {study.path} for a new study") from None


def check_folder(study: Study, todo: Todo) -> None:
    """Check that what a run's folder holds is the beginning of this run, by this code.

    Raises:
        UserError: it is of another.
    """
    if not candidates(todo.folder):
        return
    remedy = "remove the folder, or give another with --runs"
    try:
        facts = facts_of(load_run(todo.folder))
        check_row(study, todo.row, facts, f"RUN {todo.folder}")
        now = {"code": code_of(provenance.commit()), "commit": provenance.commit()}
        now |= {"versions": provenance.origin({})["versions"]}
        check_alike(facts, {**facts, **now}, (f"RUN {todo.folder}", "what would go on with it"))
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from None
    if facts["seed"] != todo.seed:
        raise UserError(f"RUN {todo.folder}: its seed is {facts['seed']}: {remedy}")


def command(study: Study, todo: Todo, workers: int) -> list[str]:
    """Return the command line of a run, from the interpreter on."""
    script = os.path.relpath(ROOT / study.script)
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={study.processes}"]
    own = ["--manualSeed", str(todo.seed), "-j", str(workers), "-c", str(todo.folder), "--keep", "1"]
    launcher = several if study.processes > 1 else []
    return [sys.executable, *launcher, script, *study.words(todo.row), *own, "--resume", "auto"]


def start_process(words: Sequence[str], output: Path, environment: dict[str, str]) -> Process:
    """Start a run, which is told to stop if this process dies."""
    set_death_signal = ctypes.CDLL(None).prctl  # looked up here: a fork must not

    def die_with_parent() -> None:
        set_death_signal(_SET_DEATH_SIGNAL, signal.SIGTERM)

    with output.open("ab") as file:
        return subprocess.Popen(
            list(words),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,  # a Ctrl-C is for this process, which then stops its runs
            preexec_fn=die_with_parent,
        )


class Runner:
    """Runs what is missing, so many at once, and records each run that ends.

    Args:
        study: the study.
        todo: the missing runs.
        jobs: how many run at once.
        gpus: the GPUs by the names of CUDA_VISIBLE_DEVICES; the runs share them evenly. Empty: no GPU.
        start: starts a process.
        recorded: is called after each record.
    """

    def __init__(
        self,
        study: Study,
        todo: Sequence[Todo],
        jobs: int,
        gpus: Sequence[str],
        start: Start,
        recorded: Callable[[], object],
    ) -> None:
        self.study, self.todo, self.jobs, self.start, self.recorded = study, list(todo), jobs, start, recorded
        self.gpus = gpus
        self.count = len(self.todo)
        self.running: dict[int, tuple[Todo, Process, float]] = {}  # by slot
        self.failed: list[Todo] = []
        self.begun = 0
        self.workers = max(1, (os.cpu_count() or 1) // jobs)

    def run(self) -> int:
        """Run until nothing is left or a signal comes; return the signal's number or 0."""
        waiting = self.todo[::-1]
        with Signals() as signals, tqdm(total=self.count, unit="run", leave=False, disable=None) as bar:
            while (waiting or self.running) and not signals.received:
                for slot in range(self.jobs):
                    if slot not in self.running and waiting:
                        self._begin(slot, waiting.pop(), bar)
                for slot in list(self.running):
                    self._look(slot, bar)
                bar.set_postfix_str(self._progress(), refresh=True)
                if self.running:
                    time.sleep(_LOOK)
            if signals.received:
                self._stop()
        return signals.received

    def _environment(self, slot: int) -> dict[str, str]:
        """Return what a run's environment has of its own: threads, and its share of the GPUs."""
        variables = {"OMP_NUM_THREADS": str(self.study.threads)}
        if self.gpus:
            share = self.study.processes
            at = slot * share % len(self.gpus)
            variables["CUDA_VISIBLE_DEVICES"] = ",".join((*self.gpus, *self.gpus)[at : at + share])
        return variables

    def _begin(self, slot: int, todo: Todo, bar: "tqdm[None]") -> None:
        self.begun += 1
        name = f"[{self.begun}/{self.count}] {todo}"
        try:
            todo.folder.mkdir(parents=True, exist_ok=True)
            wait_until_free(todo.folder)
            check_folder(self.study, todo)
            words = command(self.study, todo, self.workers)
            process = self.start(words, todo.folder / OUTPUT, self._environment(slot))
        except (UserError, OSError) as error:
            self._fail(todo, str(error), bar)
            return
        bar.write(f"{name}: started")
        self.running[slot] = (todo, process, time.monotonic())

    def _look(self, slot: int, bar: "tqdm[None]") -> None:
        """Record a run that has ended, or note that it failed."""
        todo, process, began = self.running[slot]
        if (code := process.poll()) is None:
            return
        del self.running[slot]
        if code:
            self._fail(todo, f"exit code {code}: {last_line(todo.folder / OUTPUT)}", bar)
            return
        try:
            log = record(self.study, todo.folder)
            self.recorded()
        except UserError as error:
            self._fail(todo, str(error), bar)
            return
        top1 = float(log.read_text().splitlines()[-1].split("\t")[4])
        bar.update()
        bar.write(f"{todo}: {top1:.2f} % after {minutes(time.monotonic() - began)}, wrote {log}")

    def _fail(self, todo: Todo, why: str, bar: "tqdm[None]") -> None:
        self.failed.append(todo)
        bar.update()
        bar.write(f"{todo} failed: {why}", file=sys.stderr)

    def _progress(self) -> str:
        """Say how far the runs are."""
        done = ((todo, len(read_rows(todo.folder / RUN_LOG))) for todo, _, _ in self.running.values())
        return ", ".join(f"{todo.row}-{todo.seed}: epoch {epochs + 1}" for todo, epochs in done)

    def _stop(self) -> None:
        """Tell all runs to save and end, and wait until they have."""
        for _, process, _ in self.running.values():
            process.terminate()
        for todo, process, _ in self.running.values():
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                print(f"note: {todo} still runs after {_PATIENCE:.0f} seconds", file=sys.stderr)


def wait_until_free(folder: Path) -> None:
    """Wait until no process trains into a folder: one that was told to stop may still save.

    Raises:
        UserError: one does for minutes.
    """
    end = time.monotonic() + _PATIENCE
    with (folder / ".lock").open("w") as lock:
        while not _lockable(lock):
            if time.monotonic() > end:
                raise UserError(f"RUN {folder}: another process trains into it")
            time.sleep(_LOOK)


def _lockable(lock: IO[str]) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def last_line(output: Path) -> str:
    """Return the last line that a run has printed: why it failed."""
    try:
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{lines[-1].strip()} ({output})" if lines else f"it printed nothing ({output})"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
