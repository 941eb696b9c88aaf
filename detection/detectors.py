"""The detectors: backbone, region proposals and heads, with the settings of the published configurations.

They differ from torchvision's defaults in the 2000 proposals at test time, in the box loss and in the batch
norms; for the papers see ``heads.py`` and ``backbone.py``.
"""

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detection.backbone import Backbone, full_precision
from detection.heads import BoxStage, MaskBranch, StagedHeads
from utils.data.transforms import MEAN, STD

DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn")
PROPOSALS = 2000  # per level before non-maximum suppression, per image after it

# IoU threshold, stds of the box offsets and loss weight of each of the three stages.
CASCADE = (
    (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)


def create_detector(
    name: str, backbone: Backbone, classes: int, min_size: int = 800, max_size: int = 1333
) -> GeneralizedRCNN:
    """Create a detector whose heads have random weights.

    It takes a list of images (3, H, W), RGB in [0, 1], and in training a list of targets: ``boxes`` (N, 4) as
    x1, y1, x2, y2 in pixels, ``labels`` (N,) and, for Mask R-CNN, ``masks`` (N, H, W); N may be 0. Training
    returns a dict of losses, evaluation a dict of ``boxes``, ``labels``, ``scores`` and ``masks`` per image.

    Args:
        name: one of ``DETECTORS``.
        backbone: becomes part of the detector; it is not copied.
        classes: number of classes including the background, which is class 0; 81 for COCO.
        min_size: length in pixels to which the shorter side of an image is resized.
        max_size: limit for the longer side; an image that would exceed it is resized to it.

    Raises:
        ValueError: no detector has that name.
    """
    if name not in DETECTORS:
        raise ValueError(f"{name!r} is none of {', '.join(DETECTORS)}")
    channels = backbone.out_channels
    stages = [BoxStage(channels, classes)]
    if name == "cascade_rcnn":
        stages = [BoxStage(channels, classes, True, *settings) for settings in CASCADE]
    heads = StagedHeads(stages, MaskBranch(channels, classes) if name == "mask_rcnn" else None)
    transform = GeneralizedRCNNTransform(min_size, max_size, MEAN, STD)
    return GeneralizedRCNN(backbone, _proposals(channels), heads, transform)


def _proposals(channels: int) -> RegionProposalNetwork:
    """Create the region proposal network: one anchor size per level, 8 times its stride, in three shapes."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    return RegionProposalNetwork(
        anchors,
        ProposalHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": PROPOSALS, "testing": PROPOSALS},
        post_nms_top_n={"training": PROPOSALS, "testing": PROPOSALS},
        nms_thresh=0.7,
    )


class ProposalHead(RPNHead):
    """torchvision's RPN head with float32 outputs under autocast: proposals inherit their precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = super().forward(x)
        return [full_precision(level) for level in logits], [full_precision(level) for level in offsets]
