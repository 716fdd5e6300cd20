"""The context coder: what it writes is read by numba, in plain Python and by the book; what it saves and costs."""

from __future__ import annotations

import tracemalloc
import zlib
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_context import SQUASH, STRETCH, context
from independent_source import Source

from deepcomp import entropy, jit
from deepcomp.entropy.context import Before, tables
from deepcomp.errors import FormatError, UsageError

BACKENDS = (False, True) if jit.available() else (False,)
RANDOM = np.random.default_rng


@pytest.fixture
def fastest():
    """Numba where it is installed."""
    with jit.use(BACKENDS[-1]):
        yield


def unsigned(values):
    return (values - values.min()).astype(np.uint32).reshape(-1)


def check(values, before=None):
    """Encode integers of any shape with each backend, decode with each and by the book; the bytes, all the same."""
    symbols, shape, streams = unsigned(values), values.shape, set()
    for numba in BACKENDS:
        with jit.use(numba):
            streams.add(entropy.encode(symbols, "context", shape, before))
    (stream,) = streams
    for numba in BACKENDS:
        with jit.use(numba):
            decoded = entropy.decode(stream, len(symbols), 0, shape, before and (lambda back: before.rows))
        assert np.array_equal(decoded, symbols)
        assert decoded.dtype == np.min_scalar_type(int(symbols.max()))
    if stream[0] & 31 == 4:
        earlier = [before.rows.tolist(), *[None] * (before.back - 1)] if before else []
        by_the_book = context(Source(stream[1:]), stream[0] >> 5, len(symbols), list(shape), earlier)
        assert list(by_the_book) == symbols.tolist()
        for numba in BACKENDS:
            with jit.use(numba):
                rows = entropy.live_rows(stream, len(symbols), 0, shape)
            assert by_the_book.rows == (rows if rows is None else rows.tolist())
    return stream


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    random = RANDOM(draw(st.integers(0, 1 << 32)))
    reach = draw(st.sampled_from((1, 2, 20, 3000, (1 << 30) - 1)))
    values = random.integers(-reach, reach + 1, shape)
    for axis in range(len(shape)):  # whole slices are dead
        sides = [1] * len(shape)
        sides[axis] = shape[axis]
        values *= random.random(sides) < draw(st.sampled_from((0.4, 1)))
    return values


@settings(deadline=None, max_examples=60)
@given(arrays())
def test_round_trip(values):
    check(values)


@settings(deadline=None, max_examples=40)
@given(arrays(), st.integers(2, 12), st.integers(1, 3))
def test_round_trip_behind_another_layer(values, rows, back):
    check(values, Before(back, RANDOM(rows).integers(0, 2, rows, dtype=np.uint8)))


@pytest.mark.parametrize("columns", [36, 37, 64])
def test_round_trip_of_pictures(columns):
    bright = np.abs(np.linspace(-1, 1, columns)) < 0.6
    check(RANDOM(0).integers(-3, 4, (12, columns)) * bright)


def test_symbols_of_31_bits_are_coded_and_greater_ones_refused(backend):
    symbols = np.array([0, 1, 2**31 - 1, 2**30, 0, 5], np.uint32)
    assert np.array_equal(entropy.decode(entropy.encode(symbols, "context"), 6), symbols)
    symbols[3] = 1 << 31
    with pytest.raises(UsageError, match=r"symbol 2147483648: below 2\^31 expected"):
        entropy.encode(symbols, "context")
    assert np.array_equal(entropy.decode(entropy.encode(symbols, "smallest"), 6), symbols)


def test_auto_never_takes_it_and_smallest_where_it_is_smaller(fastest):
    values = unsigned(RANDOM(0).integers(-3, 4, (40, 50)) * (RANDOM(1).random((40, 1)) < 0.3))
    usual, found = entropy.encode(values), entropy.encode(values, "smallest", (40, 50))
    assert usual[0] != 4
    assert found == entropy.encode(values, "context", (40, 50))
    assert len(found) < 0.8 * len(usual)
    noise = RANDOM(2).integers(0, 256, 3000).astype(np.uint8)
    assert entropy.encode(noise, "smallest") == entropy.encode(noise)


# --- tables ---------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_format():
    assert tables.SQUASH.tolist() == SQUASH
    assert tables.STRETCH.tolist() == STRETCH
    assert zlib.crc32(tables.SQUASH.astype("<u2").tobytes()) == 0x255F7042
    assert zlib.crc32(tables.STRETCH.astype("<i2").tobytes()) == 0xFCCDDD54


def test_chances_are_rounded_to_the_nearest():
    with localcontext(prec=60):
        step = Decimal(2) ** (Decimal(1) / 128)
        for place, chance in enumerate(tables.SQUASH.tolist(), -2048):
            exact = 65536 / (1 + step**-place)
            assert abs(chance - exact) < Decimal("0.49999") or chance in (1, 65535)


# --- size -----------------------------------------------------------------------------------------

INDEPENDENT = {
    "sparse, 2 %": lambda random, n: (random.random(n) < 0.02) * random.choice([-1, 1], n),
    "sparse, 20 %": lambda random, n: (random.random(n) < 0.2) * random.geometric(0.5, n),
    "Gaussian": lambda random, n: np.rint(2.3 * random.standard_normal(n)),
    "Gaussian, 8 bits": lambda random, n: np.rint(40 * random.standard_normal(n)),
    "uniform": lambda random, n: random.integers(0, 32, n),
    "two humps": lambda random, n: np.rint(random.choice([7.5, 23.5], n) + 1.5 * random.standard_normal(n)),
}


@pytest.mark.skipif(not jit.available(), reason="plain Python takes minutes")
@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_symbols_cost_at_most_half_a_per_cent_more_than_their_entropy(name):
    symbols = unsigned(INDEPENDENT[name](RANDOM(0), 1_000_000).astype(np.int64))
    with jit.use(numba=True):
        assert len(entropy.encode(symbols, "context", (1000, 1000))) <= 1.005 * entropy.cost(symbols) / 8


def test_dead_rows_and_columns_cost_next_to_nothing(fastest):
    random = RANDOM(0)
    inner = random.integers(-3, 4, (20, 30))
    values = np.zeros((100, 120), int)
    values[np.ix_(np.arange(20) * 5, np.arange(30) * 4)] = inner
    alone = len(entropy.encode(unsigned(inner), "context", inner.shape))
    assert len(entropy.encode(unsigned(values), "context", values.shape)) < alone + 30


def test_rows_of_different_scales_are_learned(fastest):
    random = RANDOM(0)
    values = np.rint(np.exp(random.standard_normal((150, 1))) * 2 * random.standard_normal((150, 200)))
    symbols = unsigned(values)
    assert len(entropy.encode(symbols, "context", values.shape)) < 0.9 * entropy.cost(symbols) / 8


def test_dead_inputs_are_known_from_the_layer_before(fastest):
    random = RANDOM(0)
    live = (random.random(200) < 0.4).astype(np.uint8)
    values = random.integers(-1, 2, (10, 200)) * live
    alone = entropy.encode(unsigned(values), "context", values.shape)
    behind = entropy.encode(unsigned(values), "context", values.shape, Before(1, live))
    assert len(behind) < len(alone) - 15


def test_a_layer_before_that_says_nothing_is_not_heeded(fastest):
    random = RANDOM(0)
    values = random.integers(-1, 2, (30, 60)) * (random.random(60) < 0.5)
    before = Before(1, (random.random(60) < 0.5).astype(np.uint8))
    assert entropy.encode(unsigned(values), "context", values.shape, before) == entropy.encode(
        unsigned(values), "context", values.shape
    )


# --- damage ---------------------------------------------------------------------------------------


def verdict(stream, count, shape, numba):
    try:
        with jit.use(numba):
            return entropy.decode(stream, count, 0, shape).tolist()
    except FormatError as error:
        return str(error)


def test_both_backends_and_the_book_say_the_same_of_damage():
    random, shape = RANDOM(0), (6, 3, 2, 2)
    values = random.integers(-5, 6, shape) * (random.random(shape) < 0.4)
    stream, count = check(values), values.size
    for _ in range(250):
        damaged = bytearray(stream)
        for place in random.integers(0, len(stream), random.integers(1, 4)):
            damaged[place] ^= 1 << random.integers(8)
        damaged = bytes(damaged[: random.integers(1, len(stream) + 1)] if random.random() < 0.2 else damaged)
        if damaged[0] & 31 != 4:
            continue
        found = verdict(damaged, count, shape, numba=False)
        assert found == verdict(damaged, count, shape, numba=BACKENDS[-1])
        if isinstance(found, str):
            with pytest.raises(ValueError):  # noqa: PT011
                context(Source(damaged[1:]), damaged[0] >> 5, count, list(shape), [])
        else:
            assert list(context(Source(damaged[1:]), damaged[0] >> 5, count, list(shape), [])) == found


def test_damage_takes_no_more_than_symbols_declared(backend):
    random = RANDOM(3)
    for head in ("04 00 00 00", "04 00 04 01 08 00", "04 00 02 08 01 00"):
        for tail in (b"", b"\0", b"\xff" * 30, random.bytes(100)):
            verdict(bytes.fromhex(head) + tail, 64, (), backend)  # compiles what is not compiled yet
            tracemalloc.start()
            verdict(bytes.fromhex(head) + tail, 64, (), backend)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 20


def test_a_stream_has_one_spelling():
    values = RANDOM(0).integers(-2, 3, (5, 8))
    stream = check(values)
    for other in (stream[:-1], stream + b"\0", stream + b"\x80", stream[:-1] + bytes([stream[-1] ^ 1])):
        found = verdict(other, 40, (5, 8), numba=False)
        assert isinstance(found, str) or found != unsigned(values).tolist()
