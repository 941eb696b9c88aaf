"""Files that a crash cannot leave half written."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.common.errors import UserError

# What file systems answer that cannot open or flush a folder: of networks, of FUSE, of other systems.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)
_MARK = ".unfinished-"  # in the name of a temporary file


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write under a temporary name, flush to the disk and rename.

    At any moment the name leads to a whole file, the previous or the new one; a failure leaves the previous.

    Args:
        path: the file.
        write: fills the temporary one.
    """
    with _replacing(path) as temporary:
        try:
            with temporary.open("xb") as file:
                write(file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None  # torch's writer hides that the disk is full
            raise


def write_output(path: Path, content: bytes, what: str) -> None:
    """Write a file that the user has asked for, whole or not at all.

    Args:
        path: the file.
        content: all of it.
        what: begins the message of a failure: the flag and the file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}") from error


def copy_atomically(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to the file ``source``, or a copy where there are no hard links."""
    with _replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes; no other process may be writing there."""
    for path in folder.glob(f".*{_MARK}????????"):
        path.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give the block a temporary name, and make the file that it writes there ``path``."""
    temporary = path.with_name(f".{path.name}{_MARK}{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)  # so that the renaming survives a power cut
    finally:
        temporary.unlink(missing_ok=True)  # renaming does nothing if both are names of one file


def _flush_folder(path: Path) -> None:
    """Wait until a folder's list of files is on the disk, if its file system can say that."""
    try:
        _flush(path)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
