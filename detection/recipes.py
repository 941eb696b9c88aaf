"""The published configurations of Faster, Mask and Cascade R-CNN on COCO 2017, a row each.

Common to all: the constants below and ``create_detector``'s defaults; images flipped with probability 0.5.
Not here: RetinaNet, which this package does not have, and the SE-ResNet101 rows of the published table, for
which no configuration was published.
"""

from typing import NamedTuple

GPUS = 8  # that rates and images per GPU are meant for
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4  # on every trained parameter, norms and biases too
CLIP = 35.0  # L2 norm of the gradient of all parameters together
GAMMA = 0.1  # factor of the rate at each step of the schedule
WARMUP_STEPS = 500  # in which the rate grows linearly from a third of it


class Recipe(NamedTuple):
    """How one published detector was trained."""

    name: str
    detector: str  # one of detection.detectors.DETECTORS
    arch: str  # of the backbone
    epochs: int
    steps: tuple[int, ...]  # epochs after which the rate falls
    images: int  # per GPU
    rate: float  # for all GPUs together: 0.02 for 16 images in every row


RECIPES = (
    Recipe("faster_rcnn_r50", "faster_rcnn", "resnet50", 24, (16, 22), 2, 0.02),
    Recipe("faster_rcnn_sge_r50", "faster_rcnn", "sge_resnet50", 24, (16, 22), 2, 0.02),
    Recipe("faster_rcnn_r101", "faster_rcnn", "resnet101", 24, (16, 22), 2, 0.02),
    Recipe("faster_rcnn_sge_r101", "faster_rcnn", "sge_resnet101", 24, (16, 22), 1, 0.01),
    Recipe("mask_rcnn_r50", "mask_rcnn", "resnet50", 24, (16, 22), 2, 0.02),
    Recipe("mask_rcnn_sge_r50", "mask_rcnn", "sge_resnet50", 24, (16, 22), 2, 0.02),
    Recipe("mask_rcnn_r101", "mask_rcnn", "resnet101", 24, (16, 22), 2, 0.02),
    Recipe("mask_rcnn_sge_r101", "mask_rcnn", "sge_resnet101", 24, (16, 22), 1, 0.01),
    Recipe("cascade_rcnn_r50", "cascade_rcnn", "resnet50", 20, (16, 19), 2, 0.02),
    Recipe("cascade_rcnn_sge_r50", "cascade_rcnn", "sge_resnet50", 20, (16, 19), 2, 0.02),
    Recipe("cascade_rcnn_r101", "cascade_rcnn", "resnet101", 20, (16, 19), 2, 0.02),
    Recipe("cascade_rcnn_sge_r101", "cascade_rcnn", "sge_resnet101", 20, (16, 19), 1, 0.01),
)
