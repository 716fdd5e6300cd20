"""Whole files keep their size, whatever else is in them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.allocation import Choice, Infeasible, fitting

choices = st.lists(
    st.builds(Choice, st.integers(2, 8), st.integers(0, 50).map(float), st.integers(1, 90).map(float)),
    min_size=1,
    max_size=4,
)
tables = st.dictionaries(st.sampled_from("abcd"), choices, min_size=1, max_size=4)


def total(chosen, what):
    return math.fsum(getattr(choice, what) for choice in chosen.values())


def policies(layers):
    return [dict(zip(layers, found, strict=True)) for found in itertools.product(*layers.values())]


def file(rest, ripple):
    """Bytes of a file with some choices: what is beside them depends a little on which they are."""

    def write(chosen):
        return int(rest + total(chosen, "size") + ripple * sum(choice.bits for choice in chosen.values()) % 7)

    return write


@settings(deadline=None)
@given(layers=tables, rest=st.integers(0, 300), ripple=st.integers(0, 3), share=st.floats(0, 1.2))
def test_no_file_is_larger_and_what_is_given_up_says_what_fits(layers, rest, ripple, share):
    write = file(rest, ripple)
    size = round(share * max(map(write, policies(layers))))
    if min(map(write, policies(layers))) > size:
        with pytest.raises(Infeasible) as caught:
            fitting(layers, size, write)
        size = int(caught.value.nearest)
    elif min(map(write, policies(layers))) > size - 7:  # the smallest choices may not make the smallest file
        return
    found = fitting(layers, size, write)
    assert write(found) <= size
    assert all(choice in layers[name] for name, choice in found.items())


@settings(deadline=None)
@given(layers=tables, rest=st.integers(0, 300), share=st.floats(0, 1.2))
def test_it_is_what_brute_force_finds_where_the_rest_never_changes(layers, rest, share):
    write = file(rest, 0)
    size = round(share * max(map(write, policies(layers))))
    fit = [total(policy, "loss") for policy in policies(layers) if write(policy) <= size]
    if fit:
        assert total(fitting(layers, size, write), "loss") == min(fit)
    else:
        with pytest.raises(Infeasible):
            fitting(layers, size, write)


def test_files_are_written_no_more_often_than_needed():
    layers = {name: [Choice(k, 4.0**-k, 100.0 * k) for k in range(2, 9)] for name in "abcdef"}
    written = []

    def write(chosen):
        written.append(total(chosen, "size"))
        return int(5000 + written[-1])

    assert write(fitting(layers, 8000, write)) == 8000
    assert len(written) == 3  # to know the rest, to make sure, and here
