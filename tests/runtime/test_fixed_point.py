"""Multiplication by real numbers in integers, against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.runtime.fixed_point import MOST, SHORT, Multiplier
from deepcomp.runtime.levels import Levels, Rescale, common

FACTORS = st.one_of(st.floats(0, 2.0**31), st.floats(1e-60, 1e-9), st.floats(0.5, 2), st.just(0.0))
SHORT_FACTORS = st.one_of(st.floats(0, 2.0**22), st.floats(0, 1))
INTEGERS = st.one_of(st.integers(-MOST - 1, MOST), st.sampled_from([-MOST - 1, -MOST, -1, 0, 1, MOST]))
POINTS = st.integers(-(2**16) + 1, 2**16 - 1)
SMALL = st.integers(-SHORT, SHORT)


def multiplied(factor: Multiplier, number: int, before: int, after: int) -> int:
    """What comes out, once seen to be ⌊m·(x − before)·2^-n + ½⌋ + after to the bit."""
    found = int(factor.apply(torch.tensor(number, dtype=torch.int32), factor.offset(before, after)))
    exact = Fraction(int(factor.mantissa)) * (number - before) / 2 ** int(factor.shift)
    assert found == math.floor(exact + Fraction(1, 2)) + after
    return found


@given(FACTORS, INTEGERS, POINTS, POINTS)
def test_a_product_is_the_exact_one_of_its_integers_rounded_half_up(m: float, x: int, before: int, after: int) -> None:
    multiplied(Multiplier.of(torch.tensor(m, dtype=torch.float64)), x, before, after)


@given(SHORT_FACTORS, SMALL, SMALL)
def test_short_numbers_are_multiplied_as_exactly_in_32_bits(m: float, x: int, after: int) -> None:
    factor = Multiplier.of(torch.tensor(m, dtype=torch.float64), short=True)
    assert factor.mantissa.dtype == torch.int32
    multiplied(factor, x, 0, after)


@given(st.integers(-128, 127), st.integers(-128, 127), SHORT_FACTORS)
def test_short_numbers_may_count_from_any_of_eight_bits(x: int, before: int, m: float) -> None:
    multiplied(Multiplier.of(torch.tensor(m, dtype=torch.float64), short=True), x, before, 0)


@given(FACTORS, st.booleans())
def test_integers_stand_for_a_factor_as_nearly_as_their_bits_allow(m: float, short: bool) -> None:
    bits, most = (22, 21) if short else (31, 45)
    m = min(m, 2.0**bits)
    factor = Multiplier.of(torch.tensor(m, dtype=torch.float64), short)
    error = abs(Fraction(int(factor.mantissa)) / 2 ** int(factor.shift) - Fraction(m))
    assert error <= max(Fraction(m) / 2**bits, Fraction(1, 2 ** (most + 1)))
    assert 0 <= int(factor.mantissa) <= 1 << bits
    assert 0 <= int(factor.shift) <= most


@pytest.mark.parametrize(("x", "half"), [(-3, -1), (-2, -1), (-1, 0), (1, 1), (2, 1), (3, 2)])
def test_ties_go_up(x: int, half: int) -> None:
    for short in (False, True):
        assert multiplied(Multiplier.of(torch.tensor(0.5, dtype=torch.float64), short), x, 0, 0) == half


def test_factors_are_one_for_each_channel() -> None:
    factors = torch.tensor([0.25, 1.0, 3.5, 1e-60], dtype=torch.float64).reshape(4, 1)
    numbers = torch.arange(-4, 4, dtype=torch.int32).expand(4, 8)
    factor = Multiplier.of(factors)
    found = factor.apply(numbers, factor.offset(0, 0))
    assert torch.equal(found, (numbers * factors + 0.5).floor().long())
    assert torch.equal(numbers[0], torch.arange(-4, 4, dtype=torch.int32))  # the operands are left as they were


def levels(scale: float | list[float], zero: int, low: int, high: int, axis: int = -1) -> Levels:
    return Levels(torch.tensor(scale, dtype=torch.float64), zero, low, high, axis)


@given(
    st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.integers(0, 255), st.integers(0, 255), st.integers(-(2**24), 2**24)
)
def test_rescaled_integers_stand_for_the_nearest_number_or_the_end(s: float, t: float, z: int, y: int, x: int) -> None:
    before, after = levels(s, z - 128, -(2**24), 2**24), levels(t, y - 128, -128, 127)
    found = Rescale(before, after)(torch.tensor([x], dtype=torch.int32))
    assert found.dtype == torch.int8
    exact = Fraction(s) / Fraction(t) * (x - before.zero) + after.zero
    assert abs(min(max(exact, -128), 127) - int(found)) <= Fraction(1, 2) + Fraction(1, 100)


@pytest.mark.parametrize("scale", [1e-30, 1e-60, 1e-300])
def test_channels_without_a_scale_to_speak_of_come_out_as_zero(scale: float) -> None:
    before, after = levels([scale, 0.5], 0, -MOST, MOST), levels(0.01, 3, -128, 127)
    assert Rescale(before, after)(torch.tensor([[MOST, 0]], dtype=torch.int32)).tolist() == [[3, 3]]


def test_what_leaves_the_levels_is_clipped() -> None:
    before, after = levels(1e30, 0, -255, 255), levels(1e-30, 0, -128, 127)
    assert Rescale(before, after)(torch.tensor([-255, -1, 0, 1, 255])).tolist() == [-128, -128, 0, 127, 127]


@given(st.lists(st.tuples(st.floats(1e-8, 1e4), st.integers(1, 2**16 - 1)), min_size=1, max_size=4))
def test_common_levels_hold_the_sum_of_two_and_lose_next_to_nothing(grids: list[tuple[float, int]]) -> None:
    parts = [levels(scale, 0, -top, top) for scale, top in grids]
    joint = common(parts, terms=2)
    assert 2 * max(-joint.low, joint.high) <= MOST
    for part in parts:
        ends = torch.tensor([part.low, part.high], dtype=torch.int32)
        error = joint.decode(Rescale(part, joint)(ends)).double() - ends * part.scale
        assert error.abs().max() <= max(entry.reach for entry in parts) * 2.0**-21


@given(st.integers(2, 16), st.booleans(), st.floats(1e-3, 10), st.data())
def test_decoded_integers_are_the_numbers_of_the_simulation_to_the_bit(
    bits: int, symmetric: bool, scale: float, data: st.DataObject
) -> None:
    from deepcomp.quantizer import Quantizer

    quantizer = Quantizer(bits, symmetric)
    zero_point = quantizer.top // 2 if symmetric else data.draw(st.integers(0, quantizer.top))
    found = Levels.of_quantizer(scale, zero_point, bits, symmetric)
    assert found.dtype == (torch.int8 if bits <= 8 else torch.int32)
    x = torch.linspace(-8, 8, 200) * scale * quantizer.top / 8
    simulated = quantizer.simulate(x, torch.tensor(scale), torch.tensor(float(zero_point)))
    assert torch.equal(found.decode(found.encode(simulated)), simulated)
