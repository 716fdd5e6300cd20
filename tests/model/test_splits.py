"""Splits: the largest channels are halved, and rounded halves add up to the rounded whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcomp.model.splits import Split
from deepcomp.quantizer import half_even, half_up


def summed(split: Split, parts: Tensor) -> Tensor:
    """Parts of one group of channels, added up by the channel they were."""
    channels = int(split.source.amax()) + 1
    return torch.zeros(channels, dtype=parts.dtype).index_add(0, split.source[0], parts)


counts = st.integers(0, 12)
magnitudes = st.lists(st.integers(0, 40).map(float), min_size=1, max_size=6)


@given(peaks=magnitudes, times=counts)
def test_it_is_the_largest_of_all_channels_there_are_that_is_halved_each_time(peaks: list[float], times: int) -> None:
    now, source = list(peaks), list(range(len(peaks)))
    for _ in range(times):
        largest = now.index(max(now))
        now[largest] /= 2
        now.append(now[largest])
        source.append(source[largest])
    split = Split.largest(torch.tensor([peaks]), times)
    assert split.source.tolist() == [source]
    assert (torch.tensor(peaks, dtype=torch.float64)[split.source] * split.share).tolist() == [now]


@given(peaks=magnitudes, times=counts)
def test_shares_add_up_to_one_and_offsets_to_none(peaks: list[float], times: int) -> None:
    split = Split.largest(torch.tensor([peaks]), times)
    assert summed(split, split.share[0]).tolist() == [1.0] * len(peaks)
    assert summed(split, split.offset[0]).tolist() == [0.0] * len(peaks)
    assert (split.offset[split.share == 1] == 0).all()
    assert (split.offset.abs() < 0.5).all()


@given(sixteenths=st.lists(st.integers(-4000, 4000), min_size=1, max_size=6), times=counts)
def test_rounded_parts_add_up_to_the_rounded_whole(sixteenths: list[int], times: int) -> None:
    whole = torch.tensor(sixteenths, dtype=torch.float64) / 16  # ties of every kind
    split = Split.largest(whole.abs()[None], times)
    parts = half_up(whole[split.source[0]] * split.share[0] + split.offset[0])
    assert summed(split, parts).tolist() == half_up(whole).tolist()


@given(whole=st.floats(-1000, 1000), times=counts)
def test_so_do_those_of_any_number_but_one_next_to_a_tie(whole: float, times: int) -> None:
    if abs((whole - 0.5) - round(whole - 0.5)) < 1e-9 and whole * 16 % 1:
        return  # a sum of floats cannot tell it from the tie
    split = Split.largest(torch.tensor([[1.0]]), times)
    parts = half_up(whole * split.share + split.offset)
    assert parts.sum() == half_up(torch.tensor(whole, dtype=torch.float64))


def test_rounding_ties_to_even_would_not_do() -> None:
    whole = torch.arange(-8, 9, dtype=torch.float64) / 4
    split = Split.largest(torch.ones(1, 1), 1)
    parts = half_even(whole[:, None] * split.share + split.offset).sum(1)
    assert (parts != half_even(whole)).any()


def test_zeros_stay_zero() -> None:
    split = Split.largest(torch.zeros(1, 1), 40)
    assert (half_up(split.offset) == 0).all()


def test_groups_are_split_alike_and_stay_side_by_side() -> None:
    split = Split.largest(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 2)
    assert split.source.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1]]
    assert split.index.tolist() == [0, 1, 1, 1, 2, 3, 2, 3]
    assert split.group(1).source.tolist() == [[0, 1, 0, 1]]
    assert split.joined.source.tolist() == [split.index.tolist()]
    assert split.joined.share.tolist() == [[1, 0.25, 0.5, 0.25, 0.5, 0.5, 0.5, 0.5]]


def test_other_ways_to_split() -> None:
    split = Split.largest(torch.tensor([[1.0, 4.0]]), 1)
    assert split.offset.tolist() == [[0, -0.25, 0.25]]
    assert split.simple.offset.tolist() == [[0, 0, 0]]
    assert split.simple.share.tolist() == [[1, 0.5, 0.5]]
    assert split.copied.share.tolist() == [[1, 1, 1]]
    assert split.copied.offset.tolist() == [[0, 0, 0]]
