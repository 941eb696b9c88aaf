"""Choosing and building a network, loading the weights that it starts from, placing it on a device."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models import create_model, is_own, list_models, resolve
from models.gates import base_of, gates_of, renamed
from models.stems import has_published_stem, has_small_stem
from utils.common.errors import UserError
from utils.data.transforms import CROP_PCT, INTERPOLATION, MEAN, STD, Scaling, ValTransform
from utils.networks import weights
from utils.networks.compilation import compile_blocks
from utils.networks.complexity import Complexity, count
from utils.networks.gating import flag_of, gates_taken
from utils.networks.parts import PART_FIELDS, SMALL_STEM, PartSpec, put_parts


@dataclass(frozen=True)
class NetworkSpec(PartSpec):
    """Which network, for which images; the fields of :class:`PartSpec` say its stem and gates.

    Args:
        arch: a registered architecture.
        img_size: side of the square input in pixels.
        cardinality: groups of the 3x3 convolutions; None: the architecture's own.
        base_width: width of each group; None: the architecture's own.
        crop_pct: of :class:`ValTransform`; None: as published.
        interpolation: of :class:`ValTransform`; None: as published.
        mean: of the images' red, green and blue in [0, 1], that is subtracted; None: ImageNet's.
        std: what they are divided by; None: ImageNet's.
    """

    arch: str = "resnet18"
    img_size: int = 224
    cardinality: int | None = None
    base_width: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @property
    def scaling(self) -> Scaling:
        """How pixels become the network's input."""
        return Scaling(tuple(self.mean or MEAN), tuple(self.std or STD))

    @property
    def val_transform(self) -> ValTransform:
        """How an image is resized and cropped for validation."""
        crop = (self.crop_pct or CROP_PCT, self.interpolation or INTERPOLATION)
        return ValTransform(self.img_size, *crop, self.scaling)


SMALL_IMAGES = 64  # pixels
_REFUSALS = (TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError)  # by a builder
_WIDTHS = ("cardinality", "base_width")
_IMAGES = ("img_size", "crop_pct", "interpolation", "mean", "std")
NETWORK_FIELDS = ("arch", *_IMAGES, *_WIDTHS, *PART_FIELDS)


def choose_network(
    given: Mapping[str, Any],
    saved: Mapping[str, Any],
    file: str | None,
    flag: str = "--resume",
    quiet: bool = False,
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> NetworkSpec:
    """Complete what the command line says of a network by what a checkpoint says, or else by the defaults.

    Args:
        given: the fields of :class:`NetworkSpec`, None where the command line leaves them open.
        saved: the checkpoint that is evaluated or goes on; empty for a new network.
        file: its path.
        flag: what named the file, for messages.
        quiet: do not print what is taken from the checkpoint.
        usual: defaults of the data set, for a new network and one of a file that says nothing of the images.

    Raises:
        UserError: neither the command line nor the checkpoint says the architecture, or the gates are of a
            user's file that the command line does not name.
    """
    if not saved:
        return NetworkSpec(**complete(given, usual))
    arch, says = given["arch"], saved.get("arch")
    if arch is None and says not in list_models():
        source = f"{flag} {file}"
        raise UserError(f"{source} {_how_to_name(saved['state_dict'], source)}")
    arguments = saved.get("arguments", {})
    said = {name: arguments.get(name) for name in _IMAGES}
    if arch is None or resolve(arch) == resolve(says or ""):  # else its widths and gates are of another net
        said |= {name: arguments.get(name) for name in _WIDTHS}
        said |= {"arch": says, "stem": arguments.get("stem")}
        said |= gates_taken(given, saved, f"{flag} {file}")
    spec = complete(given, said, None if quiet else file)
    return NetworkSpec(**({} if says_images(saved) else dict(usual)) | spec)


def says_images(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says what its network takes: all that runs of this code write do.

    What it does not mention of the images is then as published.
    """
    return "img_size" in saved.get("arguments", {})


def scaling_said(saved: Mapping[str, Any]) -> Scaling | None:
    """Return the mean and deviation of the images that a checkpoint was trained on; None: it does not say."""
    if not says_images(saved):
        return None
    said = saved["arguments"]
    return Scaling(tuple(said.get("mean") or MEAN), tuple(said.get("std") or STD))


def complete(given: Mapping[str, Any], said: Mapping[str, Any], file: str | None = None) -> dict[str, Any]:
    """Return the values that the command line gives, and those of a checkpoint for what it leaves open.

    Args:
        given: by name; None: left open.
        said: the checkpoint's; it may lack some, and hold others.
        file: the checkpoint, to print what is taken from it; None: print nothing.
    """
    taken = {name: said[name] for name in given if given[name] is None and said.get(name) is not None}
    if file and taken:
        print(f"as in {file}:", *(flag_of(name, value) for name, value in taken.items()))
    return {name: value for name, value in given.items() if value is not None} | taken


def _how_to_name(state: Mapping[str, Tensor], source: str) -> str:
    """Say what to do with a file without an architecture. It is not guessed: several may fit."""
    if detector := weights.of_a_detector(state):
        return detector
    print(f"{source} names no registered architecture; looking for the one that it fits", flush=True)
    stem = SMALL_STEM * has_small_stem(state)
    known = [f"-a {name}{stem}" for name in weights.fitting_architectures(state)] or [f"-a ARCH{stem}"]
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
    spec: NetworkSpec,
    classes: int,
    pretrained: bool = False,
    zero_gamma: bool = False,
    evaluate: bool = False,
) -> tuple[nn.Module, Complexity]:
    """Build a network with its stem and gates; return it with its size and its cost for one image.

    Args:
        spec: the network.
        classes: outputs.
        pretrained: start from torchvision's ImageNet weights, those of the plain network if it has gates or
            another stem. In evaluation they must be the whole network; otherwise it is printed what is new.
        zero_gamma: start residual branches at 0.
        evaluate: whether the network is only evaluated.

    Raises:
        UserError: the builder refuses the arguments, or there are no weights to download.
    """
    widths = {"groups": spec.cardinality, "width_per_group": spec.base_width}
    kwargs: dict[str, Any] = {name: value for name, value in widths.items() if value is not None}
    instead = "give a file with --finetune or --resume"
    try:
        if pretrained and evaluate:
            name = f"{spec.arch}{spec.flags}"
            whole = imagenet_weights(spec.arch, classes, "--pretrained", instead, name)
            model = create_model(spec.arch, num_classes=classes, **kwargs, **whole)
        else:
            zeros = {"zero_init_residual": True} if zero_gamma else {}
            model = create_model(spec.arch, num_classes=classes, **kwargs, **zeros)
            put_parts(model, spec, spec.arch)
        if pretrained and not evaluate:
            start_pretrained(model, spec.arch, kwargs, instead)
        return model, count(model, (3, spec.img_size, spec.img_size))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--pretrained: the weights of {spec.arch} cannot be downloaded: {error}") from None
    except Exception as error:
        if not (spec.gate_file or isinstance(error, _REFUSALS)):  # a user's gate raises anything
            raise
        given = weights.width_flags(spec.cardinality, spec.base_width) + " --zero-gamma" * zero_gamma
        given += f"{spec.flags} --img-size {spec.img_size}"
        raise UserError(f"-a {spec.arch} does not take{given}: {error}") from None


def imagenet_weights(
    arch: str, classes: int, flag: str, instead: str, name: str | None = None
) -> dict[str, str]:
    """Return the keyword that makes torchvision's builders download weights of a whole network.

    Args:
        arch: the architecture.
        classes: outputs wanted.
        flag: what asked for weights, for messages.
        instead: what to do where there are none, for messages.
        name: the architecture with the flags of its gates, if it has some; None: it has none.

    Raises:
        UserError: there are none.
    """
    if is_own(arch) or name not in (None, arch):
        raise UserError(f"{flag}: there are no weights of {name or arch} to download; {instead}")
    if classes != 1000:
        raise UserError(f"{flag}: ImageNet's weights have 1000 classes, the data has {classes}; {instead}")
    return {"weights": "IMAGENET1K_V1"}


def start_pretrained(net: nn.Module, arch: str, widths: Mapping[str, Any], instead: str) -> None:
    """Load torchvision's ImageNet weights of a network without its gates and small stem; print what is new.

    Args:
        net: the network, with any number of classes.
        arch: its architecture.
        widths: the keywords of its builder that say its widths.
        instead: what to do where there are no weights, for messages.

    Raises:
        UserError: there are none of its plain network.
        OSError: they cannot be downloaded.
    """
    if (base := base_of(resolve(arch))) is None:
        raise UserError(f"--pretrained: there are no weights of {arch} to download; {instead}")
    state = create_model(base, weights="IMAGENET1K_V1", **widths).state_dict()
    load_fitting(net, renamed(net, state), f"starting from torchvision's {base}")


def finetune(
    net: nn.Module, state: Mapping[str, Tensor], path: str, arch: str = "", new_gates: bool = False
) -> None:
    """Load the weights of ``--finetune`` that fit by name and shape; print which are new and which left out.

    A file of the plain network fits one with gates, also where the gates change the names of layers.

    Args:
        net: the network.
        state: the file's state dict.
        path: the file.
        arch: the network's architecture.
        new_gates: do not load the gates' weights, because the gates start in another way.

    Raises:
        UserError: next to nothing of it fits.
    """
    base = base_of(resolve(arch))
    if base and weights.has_keys_of(state, base):
        state = renamed(net, state)
    load_fitting(net, state, f"fine-tuning {path}", new_gates, f"--finetune {path}")


def load_fitting(
    net: nn.Module, state: Mapping[str, Tensor], doing: str, new_gates: bool = False, source: str = ""
) -> None:
    """Load the weights that fit by name and shape; print which are new and which left out.

    Args:
        net: the network.
        state: the weights.
        doing: what is printed before the numbers.
        new_gates: do not load the gates' weights, because they start as the identity.
        source: the flag and the file, for messages.

    Raises:
        UserError: no layer fits.
    """
    own = net.state_dict()
    weights.check_types(net, state, source or doing)
    gates = tuple(f"{name}." for name in gates_of(net)) if new_gates else ()
    fitting = {
        key: value
        for key, value in state.items()
        if key in own and own[key].shape == value.shape and not key.startswith(gates)
    }
    new, unused = ([key for key in keys if key not in fitting] for keys in (own, state))
    if not any(value.dim() > 1 for value in fitting.values()):
        raise UserError(f"{source or doing}: no layer of this network has its name and shape there")
    net.load_state_dict(fitting, strict=False)
    print(f"{doing}: {len(fitting)} of {len(own)} tensors are from it")
    why = "; the stem is another" * new_stem(net, state)
    why += "; the gates start as the identity" * new_gates
    for what, keys, end in (("new", new, why), ("not used from the file", unused, "")):
        print(f"  {what}: {len(keys)} ({weights.first(keys, 4)}){end}" if keys else f"  {what}: none")


def new_stem(net: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether one of a network and the weights that it starts from has the small stem, and the other not."""
    return has_small_stem(net.state_dict()) != has_small_stem(state)


def note_stem(net: nn.Module, spec: NetworkSpec) -> None:
    """Print what the small stem would do for a network of small images, if nothing says which it has."""
    if spec.stem is None and has_published_stem(net) and spec.img_size <= SMALL_IMAGES:
        sides = (math.ceil(spec.img_size / stride) for stride in (32, 8))
        left = "behind the published stem the last maps are {0}x{0}, with --stem small {1}x{1}".format(*sides)
        print(f"note: of {spec.img_size} px images, {left}")


def load_checkpoint(
    net: nn.Module, saved: Mapping[str, Any], spec: NetworkSpec, file: str, evaluate: bool
) -> None:
    """Load the weights of ``--resume``: the evaluated ones for ``-e``, else those in training.

    The two differ where the run keeps a moving average of the weights (EMA).

    Raises:
        UserError: they do not fit.
    """
    weights.load_weights(net, saved, spec.arch, file, parts=spec)
    if not evaluate and "training_state_dict" in saved:
        trained = {**saved, "state_dict": saved["training_state_dict"]}
        weights.load_weights(net, trained, spec.arch, file, parts=spec)


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
