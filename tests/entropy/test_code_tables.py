"""Tables of code lengths: small, and read back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import jit
from deepcomp.entropy.tables import read_table, write_table
from deepcomp.errors import FormatError
from deepcomp.wire import Cursor


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=256).filter(any))
def test_round_trip(numbers):
    table = np.zeros(256, np.uint8)
    table[: len(numbers)] = numbers
    cursor = Cursor(write_table(table))
    if jit.available():
        assert write_table(table, fast=True) == bytes(cursor.data)
    assert np.array_equal(read_table(cursor, 15), table)
    assert cursor.left == 0


@given(st.lists(st.integers(0, 15), min_size=1, max_size=256).filter(any))
def test_a_symbol_never_costs_more_than_a_nibble(numbers):
    assert len(write_table(np.array(numbers, np.uint8))) <= 2 + (len(numbers) + 1) // 2


def test_sorted_alphabets_cost_about_a_bit_a_symbol():
    lengths = np.array([2, 3, 3] + [5] * 10 + [6] * 40 + [7] * 80 + [8] * 20, np.uint8)
    assert len(write_table(lengths)) <= 2 + (len(lengths) + 15) // 8


def test_golden_bytes():
    assert write_table(np.array([1, 2, 3, 3], np.uint8)).hex(" ") == "07 7f 05"
    assert write_table(np.array([4, 0, 0, 4, 3], np.uint8)).hex(" ") == "09 4e 03"
    assert write_table(np.array([1, 9, 1], np.uint8)).hex(" ") == "04 91 01"


def test_numbers_out_of_range_are_refused():
    for most in (1, 7, 12):
        table = write_table(np.array([4, 5, most + 1], np.uint8))
        with pytest.raises(FormatError, match="expected"):
            read_table(Cursor(table), most)


def test_a_table_cut_short_is_refused():
    table = write_table(np.arange(12, dtype=np.uint8))
    for size in range(len(table)):
        with pytest.raises(FormatError):
            read_table(Cursor(table[:size]), 15)
