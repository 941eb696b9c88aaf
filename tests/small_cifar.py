"""CIFAR's binary archives in exactly the official form, with few images of random pixels."""

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packed import add

from utils.data import cifar

NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES_100 = [f"thing_{number:02d}" for number in range(100)]
TRAINING, TESTS = 20, 10  # images of each file of CIFAR-10; of CIFAR-100 five times as many

SMALL = {  # the forms with so many images
    "cifar10": cifar.FORMS["cifar10"]._replace(images=5 * TRAINING, tests=TESTS),
    "cifar100": cifar.FORMS["cifar100"]._replace(images=5 * TRAINING, tests=5 * TESTS),
}


def records(seed: int, count: int, classes: int, coarse: bool) -> NDArray[np.uint8]:
    """So many images with their labels: rows of 3,073 or 3,074 bytes, whose pixels depend on the class."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    pixels = generator.integers(0, 60, (count, 3, 32 * 32)) + labels[:, None, None] * 190 // classes
    ramp = np.array([0, 3, 5])[:, None]  # the colours can be told apart
    rows = [labels[:, None], (pixels + ramp).reshape(count, 3 * 32 * 32)]
    return np.hstack([*([labels[:, None] // 5] if coarse else []), *rows]).astype(np.uint8)


def files_of(name: str) -> dict[str, bytes]:
    """The files of a data set by their names, as the archive holds them."""
    form, coarse = SMALL[name], name == "cifar100"
    per_file = {"train": form.images // len(form.files["train"]), "val": form.tests}
    files: dict[str, bytes] = {}
    for split, names in form.files.items():
        for file in names:
            files[file] = records(len(files) + 1, per_file[split], form.classes, coarse).tobytes()
    lines = "\n".join(NAMES_100 if coarse else NAMES_10)
    files[form.names] = f"{lines}\n\n".encode()  # as the official file of CIFAR-10 ends
    if coarse:
        files["coarse_label_names.txt"] = "\n".join(NAMES_100[:20]).encode()
    return files | {"readme.html": b"<html>"}


def write_folder(place: Path, name: str, files: dict[str, bytes] | None = None) -> Path:
    """The files as the archive unpacks."""
    folder = place / SMALL[name].folder
    folder.mkdir(parents=True)
    for file, content in (files or files_of(name)).items():
        (folder / file).write_bytes(content)
    return folder


def write_archive(place: Path, name: str, files: dict[str, bytes] | None = None) -> Path:
    """The archive, in ``place``."""
    place.mkdir(exist_ok=True, parents=True)
    form, content = SMALL[name], io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        add(tar, f"{form.folder}/", b"", type=tarfile.DIRTYPE)
        for file, data in (files or files_of(name)).items():
            add(tar, f"{form.folder}/{file}", data)
    path = place / form.archive
    path.write_bytes(content.getvalue())
    return path
