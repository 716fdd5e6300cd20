"""Learnt rounding: every weight ends at one of the two integers beside it, and starts where it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepcomp.weights import Grid, Mask
from deepcomp.weights.rounding import SoftRounding

GRIDS: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 2, "axis": None},
    {"bits": 1, "symmetric": False},
    {"bits": 3, "symmetric": False, "axis": 1},
    {"bits": 3, "axis": 1, "group": 3},
    {"bits": 5, "size": 7, "symmetric": False},
    {"bits": 2, "range": "mse"},  # some weights are clipped
    {"bits": 8, "power_of_two": True},
]


def grid(settings: dict[str, Any], masked: bool, seed: int = 0) -> tuple[Grid, Mask | Grid]:
    """A grid over a weight, or over what a mask leaves of it; and the whole form."""
    weight = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(seed))
    if not masked:
        found = Grid.fit(weight, **settings)
        return found, found
    at = torch.nonzero(weight.reshape(-1) > -0.5).reshape(-1)
    inner = Grid.fit(weight.reshape(-1)[at], **settings, at=at, shape=tuple(weight.shape))
    return inner, Mask(at, inner, tuple(weight.shape))


def steps(found: Grid) -> tuple[Tensor, Tensor]:
    """What lies below and above each weight, counted in steps from the zero-point, within the grid."""
    scale, zero = found.spread(found.scale.detach()), found.spread(found.zero_point.detach())
    top = found.quantizer.top
    exact = found.latent.detach() / scale
    return (exact.floor() + zero).clamp(0, top), (exact.ceil() + zero).clamp(0, top)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", GRIDS)
def test_it_starts_at_the_weights_themselves_within_the_grid(settings: dict[str, Any], masked: bool) -> None:
    found, form = grid(settings, masked)
    weight = form.dense().clone()
    low, high = steps(found)
    values = found.latent.detach().clone()
    zero, scale = found.spread(found.zero_point.detach()), found.spread(found.scale.detach())
    wanted = torch.minimum(torch.maximum(values, (low - zero) * scale), (high - zero) * scale)
    dense = SoftRounding(found)().detach()
    assert dense.shape == weight.shape
    held = dense if found.at is None else dense.reshape(-1)[found.at]
    torch.testing.assert_close(held, wanted, rtol=0, atol=1e-5)
    if found.at is not None:
        assert not dense[weight == 0].any() or int((dense != 0).sum()) <= len(found.at)
    assert torch.equal(form.dense(), weight)  # nothing has changed yet


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GRIDS), st.booleans(), st.integers(0, 1 << 20))
def test_whatever_is_learnt_every_weight_goes_to_a_neighbour(settings: dict[str, Any], masked: bool, seed: int) -> None:
    found, form = grid(settings, masked, seed)
    low, high = steps(found)
    soft = SoftRounding(found)
    with torch.no_grad():
        soft.logits.normal_(0, 5)
    up = soft.logits >= 0
    soft.commit()
    assert torch.equal(found.integers(), torch.where(up, high, low))
    packed = form.pack()
    back = type(form).unpack(packed, form.shape, form.dtype)
    assert torch.equal(back.dense(), form.dense())


@pytest.mark.parametrize("masked", [False, True])
def test_undecided_weights_go_up_and_nearest_is_what_the_start_commits(masked: bool) -> None:
    found, form = grid({"bits": 4}, masked)
    nearest = form.dense().clone()
    SoftRounding(found).commit()  # h = fraction: v ≥ 0 where that is a half or more
    assert torch.equal(form.dense(), nearest)


def test_hesitation_counts_the_undecided() -> None:
    found, _ = grid({"bits": 4}, False)
    soft = SoftRounding(found)
    with torch.no_grad():
        soft.logits.fill_(0)
    assert float(soft.hesitation(2.0).detach()) == pytest.approx(90)  # h = ½ everywhere
    with torch.no_grad():
        soft.logits.copy_(10 * torch.randn(6, 5, 3).sign())
    assert float(soft.hesitation(20.0).detach()) == 0
    assert set(soft.share().unique().tolist()) == {0.0, 1.0}


def test_gradients_reach_what_is_neither_decided_nor_clipped() -> None:
    found, _ = grid({"bits": 2, "range": "mse"}, False)
    soft = SoftRounding(found)
    soft().sum().backward()
    low, high = steps(found)
    assert torch.equal(soft.logits.grad != 0, low != high)


def test_what_was_rounded_still_trains() -> None:
    found, form = grid({"bits": 4}, True)
    soft = SoftRounding(found)
    with torch.no_grad():
        soft.logits.neg_()
    soft.commit()
    before = form.dense().clone()
    optimiser = torch.optim.SGD(form.parameters(), 0.5)
    form().square().sum().backward()
    optimiser.step()
    assert float(form.dense().norm()) < float(before.norm())
