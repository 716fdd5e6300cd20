"""rANS: frequencies that add up, sizes near the entropy, and the decoder as the format defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import entropy, jit
from deepcomp.entropy import rans

histograms = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 1 << 40)), min_size=2, max_size=256).filter(
    lambda counts: sum(count > 0 for count in counts) >= 2
)


def histogram_of(counts):
    histogram = np.zeros(256, np.int64)
    histogram[: len(counts)] = counts
    return histogram


@settings(deadline=None, max_examples=50)
@given(histograms, st.sampled_from([8, 10, 12, 14]))
def test_frequencies_add_up_and_no_symbol_is_lost(counts, precision):
    counts = np.array([count for count in counts if count], np.float64)
    frequency = rans.normalise(counts, precision, fast=False)
    assert frequency.sum() == 1 << precision
    assert frequency.min() > 0
    if jit.available():
        assert np.array_equal(rans.normalise(counts, precision, fast=True), frequency)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_no_exchange_of_one_slot_saves_a_thousandth(counts):
    histogram = np.array(counts, np.float64)
    frequency = rans.normalise(histogram, 10, fast=False)

    def bits(frequency):
        return histogram @ (10 - np.log2(frequency))

    for give in np.flatnonzero(frequency > 1):
        for take in range(len(counts)):
            other = frequency.copy()
            other[give] -= 1
            other[take] += 1
            assert bits(other) > bits(frequency) * 0.999 - 0.5


@settings(deadline=None, max_examples=50)
@given(histograms)
def test_models_are_read_back(counts):
    model = rans.model(histogram_of(counts), fast=False)
    cursor = rans.Cursor(model.table)
    precision, frequency = rans._read_model(cursor, fast=False)
    assert precision == model.precision
    assert np.array_equal(frequency, model.frequency)
    assert cursor.left == 0


@settings(deadline=None, max_examples=50)
@given(histograms)
def test_no_other_precision_would_be_smaller(counts):
    histogram = histogram_of(counts)
    model = rans.model(histogram, fast=False)
    present = histogram[histogram > 0].astype(np.float64)
    for precision, weight in rans._PRECISIONS.items():
        frequency = np.zeros(256, np.int64)
        frequency[histogram > 0] = shares = rans.normalise(present, precision, fast=False)
        bits = float(present @ (precision - np.log2(shares)))
        chosen = rans._PRECISIONS[model.precision] * (len(model.table) + model.bits / 8)
        assert chosen <= weight * (len(rans._table(frequency, precision, fast=False)) + bits / 8) + 16


def by_the_book(words, frequency, precision, count):
    """Decode one lane as the format's description says."""
    state, at, symbols = words[0] | words[1] << 16, 2, []
    for _ in range(count):
        slot = state % (1 << precision)
        first = 0
        for symbol, share in enumerate(frequency):  # noqa: B007
            if slot < first + share:
                break
            first += share
        symbols.append(symbol)
        state = share * (state >> precision) + slot - first
        if state < 1 << 16:
            state = state << 16 | words[at]
            at += 1
    assert state == 1 << 16
    assert at == len(words)
    return symbols


@pytest.mark.parametrize("alphabet", [2, 3, 30, 256])
def test_streams_decode_by_the_book(alphabet, backend):
    symbols = np.floor(alphabet * np.random.default_rng(alphabet).random(500) ** 4).astype(np.uint8)
    model = rans.model(np.bincount(symbols, minlength=256), fast=False)
    _, k, payload = rans.encode(symbols, model, backend)
    assert k == bytes([14])
    words = np.frombuffer(payload, "<u2").tolist()
    assert by_the_book(words, model.frequency.tolist(), model.precision, 500) == symbols.tolist()


@pytest.mark.parametrize("precision", [8, 10, 12, 14])
@pytest.mark.parametrize("frequency", [1, 2, 3, 100, 255])
def test_reciprocals_divide_every_state_exactly(precision, frequency):
    model = rans.Model(precision, histogram_of([frequency, (1 << precision) - frequency]), b"", 0.0)
    limit, reciprocal = (int(value) for value in rans._coding(model)[0, :2])
    states = np.unique(np.random.default_rng(0).integers(0, limit, 2000)).tolist()
    for state in [*states, 0, 1, limit - 1, *range(frequency, min(limit, 9 * frequency), frequency)]:
        assert state * reciprocal < 1 << 64
        assert state * reciprocal >> 32 + precision == state // frequency


@pytest.mark.parametrize("few", [0, 10**9])
def test_both_numpy_coders_write_and_read_the_same(few, monkeypatch):
    random = np.random.default_rng(0)
    for count, alphabet in [(1, 2), (300, 2), (3000, 256), (20_000, 256), (40_000, 200)]:
        symbols = np.append(random.integers(0, alphabet, count), [0, 1]).astype(np.uint8)
        with jit.use(False):
            stream = entropy.encode(symbols, "rans")
            monkeypatch.setattr(rans, "_FEW", few)
            assert entropy.encode(symbols, "rans") == stream
            assert np.array_equal(entropy.decode(stream, count + 2), symbols)
            monkeypatch.undo()


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
@pytest.mark.parametrize("count", [3000, 100_000])
def test_the_estimate_is_close(count, share):
    symbols = (np.random.default_rng(0).random(count) < share).astype(np.uint8)
    model = rans.model(np.bincount(symbols, minlength=256), fast=False)
    size = sum(map(len, rans.encode(symbols, model, fast=False)))
    assert rans.estimate(count, model) == pytest.approx(size, rel=0.003, abs=4)
