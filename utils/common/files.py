"""Files that a crash cannot leave half written."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

_MARK = ".unfinished-"  # in the name of a temporary file


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write under a temporary name, flush to the disk and rename.

    At any moment the name leads to a whole file, the previous or the new one; a failure leaves the previous.

    Args:
        path: the file.
        write: fills the temporary one.
    """
    temporary = path.with_name(f".{path.name}{_MARK}{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch's writer hides that the disk is full
        raise


def copy_atomically(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to the file ``source``, or a copy where there are no hard links."""
    temporary = path.with_name(f".{path.name}{_MARK}{uuid.uuid4().hex[:8]}")
    try:
        os.link(source, temporary)
    except OSError:
        with source.open("rb") as content:
            write_atomically(path, lambda file: shutil.copyfileobj(content, file))
        return
    try:
        _publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes; no other process may be writing there."""
    for path in folder.glob(f".*{_MARK}????????"):
        path.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Rename, and flush the folder so that the rename survives a power cut."""
    os.replace(temporary, path)
    temporary.unlink(missing_ok=True)  # renaming does nothing if both are names of one file
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
