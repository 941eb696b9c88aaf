"""The published configurations of Faster, Mask and Cascade R-CNN on COCO 2017, one per row.

All share the constants below, ``create_detector``'s defaults and random flips with probability 0.5. RetinaNet
is missing because this package does not have it, and the SE-ResNet101 rows of the published table because no
configuration was published for them.
"""

from typing import NamedTuple

GPUS = 8  # number for which learning rates and images per GPU are given
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4  # on every trained parameter, norms and biases too
CLIP = 35.0  # largest L2 norm of the gradient of all parameters
GAMMA = 0.1  # factor of the learning rate at each step of the schedule
WARMUP_STEPS = 500  # in which the learning rate rises linearly from a third


class Recipe(NamedTuple):
    """How one published detector was trained."""

    name: str
    detector: str  # one of detection.detectors.DETECTORS
    arch: str  # of the backbone
    epochs: int
    steps: tuple[int, ...]  # epochs after which the learning rate falls
    images: int  # per GPU
    rate: float  # learning rate of all GPUs together; in every row it is 0.02 for 16 images


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
