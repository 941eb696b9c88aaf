"""Where a run goes on: the checkpoint of ``--resume``, and what differs from the run that wrote it."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.text import plural
from utils.data.sampling import Position
from utils.networks import checkpoint
from utils.runs.folder import BEST, LAST, candidates, check_folder, kept, newest
from utils.runs.log import LOG, read_rows
from utils.runs.provenance import changes

DEFAULT_FOLDER = "checkpoint"


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from, or an evaluation reads; empty for a new run.

    Args:
        folder: of the run that goes on: ``-c``, or else the checkpoint's, or else ``checkpoint``.
        file: the checkpoint; None for a new run.
        saved: its content; empty for a new run.
        auto: whether ``--resume auto`` chose it.
        seen: with ``auto``, the checkpoints that the folder held when it chose.
    """

    folder: Path
    file: str | None = None
    saved: Mapping[str, Any] = field(default_factory=dict)
    auto: bool = False
    seen: tuple[Path, ...] = ()

    @property
    def in_place(self) -> bool:
        """Whether the run goes on in its own folder from the last checkpoint there."""
        if self.file is None or Path(self.file).resolve().parent != self.folder.resolve():
            return False
        last = next(iter(kept(self.folder)), None)
        return self.auto or Path(self.file).name in (LAST, last and last.name)

    def check_start(self, epochs: int, overwrite: bool) -> None:
        """Check that something of ``--epochs`` is left to do, except with ``auto``, and the run's folder.

        Raises:
            UserError: the run is finished, or may not write into the folder.
        """
        done = int(self.saved.get("epoch", 0))
        if done >= epochs and not self.auto:
            are = "1 epoch is" if done == 1 else f"{done} epochs are"
            raise UserError(f"--resume {self.file}: {are} done; give --epochs above that to go on")
        check_folder(self.folder, self.in_place, overwrite)

    def check_unchanged(self) -> None:
        """Check that the folder still holds what ``auto`` saw there.

        Raises:
            UserError: another process has trained into it.
        """
        if self.auto and tuple(candidates(self.folder)) != self.seen:
            raise UserError(f"-c {self.folder}: another process has trained into it meanwhile; start again")

    def check_archives(self, now: Mapping[str, str]) -> None:
        """Check that the images in archives are those that the run began with.

        Args:
            now: a digest for each split that is read from archives. Other splits are not compared.

        Raises:
            UserError: names, classes, sizes, times or bytes of the images have changed.
        """
        then = self.saved.get("archives", {})
        for split in sorted(then.keys() & now.keys()):
            if then[split] != now[split]:
                what = f"--resume {self.file}: {split} is read from another archive than in that run"
                remedy = "give the same, or start a run with --finetune"
                raise UserError(
                    f"{what} (names, classes, sizes, times or bytes of its images differ): {remedy}"
                )

    def position(self, start_epoch: int, count: int, ranks: Ranks) -> Position:
        """Return where training goes on.

        Args:
            start_epoch: the first epoch, from 0, where the checkpoint does not say it.
            count: how many sums the task's metrics have.
            ranks: the processes that train together.

        Raises:
            UserError: the checkpoint holds the sums of another task.
        """
        if start_epoch and "epoch" in self.saved:
            print(f"note: --start-epoch {start_epoch} is not used: {self.file} has its own")
        epoch, images = int(self.saved.get("epoch", start_epoch)), int(self.saved.get("images", 0))
        sums = self.saved.get("sums", [])
        if any(len(part) not in (0, count) for part in sums):
            raise UserError(f"--resume {self.file}: damaged (sums not of the kind expected)")
        if len(sums) != ranks.size:  # another number of processes: rank 0 takes the sum over all
            totals = [sum(column) for column in zip(*filter(None, sums), strict=True)]
            sums = [totals, *[[]] * (ranks.size - 1)]
        return Position(epoch, images, tuple(sums[ranks.rank]))

    def previous_rows(self, epochs: int) -> list[str]:
        """Return log.txt's rows of the epochs before: the checkpoint's, or those of a log.txt beside it."""
        if "rows" in self.saved:
            return list(self.saved["rows"][1:])
        if self.file is None:
            return []
        rows = read_rows(Path(self.file).parent / LOG)[:epochs]
        if len(rows) < epochs:
            print(f"note: {len(rows)} of {epochs} earlier epochs are in a log.txt beside {self.file}")
        return rows

    def best(self) -> Path | None:
        """Return the best checkpoint: this one if it is the best epoch, else model_best beside it."""
        if self.file is None:
            return None
        saved, path = self.saved, Path(self.file)
        if saved.get("best_epoch") == saved.get("epoch") and not saved.get("images", 0):
            return path
        beside = path.parent / BEST
        if not beside.exists():
            return None
        try:
            found = checkpoint.load(str(beside))
        except UserError:
            found = {}
        wanted = {key: saved.get(key) for key in ("arch", "best_acc")} | {"epoch": saved.get("best_epoch")}
        if all(found.get(key) == value for key, value in wanted.items() if value is not None) and found:
            return beside
        print(f"note: {beside} is not the best before {path}: not brought along")
        return None


def find_checkpoint(
    resume: str | None, folder: str | None, evaluate: bool = False, ranks: Ranks = ONE_PROCESS
) -> Resumed:
    """Load the checkpoint of ``--resume``, if there is one to load.

    Args:
        resume: a file; ``auto``: the newest checkpoint in ``folder``, if there is one; None: a new run.
        folder: ``-c``, if it was given.
        evaluate: whether there must be a checkpoint.
        ranks: the processes of the job. All load the same file.

    Raises:
        UserError: it cannot be read, or is another on another machine, or there is nothing to evaluate.
    """
    auto, file = resume == "auto", resume
    path = Path(folder or (Path(resume).parent if resume and not auto else DEFAULT_FOLDER))
    seen = tuple(candidates(path)) if auto else ()
    if auto:
        with ranks.agree():
            found = newest(path) if ranks.main else None
            if ranks.main and found is None and evaluate:
                raise UserError(f"--resume auto: there is no checkpoint in {path} to evaluate; give -c DIR")
        file = ranks.gather(found)[0]
        if file is None:
            print(f"--resume auto: no checkpoint in {path}/: starting anew")
    with ranks.agree() as same:
        saved = checkpoint.load(file) if file else {}
        if "checksum" in saved:  # the files of a folder that is not shared may be others
            same["--resume"] = f"a file with checksum {saved['checksum'][:8]}"
    return Resumed(path, file, saved, auto, seen)


def choose_seed(requested: int | None, resumed: int | None) -> int:
    """Return the run's seed: as requested, else the resumed run's, else a random one of 1 to 10,000."""
    if requested is not None:
        return requested
    return resumed if resumed is not None else random.SystemRandom().randint(1, 10_000)


def differences(saved: Mapping[str, Any], fields: Mapping[str, Any], reached: Position) -> Iterator[str]:
    """Yield the reasons why a resumed run will not match an uninterrupted one.

    Args:
        saved: the checkpoint.
        fields: what the run's own checkpoints will hold.
        reached: where training goes on.
    """
    if saved.get("seed", fields["seed"]) != fields["seed"]:
        yield f"that run's seed is {saved['seed']}: order and augmentation will differ from it"
    if reached.images and saved.get("training_images", 0) != fields["training_images"]:
        yield "the number of training images has changed: the rest of the epoch is of another order"
    then, now = ((of.get("processes", 0), of.get("images_per_step", 0)) for of in (saved, fields))
    if "images_per_step" in saved and then != now:
        had = f"{plural(then[0], 'process')} and steps of {plural(then[1], 'image')}"
        left = "every image that was left is read, but for those at the end that fill no step"
        yield f"that run had {had}, this one {now[0]} and {now[1]:,}: what follows differs from it; {left}"
    if saved.get("versions", fields["versions"]) != fields["versions"]:
        yield f"that run had other versions: {saved['versions']}; results may differ in the last bits"
    if saved.get("gate_code", fields.get("gate_code")) != fields.get("gate_code"):
        yield "the file of --gate-file has changed since that run began"
    if changed := changes(saved.get("arguments", {}), fields["arguments"]):
        yield f"other than in that run: {', '.join(changed)}"
