"""CBAM-ResNet: a channel gate, then a spatial gate, on the residual branch of every block.

Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", arXiv 1807.06521 (Eq. 1-3, r = 16).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gates follow its last batch
norm. Differs from the paper: the spatial gate stacks the maximum before the mean and has a batch norm, which
starts at weight 0, so that the gate starts at 0.5.

State-dict names, shapes and registration order are those of the published checkpoints.
Second derivatives end in torch's error for once-differentiable functions; ``CBAM.formula`` has them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "CBAM",
    "CBAMBasicBlock",
    "CBAMBottleneck",
    "CBAMResNet",
    "cbam_resnet18",
    "cbam_resnet34",
    "cbam_resnet50",
    "cbam_resnet101",
    "cbam_resnet152",
    "cbam_resnext50_32x4d",
    "cbam_resnext101_32x4d",
]


# The three steps of CBAM that read the whole map have their gradients written out. x passes through the first
# two into the third. So on the way back the third makes one map, the gradient of x, and the other two add to
# it in place, as nothing else holds it. Left to autograd, the formulas make ten such maps: twice the time.


class _GlobalPools(torch.autograd.Function):
    """x, its mean and its maximum over the positions: (B, C, H, W) and twice (B, C, 1, 1)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, avg_pool: Callable[[Tensor], Tensor], max_pool: Callable[[Tensor], Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = avg_pool(x)
        peak, index = max_pool(x)
        ctx.save_for_backward(index)
        return x, mean, peak

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_peak: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors  # (B, C, 1, 1), counts positions row by row
        batch, channels, height, width = grad.shape
        grad += grad_mean / (height * width)
        sample = torch.arange(batch, device=grad.device)[:, None]
        channel = torch.arange(channels, device=grad.device)
        position = index[:, :, 0, 0]
        grad[sample, channel, position // width, position % width] += grad_peak[:, :, 0, 0]
        return grad, None, None


class _ChannelStatistics(torch.autograd.Function):
    """x, x * gate, and of the latter the maximum and mean over the channels, (B, 2, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gated = x * gate
        peak, index = gated.max(1, keepdim=True)
        ctx.save_for_backward(x, gate, index)
        ctx.mark_non_differentiable(gated)
        ctx.set_materialize_grads(False)  # no map of zeros for it
        return x, gated, torch.cat((peak, gated.mean(1, keepdim=True)), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None, grad_statistics: Tensor) -> tuple[Tensor, Tensor]:
        x, gate, index = ctx.saved_tensors  # index: (B, 1, H, W)
        grad_peak, grad_mean = grad_statistics[:, :1], grad_statistics[:, 1:] / x.shape[1]
        gate_there = gate.flatten(1).gather(1, index.flatten(1)).view_as(index)
        grad.addcmul_(gate, grad_mean)
        grad.scatter_(1, index, grad.gather(1, index) + grad_peak * gate_there)

        grad_gate = torch.bmm(x.flatten(2), grad_mean.flatten(2).transpose(1, 2))[:, :, 0]  # (B, C)
        sample = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
        # Many positions choose the same channel; unlike scatter_add_, this sums them in a fixed order.
        grad_gate.index_put_((sample, index), grad_peak * x.gather(1, index), accumulate=True)
        return grad, grad_gate.view_as(gate)


class _Gate(torch.autograd.Function):
    """x * channel * spatial, given x * channel, which it overwrites."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Tensor, spatial: Tensor, gated: Tensor) -> Tensor:
        ctx.save_for_backward(x, channel, spatial)
        ctx.mark_dirty(gated)
        return gated.mul_(spatial)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, channel, spatial = ctx.saved_tensors
        grad = grad_out * x
        grad_spatial = torch.bmm(channel.flatten(2).transpose(1, 2), grad.flatten(2)).view_as(spatial)
        grad_channel = grad.mul_(spatial).sum((2, 3), keepdim=True)
        torch.mul(grad_out, channel, out=grad)
        return grad.mul_(spatial), grad_channel, grad_spatial, None


class ChannelGate(nn.Module):
    """The gate sigmoid(mlp(mean) + mlp(peak)) of every channel.

    Shape: two times (B, C, 1, 1) to (B, C, 1, 1).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // reduction),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels),
        )

    def forward(self, mean: Tensor, peak: Tensor) -> Tensor:
        return torch.sigmoid(self.mlp(mean) + self.mlp(peak))[:, :, None, None]


class SpatialGate(nn.Module):
    """The gate sigmoid(bn(conv7x7(statistics))) of every position, from maximum and mean over the channels.

    Shape: (B, 2, H, W) to (B, 1, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(1, momentum=0.01)))

    def forward(self, statistics: Tensor) -> Tensor:
        return torch.sigmoid(self.spatial(statistics))


class CBAM(nn.Module):
    """Channel, then spatial attention: out = x * Mc * Ms, where Ms sees x * Mc.

    Args:
        channels: C of the input; at least ``reduction``.
        reduction: ratio between C and the hidden width of the channel gate.

    Shape: (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1, return_indices=True)
        self.ChannelGate = ChannelGate(channels, reduction)
        self.SpatialGate = SpatialGate()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start: biases and the batch norm's weight are 0, the convolution is He normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)

    def formula(self, x: Tensor) -> Tensor:
        """The same, left to autograd: for compilers, which fuse it themselves, and for second derivatives."""
        x = x * self.ChannelGate(self.avg_pool(x), self.max_pool(x)[0])
        statistics = torch.cat((x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)), 1)  # (B, 2, H, W)
        return x * self.SpatialGate(statistics)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.formula(x)
        x, mean, peak = _GlobalPools.apply(x, self.avg_pool, self.max_pool)
        channel = self.ChannelGate(mean, peak).to(x.dtype)  # (B, C, 1, 1)
        x, gated, statistics = _ChannelStatistics.apply(x, channel)  # x and x * channel, (B, 2, H, W)
        spatial = self.SpatialGate(statistics).to(x.dtype)  # (B, 1, H, W)
        return _Gate.apply(x, channel, spatial, gated)


class CBAMBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`CBAM`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cbam = CBAM(planes)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.cbam(out)

        out += identity
        return self.relu(out)


class CBAMBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`CBAM`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cbam = CBAM(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.cbam(out)

        out += identity
        return self.relu(out)


class CBAMResNet(ResNet):
    """ResNet of CBAM blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Starts as the published code does: torch's default for the convolutions of the downsamplings, He normal
    (fan in) for the classifier with bias 0, He normal (fan out) for all other convolutions.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, CBAM):
                module.reset_parameters()  # the base class has set the weights of all batch norms to 1
            elif isinstance(module, BasicBlock | Bottleneck) and module.downsample is not None:
                module.downsample[0].reset_parameters()

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


def cbam_resnet18(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBasicBlock, [2, 2, 2, 2], **kwargs)


def cbam_resnet34(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBasicBlock, [3, 4, 6, 3], **kwargs)


def cbam_resnet50(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 6, 3], **kwargs)


def cbam_resnet101(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 23, 3], **kwargs)


def cbam_resnet152(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 8, 36, 3], **kwargs)


def cbam_resnext50_32x4d(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def cbam_resnext101_32x4d(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
