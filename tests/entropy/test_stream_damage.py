"""Damaged and hostile streams: a FormatError, or as many symbols as asked for; never a crash."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from deepcomp import entropy, jit
from deepcomp.errors import FormatError


def small():
    """Small streams of every kind, and how many symbols they hold."""
    random = np.random.default_rng(0)
    skewed = (random.geometric(0.3, 60) - 1).astype(np.uint8)
    wide = np.append(random.geometric(0.003, 40), [2**32 - 1]).astype(np.uint32)
    for name, symbols, coder in [
        ("constant", np.full(9, 300, np.uint16), "auto"),
        ("none", np.zeros(0, np.uint8), "auto"),
        ("fixed", skewed, "fixed"),
        ("huffman", skewed, "huffman"),
        ("rans", skewed, "rans"),
        ("wide huffman", wide, "huffman"),
        ("wide rans", wide, "rans"),
        ("nibbles", random.permutation(np.repeat(np.arange(20), 1 << np.arange(20) % 7)).astype(np.uint8), "huffman"),
    ]:
        yield pytest.param(entropy.encode(symbols, coder), len(symbols), id=name)


def large():
    """Streams of many lanes, for each way in which numpy decodes them."""
    random = np.random.default_rng(0)
    for count, alphabet in [(18_000, 256), (40_000, 256), (18_000, 3)]:
        symbols = random.integers(0, alphabet, count).astype(np.uint8)
        for coder in ("huffman", "rans"):
            yield pytest.param(entropy.encode(symbols, coder), count, id=f"{coder} {count} {alphabet}")


SMALL, LARGE = list(small()), list(large())


def survive(stream, count):
    """Whether the stream decodes; if so, to `count` symbols."""
    try:
        symbols = entropy.decode(stream, count)
    except FormatError:
        return False
    assert symbols.shape == (count,)
    return True


@pytest.mark.parametrize(("stream", "count"), SMALL + LARGE)
def test_undamaged_streams_decode(stream, count, backend):
    assert survive(stream, count)


@pytest.mark.parametrize(("stream", "count"), SMALL)
def test_truncation_at_every_byte_is_found(stream, count, backend):
    for size in range(len(stream)):
        assert not survive(stream[:size], count)


@pytest.mark.parametrize(("stream", "count"), SMALL)
def test_left_over_bytes_are_found(stream, count, backend):
    for more in (b"\x00", b"\xff", bytes(40)):
        assert not survive(stream + more, count)


@pytest.mark.parametrize(("stream", "count"), SMALL)
def test_every_flipped_bit_is_survived(stream, count, backend):
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        survive(bytes(damaged), count)


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@pytest.mark.parametrize(("stream", "count"), SMALL)
def test_both_backends_say_the_same_of_damage(stream, count):
    random = np.random.default_rng(0)

    def verdict(stream, numba):
        try:
            with jit.use(numba):
                return entropy.decode(stream, count).tolist()
        except FormatError as error:
            return str(error)

    for _ in range(600):
        damaged = bytearray(stream)
        for place in random.integers(0, len(stream), random.integers(1, 4)):
            damaged[place] = (
                random.integers(0, 256) if random.random() < 0.5 else damaged[place] ^ 1 << random.integers(8)
            )
        assert verdict(bytes(damaged), False) == verdict(bytes(damaged), True)


@pytest.mark.parametrize(("stream", "count"), SMALL)
def test_wrong_counts_are_survived(stream, count, backend):
    for wrong in (0, 1, count - 1, count + 1, 2 * count + 1, 100_000):
        if 0 <= wrong != count:
            survive(stream, wrong)


@pytest.mark.parametrize(("stream", "count"), LARGE)
def test_damaged_lanes_are_survived(stream, count, backend):
    random = np.random.default_rng(1)
    for position in [*range(40), *random.integers(0, len(stream), 40), len(stream) - 1]:
        damaged = bytearray(stream)
        damaged[position] ^= 1 << random.integers(8)
        survive(bytes(damaged), count)
    for size in (*range(0, 60, 7), len(stream) // 2, len(stream) - 1):
        assert not survive(stream[:size], count)
    survive(stream, count - 1)  # one more or less may be taken for pad bits
    survive(stream, count + 1)
    for wrong in (count - 1024, count + 1024, 10 * count):
        assert not survive(stream, wrong)


def test_noise_behind_a_valid_head_is_survived(backend):
    random = np.random.default_rng(2)
    for method in (0, 1, 2, 3, 0x10, 0x11, 0x12, 0x13):
        for size in (1, 3, 10, 100, 1000):
            for count in (1, 7, 1000, 70_000):
                survive(bytes([method]) + random.bytes(size), count)


# Two symbols with codes of one bit each: alphabet of 2, nibbles; one lane; then what is wrong with it.
DAMAGED = {
    "unknown method": "05",
    "reserved bit": "40 00",
    "constant folded": "20 00 05",
    "fixed folded": "21 00 08 01 02 03",
    "context folded": "24 00 00 00 00 00",
    "folded, centre above 32 bits": "22 80 80 80 80 10 02 11 0e 00",
    "folded, below 0": "22 00 02 11 0e 07",
    "folded, above 32 bits": "22 ff ff ff ff 0f 04 01 01 0e 07",
    "no symbols, not constant": "01 08",
    "constant above 32 bits": "00 80 80 80 80 10",
    "constant wide": "10 00 05",
    "constant token out of range": "10 00 e4 01",
    "width 0": "01 00 01",
    "width 33": "01 21 00 00 00 00 00 00 00 00",
    "fixed, pad bits set": "01 03 ff",
    "over-subscribed code": "02 04 11 01 0e 00",
    "incomplete code": "02 02 22 0e 00",
    "code of one symbol": "02 00 01 0e 00",
    "code length 13": "02 02 1d 0e 00",
    "alphabet above 256": "02 81 04",
    "alphabet ends in a hole": "02 04 11 00 0e 00",
    "unary table never ends": "02 03 ff ff ff ff ff ff ff ff ff ff ff ff",
    "lanes of 2**9": "02 02 11 09 00",
    "lanes of 2**17": "02 02 11 11 00",
    "huffman, pad bits set": "02 02 11 0e 08",
    "huffman, a byte too many": "02 02 11 0e 00 00",
    "huffman, no payload": "02 02 11 0e",
    "precision 9": "03 09 02 11 ff 00 0e 00 00 01 00",
    "frequencies above 2**8": "03 08 02 11 01 00 0e 00 00 01 00",
    "rans, no state": "03 08 02 11 00 00 0e",
    "rans, half a word": "03 08 02 11 00 00 0e 00 00 01 00 00",
    "rans, state 0": "03 08 02 11 00 00 0e 00 00 00 00",
    "raw bits longer than the data": "12 7f 02 11 0e 00",
    "context, wide": "14 00 00 00 00",
    "context, zero of 2**31": "04 80 80 80 80 08 00 00 00",
    "context, rows that do not divide": "04 00 02 01 01 00 80",
    "context, no planes": "04 00 01 00 01 00 80",
    "context, lines beyond a plane": "04 00 01 01 04 00 80",
    "context, lines of 0": "04 00 01 01 00 00 80",
    "context, inputs from nowhere": "04 00 00 01 80",
    "context, a symbol below 0": "04 00 00 00 40",
    "context, no code": "04 00 00 00",
    "context, a code too long": "04 00 00 00 80 01 02 03 04 05 06 07 08 09",
    "wide, no large value": "11 00 08 01 02 03",
    "wide, raw bits left over": "11 02 08 84 84 84 00 00 00",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_malformed_streams_are_refused(name, backend):
    count = 0 if name.startswith("no symbols") else 3
    with pytest.raises(FormatError, match=r"^symbol stream: .* at byte \d+$"):
        entropy.decode(bytes.fromhex(DAMAGED[name]), count)


def test_the_same_streams_without_the_damage_decode(backend):
    assert entropy.decode(bytes.fromhex("02 02 11 0e 05"), 3).tolist() == [1, 0, 1]
    assert entropy.decode(bytes.fromhex("11 03 08 84 84 84 00 00 00"), 3).tolist() == [256, 256, 256]
    assert entropy.decode(bytes.fromhex("01 03 ff 01"), 3).tolist() == [7, 7, 7]
    assert entropy.decode(bytes.fromhex("22 05 02 11 0e 05"), 3).tolist() == [4, 5, 4]
    assert entropy.decode(bytes.fromhex("22 fe ff ff ff 0f 04 01 01 0e 05"), 3).tolist() == [
        2**32 - 1,
        2**32 - 2,
        2**32 - 1,
    ]


def test_hostile_lane_lengths_are_refused(backend):
    # two lanes of 2**10 symbols in all: the first longer than the data, by its base or by its difference
    for lengths in ("ff 01 00", "00 20 ff ff ff ff", "00 21 00 00 00 00", "00 20 ff"):
        assert not survive(bytes.fromhex("02 02 11 0a" + lengths + "00" * 100), 2000)


@pytest.mark.parametrize("tail", ["", "00", "ff" * 30])
def test_memory_is_bounded_by_count_and_data(tail, backend):
    heads = ["01 20", "02 02 11 10", "02 02 11 0a 00 20", "03 08 02 11 00 00 10", "12 00 02 11 10", "11 00 08"]
    for head in heads:
        survive(bytes.fromhex(head + tail), 3000)  # compiles what is not compiled yet
        tracemalloc.start()
        survive(bytes.fromhex(head + tail), 3000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
