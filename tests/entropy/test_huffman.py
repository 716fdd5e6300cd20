"""Huffman codes: optimal, complete, canonical; against brute force and dahuffman's codec."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from dahuffman import HuffmanCodec
from dahuffman.huffmancodec import PrefixCodec
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import entropy, jit
from deepcomp.entropy import huffman

histograms = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 1 << 40)), min_size=2, max_size=256).filter(
    lambda counts: sum(count > 0 for count in counts) >= 2
)


def histogram_of(counts):
    histogram = np.zeros(256, np.int64)
    histogram[: len(counts)] = counts
    return histogram


@settings(deadline=None)
@given(histograms)
def test_codes_are_complete_and_within_a_bit_of_the_entropy(counts):
    histogram = histogram_of(counts)
    lengths = huffman.code(histogram, fast=False).lengths
    assert ((lengths > 0) == (histogram > 0)).all()
    assert lengths.max() <= 12
    present = lengths > 0
    assert (2.0 ** -lengths[present].astype(float)).sum() == 1
    share = histogram[present] / histogram.sum()
    bits = -(share @ np.log2(share))
    mean = share @ lengths[present]
    assert mean >= bits - 1e-9
    if lengths.max() < 12:  # else the limit of 12 bits may cost more
        assert mean < bits + 1


@settings(deadline=None)
@given(histograms)
def test_lengths_are_monotone_with_ties_broken_by_symbol(counts):
    histogram = histogram_of(counts)
    lengths = huffman.code(histogram, fast=False).lengths
    symbols = np.flatnonzero(histogram)
    order = symbols[np.lexsort((symbols, -histogram[symbols]))]
    assert (np.diff(lengths[order].astype(int)) >= 0).all()


@settings(deadline=None)
@given(histograms)
def test_lengths_cost_what_an_unlimited_huffman_code_costs(counts):
    histogram = histogram_of(counts)
    table = HuffmanCodec.from_frequencies(
        {symbol: int(histogram[symbol]) for symbol in np.flatnonzero(histogram)}, eof=np.flatnonzero(histogram)[0]
    ).get_code_table()
    lengths = huffman.code(histogram, fast=False).lengths
    best = sum(length * int(histogram[symbol]) for symbol, (length, _) in table.items())
    if max(length for length, _ in table.values()) <= 12:
        assert int(histogram @ lengths.astype(np.int64)) == best
    else:
        assert int(histogram @ lengths.astype(np.int64)) >= best


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=6), st.integers(3, 4))
def test_package_merge_equals_brute_force(counts, longest):
    weights = np.sort(np.array(counts, np.int64))
    lengths = huffman._package_merge(weights, longest, fast=False)
    best = min(
        sum(a * b for a, b in zip(weights.tolist(), code, strict=True))
        for code in product(range(1, longest + 1), repeat=len(counts))
        if sum(1 << longest - length for length in code) <= 1 << longest
    )
    assert int(weights @ lengths) == best
    assert lengths.max() <= longest


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@settings(deadline=None)
@given(histograms)
def test_numba_finds_the_same_code(counts):
    histogram = histogram_of(counts)
    found, twin = (huffman.code(histogram, fast) for fast in (True, False))
    assert np.array_equal(found.lengths, twin.lengths)
    assert (found.table, found.bits) == (twin.table, twin.bits)


def test_the_limit_binds_on_fibonacci_counts():
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    lengths = huffman.code(histogram_of(counts), fast=False).lengths
    assert lengths.max() == 12
    assert (2.0 ** -lengths[:30].astype(float)).sum() == 1


def test_canonical_codes_by_hand():
    lengths = histogram_of([2, 0, 1, 3, 3]).astype(np.uint8)
    codes = huffman.canonical_codes(lengths)  # 10, 0, 110, 111, each written back to front
    assert codes[[0, 2, 3, 4]].tolist() == [0b01, 0b0, 0b011, 0b111]


def payload_of(symbols):
    """The bits of a stream of one lane, without head, table and lane size."""
    histogram = np.bincount(symbols, minlength=256)
    code = huffman.code(histogram, fast=False)
    _, k, payload = huffman.encode(symbols, code, fast=False)
    assert len(k) == 1
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
    return code.lengths, bits, code.bits


@pytest.mark.parametrize("alphabet", [2, 3, 17, 256])
def test_dahuffman_reads_and_writes_the_same_bits(alphabet):
    symbols = np.floor(alphabet * np.random.default_rng(alphabet).random(700) ** 3).astype(np.uint8)
    lengths, bits, total = payload_of(symbols)
    codes = huffman.canonical_codes(lengths)
    codec = PrefixCodec(
        {
            symbol: (int(lengths[symbol]), int(f"{codes[symbol]:0{lengths[symbol]}b}"[::-1], 2))
            for symbol in np.flatnonzero(lengths).tolist()
        },
        eof=int(symbols[0]),
    )
    written = np.unpackbits(np.frombuffer(bytes(codec.encode(symbols.tolist())), np.uint8))
    assert np.array_equal(written[:total], bits[:total])
    reader = PrefixCodec(codec.get_code_table(), eof=-1)
    assert reader.decode(np.packbits(bits).tobytes())[: len(symbols)] == symbols.tolist()


@pytest.mark.parametrize("few", [0, 10**9])
def test_both_numpy_decoders_read_any_number_of_lanes(few, monkeypatch):
    monkeypatch.setattr(huffman, "_FEW", few)
    random = np.random.default_rng(0)
    for count, alphabet in [(1, 2), (300, 2), (3000, 256), (20_000, 256), (60_000, 4)]:
        symbols = np.append(random.integers(0, alphabet, count), [0, 1]).astype(np.uint8)
        with jit.use(False):
            assert np.array_equal(entropy.decode(entropy.encode(symbols, "huffman"), count + 2), symbols)


@pytest.mark.parametrize("count", [50, 3000, 100_000])
def test_the_estimate_is_close(count):
    symbols = (np.random.default_rng(0).geometric(0.1, count) - 1).astype(np.uint8)
    histogram = np.bincount(symbols, minlength=256)
    code = huffman.code(histogram, fast=False)
    size = sum(map(len, huffman.encode(symbols, code, fast=False)))
    assert huffman.estimate(count, code) == pytest.approx(size, rel=0.002, abs=2)
