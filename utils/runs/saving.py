"""Writing a run's checkpoints and log.txt while training goes on."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.common.files import remove_leftovers
from utils.networks import checkpoint
from utils.runs.folder import Predecessor
from utils.runs.log import write_log


class Saver:
    """Writes in a thread, one checkpoint after the other; training waits for a copy in memory only.

    A crash between any two calls of a save leaves what :meth:`repair` completes.

    Args:
        folder: the run's.
        keep: checkpoints under the name of their position that stay.
        before: what the folder holds of another run, cleared away once the first checkpoint is written.
    """

    def __init__(self, folder: Path, keep: int, before: Predecessor | None) -> None:
        self.folder, self.keep, self.before = folder, keep, before
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self.writing: Future[None] | None = None

    def save(self, content: Mapping[str, Any], is_best: bool) -> None:
        """Begin to write a checkpoint, and its ``rows`` to log.txt; ``content`` may change afterwards.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self.writing = self.thread.submit(self._write, copied(content), is_best)

    def wait(self) -> None:
        """Until all is written.

        Raises:
            OSError: it could not be.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the thread end, after an error too."""
        self.thread.shutdown()

    def repair(self, path: Path, rows: Sequence[str], is_best: bool) -> None:
        """Complete what a crash has left undone after ``path``, the newest whole checkpoint, was written."""
        remove_leftovers(self.folder)
        for newer in checkpoint.kept(self.folder):
            if newer == path:
                break
            newer.unlink()  # damaged, and it would be kept in place of whole ones
        write_log(self.folder, rows)
        checkpoint.publish(path, is_best, self.keep)

    def _write(self, content: dict[str, Any], is_best: bool) -> None:
        if self.before is not None:
            self.before.step_back()
        path = checkpoint.save(content, self.folder)
        if self.before is not None:
            self.before.leave()
            self.before = None
        write_log(self.folder, content["rows"])
        checkpoint.publish(path, is_best, self.keep)


def copied(value: Any) -> Any:
    """A copy of nested dicts and lists in which the tensors are copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value
