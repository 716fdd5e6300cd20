"""Networks for images: LeNets, and the residual networks and MobileNetV2 of CIFAR-10."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "CifarMobileNetV2", "CifarResNet", "DigitsCNN", "InvertedResidual", "LeNet5", "LeNet300"]


class DigitsCNN(nn.Module):
    """Two convolutions with batch norm and two linear layers for 1×8×8 digits: 38,330 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)  # type: ignore[no-any-return]


class LeNet300(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998; Han et al. 2015, table 3): 266,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28), or (N, 784) already flat."""
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's shape (Han et al. 2015, table 4): 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a parameter-free shortcut (He et al. 2016, §4.2, option A).

    Where the block halves the image and doubles the channels, the shortcut takes every second
    pixel and pads the new channels with zeros, half of them on either side.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.pad = (out_channels - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) to (N, C', H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """The CIFAR ResNets of He et al. 2016, §4.2: depth 6n + 2, three stages of n blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(channels, out_channels, stride)
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own, project linearly (Sandler et al. 2018, §3.3, table 1).

    The block adds its input where neither the size of the image nor the number of channels changes. With an
    expansion of 1 the first convolution is left out, as in the paper.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = _conv_bn_relu6(channels, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) to (N, C', H / stride, W / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y  # type: ignore[no-any-return]


def _conv_bn_relu6(channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6())


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, table 2) in the size of CIFAR-10.

    The paper's table row by row, with fewer blocks, and halving the image twice instead of four times after
    the first convolution.
    """

    # expansion, channels, blocks, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 1, 1), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn_relu6(3, 32, 3, stride=2)
        channels, blocks = 32, []
        for expansion, out_channels, count, stride in self.STAGES:
            for place in range(count):
                blocks.append(InvertedResidual(channels, out_channels, 1 if place else stride, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_bn_relu6(channels, 320, 1)
        self.linear = nn.Linear(320, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, 32, 32)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]
