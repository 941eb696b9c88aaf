"""Walking through a folder of images and the folders in it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from torchvision.datasets.folder import IMG_EXTENSIONS


class Folder(NamedTuple):
    """One folder of a walk and what it holds."""

    path: str  # within the folder where the walk began; ends in a slash, or is empty for that folder itself
    status: os.stat_result  # taken before the folder was read
    folders: "list[os.DirEntry[str]]"  # links to folders included
    files: "list[os.DirEntry[str]]"  # everything else, also links that lead nowhere
    is_loop: bool = False  # a link to a folder that it lies in: nothing of it is read


def is_image(name: str) -> bool:
    """Return whether training takes a file of this name for an image."""
    return name.lower().endswith(IMG_EXTENSIONS)


def walk(root: str | Path, on_error: Callable[[str, OSError], object] | None = None) -> Iterator[Folder]:
    """Yield a folder and then, depth first, the folders in it; hidden ones too.

    Links are followed, except to a folder that they lie in: it is yielded as a loop. What the caller removes
    from ``folders`` is not entered.

    Args:
        root: where the walk begins.
        on_error: takes the path of a folder, within ``root``, that cannot be read; without it the walk ends.

    Raises:
        OSError: a folder cannot be read, and there is no ``on_error``.
    """
    refuse = on_error or _raise
    outside = frozenset(_identity(parent.stat()) for parent in Path(root).resolve().parents)
    waiting = [("", outside)]
    while waiting:
        path, above = waiting.pop()
        try:
            folder = _read(f"{root}/{path}", path, above)
        except OSError as error:
            refuse(path, error)
            continue
        yield folder
        inside = above | {_identity(folder.status)}
        waiting += [(f"{path}{entry.name}/", inside) for entry in reversed(folder.folders)]


def _read(place: str, path: str, above: frozenset[tuple[int, int]]) -> Folder:
    status = Path(place).stat()
    folder = Folder(path, status, [], [], is_loop=_identity(status) in above)
    if not folder.is_loop:
        with os.scandir(place) as entries:
            for entry in entries:
                (folder.folders if _is_folder(entry) else folder.files).append(entry)
    return folder


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link to itself, which torchvision takes for a file
        return False


def _raise(path: str, error: OSError) -> NoReturn:
    raise error
