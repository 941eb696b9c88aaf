"""ReaL labels of ImageNet's validation images: none, one or several for each.

Beyer et al., arXiv 2006.07159. Their file ``real.json`` is a list of 50,000 lists of outputs; entry i, from
0, is of the image ``ILSVRC2012_val_0000NNNN`` with NNNN = i + 1.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.common.text import shown
from utils.data.labels import IMAGENET_CLASSES, are_imagenet
from utils.data.splits import ImageSplit

IMAGES = 50_000  # of ImageNet's validation split
_NAME = re.compile(r"(?:^|[/:])ILSVRC2012_val_([0-9]{8})(?![0-9])[^/:]*$")  # in a folder or an archive


class RealLabels(NamedTuple):
    """Labels of the samples of a split."""

    own: Tensor  # (N,), int64: by class folder
    real: Tensor  # (N, M), int64: the ReaL labels, filled up with -1


def real_labels(path: str, split: ImageSplit) -> RealLabels:
    """Return the labels of a split's samples by the file of ``--real`` beside those by folder.

    Raises:
        UserError: the file has no ReaL labels, or the split is no part of ImageNet's validation images.
    """
    if not are_imagenet(split.classes):
        raise UserError("--real: its labels are ImageNet's 1,000 outputs in order; those here are others")
    of_image = read_real_labels(path)
    rows = [torch.tensor(of_image[_number(path) - 1], dtype=torch.int64) for path, _ in split.samples]
    real = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return RealLabels(torch.tensor([label for _, label in split.samples], dtype=torch.int64), real)


def read_real_labels(path: str) -> list[list[int]]:
    """Read the outputs that are right for each validation image; an image may have none.

    Raises:
        UserError: the file is not a JSON list of 50,000 lists of outputs.
    """
    flag = f"--real {shown(path)}"
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{flag}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{flag}: not JSON; give the published real.json") from None
    if not isinstance(content, list) or len(content) != IMAGES:
        found = f"{len(content):,} entries" if isinstance(content, list) else "no list"
        raise UserError(f"{flag}: {found}; give a list with a list of labels for each of {IMAGES:,} images")
    for number, labels in enumerate(content, 1):
        if not isinstance(labels, list) or not all(map(_is_label, labels)):
            wrong = shown(json.dumps(labels)[:40])
            raise UserError(f"{flag}: entry {number} is {wrong}, no list of whole numbers from 0 to 999")
    return content


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value < IMAGENET_CLASSES


def _number(path: str) -> int:
    """The number of a validation image, from 1, by its file name."""
    found = _NAME.search(path)
    number = int(found[1]) if found else 0
    if not 1 <= number <= IMAGES:
        raise UserError(
            f"--real: {shown(path)} is not named ILSVRC2012_val_0000NNNN, by which its labels are found; "
            "give ImageNet's validation images under their own names"
        )
    return number


def hits(predicted: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each image is a hit, and whether it has labels at all: (B,), bool.

    Args:
        predicted: the output of each image, (B,).
        real: its labels, filled up with -1, (B, M).
    """
    return (real == predicted[:, None]).any(dim=1), (real >= 0).any(dim=1)
