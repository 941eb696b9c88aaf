"""The network of a run: built, started from other weights, taught."""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import create_model, is_own, list_models, resolve
from utils import checkpoint, fitting, settings
from utils.cli import architecture
from utils.compilation import compile_blocks
from utils.complexity import Complexity, count
from utils.errors import UserError
from utils.losses import Distillation
from utils.precision import Precision


def class_count(requested: int | None, classes: tuple[str, ...]) -> int:
    """The number of outputs: ``--num-classes``, or as many as there are class folders.

    Raises:
        UserError: fewer outputs than folders.
    """
    if requested is not None and requested < len(classes):
        raise UserError(f"--num-classes {requested} is too few: the data has {len(classes)} class folders")
    return requested or len(classes)


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
    args: argparse.Namespace, classes: int, device: torch.device, precision: Precision
) -> Distillation | None:
    """What ``--teacher ARCH[:FILE]`` adds to the loss; without a file it has torchvision's ImageNet weights.

    Raises:
        UserError: unknown architecture, no such file, or weights that do not fit ``classes``.
    """
    if args.teacher is None:
        return None
    teacher = place(_build_teacher(args.teacher, classes, args.img_size), args, device)
    teacher = precision.prepare(teacher.eval().requires_grad_(False))
    return Distillation(partial(precision.forward, teacher), args.distill_alpha, args.distill_temp)


def _build_teacher(text: str, classes: int, img_size: int) -> nn.Module:
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
    if path:
        choice = "--teacher {arch}:FILE{classes}"
        fitting.load_weights(teacher, checkpoint.load(path, "--teacher"), arch, path, "--teacher", choice)
    return teacher
