"""What is known of a network's outputs: how many there are, and which class each stands for."""

from collections.abc import Mapping
from typing import Any

from models import is_own
from utils.common.errors import UserError
from utils.data import labels
from utils.data.labels import Outputs
from utils.networks import weights


def outputs_of(
    arch: str,
    num_classes: int | None,
    class_list: str | None,
    evaluate: bool,
    saved: Mapping[str, Any],
    started: Mapping[str, Any],
    file: str | None,
) -> Outputs:
    """Return what the command line and the checkpoints say of the outputs, before the data is looked at.

    Args:
        arch: the architecture.
        num_classes: how many outputs are asked for; None: not said. For ``-e`` the weights then say it.
        class_list: the file of ``--class-list``; None: none.
        evaluate: whether the network is only evaluated.
        saved: the checkpoint of ``--resume``; empty if there is none.
        started: the checkpoint of ``--finetune``; empty if there is none.
        file: the file of ``--resume``; None: none.

    Raises:
        UserError: they contradict each other.
    """
    count = num_classes
    if count is None and evaluate:
        pretrained = None if is_own(arch) else labels.IMAGENET_CLASSES
        count = weights.outputs_in(saved["state_dict"], arch) if saved else pretrained
    known = tuple(saved.get("classes", ()))
    listed: tuple[str, ...] = ()
    if class_list:
        listed = labels.read_class_list(class_list, count)
        labels.check_agreement(listed, known, class_list)
    unnamed = f"--resume {file}" if file else "--pretrained" * evaluate
    return Outputs(count, listed, known, tuple(started.get("classes", ())), unnamed)


def class_count(requested: int | None, outputs: Outputs, classes: tuple[str, ...]) -> int:
    """Return the number of outputs: as requested, as evaluated weights have, or one for each class.

    Raises:
        UserError: ``--num-classes`` is fewer than the class folders.
    """
    if requested is not None and requested < len(classes):
        raise UserError(f"--num-classes {requested} is too few: the data has {len(classes)} class folders")
    return max(outputs.count or 0, len(classes))
