"""Bounds of values: whatever lies within those that are known, what follows from it lies within theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcomp.model.capture import capture
from deepcomp.model.graph import Value, references
from deepcomp.model.intervals import Interval, intervals
from deepcomp.model.layers import Layers
from deepcomp.runtime.interpreter import trace

CHANNELS = 4
SIDES = torch.linspace(-0.5, 2, CHANNELS).reshape(-1, 1, 1)


class Written(nn.Module):
    def __init__(self, run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, y)


def of(run: Callable[[Tensor, Tensor], Tensor], known: dict[Value, Interval]) -> Interval | None:
    """Bounds of what a function of two feature maps gives."""
    captured = capture(Written(run), (torch.zeros(2, CHANNELS, 6, 6), torch.zeros(2, CHANNELS, 6, 6)))
    values = trace(captured.graph, captured.names, captured.constants)
    found = intervals(Layers(captured, captured.constants, values), captured.constants, known)
    (output,) = references(captured.graph.outputs)
    assert isinstance(output, Value)
    return found.get(output)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cap": lambda x, y: F.relu6(x),
    "function with a minimum inside": lambda x, y: F.silu(x * 2),
    "slope": lambda x, y: F.leaky_relu(x, 0.1) - 1,
    "bounds of each channel": lambda x, y: torch.clamp(x, max=SIDES),
    "constants": lambda x, y: x * SIDES + SIDES,
    "sum": lambda x, y: F.relu(x) + y,
    "difference": lambda x, y: x - 2 * y,
    "product": lambda x, y: x * y,
    "maximum": lambda x, y: torch.maximum(x, y),
    "joined": lambda x, y: F.hardswish(torch.cat([x, F.max_pool2d(y, 2).repeat(1, 1, 2, 2)], 1)),
    "apart": lambda x, y: torch.cat(x.chunk(2, 1)[::-1], 1),
    "padded": lambda x, y: F.pad(x + 9, (1, 1)),
    "averaged": lambda x, y: F.avg_pool2d(x, 2).mean((2, 3)) + F.adaptive_avg_pool2d(y, 1).flatten(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_follows_lies_within(name: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    ends = draw(2, 2, 1, CHANNELS, 1, 1) * 8 - 4
    low, high = ends.amin(1), ends.amax(1)
    found = of(FUNCTIONS[name], {Value(n): (low[n], high[n]) for n in range(2)})
    assert found is not None
    x, y = (low[n] + (high[n] - low[n]) * draw(50, CHANNELS, 6, 6) for n in range(2))
    made = FUNCTIONS[name](x, y)
    slack = 1e-2 * float((found[1] - found[0]).max()) + 1e-9
    assert (made >= found[0] - slack).all()
    assert (made <= found[1] + slack).all()


def test_bounds_of_monotone_functions_are_exact() -> None:
    low, high = -SIDES[None].double() - 3, SIDES[None].double() + 3
    found = of(lambda x, y: F.relu(torch.clamp(x, max=SIDES)), {Value(0): (low, high)})
    assert found is not None
    assert torch.equal(found[1], SIDES[None].clamp(min=0).double())
    assert not found[0].any()


@pytest.mark.parametrize(
    "run",
    [
        lambda x, y: x.softmax(1),
        lambda x, y: x / y,
        lambda x, y: F.pad(x, (1, 1), value=7.0),
        lambda x, y: x + y.mean(1, keepdim=True).exp().cumsum(1),
        lambda x, y: torch.cat([x, torch.zeros(1, 1, 6, 6).expand(x.shape[0], 1, 6, 6)], 1),
    ],
)
def test_elsewhere_nothing_is_claimed(run: Callable[[Tensor, Tensor], Any]) -> None:
    end = torch.ones(1, CHANNELS, 1, 1, dtype=torch.float64)
    assert of(run, {Value(0): (-end, end), Value(1): (-end, end)}) is None
