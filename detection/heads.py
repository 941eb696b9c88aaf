"""The heads on the proposals: one box stage (Faster R-CNN), with a mask branch (Mask), or three (Cascade).

Girshick, "Fast R-CNN", arXiv 1504.08083. He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv 1703.06870.
Cai, Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection", arXiv 1712.00726.
Matching, sampling and the encoding of boxes are torchvision's. Differs from its heads: smooth L1 turns from
squared to linear at 1 (Fast R-CNN, Eq. 3) rather than 1/9, the output layers are initialised as in Fast R-CNN
(Gaussian, std 0.01 for classes and 0.001 for boxes), and there may be several stages.
Differs from the Cascade R-CNN paper, as the published configurations do: later stages have less weight in the
loss, and the scores at test time come from the mean of all stages' logits.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from detection.backbone import full_precision

LEVELS = ("0", "1", "2", "3")  # of the pyramid; a proposal's area selects its level
HIDDEN = 1024  # of the box heads
MASK_CHANNELS = 256

Features = dict[str, Tensor]  # level to (B, C, H, W)
Boxes = list[Tensor]  # for each image, (R, 4): x1, y1, x2, y2 in pixels
Sizes = list[tuple[int, int]]  # for each image before padding: height and width in pixels
Targets = list[dict[str, Tensor]]  # for each image: boxes (N, 4), labels (N,), perhaps masks (N, H, W)


class BoxPredictor(nn.Module):
    """Class logits, background first, and box offsets: (R, 1024) to (R, classes), (R, 4 * classes or 4)."""

    def __init__(self, classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(HIDDEN, classes)
        self.bbox_pred = nn.Linear(HIDDEN, 4 if class_agnostic else 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return full_precision(self.cls_score(x)), full_precision(self.bbox_pred(x))


class BoxStage(RoIHeads):
    """One box head, with the matching and sampling of its proposals.

    Args:
        channels: C of the features.
        classes: number of classes including the background, which is class 0.
        class_agnostic: predict one box per proposal rather than one per class.
        iou: least IoU with a ground-truth box for a proposal to be positive.
        stds: standard deviations that divide the four box offsets.
        loss_weight: of both losses.
        box_beta: beta of smooth L1, where the box loss turns from squared to linear.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        class_agnostic: bool = False,
        iou: float = 0.5,
        stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
        loss_weight: float = 1.0,
        box_beta: float = 1.0,
    ) -> None:
        super().__init__(
            box_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(channels * 7 * 7, HIDDEN),
            box_predictor=BoxPredictor(classes, class_agnostic),
            fg_iou_thresh=iou,
            bg_iou_thresh=iou,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=tuple(1 / std for std in stds),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.loss_weight, self.box_beta = loss_weight, box_beta

    def forward(self, features: Features, boxes: Boxes, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Return logits and offsets of the boxes of all images, shaped as by :class:`BoxPredictor`."""
        return self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, sizes)))

    def losses(self, logits: Tensor, offsets: Tensor, labels: Boxes, targets: Boxes) -> tuple[Tensor, Tensor]:
        """Return the weighted classification and box losses per sampled proposal; 0 without proposals.

        Args:
            logits, offsets: from :meth:`forward`.
            labels: for each image, (R,); 0 is the background.
            targets: for each image, the offsets to the matched ground truth, (R, 4).
        """
        label = torch.cat(labels)
        sampled, positive = max(len(label), 1), torch.where(label > 0)[0]
        target = torch.cat(targets)[positive]
        offsets = offsets.unflatten(1, (-1, 4))  # (R, classes or 1, 4)
        class_index = label[positive] if offsets.shape[1] > 1 else torch.zeros_like(positive)
        classification = F.cross_entropy(logits, label, reduction="sum")
        predicted = offsets[positive, class_index]
        boxes = F.smooth_l1_loss(predicted, target, reduction="sum", beta=self.box_beta)
        return self.loss_weight * classification / sampled, self.loss_weight * boxes / sampled

    def refine(self, offsets: Tensor, boxes: Boxes, sizes: Sizes) -> Boxes:
        """Return the next stage's proposals: boxes moved by class-agnostic offsets, clipped to the images."""
        moved = self.box_coder.decode(offsets.detach(), boxes).reshape(-1, 4)
        per_image = moved.split([len(box) for box in boxes])
        return [clip_boxes_to_image(box, size) for box, size in zip(per_image, sizes, strict=True)]

    def detect(self, logits: Tensor, offsets: Tensor, boxes: Boxes, sizes: Sizes) -> Targets:
        """Return boxes, scores and labels of each image after non-maximum suppression, at most 100."""
        if offsets.shape[1] == 4:
            offsets = offsets.repeat(1, logits.shape[1])
        found = self.postprocess_detections(logits, offsets, boxes, sizes)
        keys = ("boxes", "scores", "labels")
        return [dict(zip(keys, values, strict=True)) for values in zip(*found, strict=True)]


class MaskBranch(nn.Module):
    """Mask logits of every class, from boxes: (R, classes, 28, 28).

    Args:
        channels: C of the features.
        classes: number of classes including the background.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.roi_pool = MultiScaleRoIAlign(LEVELS, output_size=14, sampling_ratio=2)
        self.head = MaskRCNNHeads(channels, (MASK_CHANNELS,) * 4, 1)
        self.predictor = MaskRCNNPredictor(MASK_CHANNELS, MASK_CHANNELS, classes)

    def forward(self, features: Features, boxes: Boxes, sizes: Sizes) -> Tensor:
        return full_precision(self.predictor(self.head(self.roi_pool(features, boxes, sizes))))

    def loss(
        self, features: Features, boxes: Boxes, sizes: Sizes, labels: Boxes, matches: Boxes, targets: Targets
    ) -> Tensor:
        """Return the binary cross-entropy of the mask of the true class, over the positive boxes.

        Args:
            features, boxes, sizes: as for :meth:`forward`.
            labels: for each image, (R,); 0 is the background.
            matches: for each image, (R,): index of the target that a box is matched to.
            targets: with masks.
        """
        positive = [label > 0 for label in labels]
        boxes, matches = ([x[i] for x, i in zip(of, positive, strict=True)] for of in (boxes, matches))
        masks, classes = ([target[key] for target in targets] for key in ("masks", "labels"))
        return maskrcnn_loss(self(features, boxes, sizes), boxes, masks, classes, matches)

    def detect(self, features: Features, found: Targets, sizes: Sizes) -> Targets:
        """Return the detections with the masks of their classes, (R, 1, 28, 28) in [0, 1]."""
        logits = self(features, [image["boxes"] for image in found], sizes)
        probabilities = maskrcnn_inference(logits, [image["labels"] for image in found])
        return [{**image, "masks": masks} for image, masks in zip(found, probabilities, strict=True)]


class StagedHeads(nn.Module):
    """Box stages, each on the boxes of the previous one, and optionally a mask branch on the last boxes.

    Replaces torchvision's RoIHeads and is called in the same way: from proposals it returns losses in
    training, and detections in evaluation.
    """

    def __init__(self, stages: Sequence[BoxStage], mask: MaskBranch | None = None) -> None:
        super().__init__()
        self.stages = cast(Sequence[BoxStage], nn.ModuleList(stages))
        self.mask = mask

    def forward(
        self, features: Features, proposals: Boxes, sizes: Sizes, targets: Targets | None = None
    ) -> tuple[Targets, dict[str, Tensor]]:
        if not self.training:
            return self._detections(features, proposals, sizes), {}
        assert targets is not None  # GeneralizedRCNN has checked
        return [], self._losses(features, proposals, sizes, targets)

    def _losses(
        self, features: Features, proposals: Boxes, sizes: Sizes, targets: Targets
    ) -> dict[str, Tensor]:
        """Return ``loss_classifier`` and ``loss_box_reg``, summed over the stages, and ``loss_mask``."""
        stage_losses = []
        for stage in self.stages:
            boxes, matches, labels, regression_targets = stage.select_training_samples(proposals, targets)
            logits, offsets = stage(features, boxes, sizes)
            stage_losses.append(stage.losses(logits, offsets, labels, regression_targets))
            if stage is not self.stages[-1]:
                refined = zip(stage.refine(offsets, boxes, sizes), boxes, targets, strict=True)
                # Without the ground truth, which the next stage adds itself.
                proposals = [new[~_is_any_of(old, target["boxes"])] for new, old, target in refined]
        classification, regression = zip(*stage_losses, strict=True)
        losses = {"loss_classifier": sum(classification), "loss_box_reg": sum(regression)}
        if self.mask is not None:
            losses["loss_mask"] = self.mask.loss(features, boxes, sizes, labels, matches, targets)
        return losses

    def _detections(self, features: Features, boxes: Boxes, sizes: Sizes) -> Targets:
        stage_logits = []
        for stage in self.stages:
            logits, offsets = stage(features, boxes, sizes)
            stage_logits.append(logits)
            if stage is not self.stages[-1]:
                boxes = stage.refine(offsets, boxes, sizes)
        found = stage.detect(torch.stack(stage_logits).mean(0), offsets, boxes, sizes)
        return found if self.mask is None else self.mask.detect(features, found, sizes)


def _is_any_of(boxes: Tensor, others: Tensor) -> Tensor:
    """Whether each box is equal to one of the others: (R, 4) and (N, 4) to (R,)."""
    return (boxes[:, None] == others.to(boxes.dtype)).all(2).any(1)
