"""Ranges: each method against its definition done slowly, and what all of them promise."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from deepcomp.errors import UsageError
from deepcomp.quantizer import Quantizer
from deepcomp.weights import Grid
from deepcomp.weights.ranges import RANGES, Histogram, Values, least, range_of
from deepcomp.weights.ranges.aciq import gauss, laplace

NAN = float("nan")
QUANTIZERS = [Quantizer(bits, symmetric) for bits, symmetric in itertools.product((2, 4, 8), (True, False))]


def heavy(rows=3, n=4000, seed=0):
    """Rows with tails: Student's t of three degrees of freedom."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, (rows, n)).astype(np.float32))


def samples(rows):
    return Values(rows), Histogram.of(rows, 4096)


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.bits}-{q.symmetric}")
def test_ranges_lie_within_the_numbers_and_no_order_of_them_matters(method, quantizer):
    rows = heavy()
    rows[1].abs_()
    rows[2].abs_().neg_()
    shuffled = rows[:, torch.randperm(rows.shape[1])]
    for sample, other in zip(samples(rows), samples(shuffled), strict=True):
        low, high = range_of(sample, quantizer, method, 1.0)
        assert (low >= sample.low).all()
        assert (high <= sample.high).all()
        assert (high > low).all()
        assert (high[:2] > 0).all()
        again = range_of(other, quantizer, method, 1.0)
        same = torch.equal if isinstance(sample, Histogram) else torch.allclose  # to the bit, of what is counted
        assert same(low, again[0])
        assert same(high, again[1])


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.bits}-{q.symmetric}")
def test_ranges_of_rows_are_those_of_each_row_alone_and_fill_counts_for_nothing(method, quantizer):
    rows = torch.cat([heavy(2, 500), torch.zeros(1, 500), torch.full((1, 500), 3.0)])
    filled = torch.cat([torch.nn.functional.pad(rows, (0, 12), value=NAN), torch.full((1, 512), NAN)])
    low, high = range_of(Values(filled), quantizer, method, 1.0)
    assert (low[4], high[4]) == (low[2], high[2]) == (0, 0)
    for number, row in enumerate(rows):
        alone = range_of(Values(row[None]), quantizer, method, 1.0)
        assert low[number].item() == pytest.approx(alone[0].item(), rel=1e-6)
        assert high[number].item() == pytest.approx(alone[1].item(), rel=1e-6)


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (3, 1), (1, 2)])
def test_ranges_of_few_numbers_or_none(method, shape):
    for quantizer in (Quantizer(1), Quantizer(4), Quantizer(16, symmetric=True)):
        scale, _ = quantizer.parameters(*range_of(Values(torch.ones(shape)), quantizer, method))
        assert scale.shape == shape[:1]
        assert scale.isfinite().all()


def test_an_unknown_range_is_refused():
    with pytest.raises(UsageError, match="min-max, percentile, mse, aciq, kl"):
        range_of(Values(torch.ones(1, 1)), Quantizer(4), "max")


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.bits}-{q.symmetric}")
def test_mse_is_never_worse_than_min_max_nor_than_any_range_shrunk_at_both_ends(quantizer):
    rows = torch.cat([heavy(4, 300), heavy(2, 300).abs(), torch.randn(2, 300).exp() - 0.3])
    for sample in samples(rows):
        found = sample.error(quantizer, range_of(sample, quantizer, "mse"))
        for step in range(100):
            share = 1 - step / 100
            assert (found <= sample.error(quantizer, (sample.low * share, sample.high * share))).all()


def test_the_error_of_weights_is_that_of_quantising_them():
    rows, quantizer = heavy(70, 1000), Quantizer(3)
    scale, zero_point = quantizer.parameters(torch.full((70,), -2.0), torch.full((70,), 1.0))
    quantized = quantizer.simulate(rows, scale[:, None], zero_point[:, None])
    found = Values(rows).error(quantizer, (torch.full((70,), -2.0), torch.full((70,), 1.0)))
    assert torch.allclose(found, (quantized - rows).double().square().sum(1))
    whole = Values(rows.reshape(1, -1)).error(quantizer, (torch.tensor([-2.0]), torch.tensor([1.0])))
    assert whole.item() == pytest.approx(found.sum().item())


def test_mse_shrinks_one_end_alone_where_only_that_has_a_tail():
    rows = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([30.0])])[None]
    low, high = range_of(Values(rows), Quantizer(4), "mse")
    assert -1 <= low < -0.8
    assert high < 1.6


def test_the_search_finds_the_least_error_of_all_pairs_of_ends_where_it_has_one_valley():
    full = (torch.tensor([-4.0]), torch.tensor([8.0]))
    low, high = least(full, lambda b: (b[0] + 1).square() + (b[1] - 6).square(), symmetric=False)
    assert (low.item(), high.item()) == (pytest.approx(-1, abs=0.04), pytest.approx(6, abs=0.08))


@pytest.mark.parametrize("share", [0.0, 0.1, 5.0, 49.0])
def test_percentiles_are_those_of_the_numbers(share):
    rows = heavy(3, 777)
    expected = np.percentile(rows.numpy(), [share, 100 - share], axis=1)
    low, high = Values(torch.nn.functional.pad(rows, (0, 50), value=NAN)).percentile(share)
    assert np.allclose([low, high], expected, rtol=1e-5)
    counted = Histogram.of(rows, 4096)  # which knows the two neighbours of a place up to a bin
    for end, place in zip(counted.percentile(share), (share, 100 - share), strict=True):
        neighbours = (np.percentile(rows.numpy(), place, axis=1, method=m) for m in ("lower", "higher"))
        below, above = (torch.from_numpy(bound) for bound in neighbours)
        assert (below - counted.width[:, 0] <= end).all()
        assert (end <= above + counted.width[:, 0]).all()
    zeros = Histogram.of(torch.cat([torch.zeros(1, 80), torch.ones(1, 20)], 1), 16)
    assert [end.item() for end in zeros.percentile(21.0)] == [0, 0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_constants_of_aciq_solve_its_equations(bits):
    assert laplace(bits) == pytest.approx(lambertw(3 * 4**bits).real, rel=1e-12)
    assert laplace(bits + 1) == pytest.approx(lambertw(12 * 4**bits).real, rel=1e-12)  # behind a ReLU

    def expected_error(clip, tail):
        return tail(clip) + clip**2 / (3 * 4**bits)

    for density, clip in ((stats.norm, gauss(bits)), (stats.laplace, laplace(bits))):
        found = minimize_scalar(
            expected_error,
            (0.5, 12),
            args=(lambda c: 2 * density.expect(lambda x: (x - c) ** 2, lb=c, ub=60),),  # noqa: B023
            method="bounded",
            bounds=(0.5, 12),
        )
        assert clip == pytest.approx(found.x, abs=1e-3)


def test_the_constants_of_aciq_to_two_places():
    assert [round(laplace(bits), 2) for bits in range(2, 9)] == [2.83, 3.90, 5.03, 6.20, 7.41, 8.65, 9.90]
    assert [round(gauss(bits), 2) for bits in range(2, 9)] == [1.71, 2.15, 2.56, 2.94, 3.29, 3.62, 3.92]


@pytest.mark.parametrize("bits", [3, 4])
def test_aciq_takes_the_distribution_that_fits(bits):
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(np.stack([rng.normal(1, 2, 100_000), rng.laplace(1, 2, 100_000)]).astype(np.float32))
    units = torch.tensor([gauss(bits), laplace(bits)]) * 2
    for sample in samples(rows):
        low, high = range_of(sample, Quantizer(bits), "aciq")
        assert torch.allclose(low.float(), 1 - units, rtol=0.03)
        assert torch.allclose(high.float(), 1 + units, rtol=0.03)
    one_sided = (rows - 1).relu()  # half of the numbers are 0 and say nothing of the rest
    for sample in samples(one_sided):
        low, high = range_of(sample, Quantizer(bits), "aciq")
        assert low.tolist() == [0, 0]
        assert high[0] == pytest.approx(2 * gauss(bits + 1), rel=0.02)
        assert high[1] == pytest.approx(2 * laplace(bits + 1), rel=0.02)
        best = sample.error(Quantizer(bits), range_of(sample, Quantizer(bits), "mse"))
        assert (sample.error(Quantizer(bits), (low, high)) < 1.1 * best).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lsq_starts_at_twice_the_mean_magnitude_over_the_root_of_the_levels(bits):
    rows = heavy(1)
    for sample in samples(rows):
        scale, _ = Quantizer(bits, True).parameters(*range_of(sample, Quantizer(bits, True), "lsq"))
        assert scale.item() == pytest.approx(2 * rows.abs().mean().item() / math.sqrt((1 << bits - 1) - 1), rel=1e-3)
    for sample in samples(rows.abs()):
        scale, zero_point = Quantizer(bits).parameters(*range_of(sample, Quantizer(bits), "lsq"))
        assert scale.item() == pytest.approx(2 * rows.abs().mean().item() / math.sqrt((1 << bits) - 1), rel=1e-3)
        assert zero_point.item() == 0


def divergence(counts, first, last, levels):
    """KL(P‖Q) of a window of a histogram, as the talk gives it: P, Q, loops; then scipy's entropy."""
    inside = counts[first:last].astype(float)
    p, q = inside.copy(), np.zeros(len(inside))
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    edges = [math.ceil(k * len(inside) / levels) for k in range(levels + 1)]
    for start, stop in itertools.pairwise(edges):
        there = p[start:stop] > 0
        if there.any():
            q[start:stop][there] = max(inside[start:stop].sum() / there.sum(), 0)
    lost = (q == 0) & (p > 0)
    total = q.sum()
    q[lost] = 1e-4
    return stats.entropy(p, q) + math.log(total / q.sum()) if total else math.inf


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sign", [0, 1])
def test_kl_is_the_best_of_all_candidates_done_one_by_one(bits, symmetric, sign):
    rows = heavy(2, 200, seed=bits)
    rows = rows.abs() if sign else rows
    quantizer, half = Quantizer(bits, symmetric), 64
    levels = quantizer.top + 1
    histogram = Histogram.of(rows, half)
    low, high = range_of(histogram, quantizer, "kl")
    for number, counts in enumerate(histogram.counts.numpy()):
        there, width = np.flatnonzero(counts), histogram.width[number, 0].item()
        best = (math.inf, None)
        for reach in range(half, 0, -1):
            first, last = half - reach, half + reach
            if not symmetric:
                first, last = max(first, min(there[0], half)), min(last, max(there[-1] + 1, half))
            if last - first < levels:
                break
            found = divergence(counts, first, last, levels)
            if found < best[0] - 1e-12:
                best = (found, reach)
        assert high[number] == pytest.approx(min(best[1] * width, histogram.high[number].item()))
        assert low[number] == pytest.approx(max(-best[1] * width, histogram.low[number].item()))


def test_kl_clips_outliers_and_keeps_a_distribution_without_any():
    for sample in samples(torch.cat([torch.randn(1, 20_000), torch.full((1, 4), 40.0)], 1)):
        _, high = range_of(sample, Quantizer(6, symmetric=True), "kl")
        assert 3 < high < 9
    for sample in samples(torch.rand(1, 100_000) * 2 - 1):
        _, high = range_of(sample, Quantizer(4, symmetric=True), "kl")
        assert high > 0.9


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.bits}-{q.symmetric}")
def test_the_error_of_a_histogram_is_that_of_numbers_spread_over_its_bins(quantizer):
    rows = torch.randn(1, 50)
    histogram = Histogram.of(rows, 8)
    left = (torch.arange(-8, 8) * histogram.width).double()
    spread = left[..., None] + (torch.arange(5000).double() + 0.5) / 5000 * histogram.width[..., None]
    for bounds in ((-1.5, 2.0), (-0.1, 0.3), (-9.0, 9.0)):
        bounds = [torch.tensor([end]) for end in bounds]
        wrong = quantizer.simulate(spread, *quantizer.parameters(*bounds)) - spread
        expected = (wrong.square().mean(-1) * histogram.counts).sum(1)
        assert histogram.error(quantizer, bounds).item() == pytest.approx(expected.item(), rel=1e-4)


NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 0.5, -1.0, 1e-45, -1e-45, 3e38])


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.lists(st.integers(1, 20), max_size=20), st.randoms())
@settings(max_examples=200, deadline=None)
def test_histograms_of_parts_merge_into_that_of_the_whole(numbers, sizes, random):
    whole = Histogram.of(torch.tensor([numbers]), 16)
    random.shuffle(numbers)
    parts = [numbers[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    parts.append(numbers[sum(sizes) :])
    merged = None
    for part in filter(None, parts):
        one = Histogram.of(torch.tensor([part]), 16)
        merged = one if merged is None else merged.merged(one)
    for field in ("counts", "zeros", "exponent", "low", "high"):
        assert torch.equal(getattr(merged, field), getattr(whole, field))
    assert whole.counts.sum() + whole.zeros == len(numbers)
    numbers = np.array(numbers, np.float32).astype(np.float64)
    k = np.floor(np.abs(numbers) / whole.width.item()).astype(int)
    slots = np.where(numbers < 0, 15 - k, 16 + k)[numbers != 0]
    assert np.array_equal(whole.counts[0], np.bincount(slots, minlength=32))
    assert (whole.exponent == -1000).item() or k.max() >= 8


@pytest.mark.parametrize("range", ["aciq", "kl"])
@pytest.mark.parametrize("setting", [{"axis": None}, {"axis": 0}, {"axis": 1, "group": 3}, {"axis": 0, "size": 40}])
def test_grids_of_every_granularity_take_their_ranges_block_by_block(range, setting):
    weight = heavy(8, 200).reshape(8, 20, 10)
    grid = Grid.fit(weight, 4, range=range, **setting)
    rows = grid.blocks.rows(weight, NAN)
    for number, row in enumerate(rows):
        low, high = range_of(Values(row[None]), Quantizer(4, symmetric=True), range)
        assert grid.scale[number].item() == pytest.approx(torch.maximum(-low, high).item() / 7, rel=1e-6)


def test_a_grid_may_clip_at_bounds_found_elsewhere():
    weight = heavy(4, 100)
    bounds = range_of(Values(weight), Quantizer(4, symmetric=True), "mse")
    split = torch.cat([weight, weight[:, :5] / 2], 1)
    grid = Grid.fit(split, 4, bounds=bounds)
    assert torch.equal(grid.scale, Grid.fit(weight, 4, range="mse").scale)
    assert torch.equal(grid()[:, :100], Grid.fit(weight, 4, range="mse")())


def test_expected_errors_rank_ranges_as_the_exact_ones_do():
    """What a histogram finds is nearly as good as what the numbers themselves give."""
    rows = heavy(6, 20_000)
    exact, counted = samples(rows)
    for quantizer in QUANTIZERS:
        found = exact.error(quantizer, range_of(counted, quantizer, "mse"))
        assert (found <= 1.02 * exact.error(quantizer, range_of(exact, quantizer, "mse"))).all()


def test_kl_of_more_levels_than_bins_leaves_the_full_range():
    sample = Values(heavy())
    assert range_of(sample, Quantizer(16), "kl") == (sample.low, sample.high)
