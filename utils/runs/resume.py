"""Where a run goes on: the checkpoint of ``--resume``, and what differs from the run that wrote it."""

import argparse
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.text import plural
from utils.data.sampling import Position
from utils.networks import checkpoint
from utils.runs.log import LOG, read_rows
from utils.runs.provenance import changes


def resumed(args: argparse.Namespace, ranks: Ranks = ONE_PROCESS) -> dict[str, Any]:
    """The checkpoint of ``--resume``, or nothing.

    Changes ``args``: ``resume`` from ``auto`` to the newest checkpoint in the run's folder, or None where
    there is none; then ``finetune``, ``pretrained`` and ``zero_gamma``, which are for a start, stay or go.
    ``auto`` says whether it was so, ``seen`` what lay there.

    Raises:
        UserError: it cannot be read, or there is nothing to evaluate.
    """
    args.auto = args.resume == "auto"
    args.seen = []
    if args.auto:
        folder = Path(args.checkpoint or "checkpoint")
        args.seen = checkpoint.candidates(folder)
        with ranks.agree():
            found = checkpoint.newest(folder) if ranks.main else None
            if ranks.main and found is None and args.evaluate:
                raise UserError(f"--resume auto: there is no checkpoint in {folder} to evaluate; give -c DIR")
        args.checkpoint, args.resume = str(folder), ranks.gather(found)[0]
        if args.resume is None:
            print(f"--resume auto: no checkpoint in {folder}/: starting anew")
        else:
            args.finetune, args.pretrained, args.zero_gamma = None, False, False
    with ranks.agree():
        saved = checkpoint.load(args.resume) if args.resume else {}
    if args.start_epoch and "epoch" in saved:
        print(f"note: --start-epoch {args.start_epoch} is not used: {args.resume} has its own")
    return saved


def choose_seed(requested: int | None, resumed: int | None) -> int:
    """The run's seed: as requested, else the resumed run's, else a random one of 1 to 10,000."""
    if requested is not None:
        return requested
    return resumed if resumed is not None else random.SystemRandom().randint(1, 10_000)


def check_start(args: argparse.Namespace, saved: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that is finished; one that ``auto`` has found may be.

    Raises:
        UserError: so it is.
    """
    epochs = int(saved.get("epoch", 0))
    if epochs >= args.epochs and not args.auto:
        done = "1 epoch is" if epochs == 1 else f"{epochs} epochs are"
        raise UserError(f"--resume {args.resume}: {done} done; give --epochs above that to go on")


def start_of_training(
    args: argparse.Namespace, saved: Mapping[str, Any], ranks: Ranks = ONE_PROCESS
) -> Position:
    """Where training goes on."""
    epoch, images = int(saved.get("epoch", args.start_epoch)), int(saved.get("images", 0))
    sums = saved.get("sums", [])
    if len(sums) != ranks.size:  # another number of processes: rank 0 takes the sum over all
        totals = [sum(column) for column in zip(*filter(None, sums), strict=True)]
        sums = [totals, *[[]] * (ranks.size - 1)]
    return Position(epoch, images, tuple(sums[ranks.rank]))


def differences(saved: Mapping[str, Any], fields: Mapping[str, Any], reached: Position) -> Iterator[str]:
    """What will make the rest of a resumed run another than the uninterrupted run's."""
    if saved.get("seed", fields["seed"]) != fields["seed"]:
        yield f"that run's seed is {saved['seed']}: order and augmentation will differ from it"
    if reached.images and saved.get("training_images", 0) != fields["training_images"]:
        yield "the number of training images has changed: the rest of the epoch is of another order"
    steps = [(of.get("processes", 0), of.get("images_per_step", 0)) for of in (saved, fields)]
    if "images_per_step" in saved and steps[0] != steps[1]:
        (processes, images), now = steps[0], steps[1]
        yield (
            f"that run had {plural(processes, 'process')} and steps of {plural(images, 'image')}, this one "
            f"{now[0]} and {now[1]:,}: what follows differs from it; every image that was left is read, but "
            "for those at the end that fill no step"
        )
    if saved.get("versions", fields["versions"]) != fields["versions"]:
        yield f"that run had other versions: {saved['versions']}; results may differ in the last bits"
    if changed := changes(saved.get("arguments", {}), fields["arguments"]):
        yield f"other than in that run: {', '.join(changed)}"


def previous_rows(args: argparse.Namespace, saved: Mapping[str, Any], epochs: int) -> list[str]:
    """log.txt rows of the epochs before: from the checkpoint, or a published one's log.txt beside it."""
    if "rows" in saved:
        return saved["rows"][1:]
    if not args.resume:
        return []
    rows = read_rows(Path(args.resume).parent / LOG)[:epochs]
    if len(rows) < epochs:
        print(f"note: {len(rows)} of {epochs} earlier epochs are in a log.txt beside {args.resume}")
    return rows
