"""ImageNet in Parquet shards, as on Hugging Face: columns ``image`` (``bytes`` and ``path``) and ``label``.

Labels are the places of the classes among the sorted WordNet ids. Images have the order of the shards' rows.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from scripts.lib.data_contents import TRAIN_IMAGES, VAL_IMAGES, Split
from scripts.lib.prepare_sources import Image, Source, check_places
from utils.common.checks import check_libraries
from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.folders import is_image
from utils.data.labels import imagenet_classes

ROWS = 64  # that are read at once
SPLITS = (("train", "train", TRAIN_IMAGES), ("val", "validation", VAL_IMAGES))
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.parquet$")
# Hugging Face's names end in the WordNet id, which the official ones do not.
_NAMED = re.compile(
    r"(?P<official>(?P<of>n\d{8})_\d+|ILSVRC2012_val_\d{8})(_(?P<id>n\d{8}))?(?P<suffix>\.\w+)"
)


class Shards:
    """The images of a split in Parquet shards.

    Args:
        name: train or val.
        files: the shards, in order.
        full: images that ImageNet has in this split.

    Raises:
        UserError: they cannot be read, or what they say is not ImageNet's.
    """

    def __init__(self, name: str, files: Sequence[Path], full: int) -> None:
        self.name, self.files, self.split = name, files, Split(files[0].parent / name, full)
        self.bytes, self.unnamed = 0, 0
        self.places: list[str] = []
        digest, classes = sha256(), list(imagenet_classes())
        for file in files:
            with _opened(file) as shard:
                digest.update(f"{file.stat().st_size}\n".encode())
                self.bytes += _bytes_of(shard)
                for row in _rows(shard, ["label", "image.path"] if _has_path(shard) else ["label"]):
                    self.places.append(self._place(file, row, classes))
        check_places(self.places)
        if len(set(self.places)) < len(self.places):
            twice = Counter(self.places).most_common(1)[0][0]
            raise UserError(
                f"{shown(str(files[0].parent))}: {shown(twice)} is there twice: remove other shards"
            )
        for place in self.places:
            digest.update(f"{place}\n".encode("utf-8", "surrogatepass"))
        self.split.classes.update(place.partition("/")[0] for place in self.places)
        self.digest = digest.hexdigest()

    def _place(self, file: Path, row: dict[str, Any], classes: Sequence[str]) -> str:
        """Return where the next image belongs; one without a name is named after its row."""
        label = row["label"]
        if type(label) is not int or not 0 <= label < len(classes):
            what = f"label {label}: labels must be 0 to {len(classes) - 1}"
            raise UserError(f"{shown(str(file))}: {what}; shards without labels are of no use")
        identifier, number = classes[label], len(self.places)
        path = (row.get("image") or {}).get("path") or ""
        name = path.replace("\\", "/").rpartition("/")[2]
        if not name:
            self.unnamed += 1
            other = f"ILSVRC2012_val_{number + 1:08d}.JPEG"
            return f"{identifier}/{other if self.name == 'val' else f'{identifier}_{number}.JPEG'}"
        if not is_image(name):
            raise UserError(f"{shown(str(file))}: {shown(name)} is no name of an image")
        if found := _NAMED.fullmatch(name):
            if others := {found["of"], found["id"]} - {identifier, None}:
                what = f"{name} is of {min(others)} by its name, of {identifier} by its label"
                raise UserError(f"{shown(str(file))}: {what}: the labels are not ImageNet's")
            name = found["official"] + found["suffix"]
        return f"{identifier}/{name}"

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Image]:
        places = iter(self.places)
        for file in self.files:
            with _opened(file) as shard:
                for row in _rows(shard, ["image.bytes"]):
                    place, data = next(places), row["image"] and row["image"]["bytes"]
                    if not data:
                        raise UserError(f"{shown(str(file))}: {shown(place)} has no bytes: download it again")
                    yield Image(place, len(data), partial(bytes, data))


def find_shards(source: Path) -> dict[str, list[Path]]:
    """Return the shards of each split that a source has, in order, by the split's name.

    Raises:
        UserError: one is missing.
    """
    found = {}
    for name, prefix, _ in SPLITS:
        files = sorted(source.glob(f"{prefix}-*.parquet")) or sorted(source.glob(f"data/{prefix}-*.parquet"))
        numbers = [match.groups() for file in files if (match := _NUMBERED.search(file.name))]
        for _, count in numbers[:1]:
            there = {int(number) for number, _ in numbers}
            if lost := sorted(set(range(int(count))) - there):
                what = f"{plural(len(lost), 'shard')} of {int(count):,} missing (number {lost[0]:05d})"
                raise UserError(f"{shown(str(source))}: {prefix}-*.parquet: {what}: download them too")
        if files:
            found[name] = files
    return found


def read_shards(source: Path, files: dict[str, list[Path]]) -> tuple[list[Source], list[str]]:
    """Return the splits of a source of shards, and a line for one that is missing or has no names.

    Raises:
        UserError: they cannot be read, or pyarrow is not installed.
    """
    check_libraries(f"{shown(str(source))}: Parquet files", "pyarrow")
    found: list[Source] = []
    missing = []
    for name, prefix, full in SPLITS:
        if name in files:
            found.append(shards := Shards(name, files[name], full))
            if shards.unnamed and name == "val":
                what = f"{plural(shards.unnamed, 'image')} without name, numbered by row"
                print(f"note: val: {what}; --real fits only if the rows have ImageNet's order")
        else:
            missing.append(f"{shown(str(source))} has no {prefix}-*.parquet")
    return found, missing


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a shard, and name it if it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as shard:
            names = {shard.schema.column(i).path for i in range(len(shard.schema))}
            if lacking := {"image.bytes", "label"} - names:
                raise UserError(f"{shown(str(file))}: no column {min(lacking)}: give ImageNet's shards")
            yield shard
    except (OSError, pyarrow.ArrowException) as error:
        reason = shown(str(error).partition("\n")[0])
        raise UserError(f"{shown(str(file))}: damaged ({reason}): download it again") from None


def _has_path(shard: Any) -> bool:
    return "image.path" in {shard.schema.column(i).path for i in range(len(shard.schema))}


def _bytes_of(shard: Any) -> int:
    """Return how many bytes the images of a shard have, about."""
    at = next(i for i in range(len(shard.schema)) if shard.schema.column(i).path == "image.bytes")
    groups = (shard.metadata.row_group(i) for i in range(shard.metadata.num_row_groups))
    return sum(group.column(at).total_uncompressed_size for group in groups)


def _rows(shard: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in shard.iter_batches(batch_size=ROWS, columns=columns):
        yield from batch.to_pylist()
