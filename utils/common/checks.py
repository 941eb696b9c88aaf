"""Checks before the work of what would fail after it."""

import importlib.util
import os
from pathlib import Path

from utils.common.errors import UserError
from utils.common.text import shown


def check_output(path: Path, flag: str = "", overwrite: bool = True) -> None:
    """Check before the work that an output file can be written.

    Args:
        path: the file.
        flag: what named it, for messages.
        overwrite: whether it may be there already.

    Raises:
        UserError: it cannot be written, or may not.
    """
    name = f"{flag} {shown(str(path))}".lstrip()
    if path.is_dir():
        raise UserError(f"{name}: is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{name} is there already: give another name, or --overwrite")
    if not path.parent.is_dir():
        parent = shown(str(path.parent))
        raise UserError(f"{name}: its folder is not there (no folder {parent}): make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{name}: no permission to write in {shown(str(path.parent))}")


def check_folder_of_output(path: Path, flag: str, overwrite: bool) -> None:
    """Check before the work that an output folder, which may not be there yet, holds nothing of others.

    Args:
        path: the folder.
        flag: what named it, for messages.
        overwrite: whether files in it may be replaced.

    Raises:
        UserError: it is a file, cannot be read, or holds something and nothing may be replaced.
    """
    name = f"{flag} {shown(str(path))}"
    try:
        if not overwrite and path.exists() and any(path.iterdir()):
            raise UserError(f"{name} is not empty: give another folder, or --overwrite")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; give another folder") from None


def check_libraries(what: str, *names: str) -> None:
    """Check before the work that the libraries of ``what`` are installed.

    Raises:
        UserError: one is not installed.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{what}: {' and '.join(missing)} {are} not installed; pip install {' '.join(names)}")
