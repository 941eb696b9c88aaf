"""Files that a crash cannot leave half written."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write under a temporary name, flush to the disk and rename.

    At any moment the name leads to a whole file, the previous or the new one; a failure leaves the previous.

    Args:
        path: the file.
        write: fills the temporary one.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _publish(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def copy_atomically(source: Path, path: Path) -> None:
    """Make ``path`` a second name of the file ``source``; a copy where there are no hard links."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    """Rename, and flush the folder so that the rename survives a power cut."""
    temporary.chmod(0o644)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
