"""Choosing and building a network, loading the weights that it starts from, placing it on a device."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import create_model, is_own, list_models, resolve
from utils.common.errors import UserError
from utils.networks import weights
from utils.networks.compilation import compile_blocks
from utils.networks.complexity import Complexity, count


@dataclass(frozen=True)
class NetworkSpec:
    """Which network, for which images.

    Args:
        arch: a registered architecture.
        img_size: side of the square input in pixels.
        cardinality: groups of the 3x3 convolutions; None: the architecture's own.
        base_width: width of each group; None: the architecture's own.
    """

    arch: str = "resnet18"
    img_size: int = 224
    cardinality: int | None = None
    base_width: int | None = None


def choose_network(
    given: Mapping[str, Any],
    saved: Mapping[str, Any],
    file: str | None,
    flag: str = "--resume",
    quiet: bool = False,
) -> NetworkSpec:
    """Complete what the command line says of a network by what a checkpoint says, or else by the defaults.

    Args:
        given: the fields of :class:`NetworkSpec`, None where the command line leaves them open.
        saved: the checkpoint that is evaluated; empty for a new network.
        file: its path.
        flag: what named the file, for messages.
        quiet: do not print what is taken from the checkpoint.

    Raises:
        UserError: neither the command line nor the checkpoint says the architecture.
    """
    if not saved:
        return NetworkSpec(**complete(given, {}))
    arch, says = given["arch"], saved.get("arch")
    if arch is None and says not in list_models():
        source = f"{flag} {file}"
        raise UserError(f"{source} {_how_to_name(saved['state_dict'], source)}")
    said = {**saved.get("arguments", {}), "arch": says}
    if arch is not None and resolve(arch) != resolve(says or ""):
        said = {"img_size": said.get("img_size")}  # the widths of another net
    return NetworkSpec(**complete(given, said, None if quiet else file))


def complete(given: Mapping[str, Any], said: Mapping[str, Any], file: str | None = None) -> dict[str, Any]:
    """Return the values that the command line gives, and those of a checkpoint for what it leaves open.

    Args:
        given: by name; None: left open.
        said: the checkpoint's; it may lack some, and hold others.
        file: the checkpoint, to print what is taken from it; None: print nothing.
    """
    taken = {name: said[name] for name in given if given[name] is None and said.get(name) is not None}
    if file and taken:
        print(f"as in {file}:", *(f"--{name.replace('_', '-')} {value}" for name, value in taken.items()))
    return {name: value for name, value in given.items() if value is not None} | taken


def _how_to_name(state: Mapping[str, Tensor], source: str) -> str:
    """Say what to do with a file without an architecture. It is not guessed: several may fit."""
    if detector := weights.of_a_detector(state):
        return detector
    print(f"{source} names no registered architecture; looking for the one that it fits", flush=True)
    known = [f"-a {name}" for name in weights.fitting_architectures(state)] or ["-a ARCH"]
    return f"does not say which architecture it holds: give {weights.alternatives(known)}"


def check_architecture(name: str) -> str:
    """Return the name of a registered architecture.

    Raises:
        UserError: there is none of this name.
    """
    names = list_models()
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see models.list_models()"
    raise UserError(f"unknown architecture '{name}'; {hint}")


def build_model(
    spec: NetworkSpec, classes: int, pretrained: bool = False, zero_gamma: bool = False
) -> tuple[nn.Module, Complexity]:
    """Build a network; return it with its size and its cost for one image.

    Args:
        spec: the network.
        classes: outputs.
        pretrained: start from torchvision's ImageNet weights.
        zero_gamma: start residual branches at 0.

    Raises:
        UserError: the builder refuses the arguments, or there are no weights to download.
    """
    widths = {"groups": spec.cardinality, "width_per_group": spec.base_width}
    kwargs: dict[str, Any] = {name: value for name, value in widths.items() if value is not None}
    kwargs |= {"zero_init_residual": True} if zero_gamma else {}
    try:
        if pretrained:
            instead = "give a file with --finetune or --resume"
            kwargs |= imagenet_weights(spec.arch, classes, "--pretrained", instead)
        model = create_model(spec.arch, num_classes=classes, **kwargs)
        return model, count(model, (3, spec.img_size, spec.img_size))
    except (TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError) as error:
        given = weights.width_flags(spec.cardinality, spec.base_width) + " --zero-gamma" * zero_gamma
        given += f" --img-size {spec.img_size}"
        raise UserError(f"-a {spec.arch} does not take{given}: {error}") from None
    except OSError as error:
        raise UserError(f"--pretrained: the weights of {spec.arch} cannot be downloaded: {error}") from None


def imagenet_weights(arch: str, classes: int, flag: str, instead: str) -> dict[str, str]:
    """Return the keyword that makes torchvision's builders download weights.

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


def finetune(net: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load the weights of ``--finetune`` that fit by name and shape; print which are new and which left out.

    Args:
        net: the network.
        state: the file's state dict.
        path: the file.

    Raises:
        UserError: next to nothing of it fits.
    """
    own = net.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    new, unused = ([key for key in keys if key not in fitting] for keys in (own, state))
    if not any(value.dim() > 1 for value in fitting.values()):
        raise UserError(f"--finetune {path}: no layer of this network has its name and shape there")
    net.load_state_dict(fitting, strict=False)
    print(f"fine-tuning {path}: {len(fitting)} of {len(own)} tensors are from it")
    for what, keys in (("new", new), ("not used from the file", unused)):
        print(f"  {what}: {len(keys)} ({weights.first(keys, 4)})" if keys else f"  {what}: none")


def load_checkpoint(net: nn.Module, saved: Mapping[str, Any], arch: str, file: str, evaluate: bool) -> None:
    """Load the weights of ``--resume``: the evaluated ones for ``-e``, else those in training.

    The two differ where the run keeps a moving average of the weights (EMA).

    Raises:
        UserError: they do not fit.
    """
    weights.load_weights(net, saved, arch, file)
    if not evaluate and "training_state_dict" in saved:
        weights.load_weights(net, {**saved, "state_dict": saved["training_state_dict"]}, arch, file)


def place(
    net: nn.Module, device: torch.device, channels_last: bool, sync_bn: bool, compiled: bool
) -> nn.Module:
    """Put a network on its device.

    Args:
        net: the network.
        device: where it is to be.
        channels_last: whether its weights are laid out as NHWC.
        sync_bn: compute the statistics of batch norm over all processes.
        compiled: compile its blocks.

    Raises:
        UserError: ``--sync-bn`` on a CPU.
    """
    net = net.to(device).to(memory_format=layout(channels_last))
    if sync_bn and device.type != "cuda":
        raise UserError("--sync-bn: torch's SyncBatchNorm runs on CUDA only")
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net) if sync_bn else net
    return compile_blocks(net) if compiled else net


def layout(channels_last: bool) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if channels_last else torch.contiguous_format
