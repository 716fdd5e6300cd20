"""Observers: the same data in any order and batches gives the same ranges, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.calibration import Distribution, Extremes
from deepcomp.errors import InputError, UsageError
from deepcomp.quantizer import Quantizer
from deepcomp.weights.ranges import RANGES, Values, range_of

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def observed(kind, batches, **settings):
    observer = kind("relu", **settings)
    for batch in batches:
        observer.observe(batch)
    return observer


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_order_and_batches_of_any_data_change_nothing(rows, data):
    """Items of three numbers; three channels along dimension 1."""
    items = torch.tensor(rows)
    order = data.draw(st.permutations(range(len(items))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(items)))))
    batches = torch.tensor_split(items[order], cuts)
    for axis in (None, 1):
        assert same(observed(Extremes, [items], axis=axis).bounds, observed(Extremes, batches, axis=axis).bounds)
        whole, parts = (observed(Distribution, seen, axis=axis).histogram for seen in ([items], batches))
        assert same(vars(whole).values(), vars(parts).values())  # all that ranges are made from


@pytest.mark.parametrize(
    "quantizer", [Quantizer(8), Quantizer(4), Quantizer(4, symmetric=True)], ids=lambda q: f"{q.bits}-{q.symmetric}"
)
@pytest.mark.parametrize("relu", [True, False])
def test_shuffled_and_batched_activations_give_the_same_ranges(quantizer, relu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, 5, 5, generator=generator) * torch.logspace(-1, 1, 8)[:, None, None]
    x = x.relu() if relu else x
    whole = observed(Distribution, [x])
    for size in (1, 7, 33):
        parts = observed(Distribution, x[torch.randperm(64, generator=generator)].split(size))
        assert same(whole.bounds, parts.bounds)
        for method in RANGES:
            assert same(whole.range(quantizer, method), parts.range(quantizer, method))


def test_extremes_are_exact_for_a_tensor_and_for_each_channel():
    x = torch.randn(20, 6, 3)
    batches = x.split(4)
    assert [end.tolist() for end in observed(Extremes, batches).bounds] == [[x.min()], [x.max()]]
    low, high = observed(Extremes, batches, axis=1).bounds
    assert torch.equal(low, x.amin((0, 2)).double())
    assert torch.equal(high, x.amax((0, 2)).double())
    assert torch.equal(observed(Extremes, batches, axis=-1).bounds[0], x.amin((0, 1)).double())


def test_ranges_of_channels_are_those_of_each_alone():
    x = torch.randn(50, 3, 40) * torch.tensor([0.01, 1.0, 30.0])[:, None]
    low, high = observed(Distribution, x.split(9), axis=1).range(Quantizer(4), "mse")
    for channel in range(3):
        alone = observed(Distribution, [x[:, channel]]).range(Quantizer(4), "mse")
        assert (low[channel], high[channel]) == alone


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse", "aciq"])
@pytest.mark.parametrize("bits", [3, 8])
def test_ranges_from_counts_are_nearly_as_good_as_from_the_numbers(method, bits):
    x = (torch.randn(1, 60_000, generator=torch.Generator().manual_seed(3)) + 0.5).relu()
    exact = Values(x)
    counted = observed(Distribution, x.T.split(1000)).range(Quantizer(bits), method)
    of_numbers = range_of(exact, Quantizer(bits), method)
    errors = [exact.error(Quantizer(bits), bounds).item() for bounds in (counted, of_numbers)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_mse_on_counts_is_never_worse_than_min_max():
    x = torch.randn(40_000) / torch.rand(40_000).sqrt()
    seen = observed(Distribution, [x])
    for bits in (2, 4, 8):
        errors = [seen.histogram.error(Quantizer(bits), seen.range(Quantizer(bits), m)) for m in ("mse", "min-max")]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("kind", [Extremes, Distribution])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_name_and_leaves_no_trace(kind, bad):
    observer = observed(kind, [torch.ones(4)])
    with pytest.raises(InputError, match=rf"relu: {bad} and 1 more of 6 activations"):
        observer.observe(torch.tensor([[0.0, bad, 2.0], [9.0, bad, 0.0]]))
    assert observer.bounds[1].item() == 1


@pytest.mark.parametrize("kind", [Extremes, Distribution])
def test_without_observations_there_is_no_range(kind):
    observer = observed(kind, [torch.zeros(0, 4)])
    with pytest.raises(UsageError, match="relu: nothing was observed"):
        observer.bounds  # noqa: B018
    if kind is Distribution:
        with pytest.raises(UsageError, match="relu: nothing was observed"):
            observer.range(Quantizer(8))


def test_channels_must_stay_as_many():
    with pytest.raises(InputError, match="relu: 3 channels found, 2 expected"):
        observed(Extremes, [torch.ones(1, 2), torch.ones(1, 3)], axis=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_width_are_seen_as_they_are(dtype):
    x = torch.randn(500).to(dtype) / 3
    seen = observed(Distribution, x.split(100))
    assert [end.item() for end in seen.bounds] == [x.min().item(), x.max().item()]
    assert same(seen.range(Quantizer(8)), observed(Distribution, [x.double()]).range(Quantizer(8)))


def test_memory_does_not_grow_with_what_is_seen():
    seen = observed(Distribution, [torch.randn(10)])
    size = seen.histogram.counts.numel()
    for scale in range(20):
        seen.observe(torch.randn(10_000) * 10**scale)
    assert seen.histogram.counts.numel() == size == 8192
    assert seen.histogram.counts.sum() == 200_010
