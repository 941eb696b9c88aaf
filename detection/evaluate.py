"""How good detections are: COCO's average precision and recall, computed by pycocotools.

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
from torch import Tensor, nn

from detection.coco import CocoLoader, CocoSplit
from utils.distributed import ONE_PROCESS, Ranks
from utils.engine import Keeper
from utils.logger import Progress
from utils.metrics import Sums
from utils.precision import Precision
from utils.sampling import EvalBatches
from utils.text import plural

Results = list[dict[str, Any]]
_PARTS = {"bbox": "bbox", "segm": "segmentation"}  # what is compared of a detection


class Numbers(NamedTuple):
    """COCO's twelve numbers in percent; nan where the images have no such object.

    Average precision over IoUs of .5 to .95, at .5 and at .75, and of small (below 32 x 32 pixels), medium
    and large (from 96 x 96) objects; average recall with 1, 10 and 100 detections per image, and of these
    three sizes.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.1f}" for name, value in self._asdict().items())


class Scores(NamedTuple):
    """Of an evaluation."""

    box: Numbers
    mask: Numbers | None = None

    def __str__(self) -> str:
        lines = {name: numbers for name, numbers in self._asdict().items() if numbers is not None}
        return "\n".join(f"{name:<5} {numbers}" for name, numbers in lines.items())


def to_results(
    detections: Sequence[Mapping[str, Tensor]], image_ids: Sequence[int], ids: Sequence[int]
) -> Results:
    """Detections as COCO's records, which are also what its server takes.

    Args:
        detections: of each image ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,) from 1,
            ``scores`` (N,) and perhaps ``masks`` (N, 1, H, W), probabilities.
        image_ids: of the images.
        ids: of the categories of the labels 1, 2, ...
    """
    records: Results = []
    for image_id, found in zip(image_ids, detections, strict=True):
        corners = found["boxes"].float().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        masks = _run_lengths(found["masks"]) if "masks" in found else []
        labels, scores = found["labels"].tolist(), found["scores"].float().tolist()
        for i, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
            record = {"image_id": image_id, "category_id": ids[label - 1], "bbox": box, "score": score}
            records.append({**record, "segmentation": masks[i]} if masks else record)
    return records


def _run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Masks (N, 1, H, W) of probabilities, cut at .5, as compressed run lengths in text."""
    if not len(masks):
        return []
    binary = (masks[:, 0] > 0.5).to(torch.uint8).permute(1, 2, 0).cpu()
    runs = rle_masks.encode(np.asfortranarray(binary.numpy()))
    return [{"size": list(map(int, run["size"])), "counts": run["counts"].decode("ascii")} for run in runs]


def load_truth(annotations: Path) -> COCO:
    """An annotation file for :func:`score`.

    pycocotools takes an object of the number 0 for no object and of two with one number the first for the
    second, and needs ``area`` and ``iscrowd`` of each: objects are numbered anew, and the area of the box and
    no crowd are taken where the file, which is not COCO's then, does not say.
    """
    truth = COCO()
    truth.dataset = json.loads(annotations.read_bytes())
    for number, one in enumerate(truth.dataset["annotations"], 1):
        one["id"] = number
        one.setdefault("iscrowd", 0)
        one.setdefault("area", one["bbox"][2] * one["bbox"][3])
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def score(
    annotations: Path | COCO,
    results: Results,
    kinds: Sequence[str] = ("bbox",),
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """COCO's numbers of detections.

    Args:
        annotations: what the images show.
        results: records of :func:`to_results`.
        kinds: ``bbox``, and ``segm`` for masks too.
        image_ids: the images that count, those without detections included; None: all.
    """
    truth = load_truth(annotations) if isinstance(annotations, Path) else annotations
    return Scores(*(_numbers(truth, results, kind, image_ids) for kind in kinds))


def _numbers(truth: COCO, results: Results, kind: str, image_ids: Sequence[int] | None) -> Numbers:
    # With a box beside its mask, a detection's size would be that of the box. The records are copied:
    # pycocotools writes into them.
    keys = ("image_id", "category_id", "score", _PARTS[kind])
    records = [{key: record[key] for key in keys} for record in results]
    with redirect_stdout(io.StringIO()):
        found = truth.loadRes(records) if records else _nothing(truth)
        evaluation = COCOeval(truth, found, kind)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Numbers(*(math.nan if value < 0 else 100 * float(value) for value in evaluation.stats))


def _nothing(truth: COCO) -> COCO:
    """No detections, which ``loadRes`` cannot load."""
    found = COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


class _Count(Sums):
    """Of images."""

    def read(self, ranks: Ranks = ONE_PROCESS) -> str:
        return plural(int(ranks.sum(self.sums)), "image")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: CocoLoader[EvalBatches],
    split: CocoSplit,
    ranks: Ranks = ONE_PROCESS,
    precision: Precision | None = None,
    print_every: int | None = None,
    keeper: Keeper | None = None,
) -> tuple[Scores, Results]:
    """COCO's numbers over every image, each once, whatever the batches and the processes; masks if there are.

    An image that cannot be decoded is one without detections.

    Returns:
        The numbers and all records in the order of the images' ids, on every process.
    """
    precision, keeper = precision or Precision(), keeper or Keeper()
    model.eval()
    meter, records = _Count(torch.device("cpu"), 1), Results()
    progress = Progress("evaluate", len(loader), ranks.size, print_every)
    for images, targets in loader:
        if len(images):
            with precision.autocast():
                detections = model(images)
            image_ids = [int(target["image_id"]) for target in targets]
            records += to_results(detections, image_ids, split.ids)
        meter.sums += len(targets)
        progress.step(meter, len(targets))
        keeper.between_batches()
    progress.close()
    loader.report(ranks)
    # An image's records are all of one process: the order within it stays.
    merged = sorted(
        (record for part in ranks.gather(records) for record in part), key=lambda r: r["image_id"]
    )
    kinds = ("bbox",) if split.samples.masks is None else ("bbox", "segm")
    scores: Any = score(split.annotations, merged, kinds, split.image_ids) if ranks.main else None
    return ranks.gather(scores)[0], merged
