"""Reading many images in several processes, and listing those that cannot be read."""

import os
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.loading import Broken

BATCH = 32  # images that a worker decodes at a time
FILES = 20  # broken files that are listed


def broken_file(path: str, error: Exception) -> Broken:
    """Return a file that cannot be decoded, with its decoder's message (without the path)."""
    reason = getattr(error, "strerror", None) or str(error).replace(repr(path), "")
    return Broken(path, f"{type(error).__name__}: {reason.strip()}")


def by_workers(work: Dataset[Any], paths: list[str], workers: int, title: str) -> Generator[Any, None, None]:
    """Yield ``work[path]`` for each path in their order, computed by data workers, with a progress bar.

    Raises:
        UserError: a worker died.
    """
    batches = (paths[i : i + BATCH] for i in range(0, len(paths), BATCH))
    fork: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    loader = DataLoader(work, batch_sampler=batches, collate_fn=list, **fork)
    # Forked workers inherit the blocked signal, so that Ctrl-C reaches this process only.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    results = iter(loader)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    done = 0
    with tqdm(desc=title, total=len(paths), unit=" images", leave=False, disable=None) as bar:
        try:
            for batch in results:
                yield from batch
                done += len(batch)
                bar.update(len(batch))
        except RuntimeError as error:  # torch raises it when a worker is dead
            suspects = paths[done : done + 2 * workers * BATCH]
            where = f"one of the {plural(len(suspects), 'file')} from {shown(suspects[0])} on"
            raise UserError(f"a worker died on {where}; if for want of memory, lower --workers") from error


def listed(broken: Sequence[Broken], root: Path) -> list[str]:
    """Return a line for each of the first files (paths within ``root``), and the number of the others."""
    lines = [f"  {os.path.relpath(path, root)}: {reason}" for path, reason in broken[:FILES]]
    return lines + [f"  ... and {len(broken) - FILES:,} more"] * (len(broken) > FILES)


def say(*lines: str) -> None:
    """Print without delay, because the decoding that follows may take hours."""
    print(*map(shown, lines), sep="\n", flush=True)
