"""Quantisers that learn: LSQ's gradients, positive scales, and what weights cost off their grids."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deepcomp.model.input_grids import InputGrid
from deepcomp.quantizer import Quantizer
from deepcomp.training.quantizers import PENALTIES, ActivationQuantizer, LevelQuantizer, WeightQuantizer, learning
from deepcomp.training.ranges import Range, four_digits
from deepcomp.weights import Form, Grid, Mask, Raw, Scaled

GRIDS: dict[str, dict[str, Any]] = {
    "tensor": {"axis": None},
    "channel": {},
    "asymmetric": {"symmetric": False},
    "block": {"size": 4, "symmetric": False},
    "powers": {"power_of_two": True},
}


def grid(randn: Any, bits: int = 3, masked: bool = False, **settings: Any) -> Form:
    """A weight on a grid, or what a mask leaves of it."""
    weight = randn(6, 10)
    if not masked:
        return Grid.fit(weight, bits, **settings)
    at = torch.nonzero(weight.reshape(-1) > -0.3).reshape(-1)
    return Mask(at, Grid.fit(weight.reshape(-1)[at], bits, **settings, at=at, shape=(6, 10)), (6, 10))


def quantizer_of(form: Form, rounding: str = "nearest") -> WeightQuantizer:
    found = learning(form, rounding)
    assert isinstance(found, WeightQuantizer)
    return found


# ---------------------------------------------------------------- gradients


def test_descent_moves_a_scale_as_lsq_does_at_points_done_by_hand() -> None:
    """s ← s − η g ∂x̂/∂s, and offsets −s z as LSQ+ moves them."""
    scale, rate = 0.5, 1e-6
    part = ActivationQuantizer(InputGrid(scale, 4, 3, False))
    x = torch.tensor([[0.3, -0.76, 5.0, -5.0]])
    part.of_items(x).backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    paper = (1 - 0.6) + 10 * (-2 + 1.52) + 100 * 3 + 1000 * -4  # round(x/s) − x/s inside, n or p clipped
    g = 1 / math.sqrt(4 * 4)  # four numbers an item, four levels below zero
    torch.optim.SGD(part.parameters(), rate).step()
    found = part.range.scale.start * part.range.scale.logs.exp()
    assert float((found - scale).detach() / -rate) == pytest.approx(g * paper, rel=0.01)
    offset = 1100.0  # ∂x̂/∂β is 1 where clipped
    moved = -scale * 7 * part.range.shifts
    assert float(moved.detach() / -rate) == pytest.approx(g * offset, rel=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_each_channel_of_a_weight_counts_its_own_weights(masked: bool, randn: Any) -> None:
    form = grid(randn, masked=masked)
    part, slope = quantizer_of(form), randn(6, 10)
    (part() * slope).sum().backward()
    inner = part.grid
    for channel in range(6):
        latent = inner.laid_out(inner.latent.detach())[channel]
        there = latent != 0
        scale = inner.scale[channel].detach().clone().requires_grad_()
        plain = Quantizer(3, symmetric=True, rounding=inner.quantizer.rounding)
        (plain.simulate(latent, scale, torch.tensor(3.0)) * slope[channel] * there).sum().backward()
        assert scale.grad is not None
        wanted = scale.grad / torch.sqrt(there.sum() * 3) / scale.detach()
        assert part.range.scale.logs.grad is not None
        assert float(part.range.scale.logs.grad[channel]) == pytest.approx(float(wanted), rel=1e-4)


def test_items_of_a_batch_do_not_count_as_numbers_that_share_a_scale(randn: Any) -> None:
    one, many = (ActivationQuantizer(InputGrid(0.2, 3, 3, False)) for _ in range(2))
    x = randn(1, 5, 7)
    one.of_items(x).sum().backward()
    many.of_items(x.expand(8, 5, 7)).mean(0).sum().backward()
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("way", GRIDS)
@pytest.mark.parametrize("rate", [-1e9, 1e9])
def test_scales_stay_positive_whatever_the_rate(way: str, rate: float, randn: Any) -> None:
    form = grid(randn, **GRIDS[way])
    part = quantizer_of(form)
    part().sum().backward()
    with torch.no_grad():
        for parameter in part.range.parameters():
            parameter += 0 if parameter.grad is None else rate * parameter.grad
    part.settle()
    assert isinstance(form, Grid)
    assert bool((form.scale > 0).all())
    assert form.dense().isfinite().all()
    assert torch.equal(Grid.unpack(form.pack(), form.shape, form.dtype).dense(), form.dense())


def test_a_dead_range_has_gradients_that_are_numbers() -> None:
    part = quantizer_of(Grid.fit(torch.zeros(2, 3), 4))
    part().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters() if parameter.grad is not None)


def test_symmetric_grids_keep_their_zero_point(randn: Any) -> None:
    part = quantizer_of(grid(randn))
    assert not part.range.shifts.requires_grad
    assert quantizer_of(grid(randn, symmetric=False)).range.shifts.requires_grad


# ---------------------------------------------------------------- what learns is what is stored


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", GRIDS)
def test_a_weight_settles_on_what_it_makes(way: str, masked: bool, randn: Any) -> None:
    form = grid(randn, masked=masked, **GRIDS[way])
    part, before = quantizer_of(form), form.dense()
    assert torch.equal(part().detach(), before)
    with torch.no_grad():
        for parameter in part.range.parameters():
            parameter += 0.3 * randn(*parameter.shape) * parameter.requires_grad
        part.grid.latent += 0.1 * randn(*part.grid.latent.shape)
    made = part().detach()
    part.settle()
    assert torch.equal(form.dense(), made)
    assert not torch.equal(made, before)
    assert torch.equal(type(form).unpack(form.pack(), form.shape, form.dtype).dense(), made)
    if masked:
        assert isinstance(form, Mask)
        pruned = torch.ones(60, dtype=torch.bool).index_fill(0, form.positions, False)
        assert not made.reshape(-1)[pruned].any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sides", [1, 2])
def test_levels_settle_on_what_they_make(sides: int, masked: bool, randn: Any) -> None:
    weight = randn(6, 10)
    at = torch.nonzero(weight.reshape(-1) > -0.3).reshape(-1)
    values = weight.reshape(-1)[at] if masked else weight
    inner = Scaled.fit(values, "ternary", sides=sides, at=at if masked else None, shape=(6, 10))
    form: Form = Mask(at, inner, (6, 10)) if masked else inner
    part = learning(form)
    assert isinstance(part, LevelQuantizer)
    assert torch.equal(part().detach(), form.dense())
    (part() * randn(6, 10)).sum().backward()
    torch.optim.SGD(part.parameters(), 1e9).step()
    made = part().detach()
    part.settle()
    assert bool((inner.scale > 0).all())
    assert torch.equal(form.dense(), made)


def test_descent_moves_scales_of_levels_as_their_own_gradient_says(randn: Any) -> None:
    form, slope = Scaled.fit(randn(6, 10), "binary"), randn(6, 10)
    (form() * slope).sum().backward()
    assert form.scale.grad is not None
    wanted, before = form.scale.grad.clone(), form.scale.detach().clone()
    part = learning(form)
    (part() * slope).sum().backward()
    torch.optim.SGD([parameter for parameter in part.parameters() if parameter.requires_grad], 1e-4).step()
    part.settle()
    torch.testing.assert_close((before - form.scale) / 1e-4, wanted, rtol=0.02, atol=0.02)


def test_activations_settle_on_what_they_make(randn: Any) -> None:
    part, x = ActivationQuantizer(InputGrid(0.21, 7, 4, False)), randn(5, 6)
    assert torch.equal(part(x), InputGrid(0.21, 7, 4, False)(x))
    with torch.no_grad():
        part.range.scale.logs.fill_(-0.4321)
        part.range.shifts.fill_(0.11)
    found = part.settle()
    assert found == InputGrid(0.1363, 9, 4, False)
    assert torch.equal(found(x), part(x))
    assert torch.equal(part.of_items(x, 0.21, 7, 4), part(x))


@pytest.mark.parametrize("power", range(-12, 6))
def test_four_digits_are_those_of_a_literal(power: int, randn: Any) -> None:
    for number in randn(40).abs() * 10.0**power:
        assert torch.equal(four_digits(number), torch.tensor(float(f"{float(number):.4g}"), dtype=torch.float32))


def test_other_forms_learn_as_they_are(randn: Any) -> None:
    form = Raw(randn(4, 4))
    assert learning(form) is form


# ---------------------------------------------------------------- rounding and penalties


def test_stochastic_rounding_is_right_on_average_in_training_alone(randn: Any) -> None:
    form = grid(randn, bits=6)
    part = quantizer_of(form, "stochastic")
    torch.manual_seed(0)
    mean = torch.stack([part().detach() for _ in range(2000)]).mean(0)
    assert isinstance(form, Grid)
    step = form.scale.detach()[:, None]
    assert ((mean - form.latent.detach()).abs() < 0.06 * step).all()
    assert not torch.equal(part(), part())
    assert torch.equal(part.eval()().detach(), form.dense())


def test_weights_that_are_not_rounded_are_latent_in_training_alone(randn: Any) -> None:
    form = grid(randn)
    part = quantizer_of(form, "none")
    assert isinstance(form, Grid)
    assert torch.equal(part(), form.latent)
    assert torch.equal(part.eval()().detach(), form.dense())


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_penalty_is_nothing_on_the_grid_and_something_off_it(kind: str, masked: bool, randn: Any) -> None:
    part = quantizer_of(grid(randn, masked=masked))
    off = part.penalty(kind)
    off.backward()
    assert off > 0
    gradient = part.grid.latent.grad
    assert gradient is not None
    assert part.range.scale.logs.grad is not None
    slight = 1e-3 * part.grid.scale.min()
    with torch.no_grad():
        part.grid.latent.copy_(part.grid.offsets() * part.grid.spread(part.grid.scale))
    part.zero_grad()
    on = part.penalty(kind)
    on.backward()
    assert on < slight**2
    assert all(parameter.grad.abs().max() < slight for parameter in part.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_are_distances_to_the_nearest_level(kind: str) -> None:
    form = Grid(torch.tensor([[0.1, 0.25, 0.9, -2.0]]), torch.tensor([0.5]), torch.tensor([1.0]), 2, True, _whole())
    part = quantizer_of(form)
    inside = {"distance": 0.01 + 0.0625, "sine": (0.5 / math.pi) ** 2 * (math.sin(0.2 * math.pi) ** 2 + 1)}
    assert float(part.penalty(kind).detach()) == pytest.approx(inside[kind] + 0.16 + 2.25, rel=1e-5)


def _whole() -> Any:
    return Grid.fit(torch.ones(1, 4), 2, axis=None).blocks


def test_a_range_without_a_count_has_plain_gradients() -> None:
    part = Range(torch.tensor(0.5), torch.tensor(3.0), Quantizer(3), four_digits)
    scale, zero_point = part()
    (scale + 10 * zero_point).backward()
    assert part.scale.logs.grad is not None
    assert part.shifts.grad is not None
    assert (float(part.scale.logs.grad), float(part.shifts.grad)) == (0.5, 70.0)
