"""Han's layout, which deepcomp is compared with: exact, with fillers where they belong, and coded as Huffman would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

WIDTHS = (1, 2, 3, 4, 5, 8)
_SHARES = st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.9, 1.0])


@pytest.fixture(scope="session")
def han(script):
    return script("han_layout")


def round_trips(han, weight, gap_bits):
    layout = han.encode(weight, gap_bits)
    assert np.array_equal(han.decode(layout), weight)
    assert layout.gaps.max(initial=0) < 1 << gap_bits
    assert layout.codebook[0] == 0
    return layout


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    share=_SHARES,
    values=st.integers(1, 40),
    gap_bits=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1 << 16),
)
def test_round_trip(han, shape, share, values, gap_bits, seed):
    random = np.random.default_rng(seed)
    weight = random.standard_normal(values).astype(np.float32)[random.integers(0, values, shape)]
    round_trips(han, np.where(random.random(shape) < share, weight, np.float32(0)), gap_bits)


@pytest.mark.parametrize("gap_bits", WIDTHS)
def test_a_weight_of_zeros_has_no_entries(han, gap_bits):
    layout = round_trips(han, np.zeros((3, 700), np.float32), gap_bits)
    assert len(layout.codes) == 0
    assert layout.huffman().codes == layout.huffman().gaps == 0


@pytest.mark.parametrize("gap_bits", WIDTHS)
@pytest.mark.parametrize("at", [[0], [-1], [0, -1]])
def test_first_and_last_element(han, gap_bits, at):
    weight = np.zeros(1500, np.float32)
    weight[at] = [0.5, -0.25][: len(at)]
    layout = round_trips(han, weight.reshape(30, 50), gap_bits)
    assert layout.fillers == (1499 if at == [-1] else 1498 if len(at) == 2 else 0) >> gap_bits


@pytest.mark.parametrize("gap_bits", WIDTHS)
@pytest.mark.parametrize(("extra", "fillers"), [(-1, 0), (0, 1), (1, 1)])
def test_fillers_begin_where_the_gap_no_longer_fits(han, gap_bits, extra, fillers):
    gap = (1 << gap_bits) + extra
    layout = round_trips(han, np.array([1.0] + [0.0] * gap + [2.0, 0.0, 0.0], np.float32), gap_bits)
    assert layout.fillers == fillers
    assert layout.gaps.tolist() == [0] + [(1 << gap_bits) - 1] * fillers + [gap - fillers * (1 << gap_bits)]


@pytest.mark.parametrize("gap_bits", WIDTHS)
@pytest.mark.parametrize(("extra", "fillers"), [(-1, 1), (0, 2), (1, 2)])
def test_fillers_follow_each_other(han, gap_bits, extra, fillers):
    gap = (1 << gap_bits + 1) + extra
    assert round_trips(han, np.array([0.0] * gap + [1.0], np.float32), gap_bits).fillers == fillers


def test_bytes_count_entries_and_codebook(han):
    weight = np.zeros(100, np.float32)
    weight[[0, 50, 99]] = [1.0, 2.0, 1.0]  # 49 and 48 zeros between them: three fillers each
    layout = round_trips(han, weight, 4)
    assert len(layout.codes) == 9
    assert layout.fixed() == 7 + 12  # nine entries of 2 + 4 bits, a codebook of three
    coded = layout.huffman()
    assert (coded.entries, coded.codes) == (9, 6 * 1 + 2 * 2 + 1 * 2)
    assert coded.tables == 12 + 3 + 16


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_huffman_keeps_its_bounds(han, counts):
    counts = np.array(counts)
    lengths = han.huffman_lengths(counts)
    present = counts[counts > 0]
    assert np.array_equal(lengths > 0, counts > 0)
    if len(present) > 1:
        assert (0.5 ** lengths[lengths > 0]).sum() == 1
        entropy = float(present / present.sum() @ np.log2(present.sum() / present))
        assert entropy - 1e-9 <= counts @ lengths / counts.sum() < entropy + 1


@given(counts=st.lists(st.integers(1, 30), min_size=3, max_size=4))
def test_huffman_is_the_shortest_there_is(han, counts):
    complete = {3: [(1, 2, 2)], 4: [(2, 2, 2, 2), (1, 2, 3, 3)]}[len(counts)]
    best = min(sum(np.sort(counts)[::-1] * lengths) for lengths in complete)
    assert np.array(counts) @ han.huffman_lengths(np.array(counts)) == best


def test_a_lone_symbol_takes_one_bit(han):
    assert han.huffman_lengths(np.array([0, 7, 0])).tolist() == [0, 1, 0]
