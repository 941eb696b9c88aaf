"""CIFAR-10 and CIFAR-100 in their binary form: where they are, what they hold, and how training takes it.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the files and their form are
described on ``PAGE``. The files of the other forms there, which are pickled, are never read.
"""

import gzip
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.archive_index import PLACES, Contents, RecordIndex
from utils.data.content import SIDE, Archive

PAGE = "www.cs.toronto.edu/~kriz/cifar.html"
AGAIN = f"download it again from {PAGE}"
REPEAT = "remove the folder and unpack the archive again"
PLACES_OF_DATA = (Path("data"), Path())
PAD = 4  # black pixels around a training image before it is cropped: He et al., arXiv 1512.03385, section 4.2
PIXELS = 3 * SIDE * SIDE  # bytes of an image
LONGEST = 2**16  # bytes of the file of names


class Cifar(NamedTuple):
    """One of the two data sets."""

    title: str
    folder: str  # as the archive unpacks
    archive: str
    names: str  # the file of the class names, a line each, in the order of the labels
    files: Mapping[str, Sequence[str]]  # by split
    images: int  # in all files of the training split
    tests: int
    labels: int  # bytes before the pixels of an image; the last is the label
    classes: int
    mean: tuple[float, ...]  # of all training pixels, red, green, blue in [0, 1]
    std: tuple[float, ...]

    @property
    def record(self) -> int:
        """Bytes of an image with its labels."""
        return self.labels + PIXELS

    def bytes_of(self, file: str) -> int:
        """Return the size of a file of images."""
        split = next(names for names in self.files.values() if file in names)
        images = self.images if split is self.files["train"] else self.tests
        return images // len(split) * self.record


# Mean and deviation: those that most published recipes on CIFAR use, to four digits.
FORMS = MappingProxyType(
    {
        "cifar10": Cifar(
            "CIFAR-10",
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            "batches.meta.txt",
            {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "val": ["test_batch.bin"]},
            *(50_000, 10_000, 1, 10),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        "cifar100": Cifar(
            "CIFAR-100",
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            "fine_label_names.txt",
            {"train": ["train.bin"], "val": ["test.bin"]},
            *(50_000, 10_000, 2, 100),
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
        ),
    }
)


def cifar_of(data: str) -> Cifar | None:
    """Return the data set that ``--data`` names: ``cifar10``, ``cifar100``, or a folder or archive of one."""
    named = (form for form in FORMS.values() if Path(data).name == form.archive)
    return FORMS.get(data) or next(named, None) or cifar_in(Path(data))


def cifar_in(folder: Path) -> Cifar | None:
    """Return the data set whose binary files a folder holds, or that it is named after; None: neither."""
    with suppress(OSError):  # a path that cannot be looked at is refused where it is read
        for form in FORMS.values():
            holds = all((folder / name).is_file() for name in (form.names, form.files["train"][0]))
            if holds or (folder.name == form.folder and folder.is_dir()):
                return form
    return None


def usual(data: str) -> dict[str, Any]:
    """Return what holds for the images of ``--data`` where neither flags nor a checkpoint say another.

    Whole images as they are, and their own mean and deviation; nothing for other data sets than CIFAR.
    """
    if (form := cifar_of(data)) is None:
        return {}
    return {"img_size": SIDE, "crop_pct": 1.0, "mean": list(form.mean), "std": list(form.std)}


def usual_pad(data: str) -> int | None:
    """Return the border of training images that is usual for ``--data``; None: crops of random size."""
    return PAD if cifar_of(data) else None


def cifar_root(data: str, form: Cifar) -> Path:
    """Return the folder of the binary files, which are unpacked if there is only the archive.

    Args:
        data: what ``--data`` names.
        form: what that is.

    Raises:
        UserError: the files are not there, or the archive cannot be unpacked.
    """
    if data not in FORMS:
        return _unpacked(Path(data), form) if Path(data).name == form.archive else Path(data)
    for place in PLACES_OF_DATA:
        if (place / form.folder).is_dir():
            return place / form.folder
    for place in PLACES_OF_DATA:
        if (place / form.archive).is_file():
            return _unpacked(place / form.archive, form)
    pickled = form.archive.replace("binary", "python")
    others = "; the pickled form is not read" * any((at / pickled).exists() for at in PLACES_OF_DATA)
    others += f" (the folder {data}/ is given as ./{data})" * Path(data).is_dir()
    raise UserError(
        f"--data {data}: neither {form.archive} nor {form.folder}/ is in data/ or in this folder{others}: "
        f"get the binary version of {form.title} from {PAGE} and put the archive into data/"
    )


def _unpacked(archive: Path, form: Cifar) -> Path:
    """Unpack the archive beside itself, unless that is done, and return the folder.

    The files are written to a temporary folder that is then renamed, so an interrupted run leaves no
    incomplete folder.
    """
    folder = archive.with_name(form.folder)
    if folder.is_dir():
        return folder
    name = shown(str(archive))
    if not archive.is_file():
        raise UserError(f"--data {name}: no such file")
    print(f"unpacking {name} to {shown(str(folder))}/")
    building = archive.with_name(f".{form.folder}-{uuid.uuid4().hex}")
    try:
        building.mkdir()
        _extract(archive, building, form)
        building.rename(folder)
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{name}: damaged or cut off ({error}): {AGAIN}") from None
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            why = f"cannot be unpacked beside itself: {error.strerror}"
            raise UserError(f"{name}: {why}; unpack it elsewhere (tar -xzf) and give the folder") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _extract(archive: Path, folder: Path, form: Cifar) -> None:
    """Write the files that are read; the others stay in the archive."""
    missing = {file: form.bytes_of(file) for files in form.files.values() for file in files}
    missing |= {form.names: 0}
    with gzip.open(archive) as packed:
        with tarfile.open(fileobj=packed, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name not in missing:
                    continue
                size = missing.pop(name)
                if member.size != size if size else member.size > LONGEST:
                    what = f"{name} has {plural(member.size, 'byte')}, not {size or LONGEST:,}"
                    raise UserError(f"{shown(str(archive))}: {what}: {AGAIN}")
                content = tar.extractfile(member)
                assert content is not None  # it is a file
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
        while packed.read(2**20):  # up to the checksum at its end
            pass
    if missing:
        raise UserError(f"{shown(str(archive))}: has no {min(missing)}: {AGAIN}")


def read_cifar(root: Path, form: Cifar, split: str) -> RecordIndex:
    """Index the images of a split. Classes and images have the order that they would have in class folders.

    Args:
        root: the folder of the binary files.
        form: what they are.
        split: ``train``, or ``val``, which is the test batch.

    Raises:
        UserError: a file is missing, cut off or damaged, or a label is of no class.
    """
    names = _class_names(root, form)
    classes = tuple(sorted(names))
    archives, labels, digest = [], list[NDArray[np.int64]](), sha256("\n".join(names).encode())
    for file in form.files[split]:
        data = _read(root / file, form.bytes_of(file))
        digest.update(data)
        archives.append(_archive(root / file))
        labels.append(_labels(root / file, data, form))
    places = np.array([classes.index(name) for name in names], np.int32)
    own, count = places[np.concatenate(labels)], len(labels[0])
    order = np.argsort(own, kind="stable")
    starts = order % count * form.record + form.labels
    where = (order // count, starts, np.full(len(order), PIXELS))
    arrays = [of.astype(kind) for of, kind in zip(where, PLACES.values(), strict=True)]
    files = np.frombuffer("".join(f"{number:05d}.ppm\0" for number in order).encode(), np.uint8)
    contents = Contents(root / split, tuple(archives), classes, None, "", {}, digest.hexdigest())
    return RecordIndex(contents, files, own[order], arrays)


def _class_names(root: Path, form: Cifar) -> list[str]:
    path = root / form.names
    text = _read(path, None).decode("utf-8", "replace")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    usable = all(name.isprintable() and "/" not in name and name not in (".", "..") for name in names)
    if len(names) != form.classes or len({*names}) < len(names) or not usable:
        what = f"it must name {form.classes} classes, a line each, and does not"
        raise UserError(f"{shown(str(path))}: {what}: {REPEAT}")
    return names


def _read(path: Path, size: int | None) -> bytes:
    """Return the bytes of a file; refuse one of another size."""
    try:
        data = path.read_bytes()
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{shown(str(path))} {why}: {REPEAT}") from None
    if size not in (None, len(data)):
        what = f"{plural(len(data), 'byte')}, not {size:,}"
        raise UserError(f"{shown(str(path))} has {what}: {REPEAT}")
    return data


def _archive(path: Path) -> Archive:
    status = path.stat()
    return Archive(str(path), status.st_size, status.st_mtime_ns)


def _labels(path: Path, data: bytes, form: Cifar) -> NDArray[np.int64]:
    """Return the label of every image of a file."""
    labels = np.frombuffer(data, np.uint8).reshape(-1, form.record)[:, form.labels - 1].astype(np.int64)
    if (wrong := np.flatnonzero(labels >= form.classes)).size:
        first = int(wrong[0])
        what = f"image {first + 1} has the label {labels[first]}, the last is {form.classes - 1}"
        raise UserError(f"{shown(str(path))}: {what}: {REPEAT}")
    return labels
