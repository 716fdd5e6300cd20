"""Networks that transformations are tried on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.entry import BUFFER, CONSTANT, PARAMETER
from deepcomp.model import sources, zoo
from deepcomp.model.capture import capture
from deepcomp.network import Network


def network(module: nn.Module, inputs: Any) -> Network:
    """A module on its way through a recipe, its batch norms as if trained."""
    for part in module.eval().modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            _trained(part)
    captured, source = capture(module, inputs), sources.from_module(module)
    roles = {name: BUFFER if name in source.buffers else PARAMETER for name in source.tensors}
    roles |= dict.fromkeys(captured.constants, CONSTANT)
    return Network({**source.tensors, **captured.constants}, roles, source.tied, captured, module)


def _trained(norm: Any) -> None:
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
    if norm.affine:
        norm.weight.data.normal_()
        norm.bias.data.normal_()


def same(found: Any, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether outputs agree relative to the largest."""
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach()) <= tolerance


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions and ReLU6, as MobileNetV2 has them, for 16×16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.ModuleList([self.block(8, 8, 1), self.block(8, 12, 2), self.block(12, 12, 1)])
        self.head = nn.Sequential(nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(20, 10))

    @staticmethod
    def block(read: int, made: int, stride: int) -> nn.Sequential:
        wide = 3 * read
        return nn.Sequential(
            nn.Conv2d(read, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x) if block[0].in_channels == block[6].out_channels else block(x)
        return self.classifier(F.adaptive_avg_pool2d(self.head(x), 1).flatten(1))


class Mixed(nn.Module):
    """Residuals, concatenation, a module called twice, tied weights and functional operations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.twice, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.norm3, self.joined, self.norm4 = nn.BatchNorm2d(8), nn.Conv2d(16, 6, 1), nn.BatchNorm2d(6)
        self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3))
        self.norm5 = nn.BatchNorm2d(6)
        self.hidden, self.after = nn.Linear(6 * 16, 12), nn.Linear(12, 5)
        self.last, self.tied = nn.Linear(5, 5), nn.Linear(5, 5)
        self.tied.weight = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norm1(self.conv1(x)))
        b = F.relu(self.norm2(self.twice(a)))
        c = self.norm3(self.twice(b)) + a
        d = F.silu(self.norm4(self.joined(torch.cat([b, c], 1))))
        e = F.max_pool2d(F.leaky_relu(self.norm5(F.conv2d(d, self.kernel, padding=1)), 0.1), 2)
        f = F.hardtanh(self.hidden(e.flatten(1)), -0.5, 0.5)
        return self.tied(F.relu(self.last(self.after(f))))


class Grouped(nn.Module):
    """Grouped and transposed convolutions in one, two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(4, 8, 3, padding="same", groups=2), nn.BatchNorm2d(8)
        self.t1, self.n2 = nn.ConvTranspose2d(8, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6, affine=False)
        self.prelu, self.c2 = nn.PReLU(6), nn.Conv2d(6, 12, 3, groups=3)
        self.n3, self.c3, self.n4 = nn.BatchNorm1d(12), nn.Conv1d(12, 4, 3), nn.BatchNorm1d(4)
        self.t3, self.n5 = nn.ConvTranspose3d(4, 4, 2, groups=4), nn.BatchNorm3d(4)
        self.c4 = nn.Conv3d(4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n1(self.c1(x)))
        x = self.prelu(self.n2(self.t1(x)))
        x = self.n3(self.c2(x).flatten(2))
        x = F.avg_pool1d(F.relu(self.n4(self.c3(x))), 2)
        x = F.relu6(self.n5(self.t3(x.unflatten(2, (-1, 1, 1)))))
        return self.c4(x)


class Recurrent(nn.Module):
    """An embedding, a two-layer bidirectional LSTM, a GRU, and a linear layer with the tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.gru, self.out = nn.GRU(10, 6, batch_first=True), nn.Linear(6, 11)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.lstm(self.table(x))[0])[0])


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


def every() -> dict[str, tuple[nn.Module, Tensor]]:
    """All of them, each with an input."""
    torch.manual_seed(0)
    return {
        "resnet20": (zoo.build("resnet20"), torch.randn(4, 3, 32, 32)),
        "lenet-5": (zoo.build("lenet-5"), torch.randn(4, 1, 28, 28)),
        "digits-cnn": (zoo.build("digits-cnn"), torch.randn(4, 1, 8, 8)),
        "mobilenet": (MobileNet(), torch.randn(4, 3, 16, 16)),
        "mixed": (Mixed(), torch.randn(4, 3, 8, 8)),
        "grouped": (Grouped(), torch.randn(4, 4, 7, 7)),
        "recurrent": (Recurrent(), torch.randint(11, (4, 7))),
        "transformer": (transformer(), torch.randn(4, 5, 8)),
    }


NAMES = ("resnet20", "lenet-5", "digits-cnn", "mobilenet", "mixed", "grouped", "recurrent", "transformer")
