"""Grids with integers for everything, and what is left of their bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.weights import Grid
from deepcomp.weights.open_grids import in_powers, narrowed, open_ended, out_of_powers, widened
from deepcomp.weights.scales import as_precise, pack_scales


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=20), st.floats(1e-6, 1e4))
def test_every_value_is_within_half_a_step(values: list[float], step: float) -> None:
    weight = torch.tensor(values)
    grid = open_ended(weight, step, (len(values),))
    scale = float(grid.scale)
    assert scale >= step * (1 - 2**-11)
    assert float((grid.dense() - weight).abs().max()) <= scale * 0.5001
    small = narrowed(grid)
    assert torch.equal(small.dense(), grid.dense())
    assert torch.equal(Grid.unpack(small.pack(), small.shape, small.dtype).dense(), grid.dense())


def test_a_step_takes_two_bytes() -> None:
    assert pack_scales(open_ended(torch.randn(9), 0.123456, (9,)).scale.detach().numpy()).nbytes == 2


@pytest.mark.parametrize("step", [0.125, 0.25, 0.3125, 0.1])
def test_a_step_may_learn_in_all_of_float16_wherever_it_begins(step):
    start = open_ended(torch.randn(9), step, (9,)).scale.detach()
    assert start.item() == pytest.approx(step, rel=2e-3)
    assert as_precise(start * 1.3, start).item() == pytest.approx(1.3 * step, rel=2e-3)


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 4, 200, 32767])
def test_a_grid_keeps_the_bits_it_needs_and_what_it_has_learnt(largest: int) -> None:
    latent = torch.tensor([0.3, largest + 0.2, -0.4])
    grid = Grid(latent, torch.ones(1), torch.full((1,), 32767.0), 16, True, Grid.fit(latent, 4).blocks)
    small = narrowed(grid)
    assert small.bits == max(2, largest.bit_length() + 1)
    assert torch.equal(small.latent, grid.latent)
    assert torch.equal(small.offsets(), grid.offsets())
    assert torch.equal(widened(small).offsets(), grid.offsets())
    assert widened(small).bits == 16


def test_scales_by_channel_and_masks_stay(randn: Any) -> None:
    weight = randn(6, 10)
    at = torch.nonzero(weight.reshape(-1) > -0.3).reshape(-1)
    for grid in (Grid.fit(weight, 4, axis=0), Grid.fit(weight.reshape(-1)[at], 3, axis=1, at=at, shape=(6, 10))):
        wide = widened(grid)
        assert torch.equal(wide.offsets(), grid.offsets())
        assert torch.equal(wide.scale, grid.scale)
        assert torch.equal(narrowed(wide).dense(), grid.dense())


def test_nothing_left_by_a_mask_is_a_grid_too() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert narrowed(open_ended(torch.zeros(0), 0.1, (3, 4), none)).bits == 2


def test_a_scale_that_is_a_power_of_two_by_chance_can_be_left() -> None:
    grid = open_ended(torch.randn(9), 0.37, (9,))
    assert not in_powers(grid)
    assert torch.equal(out_of_powers(grid).scale, grid.scale)
    grid.scale.data.fill_(0.25)
    assert in_powers(grid)
    nudged = out_of_powers(grid)
    assert not in_powers(nudged)
    assert nudged.scale.item() == pytest.approx(0.25, rel=2e-3)
    assert torch.equal(nudged.latent, grid.latent)
    assert pack_scales(nudged.scale.detach().numpy()).nbytes == 2
