"""Sets of levels: what each is made of."""

import itertools

import numpy as np
import pytest
import torch

from deepcomp.errors import UsageError
from deepcomp.weights import clustering
from deepcomp.weights.level_sets import LARGEST, SETS, check, level_set

NONE = torch.zeros(0)
SYMMETRIC = [
    (name, bits) for name, (least, most) in SETS.items() if name != "lloyd-max" for bits in range(least, most + 1)
]


def positive(name, bits):
    return [level for level in level_set(name, bits, NONE).levels if level > 0]


@pytest.mark.parametrize(("name", "bits"), SYMMETRIC)
def test_as_many_levels_as_the_bits_tell_apart_alike_on_either_side(name, bits):
    levels = level_set(name, bits, NONE).levels
    assert len(levels) == (2 if name == "binary" else 2**bits - 1)
    assert list(levels) == sorted({-level for level in levels})
    assert (0 in levels) == (name != "binary")
    assert max(levels) <= LARGEST


@pytest.mark.parametrize("bits", range(2, 6))
def test_powers_of_two_have_no_gap(bits):
    assert positive("power-of-two", bits) == [2**power for power in range(2 ** (bits - 1) - 1)]


@pytest.mark.parametrize(
    ("bits", "terms"),
    [
        (2, [(0, 1)]),
        (3, [(0, 1, 2, 4)]),
        (4, [(0, 1, 4, 8), (0, 2)]),
        (5, [(0, 2, 8, 32), (0, 1, 4, 16)]),
        (6, [(0, 2, 16, 64), (0, 1, 8, 32), (0, 4)]),
        (7, [(0, 4, 32, 256), (0, 2, 16, 128), (0, 1, 8, 64)]),
    ],
)
def test_additive_levels_are_those_of_the_paper(bits, terms):
    assert positive("additive-power-of-two", bits) == sorted(map(sum, itertools.product(*terms)))[1:]


def test_of_three_bits_additive_levels_are_plain_ones():
    assert level_set("additive-power-of-two", 3, NONE) == level_set("power-of-two", 3, NONE)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_lloyd_max_levels_are_the_best_shared_values(bits, randn):
    weights = randn(5000)
    chosen = level_set("lloyd-max", bits, weights)
    found = chosen.unit * np.array(chosen.levels)
    wanted = clustering.centroids(weights.numpy(), 2**bits)
    assert np.allclose(found, wanted, atol=abs(wanted).max() / LARGEST)
    assert max(map(abs, chosen.levels)) == LARGEST


@pytest.mark.parametrize("weights", [NONE, torch.zeros(7), torch.full((3,), -2.5)])
def test_lloyd_max_levels_of_few_distinct_weights(weights):
    chosen = level_set("lloyd-max", 4, weights)
    assert len(chosen.levels) == 1
    assert np.allclose(chosen.unit * chosen.levels[0], weights.mean() if len(weights) else 0)


@pytest.mark.parametrize(
    ("name", "bits", "found"),
    [
        ("octal", 3, "levels = 'octal': one of binary, ternary,"),
        ("power-of-two", 6, "bits = 6: 2 to 5 expected of power-of-two levels"),
        ("additive-power-of-two", 1, "bits = 1: 2 to 8"),
        ("lloyd-max", 9, "bits = 9: 1 to 8"),
    ],
)
def test_what_there_is_not_is_refused(name, bits, found):
    with pytest.raises(UsageError, match=found):
        check(name, bits)
    with pytest.raises(UsageError, match=found):
        level_set(name, bits, NONE)
