"""What layers read on average: what sampling gives, without samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.entry import PARAMETER
from deepcomp.model import sources
from deepcomp.model.capture import capture
from deepcomp.model.edit import Edit
from deepcomp.model.expectation import clipped_mean, expected_inputs
from deepcomp.model.layers import Skip
from deepcomp.network import Network


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (0.0, 6.0), (-1.0, 0.5), (None, 2.0), (None, None), (3.0, 3.0)])
def test_the_mean_of_a_clipped_gaussian_is_its_integral(low: float | None, high: float | None) -> None:
    mean, std = numbers(-4, -1, 0, 0.3, 2, 6, 9), numbers(0.5, 2, 1, 3, 1e-3, 2, 4)
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    weight = (-(x**2) / 2).exp()
    values = (mean + std * x).clamp(low, high) if (low, high) != (None, None) else mean + std * x
    wanted = (values * weight).sum(0) / weight.sum(0)
    bounds = [None if bound is None else torch.full_like(mean, bound) for bound in (low, high)]
    torch.testing.assert_close(clipped_mean(mean, std, *bounds), wanted, rtol=0, atol=1e-7)


def test_without_spread_it_is_the_clipped_mean() -> None:
    mean = numbers(-2, 0, 3, 9)
    found = clipped_mean(mean, torch.zeros(4, dtype=torch.float64), numbers(0, 0, 0, 0), numbers(6, 6, 6, 6))
    assert found.tolist() == [0, 0, 3, 6]


def known(module: nn.Module, x: Tensor, **statistics: tuple[Tensor, Tensor]) -> dict[str, Tensor | Skip]:
    captured, source = capture(module.eval(), x), sources.from_module(module)
    net = Network(source.tensors, dict.fromkeys(source.tensors, PARAMETER), source.tied, captured)
    told = {f"{name}.weight": entry for name, entry in statistics.items()}
    found = expected_inputs(net.layers("test"), Edit(captured, net.tensors), told)
    return {layer.weight: mean for layer, mean in found}


class Net(nn.Module):
    """Two layers that are known, and one that reads what `between` makes of them."""

    def __init__(self, between: Any, features: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.between, self.last = between, nn.LazyLinear(2)
        self.last(torch.zeros(1, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.a(x), self.b(x)))


MEANS, STDS = numbers(-1, 0, 1, 8), numbers(1, 2, 0.5, 3)
OTHER, WIDTHS = numbers(2, -3, 0.5, 1), numbers(1, 1, 2, 0)


@pytest.mark.parametrize(
    ("between", "features"),
    [
        (lambda a, b: (a + b).flatten(1), 144),
        (lambda a, b: F.relu(a).flatten(1), 144),
        (lambda a, b: (F.relu6(a) - F.hardtanh(b, -1.0, 0.5)).mean((2, 3)), 4),
        (lambda a, b: F.avg_pool2d(torch.cat([a.clamp(max=1.0), b], 1), 3, padding=1).permute(0, 2, 3, 1), 8),
        (lambda a, b: F.pad(a.flatten(2), (1, 2))[:, :, 3:].transpose(1, 2).reshape(a.shape[0], -1), 144),
        (lambda a, b: F.adaptive_avg_pool2d(F.relu(a), 2).flatten(1), 16),
        (lambda a, b: torch.stack([a, b * 2.0 + 1.0], 1)[:, 1].flatten(1), 144),
    ],
)
def test_it_is_what_sampling_gives(between: Any, features: int, randn: Any) -> None:
    module = Net(between, features)
    found = known(module, randn(2, 3, 6, 6), a=(MEANS, STDS), b=(OTHER, WIDTHS))["last.weight"]
    assert isinstance(found, Tensor)

    def sample(mean: Tensor, std: Tensor) -> Tensor:
        return mean[:, None, None] + std[:, None, None] * randn(20_000, 4, 6, 6)

    samples = between(sample(MEANS, STDS), sample(OTHER, WIDTHS)).double()
    assert found.shape[1:] == samples.shape[1:]
    torch.testing.assert_close(found[0], samples.mean(0), rtol=0, atol=0.12)
    assert torch.equal(found[0], found[-1])


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda a, b: F.relu(a + b), "relu is not known: add comes before it, not a layer"),
        (lambda a, b: F.relu(F.gelu(b) + a), "relu is not known: add comes before it, not a layer"),
        (lambda a, b: F.relu6(F.relu(a)), "relu6 is not known: relu comes before it, not a layer"),
        (lambda a, b: F.max_pool2d(a, 2) + 1.0, "max_pool2d is not known"),
        (lambda a, b: a * b, "mul is not known"),
        (lambda a, b: F.gelu(a), "gelu is not known"),
    ],
)
def test_what_is_not_known_says_why(between: Any, why: str, randn: Any) -> None:
    module = Net(lambda a, b: between(a, b).mean((2, 3)), 4)
    found = known(module, randn(2, 3, 6, 6), a=(MEANS, STDS), b=(OTHER, WIDTHS))
    assert str(found["last.weight"]) == f"the mean behind {why}"
    assert str(found["a.weight"]) == "without data nothing is known of the input x"


def test_of_a_layer_nothing_may_be_known(randn: Any) -> None:
    found = known(Net(lambda a, b: (a + b).mean((2, 3)), 4), randn(2, 3, 6, 6), a=(MEANS, STDS))
    assert str(found["last.weight"]) == "nothing is known of the outputs of b.weight (fold-bn records it)"


def test_sizes_of_the_batch_are_no_values(randn: Any) -> None:
    found = known(Net(lambda a, b: a.reshape(a.shape[0] * 2, -1)[::2], 72), randn(2, 3, 6, 6), a=(MEANS, STDS))
    assert isinstance(found["last.weight"], Tensor)
