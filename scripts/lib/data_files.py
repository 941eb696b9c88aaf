"""The files of folders: images, other files, and links that lead nowhere."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from utils.common.errors import UserError
from utils.common.text import shown
from utils.data.folders import is_image, walk
from utils.data.loading import Broken


def kind_of(entry: "os.DirEntry[str]") -> str:
    """Return what an entry that is no folder is: ``image``, ``other`` (file) or ``dead link`` (or a pipe)."""
    try:
        if entry.is_file():
            return "image" if is_image(entry.name) else "other"
    except OSError:  # for example a link to itself
        pass
    return "dead link"


def find_images(names: Iterable[str]) -> tuple[list[str], list[Broken]]:
    """Return the images that files and folders stand for, those of a folder in order, and all dead links.

    Raises:
        UserError: a name is of nothing that exists, a folder cannot be read, or there are no images.
    """
    images: list[str] = []
    dead: list[Broken] = []
    for name in names:
        if Path(name).is_dir():
            found, lost = _search(name)
            images += found
            dead += lost
        elif Path(name).exists():
            images.append(name)
        else:
            raise UserError(f"{shown(name)}: no such file or folder")
    if not images and not dead:
        raise UserError(f"no images in {shown(' '.join(names))}: give image files, or folders with some")
    return images, dead


def _search(root: str) -> tuple[list[str], list[Broken]]:
    """Return the images and the dead links below a folder, in the order of their names."""

    def refuse(path: str, error: OSError) -> NoReturn:
        raise UserError(f"{shown(at(path))}: {error.strerror}") from error

    def at(path: str) -> str:
        return os.path.join(root, path.removesuffix("/")) if path else root  # noqa: PTH118 keeps root as typed

    images: list[str] = []
    dead: list[str] = []
    for folder in walk(root, refuse):
        if folder.is_loop:
            dead.append(at(folder.path))
        for entry in folder.files:
            kind = kind_of(entry)
            if kind != "other":
                (images if kind == "image" else dead).append(at(folder.path + entry.name))
    images.sort(key=_parts)
    return images, [Broken(path, "leads to no file") for path in sorted(dead, key=_parts)]


def _parts(path: str) -> tuple[str, ...]:
    """Return the key by which the files of a folder are sorted together."""
    return Path(path).parts
