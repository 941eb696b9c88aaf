"""FcaNet: frequency channel attention on the residual branch of every block.

Qin, Zhang, Wu, Li, "FcaNet: Frequency Channel Attention Networks", arXiv 2012.11879 (FcaNet-TS: the 16
best frequencies, r = 16).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm. Differs from the authors' code in form only: a map of another size than the DCT's is there pooled to
that size by adaptive mean; here the transpose of this pooling is applied to the filters, which gives the same
sum, and gradients that do not depend on the order of additions on a GPU.

State-dict names, shapes and registration order are those of the authors' checkpoints, which hold the filters.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "FrequencyChannelAttention",
    "FcaBasicBlock",
    "FcaBottleneck",
    "FcaResNet",
    "fca_resnet34",
    "fca_resnet50",
    "fca_resnet101",
    "fca_resnet152",
]


# N of the DCT by the planes of a stage: the size of its map for an image of 224 x 224.
_SIZES = {64: 56, 128: 28, 256: 14, 512: 7}
# "top16": frequencies along H and along W of a 7x7 map, the best first.
_ALONG_H = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
_ALONG_W = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)


def cosines(size: int) -> Tensor:
    """Basis vectors of the DCT: cos(pi f (p + 1/2) / N) / sqrt(N), times sqrt(2) unless f = 0.

    Shape: (7, N), of the frequencies f = 0 to 6 times N // 7 and the positions p = 0 to N - 1; float64.
    """
    frequency = torch.arange(7, dtype=torch.float64)[:, None] * (size // 7)
    position = torch.arange(size, dtype=torch.float64) + 0.5
    norm = ((1 + (frequency > 0).double()) / size).sqrt()
    return torch.cos(math.pi / size * frequency * position) * norm


def pooling(size: int, filters: Tensor) -> Tensor:
    """The matrix of torch's adaptive mean pooling from ``size`` positions to the N of filters (C, N, N).

    Row i is 1/n at the n positions p with floor(i size / N) <= p < ceil((i + 1) size / N), else 0.

    Shape: (N, size); float64, whose products autocast leaves alone.
    """
    steps = filters.shape[1]
    i = torch.arange(steps, device=filters.device)[:, None]
    p = torch.arange(size, device=filters.device)
    inside = ((p + 1) * steps > i * size) & (p * steps < (i + 1) * size)
    return inside.double() / inside.sum(1, keepdim=True)


@torch.fx.wrap  # a leaf for torch.fx, which does not know shapes and data types while tracing
def project(x: Tensor, filters: Tensor) -> Tensor:
    """Sum over the positions of filters (G, N, N) times the map pooled to N x N, in float32 or wider.

    Shape: (B, C, H, W) to (B, C); each filter is that of C/G channels.
    """
    rows, columns = pooling(x.shape[2], filters), pooling(x.shape[3], filters)
    spread = rows.t() @ filters.double() @ columns  # (G, H, W); the filters themselves if H = W = N
    wide = torch.promote_types(x.dtype, torch.float32)
    grouped = x.unflatten(1, (filters.shape[0], -1))  # (B, G, C/G, H, W)
    return (grouped * spread[:, None].to(wide)).sum((3, 4)).flatten(1).to(x.dtype)


class FrequencyFilters(nn.Module):
    """One DCT coefficient of each channel; the channels are groups, one for each frequency.

    Shape: (B, C, H, W) to (B, C).
    """

    weight: Tensor  # (C, N, N)

    def __init__(self, channels: int, size: int, frequencies: int) -> None:
        super().__init__()
        basis = cosines(size)
        along_h, along_w = basis[list(_ALONG_H[:frequencies])], basis[list(_ALONG_W[:frequencies])]
        filters = along_h[:, :, None] * along_w[:, None]  # (frequencies, N, N)
        weight = filters.repeat_interleave(channels // frequencies, 0)
        self.register_buffer("weight", weight.to(torch.get_default_dtype()))
        # So many neighbours have the same filter, also if a checkpoint with other frequencies is loaded.
        self.alike = math.gcd(channels // frequencies, channels // len(_ALONG_H))

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight[:: self.alike])


class FrequencyChannelAttention(nn.Module):
    """Channel attention from one DCT coefficient of each channel: out = x * sigmoid(W2 relu(W1 z)).

    The channels are groups; z is the sum over the positions of x * B(h; u) * B(w; v), with the frequency
    (u, v) of the channel's group and B as in :func:`cosines`, after the map is pooled to N x N.

    Args:
        channels: C of the input.
        size: N of the DCT, at least 7. Frequencies are those of a 7x7 map times N // 7.
        reduction: ratio between C and the hidden width.
        frequencies: how many of the paper's 16 best frequencies are used, the best first; a divisor of C.

    Shape: (B, C, H, W) to (B, C, H, W), of any H and W.

    Raises:
        ValueError: an argument is out of range, or ``frequencies`` does not divide ``channels``.
    """

    def __init__(self, channels: int, size: int, reduction: int = 16, frequencies: int = 16) -> None:
        super().__init__()
        if size < 7:
            raise ValueError(f"size must be at least 7, not {size}")
        if not 1 <= frequencies <= len(_ALONG_H):
            raise ValueError(f"frequencies must be between 1 and {len(_ALONG_H)}, not {frequencies}")
        if channels % frequencies:
            raise ValueError(f"{frequencies} frequencies do not divide {channels} channels")
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be between 1 and the {channels} channels, not {reduction}")
        self.dct_layer = FrequencyFilters(channels, size, frequencies)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(self.dct_layer(x))[:, :, None, None]  # (B, C, 1, 1)
        return x * gate


class FcaBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`FrequencyChannelAttention`."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *args: Any,
        reduction: int = 16,
        frequencies: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, None, *args, **kwargs)
        self.att = FrequencyChannelAttention(planes, _SIZES[planes], reduction, frequencies)
        self.downsample = downsample  # registered last, as in the authors' checkpoints

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.att(out)

        out += identity
        return self.relu(out)


class FcaBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`FrequencyChannelAttention`."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *args: Any,
        reduction: int = 16,
        frequencies: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, None, *args, **kwargs)
        channels = planes * self.expansion
        self.att = FrequencyChannelAttention(channels, _SIZES[planes], reduction, frequencies)
        self.downsample = downsample  # registered last, as in the authors' checkpoints

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.att(out)

        out += identity
        return self.relu(out)


class FcaResNet(ResNet):
    """ResNet of frequency-attention blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        block: FcaBasicBlock or FcaBottleneck.
        layers: number of blocks of the four stages.
        reduction: of the gates.
        frequencies: of the gates, a divisor of their channels.
    """

    def __init__(
        self,
        block: Any,
        layers: list[int],
        *args: Any,
        reduction: int = 16,
        frequencies: int = 16,
        **kwargs: Any,
    ) -> None:
        blocks: Any = functools.partial(block, reduction=reduction, frequencies=frequencies)
        blocks.expansion = block.expansion  # the base class reads it
        super().__init__(blocks, layers, *args, **kwargs)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs c2, c3, c4, c5 of the four stages, at strides 4, 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, C, H/32, W/32)."""
        return self.forward_stages(x)[-1]


def fca_resnet34(**kwargs: Any) -> FcaResNet:
    return FcaResNet(FcaBasicBlock, [3, 4, 6, 3], **kwargs)


def fca_resnet50(**kwargs: Any) -> FcaResNet:
    return FcaResNet(FcaBottleneck, [3, 4, 6, 3], **kwargs)


def fca_resnet101(**kwargs: Any) -> FcaResNet:
    return FcaResNet(FcaBottleneck, [3, 4, 23, 3], **kwargs)


def fca_resnet152(**kwargs: Any) -> FcaResNet:
    return FcaResNet(FcaBottleneck, [3, 8, 36, 3], **kwargs)
