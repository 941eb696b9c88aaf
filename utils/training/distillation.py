"""Knowledge distillation: a network also learns from the prediction of another one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from utils.common.errors import UserError
from utils.common.text import plural
from utils.data.transforms import IMAGENET, Scaling
from utils.networks import checkpoint
from utils.networks.building import check_architecture, imagenet_weights, scaling_said
from utils.networks.complexity import count
from utils.networks.parts import parts_in, put_parts
from utils.networks.weights import load_weights


class Distillation:
    """Knowledge distillation: the student also learns from the softened prediction of a teacher.

    ``(1 - alpha) * loss + alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T))``: Hinton et al.,
    arXiv 1503.02531; He et al., Bag of Tricks, arXiv 1812.01187, section 5.3 (T = 20).

    Args:
        teacher: maps images (B, 3, H, W) to logits (B, K).
        alpha: weight of the teacher, from 0 to 1.
        temperature: T, above 0.
    """

    def __init__(self, teacher: Callable[[Tensor], Tensor], alpha: float, temperature: float) -> None:
        self.teacher, self.alpha, self.temperature = teacher, alpha, temperature

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Blend the loss on the labels with the loss on the teacher; logits (B, K) are of ``images``."""
        with torch.no_grad():
            target = F.log_softmax(self.teacher(images) / self.temperature, dim=1)
        student = F.log_softmax(logits / self.temperature, dim=1)
        divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * divergence


def build_teacher(
    text: str, classes: int, names: Sequence[str], img_size: int, scaling: Scaling = IMAGENET
) -> nn.Module:
    """Build the teacher of ``--teacher ARCH[:FILE]``; without a file it has torchvision's ImageNet weights.

    The stem and the gates that flags have put into the network of the file are taken from it.

    Args:
        text: architecture and file.
        classes: outputs of the network that learns.
        names: of its classes, in the order of the outputs; the last outputs may have none.
        img_size: side of the square images in pixels.
        scaling: of the images, which the teacher sees too.

    Raises:
        UserError: unknown architecture, no such file, weights that do not fit ``classes`` or their order, or
            that were trained with another mean and deviation.
    """
    name, _, path = text.partition(":")
    try:
        arch = check_architecture(name)
    except UserError as error:
        raise UserError(f"--teacher: {error}") from None
    instead = f"give --teacher {arch}:FILE"
    saved = checkpoint.load(path, "--teacher") if path else {}
    parts = parts_in(saved, arch)
    if parts.gate_file:
        raise UserError(f"--teacher {path}: its gates are of {parts.gate_file}: a teacher has none of a file")
    _check_scaling_of_teacher(text, saved, scaling)
    try:
        weights = {} if path else imagenet_weights(arch, classes, f"--teacher {arch}", instead)
        teacher = create_model(arch, num_classes=classes, **weights)
        put_parts(teacher, parts, arch)
        count(teacher, (3, img_size, img_size))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--teacher {arch} does not take --img-size {img_size}: {error}") from None
    except OSError as error:
        raise UserError(f"--teacher {arch}: its weights cannot be downloaded: {error}") from None
    if path:
        load_weights(teacher, saved, arch, path, "--teacher", "--teacher {arch}:FILE{classes}", parts)
    _check_classes_of_teacher(text, saved.get("classes", ()), names, classes)
    return teacher.eval().requires_grad_(False)


def _check_scaling_of_teacher(text: str, saved: Mapping[str, Any], scaling: Scaling) -> None:
    """A teacher that was trained with another mean and deviation would see other images than it knows."""
    theirs = scaling_said(saved) if saved else IMAGENET  # torchvision's
    if theirs not in (None, scaling):
        raise UserError(f"--teacher {text} was trained with {theirs.flags}: give this run the same")


def _check_classes_of_teacher(text: str, theirs: Sequence[str], ours: Sequence[str], outputs: int) -> None:
    """A teacher that speaks of other classes than the labels would teach what is wrong."""
    remedy = "give this run --class-list FILE, a class per line in the order of the teacher's outputs"
    if sorted(theirs) == sorted(ours) and list(theirs) != list(ours):
        raise UserError(f"--teacher {text} has the classes in another order than the data; {remedy}")
    if not theirs and len(ours) < outputs:
        classes = f"{plural(outputs, 'output')}, and the data has {plural(len(ours), 'class')}"
        raise UserError(f"--teacher {text} does not name the classes of its {classes}; {remedy}")
