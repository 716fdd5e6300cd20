from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import jit
from deepcomp.errors import InputError, UsageError
from deepcomp.weights import clustering
from deepcomp.weights.clustering import STARTS, assign, centroids, inertia

needs_numba = pytest.mark.skipif(not jit.available(), reason="numba is not installed")
halves = st.floats(-1000, 1000, width=16)  # float16 numbers: sums and midpoints of two are exact in float64


def survivors(values: np.ndarray, count: int) -> np.ndarray:
    """The largest of each five: what pruning leaves of a layer."""
    return values[np.argsort(np.abs(values))[-count:]]


def samples(name: str, n: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(7)
    if name == "heavy tails":
        values = survivors(rng.standard_t(6, 5 * n), n)
    elif name == "laplace":
        values = survivors(rng.laplace(size=5 * n), n)
    elif name == "two humps":
        values = np.concatenate((rng.normal(-3, 0.1, n // 2), rng.normal(5, 1, n - n // 2)))
    elif name == "outlier":
        values = np.append(rng.normal(size=n - 1), 0)
        values[-1] = 100 * np.abs(values).max()
    elif name == "many scales":
        values = np.exp(3 * rng.normal(size=n)) * rng.choice([-1, 1], n)
    elif name == "repeated":
        values = np.concatenate((np.full(n // 2, 0.25), rng.normal(size=n // 4), rng.integers(0, 20, n // 4)))
    else:
        values = rng.uniform(size=n)
    return values.astype(np.float32)


SAMPLES = ("heavy tails", "laplace", "two humps", "outlier", "many scales", "repeated", "uniform")


def least_inertia(values: np.ndarray, k: int) -> float:
    """Of k clusters, by the quadratic dynamic programme on all the sorted values."""
    x = np.sort(values.astype(np.float64))
    n, sums, squares = np.arange(len(x) + 1), np.append(0, np.cumsum(x)), np.append(0, np.cumsum(x * x))
    count = n[None, :] - n[:, None]
    cost = np.full(count.shape, np.inf)
    some = count > 0
    total = (sums[None, :] - sums[:, None])[some]
    cost[some] = (squares[None, :] - squares[:, None])[some] - total * total / count[some]
    best = cost[0]
    for _ in range(k - 1):
        best = (best[:, None] + cost).min(0)
    return float(best[-1])


# ---------------------------------------------------------------- optimality


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=3, max_size=9), st.integers(2, 5))
def test_optimal_equals_brute_force(numbers: list[int], k: int) -> None:
    x = np.sort(np.array(numbers, np.float32))
    k = min(k, len(np.unique(x)))
    best = min(
        sum(float(np.sum((part - part.mean()) ** 2)) for part in np.split(x.astype(np.float64), cuts))
        for cuts in combinations(range(1, len(x)), k - 1)
    )
    assert inertia(x, centroids(x, max(2, k))) == pytest.approx(best, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("k", [3, 16, 40])
@pytest.mark.parametrize("name", SAMPLES)
def test_optimal_within_a_thousandth_of_least_inertia(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_BINS", 256)  # fewer than there are values, as with real layers
    x = samples(name)
    assert inertia(x, centroids(x, k)) <= 1.001 * least_inertia(x, k)


@pytest.mark.parametrize("name", SAMPLES)
def test_optimal_is_no_worse_than_other_starts(name: str) -> None:
    x = samples(name, 10_000)
    best = inertia(x, centroids(x, 24))
    assert all(best <= 1.001 * inertia(x, centroids(x, 24, start)) for start in STARTS)


def test_distant_outlier_gets_a_cluster_and_costs_the_others_only_that() -> None:
    x = samples("laplace", 20_000)
    with_outlier = np.append(x, np.float32(1e6))
    assert inertia(with_outlier, centroids(with_outlier, 17)) <= 1.001 * inertia(x, centroids(x, 16))


# ---------------------------------------------------------------- what centroids are


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_centroids_are_ascending_means_of_their_members(name: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_BINS", 64)  # so that ends of bins are not where clusters end
    x = samples(name, 5000)
    c = centroids(x, 12, start)
    index = assign(x, c)
    assert c.dtype == np.float32
    assert len(c) == 12
    assert (c[1:] > c[:-1]).all()
    for i in np.unique(index):
        assert c[i] == pytest.approx(x[index == i].mean(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("start", STARTS)
def test_as_many_clusters_as_distinct_values_gives_the_values(start: str) -> None:
    x = np.array([3, -1, 3, 0.5, -0.0, 0.0, -1], np.float32)
    for k in (4, 5, 1000):
        np.testing.assert_array_equal(centroids(x, k, start), np.array([-1, 0, 0.5, 3], np.float32))
    assert len(centroids(x, 3, start)) == 3
    assert not np.signbit(centroids(x[x == 0][:1], 3, start)).any()


@pytest.mark.parametrize("start", STARTS)
def test_constant_gives_one_centroid_and_nothing_gives_none(start: str) -> None:
    constant = np.full(70_000, 0.1, np.float32)
    np.testing.assert_array_equal(centroids(constant, 32, start), constant[:1])
    assert inertia(constant, centroids(constant, 32, start)) == 0
    assert len(centroids(np.empty(0, np.float32), 32, start)) == 0


@pytest.mark.parametrize("start", STARTS)
def test_one_value_less_than_distinct(start: str) -> None:
    x = np.arange(1000, dtype=np.float32)
    c = centroids(x, 999, start)
    assert len(c) == 999
    if start == "optimal":
        assert inertia(x, c) == 0.5


@pytest.mark.parametrize("start", STARTS)
def test_order_of_values_does_not_matter(start: str) -> None:
    x = samples("heavy tails", 5000)
    shuffled = np.random.default_rng(0).permutation(x)
    np.testing.assert_array_equal(centroids(x, 20, start, seed=3), centroids(shuffled, 20, start, seed=3))


def test_float64_counts_as_float32() -> None:
    x = np.random.default_rng(0).normal(size=3000)
    np.testing.assert_array_equal(centroids(x, 9), centroids(x.astype(np.float32), 9))
    np.testing.assert_array_equal(assign(x, centroids(x, 9)), assign(x.astype(np.float32), centroids(x, 9)))


def test_forgy_depends_on_its_seed_alone() -> None:
    x = samples("uniform", 5000)
    np.random.seed(0)  # the global generator must be neither used nor moved
    state = np.random.get_state()[2]
    first, again, other = (centroids(x, 20, "forgy", seed=s) for s in (1, 1, 2))
    assert np.random.get_state()[2] == state
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# ---------------------------------------------------------------- Lloyd, histogram, layers


@pytest.mark.parametrize("start", STARTS[1:])
@pytest.mark.parametrize("name", SAMPLES)
def test_inertia_never_rises_in_lloyds_algorithm(name: str, start: str) -> None:
    line = clustering._Line(np.sort(samples(name)))
    means = clustering._starting_values(line.x, 15, start, seed=0)
    course = []
    for _ in range(30):
        course.append(inertia(line.x, means.astype(np.float32)))
        means = clustering._lloyd(line, means, rounds=1).astype(np.float64)
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(course))
    assert course[-1] < course[0]


@pytest.mark.parametrize("start", STARTS[1:])
@pytest.mark.parametrize("k", [16, 256, 257])
def test_starts_end_no_worse_than_they_begin(start: str, k: int) -> None:
    x = np.sort(samples("two humps", 4000))
    begin = clustering._starting_values(x, k, start, seed=0).astype(np.float32)
    assert inertia(x, centroids(x, k, start)) < inertia(x, begin)


def test_empty_cluster_keeps_its_starting_value() -> None:
    x = np.append(np.linspace(0, 1, 5000), 100).astype(np.float32)
    c = centroids(x, 400, "linear")
    empty = np.setdiff1d(np.arange(400), assign(x, c))
    assert len(c) == 400
    assert len(empty) > 300
    np.testing.assert_array_equal(c[empty], np.linspace(0, 100, 400).astype(np.float32)[empty])


def test_prefix_sums_at_every_end() -> None:
    x = np.arange(1, 38, dtype=np.float32)
    line = clustering._Line(x)
    np.testing.assert_array_equal(line.prefix(np.arange(38)), np.append(0, np.cumsum(x, dtype=np.float64)))


@pytest.mark.parametrize("bins", [64, 1000])
@pytest.mark.parametrize("name", SAMPLES)
def test_histogram_ranges_hold_whole_distinct_values(name: str, bins: int) -> None:
    x = np.sort(samples(name))
    ends = clustering._histogram(x, bins)
    assert ends[0] == 0
    assert ends[-1] == len(x)
    assert (np.diff(ends) > 0).all()
    assert len(ends) - 1 == min(bins, len(np.unique(x)))
    assert (x[ends[1:-1]] > x[ends[1:-1] - 1]).all()


def test_histogram_of_few_values_has_a_range_for_each() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    x = np.repeat(np.array([-3e38, -1, -tiny, 0, tiny, 1, 3e38], np.float32), 3)
    np.testing.assert_array_equal(clustering._histogram(x, 100), np.arange(0, 22, 3))


@needs_numba
@pytest.mark.parametrize("k", [2, 7, 64])
@pytest.mark.parametrize("name", SAMPLES)
def test_numba_and_numpy_give_the_same_centroids(name: str, k: int) -> None:
    x = samples(name, 6000)
    with jit.use(numba=True):
        fast = centroids(x, k)
    with jit.use(numba=False):
        np.testing.assert_array_equal(fast, centroids(x, k))


@needs_numba
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(halves, st.integers(1, 9)), min_size=4, max_size=60), st.integers(1, 3))
def test_numba_and_numpy_layers_agree_to_the_bit(bins: list[tuple[float, int]], rounds: int) -> None:
    from deepcomp.weights import kernels

    size = len(bins) + 1
    counts = np.cumsum([0.0] + [n for _, n in bins])
    sums = np.cumsum([0.0] + [x * n for x, n in sorted(bins)])
    score = np.append(-np.inf, sums[1:] ** 2 / counts[1:])
    floor = np.zeros(size, np.int32)
    for first in range(2, 2 + rounds):
        ours, theirs = np.zeros(size, np.int32), np.zeros(size, np.int32)
        after = clustering._layer(score, sums, counts, floor, first, ours)
        np.testing.assert_array_equal(after, kernels.layer(score, sums, counts, floor, first, theirs))
        np.testing.assert_array_equal(ours, theirs)
        score, floor = after, ours


# ---------------------------------------------------------------- assignment


@settings(max_examples=60, deadline=None)
@given(st.lists(halves, min_size=1, max_size=40), st.lists(halves, min_size=1, max_size=12, unique=True))
def test_assign_takes_the_nearest_and_the_lower_on_a_tie(numbers: list[float], table: list[float]) -> None:
    c = np.array(sorted(table), np.float32)
    middle = (c[1:] + c[:-1]) / 2
    x = np.concatenate((np.array(numbers, np.float32), middle, -middle))
    nearest = [min(range(len(c)), key=lambda i: (abs(Fraction(float(v)) - Fraction(float(c[i]))), i)) for v in x]
    np.testing.assert_array_equal(assign(x, c), nearest)


@pytest.mark.parametrize("k", [1, 2, 255, 256, 257, 5000, 65_536])
def test_assign_equals_search_for_any_number_of_centroids(k: int) -> None:
    rng = np.random.default_rng(k)
    c = np.sort(rng.normal(size=k)).astype(np.float32)
    x = rng.normal(size=150_000).astype(np.float32)
    index = assign(x, c)
    assert index.dtype == (np.uint8 if k <= 256 else np.uint16)
    middle = (c[1:].astype(np.float64) + c[:-1]) / 2
    np.testing.assert_array_equal(index, np.searchsorted(middle, x.astype(np.float64)))


def test_assign_at_signed_zeros_and_extremes() -> None:
    top = np.finfo(np.float32).max
    x = np.array([-top, -1, -0.0, 0.0, 1, top], np.float32)
    np.testing.assert_array_equal(assign(x, np.array([-1, 1], np.float32)), [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(assign(x, np.array([-top, -0.0, top], np.float32)), [0, 1, 1, 1, 1, 2])
    np.testing.assert_array_equal(assign(x[::-2], np.array([-1, 1], np.float32)), [1, 0, 0])


def test_assign_among_equal_centroids_is_still_the_nearest() -> None:
    c = np.array([0, 1, 1, 1, 3], np.float32)
    np.testing.assert_array_equal(c[assign(np.array([-1, 0.5, 1, 1.5, 2, 2.5], np.float32), c)], [0, 0, 1, 1, 1, 3])


def test_inertia_over_several_runs() -> None:
    x = np.random.default_rng(0).normal(size=200_001)
    c = np.array([-1, 0.25, 2], np.float32)
    nearest = np.abs(x[:, None] - c.astype(np.float64)).min(1)
    assert inertia(x, c) == pytest.approx(float(np.sum(nearest**2)), rel=1e-12)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_finite_float32(bad: float) -> None:
    x = np.array([1.0, bad, 2.0])
    with pytest.raises(InputError, match="finite"):
        centroids(x, 2)
    with pytest.raises(InputError, match="finite"):
        assign(x, np.array([0, 1], np.float32))


def test_arguments_out_of_range() -> None:
    x = np.arange(5, dtype=np.float32)
    for k in (1, 65_537):
        with pytest.raises(UsageError, match="clusters"):
            centroids(x, k, "linear")
    with pytest.raises(UsageError, match="linear"):
        centroids(x, 1025)
    with pytest.raises(UsageError, match="optimal, linear, density, forgy"):
        centroids(x, 4, "random")
    with pytest.raises(UsageError, match="one dimension"):
        centroids(x[None], 4)
    with pytest.raises(UsageError, match="int64"):
        assign(np.arange(5), x)
    with pytest.raises(UsageError, match="ascending"):
        assign(x, x[::-1])
    with pytest.raises(UsageError, match="centroids: 0"):
        assign(x, x[:0])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200))
def test_both_sorts_agree(numbers):
    x = np.array(numbers, np.float32)
    with jit.use(numba=True):
        found = clustering._sorted(x)
    assert np.array_equal(found, np.sort(x))
    assert sorted(found.view(np.uint32).tolist()) == sorted(x.view(np.uint32).tolist())
