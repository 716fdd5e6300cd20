"""Other scales for the same integers, and scales in the precision they are stored in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcomp.weights import Grid, Mask
from deepcomp.weights.rescaling import Rescaling, rescale
from deepcomp.weights.scales import SHORT, as_precise, significant

GRIDS: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 2, "axis": None},
    {"bits": 3, "symmetric": False, "axis": 1},
    {"bits": 3, "axis": 1, "group": 3},
    {"bits": 5, "size": 7, "symmetric": False},
    {"bits": 16},
    {"bits": 8, "power_of_two": True},
]


def grid(settings: dict[str, Any], masked: bool = False) -> tuple[Grid, Grid | Mask]:
    """A grid over a weight, or over what a mask leaves of it; and the whole form."""
    weight = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    if not masked:
        found = Grid.fit(weight, **settings)
        return found, found
    at = torch.nonzero(weight.reshape(-1) > -0.5).reshape(-1)
    inner = Grid.fit(weight.reshape(-1)[at], **settings, at=at, shape=tuple(weight.shape))
    return inner, Mask(at, inner, tuple(weight.shape))


@given(st.floats(2**-60, 2**60, width=32), st.integers(1, 8))
def test_significant_bits(number: float, bits: int) -> None:
    found = float(significant(torch.tensor(number), bits))
    mantissa = torch.frexp(torch.tensor(found)).mantissa * 2**bits
    assert mantissa == mantissa.round()
    assert abs(found - number) <= number / 2**bits
    assert float(significant(torch.tensor(found), bits)) == found


@given(st.lists(st.floats(2**-20, 1.5, width=32), min_size=1, max_size=5), st.sampled_from([1, SHORT, 24]))
def test_scales_are_as_precise_as_others(numbers: list[float], bits: int) -> None:
    scale, like = torch.tensor(numbers), significant(torch.tensor([0.7311, 0.0123]), bits)
    assert torch.equal(as_precise(scale, like), significant(scale, bits))
    assert torch.equal(as_precise(like, like), like)


@pytest.mark.parametrize("settings", GRIDS)
@pytest.mark.parametrize("masked", [False, True])
def test_integers_stay(settings: dict[str, Any], masked: bool) -> None:
    inner, form = grid(settings, masked)
    integers, before, width = inner.integers(), inner.scale.clone(), inner.pack().tables["scale"].dtype
    weight = form.dense()
    factor = 1.7 + 0.5 * torch.rand(len(before), generator=torch.Generator().manual_seed(1))
    found = rescale(inner, before * factor)
    assert torch.equal(inner.integers(), integers)
    assert torch.equal(inner.scale, found)
    assert inner.pack().tables["scale"].dtype == width
    if not settings.get("power_of_two"):
        assert torch.equal(found, (before * factor).detach())
    spread = (inner.blocks.spread(found / before)).expand(form.shape)
    torch.testing.assert_close(form.dense(), weight * spread.detach(), rtol=1e-5, atol=0)
    packed = form.pack()
    assert torch.equal(type(form).unpack(packed, form.shape, form.dtype).dense(), form.dense())


def test_the_original_weight_stays(randn: Any) -> None:
    weight = randn(4, 4)
    before = weight.clone()
    inner = Grid.fit(weight, 3)
    rescale(inner, inner.scale * 2)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("settings", GRIDS)
@pytest.mark.parametrize("masked", [False, True])
def test_learnt_scales_start_where_they_were_and_end_in_the_grid(settings: dict[str, Any], masked: bool) -> None:
    inner, form = grid(settings, masked)
    learnt, integers = Rescaling(inner), inner.integers()
    assert torch.equal(learnt().detach(), form.dense())
    learnt.logs.data.normal_(generator=torch.Generator().manual_seed(2))
    wanted = learnt().detach()
    assert not torch.equal(wanted, form.dense())
    learnt.commit()
    assert torch.equal(form.dense(), wanted)
    assert torch.equal(inner.integers(), integers)


def test_the_gradient_of_a_scale_is_that_of_the_scaled_weight(randn: Any) -> None:
    inner, _ = grid({"bits": 4})
    learnt, slope = Rescaling(inner), randn(6, 5, 3)
    (learnt() * slope).sum().backward()
    expected: Tensor = (inner.dense() * slope).sum((1, 2))
    torch.testing.assert_close(learnt.logs.grad, expected)


def test_rounded_scales_learn_straight_through(randn: Any) -> None:
    inner, _ = grid({"bits": 4})
    rescale(inner, significant(inner.scale.detach(), SHORT))
    learnt = Rescaling(inner)
    learnt.logs.data.fill_(0.01)  # less than half a step of a byte
    assert torch.equal(learnt().detach(), inner.dense())
    learnt().sum().backward()
    assert learnt.logs.grad is not None
    assert bool(learnt.logs.grad.any())
