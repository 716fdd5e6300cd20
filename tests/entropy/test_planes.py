"""Byte planes of words."""

from __future__ import annotations

import numpy as np
import pytest

from deepcomp.entropy import planes


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("count", [0, 1, 5, 70_000])
def test_round_trip(count, dtype, rotate, backend):
    words = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
    split = planes.split(words, rotate)
    assert [(plane.dtype, plane.shape) for plane in split] == [(np.dtype(np.uint8), (count,))] * words.itemsize
    assert np.array_equal(planes.join(split, dtype, rotate), words)
    out = np.empty(count, dtype)
    assert planes.join(split, dtype, rotate, out=out) is out
    assert np.array_equal(out, words)


def test_planes_are_the_bytes_from_the_lowest_up(backend):
    assert [plane.tolist() for plane in planes.split(np.array([0x01020304], np.uint32), False)] == [[4], [3], [2], [1]]


def test_rotation_moves_the_sign_to_the_lowest_bit(backend):
    low, high = planes.split(np.array([0x8001, 0x7FFF], np.uint16), True)
    assert (low.tolist(), high.tolist()) == ([0x03, 0xFE], [0x00, 0xFF])


def test_the_highest_plane_of_a_rotated_float_is_its_exponent(backend):
    values = np.array([1.0, -1.0, 1.5, 0.25, -3e38], np.float32)
    assert planes.split(values.view(np.uint32), True)[3].tolist() == [127, 127, 127, 125, 254]
    halves = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)  # bfloat16
    assert planes.split(halves, True)[1].tolist() == [127, 127, 127, 125, 254]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("rotate", [False, True])
def test_counts_are_those_of_the_planes(dtype, rotate, backend):
    words = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 300, dtype)
    counts = planes.count(words, rotate)
    for plane, count in zip(planes.split(words, rotate), counts, strict=True):
        assert np.array_equal(np.bincount(plane, minlength=256), count)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_the_top_plane_by_itself(dtype):
    words = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 300, dtype)
    assert np.array_equal(planes.top(words), planes.split(words, True)[-1])
