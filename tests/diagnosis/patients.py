"""Networks to diagnose, and data on which they are right until something is quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from deepcomp import Data
from deepcomp.job import Job
from deepcomp.network import Network
from deepcomp.recipe import Recipe

WIDE = 24


def mlp() -> nn.Module:
    """Three linear layers, `0`, `2` and `4`."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 6)
    ).eval()  # fmt: skip


def cnn() -> nn.Module:
    """Convolutions with batch norms, one depthwise, behind a sum a mean and a linear layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.deep, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.stem(x)).relu()
            return self.last((x + self.deep(x)).mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


@torch.no_grad()
def uneven(net: nn.Module, layer: int = 0, times: float = 300.0) -> nn.Module:
    """The same function, one hidden channel of it on another scale."""
    net[layer].weight[0] *= times
    net[layer].bias[0] *= times
    net[layer + 2].weight[:, 0] /= times
    return net


@torch.no_grad()
def outlier(net: nn.Module, size: float = 300.0) -> nn.Module:
    """One hidden channel is far from all others, whatever the input, and hardly matters."""
    net[0].bias[0] = size
    net[2].weight[:, 0] *= 1e-4
    return net


@torch.no_grad()
def labelled(net: nn.Module, shape: tuple[int, ...] = (12,), metric: Any = "accuracy", items: int = 160) -> Data:
    """Data on which a network is always right."""
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(items, *shape, generator=generator), torch.randn(items, *shape, generator=generator)
    sets = [TensorDataset(x, net(x).argmax(-1)) for x in (train, test)]
    return Data(sets[0], sets[1], metric)


def steps(**of_weights: Any) -> list[dict[str, Any]]:
    """Steps that quantise weights with these settings, and activations."""
    return [{"do": "quantize", **of_weights}, {"do": "quantize-activations", "range": "min-max", "samples": 64}]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A recipe of some steps."""
    text = "".join("[[step]]\n" + "".join(f"{key} = {value!r}\n" for key, value in row.items()) for row in rows)
    path = folder / "mine.toml"
    path.write_text(text.replace("True", "true").replace("False", "false"))
    return path


def through(net: nn.Module, data: Data, recipe: Path) -> Network:
    """A network behind a recipe."""
    job = Job(net, recipe, None, None, data, 0, None, None)
    opened, _ = job.open()
    job.capture(opened)
    for _ in job.run(opened, Recipe.load(recipe, data=True).steps):
        pass
    return opened


def metric(better: bool) -> Callable[[Tensor, Tensor], float]:
    """The share of right decisions, or of wrong ones, as a metric of one's own."""

    def share(outputs: Tensor, targets: Tensor) -> float:
        right = float((outputs.argmax(-1) == targets).float().mean())
        return right if better else 1 - right

    share.higher_is_better = better  # type: ignore[attr-defined]
    return share
