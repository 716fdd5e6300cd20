"""Bits as training feels them: by hand, by brute force, and along the training."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.network import Network
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.rate_train import RateTrain
from deepcomp.training import Plan, loop, rate, train
from deepcomp.training.quantizers import WeightQuantizer
from deepcomp.training.rate import Rate, chances, costs, magnitude
from deepcomp.weights import Grid
from deepcomp.weights.open_grids import open_ended

# ---------------------------------------------------------------- magnitudes


@given(st.floats(-1e4, 1e4, width=32))
def test_a_magnitude_takes_the_bits_of_a_smooth_exp_golomb_code(q: float) -> None:
    u = abs(q)
    wanted = math.log2(1 + u) if u < 1 else 1 + 1.5 * math.log2(u)
    assert float(magnitude(torch.tensor(q))) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_zero_costs_nothing_and_stays() -> None:
    q = torch.zeros(3, requires_grad=True)
    bits = magnitude(q).sum()
    bits.backward()
    assert float(bits.detach()) == 0
    assert q.grad is not None
    assert not q.grad.any()


# ---------------------------------------------------------------- chances and costs


def by_hand(alive: Tensor, *index: int) -> float:
    """The chance of one weight, counted one by one."""
    planes = alive.shape[1] if alive.ndim > 1 else 1
    there = alive.reshape(len(alive), planes, -1).tolist()
    i, j, k = index
    rows, taps = len(there), len(there[0][0])
    everything = [there[a][b][c] for a, b, c in itertools.product(range(rows), range(planes), range(taps))]
    mean = sum(everything) / len(everything)
    row = [there[i][b][c] for b in range(planes) for c in range(taps)]
    column = [there[a][j][k] for a in range(rows)]
    density = [sum(line) / len(line) if len(line) > 1 else mean for line in (row, column)]
    chance = density[0] * density[1] / mean
    return chance if taps == 1 else 0.3 * chance + 0.7 * sum(there[i][j]) / taps


@pytest.mark.parametrize(
    "shape", [(5, 7), (4, 3, 2, 2), (6, 1, 3, 3), (3, 4, 5), (1, 9), (9, 1), (8,), (2, 3, 2, 2, 2)]
)
def test_a_chance_is_that_of_the_row_the_column_and_the_kernel(shape: tuple[int, ...], randn: Any) -> None:
    alive = randn(*shape) > 0.3
    assert alive.any()
    found = chances(alive).reshape(shape[0], shape[1] if len(shape) > 1 else 1, -1)
    for index in itertools.product(*map(range, found.shape)):
        assert float(found[index]) == pytest.approx(by_hand(alive, *index), rel=1e-5, abs=1e-7)


def test_pixels_are_as_probable_as_their_neighbourhood(randn: Any) -> None:
    alive = randn(6, 2 * 4 * 5) > 0.5
    found = chances(alive, (2, 4, 5)).reshape(6, 2, 4, 5)
    pictures = alive.float().reshape(6, 2, 4, 5)
    mean = float(pictures.mean())
    for row, channel, y, x in itertools.product(range(6), range(2), range(4), range(5)):
        around = pictures[:, channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        wanted = float(pictures[row].mean()) * float(around.mean()) / mean
        assert float(found[row, channel, y, x]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    assert torch.equal(chances(alive, (2, 4, 6)), chances(alive))


def test_costs_are_the_bits_of_the_place_the_sign_and_a_flag_within_bounds() -> None:
    alive = torch.zeros(50, 40, dtype=torch.bool)
    alive[:5, :8] = True
    found = costs(chances(alive))
    p = 0.2 * 0.1 / 0.02
    assert p > 0.6
    assert float(found[0, 0]) == 1.5  # log₂(0.4 / 0.6) + 2, but at least that
    assert float(found[20, 20]) == 13.0
    alive[:, 0] = True
    density = alive.float().mean()
    p = float(alive[20].float().mean() * alive[:, 3].float().mean() / density)
    assert float(costs(chances(alive))[20, 3]) == pytest.approx(math.log2((1 - p) / p) + 2, rel=1e-5)
    for extreme in (torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(5), torch.zeros(2, 3, 2, 2)):
        assert costs(chances(extreme.bool())).isfinite().all()


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_logarithm_of_a_step_is_that_of_the_reference(masked: bool, randn: Any) -> None:
    """Δ Σ (round(q) − q) ∂L/∂w − Σ q ∂R/∂q, but for the factor LSQ has, which Adam does not feel."""
    weight, slope, price = randn(6, 10), randn(6, 10), 0.01
    at = torch.nonzero(weight.reshape(-1) > -0.3).reshape(-1) if masked else None
    grid = open_ended(weight if at is None else weight.reshape(-1)[at], 0.37, (6, 10), at)
    part = WeightQuantizer(grid, "nearest")
    bits = Rate([part])
    ((part() * slope).sum() + price * bits()).backward()
    step, latent = float(grid.scale), grid.laid_out(grid.latent.detach())
    q = latent / step
    cost = costs(chances(q.round() != 0))
    inside = q.abs() < 1
    steep = cost * q.sign() / math.log(2) * torch.where(inside, 1 / (1 + q.abs()), 1.5 / q.abs().clamp(min=1e-9))
    steep = torch.where(q == 0, 0, steep)
    wanted = step * float(((q.round() - q) * slope).sum()) - price * float((q * steep).sum())
    factor = 1 / math.sqrt(latent.numel() if at is None else len(at)) / math.sqrt(2**15 - 1) / step**2
    found = part.range.scale.logs.grad
    assert found is not None
    assert float(found) / factor == pytest.approx(wanted, rel=1e-4)
    assert grid.latent.grad is not None
    through = slope + price * steep / step
    expected = through if at is None else through.reshape(-1)[at]
    torch.testing.assert_close(grid.latent.grad, expected, rtol=1e-4, atol=1e-5)


def test_bits_are_those_of_all_weights_whatever_shares_a_scale(randn: Any) -> None:
    parts = [WeightQuantizer(Grid.fit(randn(6, 10), 3, axis=axis), "nearest") for axis in (None, 0, 1)]
    wanted = 0.0
    for part in parts:
        q = part.grid.latent / part.grid.blocks.spread(part.grid.scale)
        wanted += float((costs(chances(part.grid.offsets() != 0)) * magnitude(q)).sum().detach())
    assert float(Rate(parts)().detach()) == pytest.approx(wanted, rel=1e-5)


def test_without_context_all_weights_of_a_tensor_cost_alike(randn: Any) -> None:
    part = WeightQuantizer(open_ended(randn(6, 10), 2.0, (6, 10)), "nearest")
    p = float((part.grid.offsets() != 0).float().mean())
    wanted = (math.log2((1 - p) / p) + 2) * float(magnitude(part.steps()).sum().detach())
    assert float(Rate([part], context=False)().detach()) == pytest.approx(wanted, rel=1e-5)


def test_costs_stay_until_one_looks_again(randn: Any) -> None:
    part = WeightQuantizer(open_ended(randn(20, 20), 0.5, (20, 20)), "nearest")
    bits = Rate([part])
    before = float(bits().detach())
    with torch.no_grad():
        part.grid.latent[:10] = 0
    half = float(bits().detach())
    bits.look()
    assert half == pytest.approx(before / 2, rel=0.3)
    assert float(bits().detach()) == float(Rate([part])().detach()) != half


# ---------------------------------------------------------------- along the training


def run_of(net: Network, **settings: Any) -> Any:
    list(RateTrain()._put_on_grids(net))
    return loop._Run(net, Plan(batch=18, choose="last", **settings), "x", "*", "")


def test_the_price_rises_in_the_ramp_and_stays(net: Network) -> None:
    run = run_of(net, epochs=10, price=0.5, ramp=0.4)  # 20 steps an epoch
    bits = float(run.rate().detach())
    for step, share in ((0, 0), (20, 0.25), (40, 0.5), (80, 1), (199, 1)):
        assert float(run._penalty(step).detach()) == pytest.approx(0.5 * share * bits, rel=1e-5)
    at_once = run_of(net, epochs=10, price=0.5, ramp=0.0)._penalty(0)
    assert float(at_once.detach()) == pytest.approx(0.5 * bits, rel=1e-5)


def test_the_rate_rises_in_the_warm_up_and_then_falls(net: Network) -> None:
    run = run_of(net, epochs=10, rate=2.0, warmup=0.1)
    plain = run_of(net, epochs=10, rate=2.0)
    assert [run._learning_rate(step) / plain._learning_rate(step) for step in (0, 5, 10)] == [0, 0.25, 0.5]
    assert run._learning_rate(20) == plain._learning_rate(20)


def test_costs_are_looked_at_at_every_start_of_an_epoch_and_now_and_then(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    look = Rate.look
    monkeypatch.setattr(Rate, "look", lambda self: (looks.append(1), look(self))[1])
    monkeypatch.setattr(loop, "EVERY", 8)
    list(RateTrain()._put_on_grids(net))
    train(net, Plan(epochs=2, batch=18, price=1e-4, choose="last"))
    assert len(looks) == 1 + 2 * 3  # of 20 steps 0, 8 and 16
    assert rate.EVERY == 100


def test_any_grid_can_be_trained_with_a_price(net: Network) -> None:
    Quantize(bits=4).run(net)

    def alive(price: float) -> int:
        train(net, Plan(epochs=6, batch=16, optimiser="adam", price=price, choose="last"))
        return sum(int(form.offsets().count_nonzero()) for form in net.forms.values() if isinstance(form, Grid))

    assert alive(0.05) < alive(0.0) / 2 or alive(0.05) < 100


def test_a_price_needs_weights_on_grids(net: Network) -> None:
    with pytest.raises(UsageError, match="price: no weight lies on a grid"):
        train(net, Plan(epochs=1, price=1e-6, choose="last"))
    with pytest.raises(UsageError, match="price = 1e-06 and choose = 'best': last expected"):
        Plan(price=1e-6)


@pytest.mark.parametrize(
    "setting", [{"price": -1.0}, {"price": math.nan}, {"price": math.inf}, {"ramp": 1.5}, {"warmup": math.nan}]
)
def test_prices_that_make_no_sense_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(setting))} = .* expected"):
        Plan(**setting)  # type: ignore[arg-type]
