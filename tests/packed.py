"""The images of class folders, packed into archives of every form that --data takes."""

import io
import tarfile
from pathlib import Path

import numpy as np
from conftest import write_images
from scipy.io import savemat

CLASSES = ("n01440764", "n01443537", "n02129165")
IDS = (3, 1, 2)  # ILSVRC's, which are of another order
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def write_folders(root: Path, training: int = 8, validation: int = 3, side: int = 36) -> Path:
    """Class folders whose files have ImageNet's names; validation images of one class are not consecutive."""
    for label, name in enumerate(CLASSES):
        write_images(root / "train" / name, training, label, (side, side))
        write_images(root / "val" / name, validation, label + 100, (side, side))
        for i in range(training):
            (root / "train" / name / f"{i}.JPEG").rename(root / "train" / name / f"{name}_{i}.JPEG")
        for i in range(validation):
            number = 1 + label + len(CLASSES) * i
            (root / "val" / name / f"{i}.JPEG").rename(
                root / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG"
            )
    return root


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), 1_300_000_000
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def write_devkit(root: Path, truth: list[int]) -> None:
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    rows = [(number, name, name, 0) for number, name in sorted(zip(IDS, CLASSES, strict=True))]
    content = io.BytesIO()
    savemat(content, {"synsets": np.array([*rows, (1001, "n00001740", "entity", 3)], dtype=kinds)[:, None]})
    lines = "".join(f"{number}\n" for number in truth).encode()
    with tarfile.open(root / DEVKIT, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", content.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines)


def pack_official(folders: Path, target: Path) -> Path:
    """As ImageNet is published: a tar of tars, a flat tar, the devkit."""
    target.mkdir()
    with tarfile.open(target / "ILSVRC2012_img_train.tar", "w", format=tarfile.GNU_FORMAT) as outer:
        for folder in sorted((folders / "train").iterdir(), reverse=True):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for file in (folders / "train" / folder.name).iterdir():
                    add(inner, file.name, file.read_bytes())
            add(outer, f"{folder.name}.tar", content.getvalue())
    files = sorted((folders / "val").rglob("*.JPEG"), key=lambda file: file.name)
    with tarfile.open(target / "ILSVRC2012_img_val.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for file in reversed(files):
            add(tar, file.name, file.read_bytes())
    write_devkit(target, [IDS[CLASSES.index(file.parent.name)] for file in files])
    return target


def pack_listed(folders: Path, target: Path) -> Path:
    """The same with a list of labels in place of the devkit."""
    pack_official(folders, target)
    (target / DEVKIT).unlink()
    files = sorted((folders / "val").rglob("*.JPEG"), key=lambda file: file.name)
    (target / "ILSVRC2012_img_val.txt").write_text("".join(f"{file.parent.name}\n" for file in files))
    return target


def pack_plain(folders: Path, target: Path, prefix: str = "", format: int = tarfile.PAX_FORMAT) -> Path:
    """``train.tar`` and ``val.tar`` with class folders."""
    target.mkdir()
    for split in ("train", "val"):
        with tarfile.open(target / f"{split}.tar", "w", format=format) as tar:
            for file in sorted((folders / split).rglob("*.JPEG"), reverse=True):
                add(tar, prefix + file.relative_to(folders / split).as_posix(), file.read_bytes())
    return target


def pack_shards(folders: Path, target: Path, shards: int = 3, beside: bool = False) -> Path:
    """WebDataset's form, mixed over the shards; in folders, or ``beside`` each other by their names."""
    target.mkdir()
    for split in ("train", "val"):
        files = sorted((folders / split).rglob("*.JPEG"), key=lambda file: file.name[::-1])
        for number in range(shards):
            name = f"{split}-{number:06d}.tar" if beside else f"{split}/{number:06d}.tar"
            (target / name).parent.mkdir(exist_ok=True)
            with tarfile.open(target / name, "w") as tar:
                for file in files[number::shards]:
                    add(tar, file.name, file.read_bytes())
                    add(tar, f"{file.stem}.cls", file.parent.name.encode())
                    add(tar, f"{file.stem}.json", b"{}")
    return target
