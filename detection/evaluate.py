"""COCO's average precision and recall of detections, computed by pycocotools.

Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312; cocodataset.org/#detection-eval.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import box_convert

from detection.coco import CocoSplit
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.training.engine import Evaluation
from utils.training.metrics import Sums

Results = list[dict[str, Any]]
# Average precision over IoUs of .5 to .95, at .5 and at .75, and of small (below 32 x 32 pixels), medium and
# large (from 96 x 96) objects; average recall with 1, 10 and 100 detections per image, and of these sizes.
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Scores(NamedTuple):
    """COCO's ``NUMBERS`` in percent by their names; nan where the images have no such object."""

    box: dict[str, float]
    mask: dict[str, float] | None = None

    def __str__(self) -> str:
        rows = [(f"{kind:<4}", numbers.items()) for kind, numbers in self._asdict().items() if numbers]
        return "\n".join("  ".join([kind, *(f"{k} {v:.1f}" for k, v in numbers)]) for kind, numbers in rows)

    @property
    def best(self) -> float:
        """The score by which epochs are compared: AP of the boxes, 0 where it is nan."""
        return 0.0 if math.isnan(self.box["AP"]) else self.box["AP"]


def to_results(
    detections: Sequence[Mapping[str, Tensor]], image_ids: Sequence[int], ids: Sequence[int]
) -> Results:
    """Convert detections to COCO's records, which its evaluation server takes.

    Args:
        detections: of each image ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,) from 1,
            ``scores`` (N,) and perhaps ``masks`` (N, 1, H, W), probabilities.
        image_ids: of the images.
        ids: of the categories of the labels 1, 2, ...
    """
    records: Results = []
    for image_id, found in zip(image_ids, detections, strict=True):
        boxes = box_convert(found["boxes"].float(), "xyxy", "xywh").tolist()
        masks = _run_lengths(found["masks"]) if "masks" in found else []
        labels, scores = found["labels"].tolist(), found["scores"].float().tolist()
        for i, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
            record = {"image_id": image_id, "category_id": ids[label - 1], "bbox": box, "score": score}
            records.append({**record, "segmentation": masks[i]} if masks else record)
    return records


def _run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Convert masks (N, 1, H, W) of probabilities, cut at 0.5, to compressed run lengths in text."""
    binary = (masks[:, 0] > 0.5).to(torch.uint8).permute(1, 2, 0).cpu()
    runs = rle_masks.encode(np.asfortranarray(binary.numpy()))
    return [{**run, "counts": run["counts"].decode()} for run in runs]


def write_results(results: Results, path: Path) -> None:
    """Write records as COCO's JSON result file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, lambda file: file.write(json.dumps(results).encode()))
    except OSError as error:
        raise UserError(f"--detections {path}: {error.strerror}; give a file that can be written") from None


def score(
    annotations: Path, results: Results, kinds: Sequence[str] = ("bbox",), image_ids: Sequence[int] = ()
) -> Scores:
    """Compute COCO's numbers for detections.

    Args:
        annotations: the file that says what the images show.
        results: records of :func:`to_results`.
        kinds: ``bbox``, and ``segm`` for masks too.
        image_ids: the images that count, those without detections included; none: all.
    """
    data = json.loads(annotations.read_bytes())
    parts = []
    with redirect_stdout(io.StringIO()):
        truth = _indexed(data, data["annotations"])
        for kind in kinds:
            seen = [{**one, "area": rle_masks.area(one["segmentation"])} for one in results if kind == "segm"]
            evaluation = COCOeval(truth, _indexed(data, seen or results), kind)
            evaluation.params.imgIds = list(image_ids) or evaluation.params.imgIds
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values = [math.nan if value < 0 else 100 * float(value) for value in evaluation.stats]
            parts.append(dict(zip(NUMBERS, values, strict=True)))
    return Scores(*parts)


def _indexed(data: dict[str, Any], objects: Results) -> COCO:
    """Index objects or detections on the images of ``data`` for pycocotools.

    It takes an object of the number 0 for no object and of two with one number the first for the second, and
    needs ``area`` and ``iscrowd`` of each: they are numbered anew, and where nothing is said, the area of the
    box and no crowd are taken.
    """
    known = ({"area": math.prod(one["bbox"][2:]), "iscrowd": 0, **one} for one in objects)
    numbered = [{**one, "id": number} for number, one in enumerate(known, 1)]
    indexed = COCO()
    indexed.dataset = {**data, "annotations": numbered}
    indexed.createIndex()
    return indexed


class _Count(Sums):
    """The number of images."""

    def figures(self, values: Sequence[float]) -> str:
        return f"{int(values[0]):,} images"


class CocoEvaluation(Evaluation):
    """COCO's numbers over every image, of masks too if the split has them.

    An image that cannot be decoded is one without detections. After it ``records`` has the detections of all
    processes in the order of the images' ids.

    Args:
        split: images and what they show.
        others: as of :class:`Evaluation`.
    """

    def __init__(self, split: CocoSplit, *others: Any) -> None:
        super().__init__(*others)
        self.split = split

    def begin(self) -> Sums:
        self.records = Results()
        return _Count(torch.device("cpu"), 1)

    def count(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        if images:
            with self.precision.autocast():
                detections = self.model(images)
            image_ids = [int(target["image_id"]) for target in targets]
            self.records += to_results(detections, image_ids, self.split.ids)
        self.meter.sums += len(targets)

    def result(self) -> Scores:
        self.records = [record for part in self.ranks.gather(self.records) for record in part]
        self.records.sort(key=lambda record: record["image_id"])  # one process has all of an image
        kinds = ("bbox",) if self.split.samples[0][1].masks is None else ("bbox", "segm")
        of_split = (self.split.annotations, self.records, kinds, self.split.image_ids)
        scores: Any = score(*of_split) if self.ranks.main else None
        return self.ranks.gather(scores)[0]
