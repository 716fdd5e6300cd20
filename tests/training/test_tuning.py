"""What learns is what is stored: the same numbers while it learns and once it has settled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_reconstruction import network
from torch import Tensor, nn

from deepcomp.model.input_grids import InputGrid
from deepcomp.network import Network
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.training.reconstruction import Examples
from deepcomp.training.tuning import Rates, Settled, Tuning, tune
from deepcomp.weights import Grid, Mask, Raw

GRID = InputGrid(0.21, 7, 4, False)
ALIKE = Rates(0.02, 0.005, 0.005, 0.02)
WAYS: dict[str, dict[str, Any]] = {
    "tensor": {"per": "tensor", "symmetric": False},
    "channel": {},
    "block": {"per": "block", "size": 4, "symmetric": False},
    "powers": {"power_of_two": True},
}


def prepared(
    randn: Any, masked: bool = False, grid: InputGrid | None = GRID, **settings: Any
) -> tuple[Network, Settled]:
    """A network of one layer, and what that is made of."""
    net = network(nn.Sequential(nn.Linear(6, 5)), randn(60, 6))
    if masked:
        Prune(density=0.6).run(net)
    Quantize(**{"bits": 3, **settings}).run(net)
    bias = Raw(net.tensors["0.bias"], torch.float16)
    return net, Settled(list(net.layers("")), net.forms["0.weight"], {"0.bias": bias}, [grid])


def examples(net: Network, settled: Settled, x: Tensor) -> Examples:
    found = Examples(net, net.layers(""), settled.sites, len(x))
    found.draw(0, x, x, len(x), torch.Generator().manual_seed(0))
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_it_settles_on_what_it_makes(way: str, masked: bool, randn: Any) -> None:
    _, before = prepared(randn, masked, **WAYS[way])
    x = randn(9, 1, 6)
    tuning = Tuning(before, ["0.bias"], 0.5)
    assert torch.equal(tuning.make(0, x), before.make(0, x))
    assert torch.equal(tuning.settle().make(0, x), before.make(0, x))
    with torch.no_grad():
        for part in (tuning.moves, tuning.range.logs, tuning.range.shifts, *tuning.shifts):
            part.add_(0.2 * randn(*part.shape) * part.requires_grad)
        for part in tuning.inputs.parameters():
            part.fill_(0.1)
    after = tuning.settle()
    assert not torch.equal(after.make(0, x), before.make(0, x))
    torch.testing.assert_close(after.make(0, x), tuning.make(0, x), rtol=2e-3, atol=2e-3)  # bias and scale are rounded
    assert after.inputs == [InputGrid(0.2321, 8, 4, False)]
    form, bias = after.form, after.biases["0.bias"]
    assert type(form) is type(before.form)
    assert torch.equal(type(form).unpack(form.pack(), form.shape, form.dtype).dense(), form.dense())
    assert isinstance(bias, Raw)
    assert bias.stored == torch.float16
    grid = form.inner if isinstance(form, Mask) else form
    assert isinstance(grid, Grid)
    assert grid.pack().tables["scale"].dtype == ("int8" if way == "powers" else "float32")


def test_no_error_has_no_gradient_and_teaches_nothing(randn: Any) -> None:
    net, before = prepared(randn, grid=InputGrid(0.25, 7, 4, False))
    net.tensors = {"0.weight": before.form.dense(), "0.bias": before.biases["0.bias"].dense()}
    x = torch.randint(-7, 8, (50, 6)) * 0.25
    found, tuning = examples(net, before, x), Tuning(before, ["0.bias"], 1.0)
    loss = found.loss(tuning.make, 20, torch.Generator())
    loss.backward()
    assert loss == 0
    assert all((part.grad is None or not part.grad.any()) for part in tuning.parameters())
    assert list(tune(before, ["0.bias"], found, ALIKE, 20, 40, torch.Generator())) == []


@pytest.mark.parametrize("iterations", [1, 20, 50])
def test_it_is_looked_at_on_the_way_and_at_the_end(iterations: int, randn: Any) -> None:
    net, before = prepared(randn)
    found = examples(net, before, randn(60, 6))
    states = list(tune(before, ["0.bias"], found, ALIKE, 20, iterations, torch.Generator().manual_seed(0)))
    assert len(states) == min(iterations, 20)
    assert all(state.sites == before.sites for state in states)


def test_what_is_not_free_stays(randn: Any) -> None:
    net, before = prepared(randn)
    found = examples(net, before, randn(60, 6))
    for state in tune(before, [], found, Rates(0.02, 0.0, 0.0, 0.02), 20, 20, torch.Generator().manual_seed(0)):
        assert state.biases == before.biases
        assert state.inputs == before.inputs
        assert torch.equal(state.form.scale, before.form.scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("rates", [Rates(1e6, 0, 0, 1e6), Rates(0, 1e6, 1e6, 0), Rates(1e30, 1, 1, 1e30)])
def test_rates_that_are_far_too_high_do_no_harm(rates: Rates, randn: Any) -> None:
    net, before = prepared(randn, symmetric=False)
    found = examples(net, before, randn(60, 6))
    for state in tune(before, ["0.bias"], found, rates, 20, 40, torch.Generator().manual_seed(0)):
        assert not found.error(state.make) < 0
