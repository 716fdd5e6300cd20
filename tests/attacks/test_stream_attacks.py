"""Hostile streams of symbols in whole files: refused with the byte of the file they go wrong at."""

from __future__ import annotations

import pytest
from build import CODEBOOK, Array, Part, Table, constant, file, nibbles, tensor, varint

TWO = nibbles(1, 1)  # two symbols with codes of one bit
LANES = b"\x0e"  # of 2^14 symbols

STREAMS: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "1 bytes expected, 0 left"),
    "unknown method": (b"\x05", "method 5"),
    "reserved bits": (b"\xe0\x00", "method 224"),
    "constant beyond 32 bits": (constant(1 << 32), "4294967296 found, at most 4294967295"),
    "constant with more behind": (constant(0) + b"\0", "1 bytes left over"),
    "fields of 0 bits": (b"\x01\x00", "fields of 0 bits"),
    "fields of 33 bits": (b"\x01\x21" + bytes(99), "fields of 33 bits"),
    "too few fields": (b"\x01\x08\x00", "3 bytes expected, 1 left"),
    "pad bits": (b"\x01\x01\xff", "pad bits"),
    "over-subscribed code": (b"\x02" + nibbles(1, 1, 1) + LANES + b"\0", "a code that fills 6144 of 4096"),
    "incomplete code": (b"\x02" + nibbles(2, 2) + LANES + b"\0", "a code that fills 2048 of 4096"),
    "code of one symbol": (b"\x02" + nibbles(1) + LANES + b"\0", "a code that fills 2048 of 4096"),
    "code of 15 bits": (b"\x02" + nibbles(1, 15) + LANES + b"\0", "a code table with 15, at most 12"),
    "code of 257 symbols": (b"\x02" + nibbles(*[8] * 257) + LANES, "at most 511"),
    "code without an end": (b"\x02\xff\x03" + b"\xff" * 200, "a code table cut short"),
    "code that ends in no symbol": (b"\x02" + nibbles(1, 1, 0) + LANES, "ends in a symbol without a code"),
    "lanes of 2^9": (b"\x02" + TWO + b"\x09\0", r"lanes of 2\*\*9 symbols"),
    "lanes of 2^255": (b"\x02" + TWO + b"\xff\0", r"lanes of 2\*\*255 symbols"),
    "Huffman without codes": (b"\x02" + TWO + LANES, "a lane that is cut short"),
    "Huffman with a byte too many": (b"\x02" + TWO + LANES + b"\0\0", "a lane that is cut short"),
    "precision of 9": (b"\x03\x09" + TWO + b"\xff" + LANES, "a precision of 9 bits"),
    "frequencies below 2^8": (
        b"\x03\x08" + nibbles(2, 2) + b"\0\0" + LANES + bytes(4),
        "frequencies that add up to 128",
    ),
    "frequencies above 2^8": (b"\x03\x08" + TWO + b"\xff\0" + LANES + bytes(4), "frequencies that add up to"),
    "rANS without a state": (b"\x03\x08" + TWO + b"\0\0" + LANES, "a lane without a state"),
    "rANS with half a word": (b"\x03\x08" + TWO + b"\0\0" + LANES + bytes(5), "a multiple of 2 expected"),
    "rANS with state 0": (b"\x03\x08" + TWO + b"\0\0" + LANES + bytes(4), "a lane that is cut short"),
    "token beyond 227": (b"\x10\x00" + varint(228), "tokens up to 228, 132 to 227 expected"),
    "wide without wide tokens": (b"\x11\x00\x08\1\2\3", "tokens up to 3, 132 to 227 expected"),
    "extra bits longer than the stream": (b"\x12" + varint(1 << 63), "at most"),
    "too few extra bits": (b"\x11\x02\x08\x84\x84\x84\0\0", "3 bytes expected, 2 left"),
    "too many extra bits": (b"\x11\x04\x08\x84\x84\x84" + bytes(4), "1 bytes left over"),
}


@pytest.mark.parametrize(("stream", "found"), STREAMS.values(), ids=STREAMS)
def test_stream(stream, found, refused_by_both):
    record = tensor("w", (3,), Part(CODEBOOK, (), (Array(stream),), (Table(2, bytes(4)),)))
    refused_by_both(file(record), rf"tensor 'w' .* symbol stream: .*{found}.* at byte \d+$")


# 100,000 symbols in lanes of 2^10: the length of the shortest, the width of the differences, and these.
MANY = 100_000
LENGTHS = {
    "longer than the data": varint(1000) + b"\x00",
    "of 2^63": varint(1 << 63) + b"\x00",
    "beyond 64 bits": varint(1 << 70) + b"\x00",
    "that add up beyond the data": varint(2) + b"\x01" + b"\xff" * 12 + b"\x01",
    "with differences of 32 bits": varint(0) + b"\x20" + b"\xff" * 388,
    "with differences of 255 bits": varint(0) + b"\xff" + b"\xff" * 9999,
    "with differences beyond the data": varint(0) + b"\x20",
}


@pytest.mark.parametrize("coder", [b"\x02" + TWO, b"\x03\x08" + TWO + b"\0\0"], ids=["Huffman", "rANS"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lanes(lengths, coder, refused_by_both):
    record = tensor(
        "w", (MANY,), Part(CODEBOOK, (), (Array(coder + b"\x0a" + lengths + bytes(200)),), (Table(2, bytes(8)),))
    )
    refused_by_both(file(record), r"tensor 'w' .* symbol stream: .* at byte \d+$")
