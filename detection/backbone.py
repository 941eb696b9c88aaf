"""The backbone: the four stages of a residual classification net, and a feature pyramid on them.

Lin, Dollar, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection",
arXiv 1612.03144. The stem and the first stage are frozen. So are the statistics of all batch norms of the
net, because two images are too few for them; the scales and shifts of stages 2 to 4 are trained, and so is
BAM's module between stages 1 and 2.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from models import create_model, is_own, list_models, resolve
from models.gates import base_of
from models.stems import has_small_stem
from utils.common.errors import UserError
from utils.data.transforms import IMAGENET
from utils.networks import checkpoint as checkpoints
from utils.networks.building import complete, load_fitting, scaling_said, start_pretrained
from utils.networks.gating import GateSpec, gate_fields, gates_in, gates_taken, put_gates
from utils.networks.parts import PartSpec
from utils.networks.weights import differences, load_weights, of_a_detector, output_count

FROZEN = ("conv1", "bn1", "layer1")  # a deep stem is inside conv1
CHANNELS = 256  # of every level of the pyramid


class Backbone(nn.Module):
    """Stages c2 to c5 of a residual net, attention included, as a feature pyramid.

    Args:
        net: a ResNet of models/ or torchvision; its classifier is removed.
        gates: those that flags have put into it. They are trained in every stage, because in the frozen one
            they may be new.

    Shape: (B, 3, H, W) to maps "0", "1", "2", "3" and "pool" of 256 channels at strides 4, 8, 16, 32, 64.
    They are in float32 under autocast too: anchors and boxes inherit their precision, and bfloat16 cannot
    distinguish x = 1000 from x = 1001.
    """

    def __init__(self, net: nn.Module, gates: GateSpec | None = None) -> None:
        super().__init__()
        self.gates = gates or GateSpec()
        del net.avgpool, net.fc
        self.body = net.eval()
        with torch.no_grad():
            maps = stages(net, next(net.parameters()).new_zeros(1, 3, 64, 64))
        self.out_channels = CHANNELS
        self.fpn = FeaturePyramidNetwork([c.shape[1] for c in maps], CHANNELS, LastLevelMaxPool())
        for name in FROZEN:
            net.get_submodule(name).requires_grad_(False)
        for module in net.modules():
            for child in getattr(module, "gate_at", {}).values():  # added, not of the architecture
                module.get_submodule(child).requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = self.fpn({str(i): c for i, c in enumerate(stages(self.body, x))})
        return {name: full_precision(level) for name, level in levels.items()}


def stages(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs c2, c3, c4, c5 of the four stages of a ResNet, ours or torchvision's."""
    if hasattr(net, "forward_stages"):
        return net.forward_stages(x)
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    c2 = net.layer1(x)
    c3 = net.layer2(c2)
    c4 = net.layer3(c3)
    return c2, c3, c4, net.layer4(c4)


def full_precision(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def list_backbones() -> list[str]:
    """List the architectures that can be a backbone: those with the four stages of a ResNet."""
    return [*list_models("*resne*"), *list_models("sknet*")]


def create_backbone(
    arch: str, checkpoint: str | None, pretrained: bool, gates: GateSpec | None = None
) -> Backbone:
    """Create a backbone from a classification checkpoint or from torchvision's ImageNet weights.

    Args:
        arch: a name of :func:`list_backbones`.
        checkpoint: file of a classification run, ours or published; None: none. The backbone has the gates
            that it says; a file without gates starts a backbone with those of ``gates``, which are new.
        pretrained: download the weights; torchvision's architectures only, to which ``gates`` may be added.
        gates: those that flags put in; None: none.

    Raises:
        UserError: the net has no stages, or the weights are not available or of another net.
    """
    if arch not in list_backbones():
        possible = "possible are *resnet*, *resnext* and sknet*, such as sge_resnet50"
        raise UserError(f"-a {arch} has no stages layer1 to layer4 for a detector; {possible}")
    if checkpoint and pretrained:
        raise UserError("--backbone FILE and --pretrained are two sources of the same weights: give one")
    gates = gates or GateSpec()
    if checkpoint:
        return _from_checkpoint(arch, checkpoint, gates)
    net = create_model(arch)
    put_gates(net, gates, arch)
    if pretrained:
        _start_pretrained(net, arch)
    return Backbone(net, gates)


def _start_pretrained(net: nn.Module, arch: str) -> None:
    """Load torchvision's weights; gates of the architecture would stay new in the frozen first stage."""
    instead = "give a file with --backbone"
    if is_own(arch):
        if base := base_of(resolve(arch)):
            instead = f"give -a {base} --gate {arch.partition('_')[0]}, or a file with --backbone"
        raise UserError(f"--pretrained: there are no weights of {arch} to download; {instead}")
    try:
        start_pretrained(net, arch, {}, instead)
    except OSError as error:
        raise UserError(f"--pretrained: the weights of {arch} cannot be downloaded: {error}") from None


def _from_checkpoint(arch: str, path: str, gates: GateSpec) -> Backbone:
    saved = checkpoints.load(path, "--backbone")
    state = saved["state_dict"]
    if detector := of_a_detector(state):
        raise UserError(f"--backbone {path} {detector}, or give the checkpoint of a classification run")
    if has_small_stem(state):
        raise UserError(
            f"--backbone {path} has the small stem (--stem small): a detector takes maps of strides 4 to 32, "
            "give a file with the published stem"
        )
    if (scaling := scaling_said(saved)) not in (None, IMAGENET):
        raise UserError(f"--backbone {path} was trained with {scaling.flags}: a detector takes ImageNet's")
    said = gates_in(saved, arch)
    if said.flags:
        taken = gates_taken(gate_fields(gates), saved, f"--backbone {path}")
        gates = GateSpec(**complete(gate_fields(gates), taken, path))
    net = create_model(arch, num_classes=output_count(state, arch))
    without = not said.flags and not differences(net, state)
    put_gates(net, gates, arch)
    name = f"backbone {arch}{gates.flags} from {path}"
    if gates.flags and without:
        load_fitting(net, state, name, gates.gate_start == "identity")
        return Backbone(net, gates)
    parts = PartSpec(**gate_fields(gates))
    load_weights(net, saved, arch, path, "--backbone", "-a {arch}{parts}", parts)
    backbone = Backbone(net, gates)
    used = backbone.body.state_dict()
    print(f"{name}; not used from the file: {', '.join(key for key in state if key not in used)}")
    return backbone
