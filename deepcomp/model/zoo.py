"""Built-in networks by name, and networks of the user's own by `package.module:callable`.

No data and no trained weights live here: `build` returns a freshly initialised module whose
parameter names and shapes are those of the published checkpoints.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.errors import UsageError, one_line

__all__ = ["NAMES", "build", "call_spec", "example", "find", "resolve"]


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


@dataclass(frozen=True)
class _Entry:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one input, without the batch


_MNIST, _CIFAR = (1, 28, 28), (3, 32, 32)
_ZOO = {
    "digits-cnn": _Entry(DigitsCNN, (1, 8, 8)),
    "lenet-300-100": _Entry(LeNet300, _MNIST),
    "lenet-5": _Entry(LeNet5, _MNIST),
    "resnet20": _Entry(lambda: CifarResNet(20), _CIFAR),
    "resnet32": _Entry(lambda: CifarResNet(32), _CIFAR),
    "resnet44": _Entry(lambda: CifarResNet(44), _CIFAR),
    "resnet56": _Entry(lambda: CifarResNet(56), _CIFAR),
    "resnet110": _Entry(lambda: CifarResNet(110), _CIFAR),
}
NAMES: tuple[str, ...] = tuple(_ZOO)


def _entry(name: str) -> _Entry:
    if name not in _ZOO:
        raise UsageError(
            f"unknown model {name!r}: expected one of {', '.join(NAMES)}, or package.module:callable for your own"
        )
    return _ZOO[name]


def build(name: str) -> nn.Module:
    """A built-in network in eval mode, initialised from torch's global random generator.

    Raises
    ------
    UsageError
        No such network; the message lists those there are.
    """
    return _entry(name).make().eval()


def example(name: str) -> tuple[Tensor, ...]:
    """Positional inputs of a built-in network: a batch of two, float32 in [0, 1), always the same.

    Raises
    ------
    UsageError
        No such network; the message lists those there are.
    """
    shape = _entry(name).shape
    return (torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)),)


def find(spec: str) -> Callable[..., object]:
    """The callable named by `package.module:callable`.

    The current directory is searched too, as `python -m` would. The callable may be dotted
    (`module:Class.method`).

    Raises
    ------
    UsageError
        The module cannot be imported or lacks the callable.
    """
    module_name, _, attribute = spec.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"{spec!r} is not of the form package.module:callable")
    here = "" not in sys.path
    if here:
        sys.path.insert(0, "")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        raise UsageError(f"{spec}: cannot import {module_name}: {one_line(error)}") from error
    finally:
        if here:
            sys.path.remove("")
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{spec}: {module_name} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{spec}: {attribute} is a {type(found).__name__}, a callable was expected")
    return found


def call_spec(spec: str) -> object:
    """What the callable named by `package.module:callable` returns, called without arguments.

    Raises
    ------
    UsageError
        As `find`, or the call itself fails.
    """
    try:
        return find(spec)()
    except UsageError:
        raise
    except Exception as error:  # whatever the user's callable does
        raise UsageError(f"{spec}: calling {spec.partition(':')[2]}() failed: {one_line(error)}") from error


def resolve(spec: str) -> nn.Module:
    """The network a `--model` argument names, in eval mode.

    Parameters
    ----------
    spec : str
        A built-in name, or `package.module:callable` of something that returns an `nn.Module`.

    Raises
    ------
    UsageError
        One line naming the spec: an unknown name, a failing import, a missing callable, or a
        result that is no module.
    """
    if ":" not in spec:
        return build(spec)
    model = call_spec(spec)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec}: returned a {type(model).__name__}, a torch.nn.Module was expected")
    return model.eval()
