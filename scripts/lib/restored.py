"""The network that a checkpoint holds, for the tools, and the names of its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.common.errors import UserError
from utils.data import labels
from utils.data.transforms import ValTransform
from utils.networks import checkpoint, weights
from utils.networks.building import NETWORK_FIELDS, build_model, choose_network
from utils.networks.parts import PartSpec


@dataclass(frozen=True)
class Restored:
    """A network with a checkpoint's weights, in evaluation mode on the CPU."""

    net: nn.Module
    arch: str
    saved: Mapping[str, Any]  # the content of the checkpoint
    img_size: int  # side of the square input in pixels
    outputs: int
    parts: PartSpec  # what flags put into it
    val_transform: ValTransform  # how its images are resized and cropped

    @property
    def name(self) -> str:
        """The architecture, with the flags of its stem and gates."""
        return f"{self.arch}{self.parts.flags}"


def restore(path: str, given: Mapping[str, Any], flag: str = "--resume") -> Restored:
    """Build the network that a checkpoint holds; its weights say the number of outputs.

    Args:
        path: the file.
        given: what the command line says of the network, by the fields of :class:`NetworkSpec`; what is
            missing or None is as the file says, the images 224 pixels wide if it does not.
        flag: what named the file, for messages.

    Raises:
        UserError: the file cannot be read, does not say what it holds, or holds another network than given.
    """
    saved = checkpoint.load(path, flag)
    given = {name: given.get(name) for name in NETWORK_FIELDS}
    spec = choose_network(given, saved, path, flag, quiet=True)
    outputs = weights.output_count(saved["state_dict"], spec.arch)
    net, _ = build_model(spec, outputs)
    weights.load_weights(net, saved, spec.arch, path, flag, "-a {arch}{parts}", spec)
    return Restored(net.eval(), spec.arch, saved, spec.img_size, outputs, spec, spec.val_transform)


def open_network(path: str | None, given: Mapping[str, Any], outputs: int) -> Restored:
    """Restore the network of a checkpoint, or build a new one of random weights with these outputs.

    Raises:
        UserError: the file cannot be read or does not fit, or neither file nor architecture is given.
    """
    if path:
        return restore(path, given)
    if not given.get("arch"):
        raise UserError("which network? Give --resume FILE, or -a ARCH for random weights")
    spec = choose_network(given, {}, None)
    net, _ = build_model(spec, outputs)
    return Restored(net.eval(), spec.arch, {}, spec.img_size, outputs, spec, spec.val_transform)


def names_of_outputs(
    restored: Restored, class_list: str | None, flag: str = "--class-list", distinct: bool = False
) -> list[str]:
    """Return the classes of a restored network's outputs: of ``--class-list``, or as the checkpoint says.

    Args:
        restored: the network.
        class_list: the file. Its names may be others than the checkpoint's, for readers of another language.
        flag: what named it, for messages.
        distinct: whether a name may stand in it once only.

    Returns:
        A name for each output; fewer, or none, if only the checkpoint says and does not say more.

    Raises:
        UserError: the list is no list of the outputs, or has the checkpoint's classes in another order.
    """
    known = tuple(restored.saved.get("classes", ()))[: restored.outputs]
    if class_list is None:
        return list(known)
    listed = labels.read_class_list(class_list, restored.outputs, flag, distinct)
    if sorted(listed) == sorted(known):
        labels.check_agreement(listed, known, class_list, flag)
    return list(listed)


def names_to_show(
    restored: Restored, path: str | None, class_list: str | None, flag: str = "--class-list"
) -> tuple[list[str], str]:
    """Return the classes to show; ImageNet's names for 1,000 outputs of a checkpoint that says nothing.

    Returns:
        The names, and what the reader must be told of them, if anything.
    """
    names = names_of_outputs(restored, class_list, flag)
    if names or not restored.saved or restored.outputs != labels.IMAGENET_CLASSES:
        return names, ""
    told = f"{path} names no classes: its outputs are taken for ImageNet's (--class-list FILE names others)"
    return list(labels.imagenet_classes().values()), told
