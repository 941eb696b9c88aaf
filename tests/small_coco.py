#!/usr/bin/env python
"""Small sets in COCO's form and a detector that needs no training.

Started by tests/test_coco_evaluation.py in several processes: evaluates that detector; rank 0 writes what all
found, and the numbers of every rank.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detection.backbone import create_backbone
from detection.coco import read_coco
from detection.detectors import create_detector
from detection.evaluate import CocoEvaluation
from detection.loading import coco_validation_loader
from utils.common import distributed
from utils.data.loading import Reading

IDS = (1, 3, 90)  # of the categories, as COCO's with gaps
NAMES = ("cat", "dog", "owl")


def write_coco(root: Path, split: str, images: int, seed: int = 0, objects: int = 3) -> dict[str, Any]:
    """Images of random sizes and colours, of which the first pixel says the number, with rectangles on them.

    The file lists the categories in no order; masks are polygons along the boxes.
    """
    generator = np.random.default_rng(seed)
    (root / split).mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    categories = zip(reversed(IDS), reversed(NAMES), strict=True)
    content["categories"] = [{"id": category, "name": name} for category, name in categories]
    for number in range(images):
        width, height = generator.integers(40, 90, 2).tolist()
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[0, 0] = number
        image = {"id": 1000 - number, "file_name": f"{number:04}.png", "width": width, "height": height}
        Image.fromarray(pixels).save(root / split / f"{number:04}.png")
        content["images"].append(image)
        for _ in range(objects):
            content["annotations"].append(rectangle(image, len(content["annotations"]) + 1, generator))
    return save(root, split, content)


def rectangle(image: dict[str, Any], number: int, generator: np.random.Generator) -> dict[str, Any]:
    """An annotation with whole coordinates."""
    width, height = (int(generator.integers(4, 36)) for _ in range(2))
    x, y = (int(generator.integers(0, image[key] - 36)) for key in ("width", "height"))
    right, below = x + width, y + height
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": int(generator.choice(IDS)),
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [[x, y, right, y, right, below, x, below]],
    }


def write_detector(path: Path, model: str, arch: str, size: int = 64) -> None:
    """A detector's checkpoint, of random weights."""
    torch.manual_seed(0)
    net = create_detector(model, create_backbone(arch, None, False), 1 + len(NAMES), size, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"arch": f"{model} {arch}", "classes": list(NAMES), "epoch": 1, "state_dict": net.state_dict()}
    torch.save({**content, "arguments": {"min_size": size, "max_size": size}}, path)


def save(root: Path, split: str, content: Any) -> Any:
    """Write an annotation file; a text as it is."""
    (root / "annotations").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / f"instances_{split}.json").write_text(text)
    return content


class Guess(nn.Module):
    """Boxes at random, and masks of most of them, that depend on the image's first pixel alone."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.guess(image) for image in images]

    def guess(self, image: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(round(255 * image[0, 0, 0].item()))
        count = 80
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
        size = torch.tensor([image.shape[2], image.shape[1]])
        found = {
            "boxes": (corners * size).flatten(1),
            "labels": torch.randint(1, len(IDS) + 1, (count,), generator=generator),
            "scores": torch.rand(count, generator=generator).sort(descending=True).values,
        }
        if self.masks:
            found["masks"] = torch.zeros(count, 1, *image.shape[1:])
            for mask, box in zip(found["masks"][:, 0], found["boxes"].round().int().tolist(), strict=True):
                mask[box[1] : (box[1] + 3 * box[3]) // 4, box[0] : box[2]] = 0.9
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--local-rank", type=int)
    args = parser.parse_args()
    with distributed.start("cpu", args.local_rank) as ranks:
        for data in args.data:
            split = read_coco(data, "val2017", training=False, masks=True)
            loader = coco_validation_loader(split, 2, Reading(max_bad=0.5), ranks)
            evaluation = CocoEvaluation(split, Guess(masks=True), loader, ranks)
            scores = evaluation.run()
            texts = ranks.gather(str(scores))
            if ranks.main:
                numbers = [list(part.values()) for part in scores if part is not None]
                found = {"scores": numbers, "results": evaluation.records, "texts": texts}
                (data / f"{ranks.size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
