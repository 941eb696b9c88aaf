"""Grad-CAM (Selvaraju et al., arXiv 1610.02391): where on an image a network sees a class."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scripts.lib.gates_draw import entitle, numbers

_WIDTH = 38  # characters of a line above a map


class Cam(NamedTuple):
    """What one network sees on one image."""

    layer: str  # whose output is weighted
    logits: Tensor  # (1, K)
    label: int  # the class
    heat: Tensor  # (H, W), at least 0: the part of the class's logit that each position's features raise


class Seen(NamedTuple):
    """A network's answer for the picture: its name, its most probable classes, and its map."""

    name: str
    text: str
    cam: Cam


def grad_cam(net: nn.Module, images: Tensor, label: int | None = None) -> Cam:
    """Weight the last feature map by the gradient of a class's logit.

    That map is the output of the last module that has positions, (1, C, H, W) with H * W > 1; so it has
    passed the gates of the last block.

    Args:
        net: the network, whose parameters keep their gradients.
        images: one image (1, 3, H, W), normalised.
        label: the class; None: the most probable one.
    """
    last: list[tuple[str, Tensor]] = []

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            last[:] = [(name, output)]

    named = [(name, module) for name, module in net.named_modules() if name]
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: keep(name, out)) for name, module in named
    ]
    try:
        with torch.enable_grad():
            logits = net.eval()(images.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    chosen = int(logits[0].argmax()) if label is None else label
    layer, features = last[0]
    (gradient,) = torch.autograd.grad(logits[0, chosen], features)
    heat = (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    return Cam(layer, logits.detach(), chosen, heat[0].detach())


def draw_cams(image: Tensor, seen: Sequence[Seen], title: str) -> Any:
    """Draw the maps of several networks over the same image; the colours of each span 0 to its largest value.

    Args:
        image: the input before normalisation, (3, H, W) in [0, 1].
        seen: one for each network.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    height, width = image.shape[1:]
    figure = Figure(figsize=(max(7.0, 2.9 * (len(seen) + 1)), 4.1), layout="constrained")
    entitle(figure, title)
    first, *others = figure.subplots(1, len(seen) + 1)
    first.imshow(image.permute(1, 2, 0).numpy())
    first.set_title(f"input, {width} x {height} px", fontsize=8)
    for axes, one in zip(others, seen, strict=True):
        heat = one.cam.heat.float().cpu().numpy()
        axes.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
        most = max(float(heat.max()), 1e-12)
        around = (-0.5, width - 0.5, height - 0.5, -0.5)
        look = {"cmap": "inferno", "alpha": 0.55, "extent": around, "interpolation": "bilinear"}
        colours = axes.imshow(heat, vmin=0, vmax=most, **look)
        size = f"{heat.shape[1]} x {heat.shape[0]}"
        upto = numbers(float(heat.max()))[0]
        head = [*textwrap.wrap(one.name, _WIDTH), f"{one.cam.layer} ({size}), 0 to {upto}"]
        axes.set_title("\n".join(head), fontsize=8, parse_math=False)
        bar = figure.colorbar(colours, ax=axes, ticks=[0, most], fraction=0.046, pad=0.02)
        bar.set_ticklabels(["0", upto], fontsize=7)
        if bar.solids is not None:
            bar.solids.set_alpha(1)
        axes.text(0, -0.04, one.text, va="top", fontsize=8, transform=axes.transAxes, parse_math=False)
    for axes in (first, *others):
        axes.axis("off")
    return figure
