"""The network of a run: built, started from other weights, taught."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import create_model, is_own, list_models, resolve
from utils.command_line import settings
from utils.command_line.cli import architecture
from utils.common.errors import UserError
from utils.common.text import plural
from utils.data import labels
from utils.data.labels import Outputs
from utils.networks import checkpoint
from utils.networks import weights as fitting
from utils.networks.compilation import compile_blocks
from utils.networks.complexity import Complexity, count
from utils.training.losses import Distillation
from utils.training.precision import Precision


def outputs_of(args: argparse.Namespace, saved: Mapping[str, Any]) -> Outputs:
    """What the command line and the checkpoint of ``--resume`` say of the network's outputs.

    For ``-e`` the weights say how many there are.

    Raises:
        UserError: they contradict each other.
    """
    count = args.num_classes
    if count is None and args.evaluate:
        pretrained = None if is_own(args.arch) else labels.IMAGENET_CLASSES
        count = fitting.outputs_in(saved["state_dict"], args.arch) if saved else pretrained
    known = tuple(saved.get("classes", ()))
    listed: tuple[str, ...] = ()
    if args.class_list:
        listed = labels.read_class_list(args.class_list, count)
        labels.check_agreement(listed, known, args.class_list)
    started = checkpoint.load(args.finetune, "--finetune").get("classes", ()) if args.finetune else ()
    unnamed = f"--resume {args.resume}" if args.resume else "--pretrained" * args.evaluate
    return Outputs(count, listed, known, tuple(started), unnamed)


def class_count(requested: int | None, outputs: Outputs, classes: tuple[str, ...]) -> int:
    """The number of outputs: ``--num-classes``, those of evaluated weights, or as many as there are classes.

    Raises:
        UserError: ``--num-classes`` is fewer than the class folders.
    """
    if requested is not None and requested < len(classes):
        raise UserError(f"--num-classes {requested} is too few: the data has {len(classes)} class folders")
    return max(outputs.count or 0, len(classes))


def build_model(args: argparse.Namespace, classes: int) -> tuple[nn.Module, Complexity]:
    """The network of ``-a`` and its size and cost at ``--img-size``.

    Raises:
        UserError: the builder refuses the arguments, or there are no weights to download.
    """
    kwargs: dict[str, Any] = {"num_classes": classes}
    if args.cardinality is not None:
        kwargs["groups"] = args.cardinality
    if args.base_width is not None:
        kwargs["width_per_group"] = args.base_width
    if args.zero_gamma:
        kwargs["zero_init_residual"] = True
    try:
        if args.pretrained:
            instead = "give a file with --finetune or --resume"
            kwargs |= imagenet_weights(args.arch, classes, "--pretrained", instead)
        model = create_model(args.arch, **kwargs)
        return model, count(model, (3, args.img_size, args.img_size))
    except (TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError) as error:
        given = (("--cardinality", args.cardinality), ("--base-width", args.base_width))
        flags = [f"{flag} {value}" for flag, value in given if value is not None]
        flags += ["--zero-gamma"] if args.zero_gamma else []
        size = f"--img-size {args.img_size}"
        raise UserError(f"-a {args.arch} does not take {' '.join([*flags, size])}: {error}") from None
    except OSError as error:
        raise UserError(f"--pretrained: the weights of {args.arch} cannot be downloaded: {error}") from None


def imagenet_weights(arch: str, classes: int, flag: str, instead: str) -> dict[str, str]:
    """The keyword that makes torchvision's builders download weights.

    Args:
        arch: the architecture.
        classes: outputs wanted.
        flag: what asked for weights, for messages.
        instead: what to do where there are none, for messages.

    Raises:
        UserError: there are none.
    """
    if is_own(arch):
        raise UserError(f"{flag}: there are no weights of {arch} to download; {instead}")
    if classes != 1000:
        raise UserError(f"{flag}: ImageNet's weights have 1000 classes, the data has {classes}; {instead}")
    return {"weights": "IMAGENET1K_V1"}


def finetune(net: nn.Module, path: str) -> None:
    """Start from the weights of ``--finetune`` that fit by name and shape; say which are new and left out.

    Raises:
        UserError: the file cannot be read, or next to nothing of it fits.
    """
    state: Mapping[str, Tensor] = checkpoint.load(path, "--finetune")["state_dict"]
    own = net.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    new, unused = ([key for key in keys if key not in fitting] for keys in (own, state))
    if not any(value.dim() > 1 for value in fitting.values()):
        raise UserError(f"--finetune {path}: no layer of this network has its name and shape there")
    net.load_state_dict(fitting, strict=False)
    print(f"fine-tuning {path}: {len(fitting)} of {len(own)} tensors are from it")
    print(f"  new: {_listed(new)}")
    print(f"  not used from the file: {_listed(unused)}")


def _listed(keys: list[str]) -> str:
    return f"{len(keys)} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})" if keys else "none"


def load_weights(net: nn.Module, args: argparse.Namespace, saved: Mapping[str, Any]) -> None:
    """Start from ``--finetune`` or ``--resume``: the evaluated weights for ``-e``, else those in training.

    Raises:
        UserError: they do not fit.
    """
    if args.finetune:
        finetune(net, args.finetune)
    if saved:
        fitting.load_weights(net, saved, args.arch, args.resume)
        if not args.evaluate and "training_state_dict" in saved:
            training = {**saved, "state_dict": saved["training_state_dict"]}
            fitting.load_weights(net, training, args.arch, args.resume)


def settle(args: argparse.Namespace, saved: Mapping[str, Any]) -> None:
    """Set what the command line of ``-e`` leaves open to what the checkpoint says, and print what that is.

    Image size and widths of a file that does not say them are the defaults; without a file, so is the
    architecture.

    Raises:
        UserError: neither the command line nor the file says the architecture.
    """
    taken = _fill(args, saved, f"--resume {args.resume}") if saved else settings.fill(args, settings.NETWORK)
    if taken:
        print(f"as in {args.resume}: {taken}")


def _fill(args: argparse.Namespace, saved: Mapping[str, Any], source: str) -> str:
    """Set what is None in ``args`` to what the checkpoint says; return that, as flags."""
    says = saved.get("arch")
    if args.arch is None and says not in list_models():
        raise UserError(f"{source} {_which(saved['state_dict'], source)}")
    said = {**saved.get("arguments", {}), "arch": says}
    if args.arch is not None and resolve(args.arch) != resolve(says or ""):
        said = {"img_size": said.get("img_size")}  # the widths of another net
    return settings.fill(args, settings.NETWORK, said)


def _which(state: Mapping[str, Tensor], source: str) -> str:
    """What to do with a file that does not say its architecture. It is not guessed: several may fit."""
    if detector := fitting.of_a_detector(state):
        return detector
    print(f"{source} names no registered architecture; looking for the one that it fits", flush=True)
    known = [f"-a {name}" for name in fitting.fitting_architectures(state)] or ["-a ARCH"]
    return f"does not say which architecture it holds: give {fitting.alternatives(known)}"


class Restored(NamedTuple):
    """A network with a checkpoint's weights, in evaluation mode on the CPU."""

    net: nn.Module
    arch: str
    saved: Mapping[str, Any]  # from :func:`checkpoint.load`
    img_size: int  # side of the square input in pixels
    outputs: int


def restore(path: str, arch: str | None, img_size: int | None, flag: str = "--resume") -> Restored:
    """The network that a checkpoint holds; its weights say the number of outputs.

    Args:
        path: the file.
        arch: its architecture; None: what the file says.
        img_size: side of the square input in pixels; None: as in training, 224 if the file does not say.
        flag: what named the file, for messages.

    Raises:
        UserError: the file cannot be read, does not say what it holds, or does not fit ``arch``.
    """
    saved = checkpoint.load(path, flag)
    args = argparse.Namespace(arch=arch, img_size=img_size, cardinality=None, base_width=None)
    args.zero_gamma = args.pretrained = False
    _fill(args, saved, f"{flag} {path}")
    outputs = fitting.output_count(saved["state_dict"], args.arch)
    net, _ = build_model(args, outputs)
    fitting.load_weights(net, saved, args.arch, path, flag, "-a {arch}")
    return Restored(net.eval(), args.arch, saved, args.img_size, outputs)


def names_of_outputs(
    restored: Restored, class_list: str | None, flag: str = "--class-list", distinct: bool = False
) -> list[str]:
    """The classes of a restored network's outputs: those of ``--class-list``, or as the checkpoint says.

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
    """The same, and ImageNet's names for the 1,000 outputs of a checkpoint that says nothing.

    Returns:
        The names, and what the reader must be told of them, if anything.
    """
    names = names_of_outputs(restored, class_list, flag)
    if names or not restored.saved or restored.outputs != labels.IMAGENET_CLASSES:
        return names, ""
    told = f"{path} names no classes: its outputs are taken for ImageNet's (--class-list FILE names others)"
    return list(labels.imagenet_classes().values()), told


def place(net: nn.Module, args: argparse.Namespace, device: torch.device) -> nn.Module:
    """The network on its device, in its layout; on demand with batch norm over all processes, and compiled.

    Raises:
        UserError: ``--sync-bn`` on a CPU.
    """
    net = net.to(device).to(memory_format=layout(args))
    if args.sync_bn and device.type != "cuda":
        raise UserError("--sync-bn: torch's SyncBatchNorm runs on CUDA only")
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net) if args.sync_bn else net
    return compile_blocks(net) if args.compile else net


def layout(args: argparse.Namespace) -> torch.memory_format:
    """Of images and weights."""
    return torch.channels_last if args.channels_last else torch.contiguous_format


def create_distillation(
    args: argparse.Namespace, classes: int, names: Sequence[str], device: torch.device, precision: Precision
) -> Distillation | None:
    """What ``--teacher ARCH[:FILE]`` adds to the loss; without a file it has torchvision's ImageNet weights.

    Args:
        args: the command line.
        classes: outputs of the network that learns.
        names: of its classes, in the order of the outputs; the last outputs may have none.
        device: where it learns.
        precision: in which it learns.

    Raises:
        UserError: unknown architecture, no such file, or weights that do not fit ``classes`` or their order.
    """
    if args.teacher is None:
        return None
    teacher = place(_build_teacher(args.teacher, classes, names, args.img_size), args, device)
    teacher = precision.prepare(teacher.eval().requires_grad_(False))
    return Distillation(partial(precision.forward, teacher), args.distill_alpha, args.distill_temp)


def _build_teacher(text: str, classes: int, names: Sequence[str], img_size: int) -> nn.Module:
    name, _, path = text.partition(":")
    try:
        arch = architecture(name)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--teacher: {error}") from None
    instead = f"give --teacher {arch}:FILE"
    try:
        weights = {} if path else imagenet_weights(arch, classes, f"--teacher {arch}", instead)
        teacher = create_model(arch, num_classes=classes, **weights)
        count(teacher, (3, img_size, img_size))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--teacher {arch} does not take --img-size {img_size}: {error}") from None
    except OSError as error:
        raise UserError(f"--teacher {arch}: its weights cannot be downloaded: {error}") from None
    saved = checkpoint.load(path, "--teacher") if path else {}
    if path:
        choice = "--teacher {arch}:FILE{classes}"
        fitting.load_weights(teacher, saved, arch, path, "--teacher", choice)
    _check_classes_of_teacher(text, saved.get("classes", ()), names, classes)
    return teacher


def _check_classes_of_teacher(text: str, theirs: Sequence[str], ours: Sequence[str], outputs: int) -> None:
    """A teacher that speaks of other classes than the labels would teach what is wrong."""
    remedy = "give this run --class-list FILE, a class per line in the order of the teacher's outputs"
    if sorted(theirs) == sorted(ours) and list(theirs) != list(ours):
        raise UserError(f"--teacher {text} has the classes in another order than the data; {remedy}")
    if not theirs and len(ours) < outputs:
        classes = f"{plural(outputs, 'output')}, and the data has {plural(len(ours), 'class')}"
        raise UserError(f"--teacher {text} does not name the classes of its {classes}; {remedy}")
