"""SGE-ResNet: spatial group-wise enhancement on the residual branch of every block.

Li, Hu, Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks",
arXiv 1905.09646 (Eq. 1-5, G = 64 groups).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm.

State-dict names, shapes and registration order are those of the published checkpoints.
Second derivatives end in torch's error for once-differentiable functions; ``SpatialGroupEnhance.formula`` has
them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "SpatialGroupEnhance",
    "SGEBasicBlock",
    "SGEBottleneck",
    "SGEResNet",
    "sge_resnet18",
    "sge_resnet34",
    "sge_resnet50",
    "sge_resnet101",
    "sge_resnet152",
    "sge_resnext50_32x4d",
    "sge_resnext101_32x4d",
]


# The steps of SGE have their gradients written out. x passes through the first, _Similarity, into the last,
# _Gate. So on the way back the last makes one map, the gradient of x, and the first adds to it in place, as
# nothing else holds it. Left to autograd, the formula makes five such maps.


class _Similarity(torch.autograd.Function):
    """x, and the product of each position with the mean over the positions.

    Shape: (N, c, P) and its mean (N, 1, c), whose gradient is counted here, to (N, c, P) and (N, 1, P).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, mean)
        return x, torch.bmm(mean, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_similarity: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        along = grad_similarity.to(x.dtype)
        grad_mean = torch.bmm(x, along.transpose(1, 2))  # (N, c, 1)
        return grad.baddbmm_(mean.transpose(1, 2), along).add_(grad_mean / x.shape[2]), None


class _Normalise(torch.autograd.Function):
    """sigmoid(weight * (s - mean(s)) / (std(s) + 1e-5) + bias): (B, G, P), (G, 1), (G, 1) to (B, G, P)."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = s - s.mean(2, keepdim=True)
        freedom = max(s.shape[2] - 1, 1)
        # The norm takes a fifth of the time of std().
        std = torch.linalg.vector_norm(centred, dim=2, keepdim=True) / math.sqrt(freedom)  # (B, G, 1)
        gate = torch.addcmul(bias, centred, weight / (std + 1e-5)).sigmoid_()
        ctx.save_for_backward(centred, std, weight, gate)
        ctx.freedom = freedom
        return gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred, std, weight, gate = ctx.saved_tensors
        grad = torch.ops.aten.sigmoid_backward(grad_gate, gate)
        total = grad.sum(2, keepdim=True)
        rows, maps = (t.reshape(-1, 1, t.shape[2]) for t in (grad, centred))
        along = torch.bmm(rows, maps.transpose(1, 2)).view_as(std)  # scalar products of grad and centred
        slope = weight / (std + 1e-5)
        # d std / ds = centred / (freedom * std); without spread centred is 0, whatever it is divided by.
        pull = along * slope / ((std + 1e-5) * std.clamp_min(1e-30) * ctx.freedom)
        grad_s = grad.sub_(total / grad.shape[2]).mul_(slope).addcmul_(centred, pull, value=-1)
        return grad_s, (along / (std + 1e-5)).sum(0), total.sum(0)


class _Gate(torch.autograd.Function):
    """x * gate: (N, c, P) and (N, 1, P) to (N, c, P)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        grad = grad_out * x
        grad_gate = grad.sum(1, keepdim=True)
        return torch.mul(grad_out, gate, out=grad), grad_gate


class SpatialGroupEnhance(nn.Module):
    """Spatial attention within each of G channel groups.

    The similarity of every position with the group's mean vector, normalised over the positions, is scaled
    and shifted per group and gates the group: out = x * sigmoid(weight * (s - mean(s)) / (std(s) + 1e-5) +
    bias). A 1x1 map has no spread: its gate is sigmoid(bias).

    Args:
        groups: G; must divide the channels of the input.

    Shape: (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, groups: int = 64) -> None:
        super().__init__()
        self.groups = groups
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def formula(self, x: Tensor) -> Tensor:
        """The same, left to autograd: for compilers, which fuse it themselves, and for second derivatives."""
        grouped = x.unflatten(1, (self.groups, -1))  # (B, G, C/G, H, W)
        mean = self.avg_pool(x).unflatten(1, (self.groups, -1))  # (B, G, C/G, 1, 1)
        s = (grouped * mean).sum(2)  # (B, G, H, W)
        s = s.float() if s.dtype in (torch.float16, torch.bfloat16) else s
        # The unbiased standard deviation, but 0 instead of 0/0 on a 1x1 map.
        std, mean = torch.std_mean(s, (2, 3), correction=min(1, s.shape[2] * s.shape[3] - 1), keepdim=True)
        gate = torch.sigmoid(torch.addcmul(self.bias, s - mean, self.weight / (std + 1e-5)))
        return (grouped * gate.to(x.dtype).unsqueeze(2)).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.formula(x)
        batch, _, height, width = x.shape
        with torch.no_grad():
            mean = self.avg_pool(x).reshape(batch * self.groups, 1, -1)  # (B*G, 1, C/G)
        grouped = x.reshape(batch * self.groups, -1, height * width)  # (B*G, C/G, H*W)
        grouped, similarity = _Similarity.apply(grouped, mean)
        s = similarity.view(batch, self.groups, -1)  # (B, G, H*W)
        s = s.float() if s.dtype in (torch.float16, torch.bfloat16) else s
        gate = _Normalise.apply(s, self.weight.view(-1, 1), self.bias.view(-1, 1)).to(x.dtype)
        out = _Gate.apply(grouped, gate.view(batch * self.groups, 1, -1)).reshape(x.shape)
        if x.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)  # spare the next layers the other layout
        return out


class SGEBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`SpatialGroupEnhance`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sge = SpatialGroupEnhance(64)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.sge(out)

        out += identity
        return self.relu(out)


class SGEBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`SpatialGroupEnhance`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sge = SpatialGroupEnhance(64)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.sge(out)

        out += identity
        return self.relu(out)


class SGEResNet(ResNet):
    """ResNet of SGE blocks; takes every keyword of :class:`torchvision.models.ResNet`."""

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


def sge_resnet18(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBasicBlock, [2, 2, 2, 2], **kwargs)


def sge_resnet34(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBasicBlock, [3, 4, 6, 3], **kwargs)


def sge_resnet50(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 6, 3], **kwargs)


def sge_resnet101(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 23, 3], **kwargs)


def sge_resnet152(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 8, 36, 3], **kwargs)


def sge_resnext50_32x4d(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def sge_resnext101_32x4d(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
