"""The walk through a folder of images: its order, links, loops, and folders that cannot be read."""

import os
from pathlib import Path

import pytest

from utils.data.folders import Folder, walk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of files, folders and links."""
    root = tmp_path / "data" / "root"
    for name in ("1.png", "a/2.png", "a/b/3.txt", ".hidden/4.png", "../elsewhere/5.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "link").symlink_to(tmp_path / "data" / "elsewhere")
    (root / "up").symlink_to("..")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "dead.png").symlink_to("nowhere")
    (root / "circle").symlink_to("circle")
    return root


def files(folder: Folder) -> set[str]:
    return {folder.path + entry.name for entry in folder.files}


def test_everything_is_found_once(root: Path) -> None:
    folders = list(walk(root))
    assert {folder.path for folder in folders if folder.is_loop} == {"up/", "a/self/"}
    assert {folder.path for folder in folders if not folder.is_loop} == {
        "",
        "a/",
        "a/b/",
        ".hidden/",
        "link/",
    }
    assert set.union(*map(files, folders)) == {
        *("1.png", "dead.png", "circle", "a/2.png", "a/b/3.txt", ".hidden/4.png", "link/5.png")
    }


def test_the_caller_chooses_folders_and_their_order(root: Path) -> None:
    places = []
    for folder in walk(str(root)):
        places.append(folder.path)
        kept = [entry for entry in folder.folders if entry.name not in ("up", "self", ".hidden")]
        folder.folders[:] = sorted(kept, key=lambda entry: entry.name)
    assert places == ["", "a/", "a/b/", "link/"]


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("/a/"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr("utils.data.folders.os.scandir", refuse)  # root, who may run this, can read all
    with pytest.raises(PermissionError):
        list(walk(root))
    refused: list[str] = []
    places = {folder.path for folder in walk(root, lambda path, error: refused.append(path))}
    assert refused == ["a/"]
    assert places == {"", ".hidden/", "link/", "up/"}
