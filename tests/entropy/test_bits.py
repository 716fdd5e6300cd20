"""Fields of bits, against the plain definition: bit i of the run is bit i % 8 of byte i // 8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.entropy.bits import fixed_bytes, pack_fixed, pack_variable, read_fixed, read_variable
from deepcomp.errors import FormatError
from deepcomp.wire import Cursor


def plain(values, widths):
    starts = np.cumsum([0, *widths]).tolist()
    run = sum(int(value) << start for value, start in zip(values, starts, strict=False))
    return run.to_bytes((sum(widths) + 7) // 8, "little")


@pytest.mark.parametrize("width", range(33))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 33, 1024, 1025])
def test_fixed_fields_match_the_definition(width, count):
    values = np.random.default_rng(width).integers(0, 1 << width, count).astype(np.uint32)
    packed = pack_fixed(values, width)
    assert packed == plain(values.tolist(), [width] * count)
    assert len(packed) == fixed_bytes(count, width)
    cursor = Cursor(packed)
    read = read_fixed(cursor, count, width)
    assert np.array_equal(read, values)
    assert cursor.left == 0
    assert read.dtype == (np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32)


@settings(deadline=None)
@given(st.lists(st.integers(0, 32), max_size=50), st.integers(0, 1 << 30))
def test_variable_fields_match_the_definition(widths, seed):
    random = np.random.default_rng(seed)
    values = np.array([random.integers(0, 1 << width) for width in widths], np.uint32)
    packed = pack_variable(values, np.array(widths, np.uint8))
    assert packed == plain(values.tolist(), widths)
    assert np.array_equal(read_variable(Cursor(packed), np.array(widths, np.uint8)), values)


def test_variable_fields_across_many_blocks():
    random = np.random.default_rng(0)
    widths = random.integers(0, 33, 200_000).astype(np.uint8)
    values = random.integers(0, 1 << 32, 200_000, dtype=np.uint64) & ((1 << widths.astype(np.uint64)) - 1)
    packed = pack_variable(values.astype(np.uint32), widths)
    assert np.array_equal(read_variable(Cursor(packed), widths), values)


@pytest.mark.parametrize("width", [1, 3, 7, 12, 31])
def test_a_set_pad_bit_is_found(width):
    packed = bytearray(pack_fixed(np.zeros(3, np.uint32), width))
    packed[-1] |= 0x80
    with pytest.raises(FormatError, match="pad bits"):
        read_fixed(Cursor(packed), 3, width)
    with pytest.raises(FormatError, match="pad bits"):
        read_variable(Cursor(packed), np.full(3, width, np.uint8))


def test_missing_bytes_are_found():
    with pytest.raises(FormatError, match="expected"):
        read_fixed(Cursor(b"\x00\x00"), 10, 2)
    with pytest.raises(FormatError, match="expected"):
        read_variable(Cursor(b"\x00\x00"), np.full(10, 2, np.uint8))
