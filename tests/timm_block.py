"""A residual block with the names of timm's, which is not installed for the tests."""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Calls its children as timm's block does: ``se`` and ``downsample`` where they are not None."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(channels), nn.ReLU()
        self.se: nn.Module | None = None
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        x = x if self.se is None else self.se(x)
        return self.act2(x + shortcut)


BasicBlock.__module__ = "timm.models.resnet"  # by which add_gates knows it
