"""Hybrid integers, against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.entropy import tokens
from deepcomp.errors import FormatError
from deepcomp.wire import Cursor

EDGES = sorted({value for n in range(32) for value in ((1 << n) - 1, 1 << n, (1 << n) + 1)} | {2**32 - 1})


def token_of(value):
    if value < 128:
        return value, 0, 0
    n = value.bit_length() - 1
    return 128 + (n - 7) * 4 + (value >> n - 2 & 3), n - 2, value & (1 << n - 2) - 1


@pytest.mark.parametrize("value", EDGES)
def test_tokens_match_the_definition(value, backend):
    token, width, extra = token_of(value)
    found, raw = tokens.split(np.array([value], np.uint32), backend)
    assert found.tolist() == [token]
    assert tokens.EXTRA_BITS[token] == width
    assert int.from_bytes(raw, "little") == extra == value - int(tokens.FIRST_OF[token])


def test_the_tokens_of_the_limits():
    assert [token_of(value)[0] for value in (127, 128, 255, 256, 65535, 2**32 - 1)] == [127, 128, 131, 132, 163, 227]
    assert (tokens.WIDE, tokens.LAST_UINT16, tokens.TOKENS) == (132, 163, 228)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from(EDGES))))
def test_round_trip(values):
    symbols = np.array(values, np.uint32)
    found, raw = tokens.split(symbols, fast=False)
    cursor = Cursor(raw)
    assert np.array_equal(tokens.join(found, cursor, fast=False), symbols)
    assert cursor.left == 0


def test_backends_agree(backend):
    values = np.random.default_rng(0).integers(0, 1 << np.arange(1, 33).repeat(2000), dtype=np.uint64).astype(np.uint32)
    found, raw = tokens.split(values, backend)
    assert np.array_equal(found, tokens.split(values, fast=False)[0])
    assert raw == tokens.split(values, fast=False)[1]
    assert np.array_equal(tokens.join(found, Cursor(raw), backend), values)


def test_raw_bits_cut_short_or_padded_are_found(backend):
    symbols, raw = tokens.split(np.array([5000, 70, 129], np.uint32), backend)
    for damaged in (raw[:-1], b"", raw[:-1] + bytes([raw[-1] | 0x80])):
        with pytest.raises(FormatError):
            tokens.join(symbols, Cursor(damaged), backend)
