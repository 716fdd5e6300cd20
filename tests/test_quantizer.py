"""The quantiser: what is on the grid stays, what is not errs by half a step at most, gradients are the paper's."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.errors import UsageError
from deepcomp.quantizer import SMALLEST_SCALE, Quantizer, half_even, half_up, stochastic

FLOATS = st.floats(-1e6, 1e6, width=32)
QUANTIZERS = st.builds(
    Quantizer,
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    power_of_two=st.booleans(),
    rounding=st.sampled_from([half_even, half_up]),
)


def fitted(quantizer, x):
    return quantizer.parameters(x.amin(), x.amax())


@given(QUANTIZERS, st.lists(FLOATS, min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_what_is_unclipped_errs_by_half_a_step_at_most_and_what_is_on_the_grid_stays(quantizer, numbers):
    x = torch.tensor(numbers)
    scale, zero_point = fitted(quantizer, x)
    once = quantizer.simulate(x, scale, zero_point)
    assert ((once - x).abs() <= 0.5 * scale + 4e-7 * x.abs().max()).all()
    assert torch.equal(quantizer.simulate(once, scale, zero_point), once)
    q = quantizer.integers(x, scale, zero_point)
    assert q.min() >= 0
    assert q.max() <= quantizer.top
    assert torch.equal(q, q.round())
    assert torch.equal((q - zero_point) * scale, once)
    assert torch.equal(quantizer.simulate(torch.zeros(3), scale, zero_point), torch.zeros(3))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_there_are_no_more_values_than_levels_and_what_is_beyond_is_clipped(bits, symmetric):
    quantizer = Quantizer(bits, symmetric)
    parameters = quantizer.parameters(torch.tensor(-1.0), torch.tensor(2.0))
    values = quantizer.simulate(torch.linspace(-9, 9, 10_001), *parameters).unique()
    assert len(values) == quantizer.top + 1 == 2**bits - symmetric
    assert values[-1] == pytest.approx(2, abs=float(parameters[0]) / 2 + 1e-6)
    assert not symmetric or values[0] == -values[-1]


def test_a_range_that_starts_at_zero_is_unsigned():
    scale, zero_point = Quantizer(8).parameters(torch.tensor(0.5), torch.tensor(5.1))
    assert (scale.item(), zero_point.item()) == (pytest.approx(0.02), 0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("range", [(0, 0), (3, 3), (-2, -2), (1e-38, 2e-38), (-1e-44, 0), (-3e38, 3e38)])
def test_degenerate_ranges_give_a_scale_that_is_a_number(range, symmetric):
    low, high = torch.tensor([float(end) for end in range])
    scale, zero_point = Quantizer(4, symmetric).parameters(low, high)
    assert SMALLEST_SCALE <= scale < math.inf
    x = torch.tensor([0.0, low, high])
    assert Quantizer(4, symmetric).simulate(x, scale, zero_point).isfinite().all()


def test_scales_are_powers_of_two_that_cover_the_range():
    high = torch.cat([torch.tensor([1.0, 2.0**-20, 1.0000001]), torch.rand(500) * 100])
    scale, _ = Quantizer(2, symmetric=True, power_of_two=True).parameters(-high, high)
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))
    assert ((scale >= high) & (scale < 2 * high)).all()


def test_ties_go_where_the_rounding_says():
    ties = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5])
    assert half_even(ties).tolist() == [0, 2, 0, -2, 2]
    assert half_up(ties).tolist() == [1, 2, 0, -1, 3]
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))  # + ½ would round to 1
    large = torch.tensor(2.0**23 + 1)
    assert half_up(torch.stack([below, -below, large])).tolist() == [0, 0, 2**23 + 1]
    quantizer, one, zero = Quantizer(4), torch.tensor(1.0), torch.tensor(3.0)
    assert quantizer.integers(ties, one, zero).tolist() == [3, 5, 3, 1, 5]
    assert replace(quantizer, rounding=half_up).integers(ties, one, zero).tolist() == [4, 5, 3, 2, 6]


def test_stochastic_rounding_is_right_on_average_and_goes_down_or_up():
    x = torch.tensor([-1.3, -0.001, 0.0, 0.25, 2.0, 2.9999]).repeat(100_000, 1)
    rounding = stochastic(torch.Generator().manual_seed(1))
    rounded = rounding(x)
    assert ((rounded == x.floor()) | (rounded == x.ceil())).all()
    assert torch.allclose(rounded.mean(0), x[0], atol=5e-3)
    assert torch.equal(stochastic(torch.Generator().manual_seed(1))(x), rounded)
    noisy = Quantizer(8, rounding=rounding).simulate(x, torch.tensor(0.5), torch.tensor(4.0))
    assert torch.allclose(noisy.mean(0), x[0], atol=5e-3)


def test_gradients_are_those_of_the_paper_at_points_done_by_hand():
    x = torch.tensor([0.3, -0.76, 5.0, -5.0], requires_grad=True)
    scale, zero_point = torch.tensor(0.5, requires_grad=True), torch.tensor(4.2, requires_grad=True)
    out = Quantizer(3).simulate(x, scale, zero_point)
    assert out.tolist() == [0.5, -1.0, 1.5, -2.0]
    out.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert x.grad.tolist() == [1, 10, 0, 0]
    # inside: round(x/s) − x/s; clipped: p = 7 − 4 and n = −4
    assert scale.grad.item() == pytest.approx((1 - 0.6) + 10 * (-2 + 1.52) + 100 * 3 + 1000 * -4, rel=1e-6)
    assert zero_point.grad.item() == -0.5 * 1100


def test_gradients_agree_with_finite_differences_away_from_edges():
    """Of the function that straight-through estimators stand for: rounding adds noise, which stays as x, s, z move."""
    generator = torch.Generator().manual_seed(0)
    quantizer = Quantizer(4)
    x = torch.empty(200, dtype=torch.float64).uniform_(-3, 3, generator=generator)
    scale, zero_point = torch.tensor(0.25, dtype=torch.float64), torch.tensor(6.0, dtype=torch.float64)
    noise = half_even(x / scale) - x / scale

    def frozen(x, scale, zero_point):
        return (torch.clamp(x / scale + noise + zero_point, 0, quantizer.top) - zero_point) * scale

    inputs = [part.clone().requires_grad_() for part in (x, scale, zero_point)]
    inside = quantizer.integers(*inputs)
    away = (inside > 0) & (inside < quantizer.top) | (x / scale < -6.6) | (x / scale > 9.6)
    assert away.sum() > 150
    assert torch.allclose(quantizer.simulate(*inputs), frozen(*inputs))
    weights = torch.rand(200, generator=generator, dtype=torch.float64) * away
    (quantizer.simulate(*inputs) * weights).sum().backward()
    step = 1e-6
    for number, part in enumerate(inputs):
        for place in range(part.numel()):
            moved = []
            for sign in (-1, 1):
                values = [other.detach().clone() for other in inputs]
                values[number].view(-1)[place] += sign * step
                moved.append((frozen(*values) * weights).sum())
            slope = (moved[1] - moved[0]) / (2 * step)
            assert part.grad.view(-1)[place] == pytest.approx(slope.item(), abs=1e-5)


def test_gradients_of_channels_are_summed_over_their_members():
    x = torch.randn(3, 4, 5)
    scale = torch.full((3, 1, 1), 0.1, requires_grad=True)
    zero_point = torch.full((3, 1, 1), 2.0, requires_grad=True)
    Quantizer(3).simulate(x, scale, zero_point).sum().backward()
    for channel in range(3):
        s, z = torch.tensor(0.1, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        Quantizer(3).simulate(x[channel], s, z).sum().backward()
        assert scale.grad[channel].item() == pytest.approx(s.grad.item(), rel=1e-5)
        assert zero_point.grad[channel].item() == pytest.approx(z.grad.item(), rel=1e-5)


def test_gradients_of_a_dead_range_are_numbers():
    scale = torch.tensor(SMALLEST_SCALE, requires_grad=True)
    x = torch.tensor([0.0, 1e9, -3.0], requires_grad=True)
    Quantizer(4, symmetric=True).simulate(x, scale, torch.tensor(7.0)).sum().backward()
    assert scale.grad.isfinite()
    assert x.grad.tolist() == [1, 0, 0]


def test_halves_are_quantised_as_float32_and_come_back_as_halves():
    x = torch.randn(100).bfloat16()
    scale, zero_point = fitted(Quantizer(8), x)
    out = Quantizer(8).simulate(x, scale, zero_point)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, Quantizer(8).simulate(x.float(), scale, zero_point).bfloat16())


def test_dynamic_quantisation_takes_the_range_of_what_comes():
    x = torch.randn(4, 6, 32) * torch.logspace(-3, 3, 4)[:, None, None]
    quantizer = Quantizer(8)
    whole, tokens = quantizer.dynamic(x), quantizer.dynamic(x, per="token")
    assert torch.equal(whole, quantizer.simulate(x, *fitted(quantizer, x)))
    for index in [(0, 0), (3, 5)]:
        assert torch.equal(tokens[index], quantizer.simulate(x[index], *fitted(quantizer, x[index])))
    assert (tokens - x).square().sum() < (whole - x).square().sum()
    assert torch.equal(quantizer.dynamic(x[2:3], per="token"), tokens[2:3])  # whatever else is in the batch
    assert quantizer.dynamic(torch.zeros(0, 3), per="token").shape == (0, 3)
    with pytest.raises(UsageError, match="tensor or token"):
        quantizer.dynamic(x, per="channel")


def test_bits_out_of_bounds_are_refused():
    for bits in (0, 17):
        with pytest.raises(UsageError, match="1 to 16"):
            Quantizer(bits)
