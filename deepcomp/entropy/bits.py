"""Bit fields in bytes: the first field in the lowest bits of the first byte, pad bits zero.

Two layouts serve everything in this package. *Fixed* fields all have one width, so that they need
no table and decode a column at a time. *Variable* fields each bring their own width, which the
reader knows from elsewhere (a token, a length table). In both, field follows field without a gap,
and the last byte is filled up with zero bits.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcomp.wire import Cursor

__all__ = [
    "Parts",
    "deposit",
    "fixed_bytes",
    "pack_fixed",
    "pack_variable",
    "read_fixed",
    "read_variable",
    "take_bits",
    "windows",
]

Parts: TypeAlias = list[bytes | memoryview]
Integers: TypeAlias = NDArray[np.unsignedinteger]

_WORD = np.uint64(32)
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WINDOW = 8  # bytes
_SHORT = 1 << 10  # fields that are handled bit by bit: few calls matter more than few operations
_BLOCK = 1 << 16  # fields worked on at a time: their temporaries stay in the cache


def fixed_bytes(count: int, width: int) -> int:
    """Bytes that `count` fields of `width` bits take."""
    return (count * width + 7) // 8


def pack_fixed(values: Integers, width: int) -> bytes:
    """Pack values, each below 2**width, into fields of `width` (0 to 32) bits."""
    kind = _kind(width)
    if width in (8, 16, 32):
        return values.astype(kind, copy=False).tobytes()
    if len(values) <= _SHORT:
        bits = values[:, None] >> np.arange(width) & 1
        return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    groups = -(-len(values) // 8)  # eight fields fill `width` whole bytes
    fields = np.zeros((groups, 8), kind)
    fields.reshape(-1)[: len(values)] = values
    packed = np.zeros((groups, width), np.uint8)
    for field, byte, shift in _overlaps(width):
        column = fields[:, field]
        part = column >> kind.type(shift) if shift >= 0 else column << kind.type(-shift)
        packed[:, byte] |= part.astype(np.uint8)
    return packed.tobytes()[: fixed_bytes(len(values), width)]


def read_fixed(cursor: Cursor, count: int, width: int) -> Integers:
    """Read `count` fields of `width` (0 to 32) bits.

    Returns
    -------
    uint8, uint16 or uint32, the narrowest that holds the width; width 8 is a view of the data.

    Raises
    ------
    FormatError
        If the data end early or a pad bit is set.
    """
    raw = _take(cursor, count * width)
    if width == 8:
        return raw
    kind = _kind(width)
    if width in (16, 32):
        return raw.view(kind).astype(kind.newbyteorder("="), copy=False)
    if count <= _SHORT:
        bits = np.unpackbits(raw, count=count * width, bitorder="little").reshape(count, width)
        return (bits @ (1 << np.arange(width))).astype(kind)
    groups = -(-count // 8)
    if len(raw) < groups * width:
        raw = np.concatenate([raw, np.zeros(groups * width - len(raw), np.uint8)])
    packed = raw.reshape(groups, width)
    fields = np.zeros((groups, 8), kind)
    mask = kind.type((1 << width) - 1)
    for field, byte, shift in _overlaps(width):
        column = packed[:, byte].astype(kind)
        fields[:, field] |= (column << kind.type(shift) if shift >= 0 else column >> kind.type(-shift)) & mask
    return fields.reshape(-1)[:count]


def take_bits(cursor: Cursor, bits: int) -> NDArray[np.uint8]:
    """Read a run of bits that ends in zero bits up to a whole byte; eight zero bytes are added to it."""
    return np.concatenate([_take(cursor, bits), np.zeros(_WINDOW, np.uint8)])


def _take(cursor: Cursor, bits: int) -> NDArray[np.uint8]:
    raw = np.frombuffer(cursor.take((bits + 7) // 8), np.uint8)
    if bits % 8 and raw[-1] >> (bits % 8):
        cursor.fail("pad bits that are not zero")
    return raw


def _kind(width: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u1" if width <= 8 else "<u2" if width <= 16 else "<u4")


def _overlaps(width: int) -> list[tuple[int, int, int]]:
    """(field, byte, position of the byte's lowest bit in the field) for eight fields in `width` bytes."""
    return [
        (field, byte, 8 * byte - field * width)
        for field in range(8)
        for byte in range(field * width // 8, -(-(field + 1) * width // 8))
    ]


def deposit(words: NDArray[np.uint32], values: NDArray[np.uint64], starts: NDArray[np.int64]) -> None:
    """Add values of at most 32 bits to little-endian `words`, at ascending, disjoint bit positions."""
    if not len(values):
        return
    word = starts >> 5
    shifted = values << (starts & 31).astype(np.uint64)
    first = np.concatenate([[0], np.flatnonzero(word[1:] != word[:-1]) + 1])
    sums = np.add.reduceat(shifted, first)
    touched = word[first]
    words[touched] += (sums & _LOW_WORD).astype(np.uint32)
    words[touched + 1] += (sums >> _WORD).astype(np.uint32)


def pack_variable(values: Integers, widths: NDArray[np.uint8]) -> bytes:
    """Pack each value into a field of its own width (0 to 32 bits)."""
    if len(values) <= _SHORT:
        bit = np.arange(widths.max(initial=0))
        bits = (values[:, None] >> bit & 1)[bit < widths[:, None]]
        return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    total = int(widths.sum(dtype=np.int64))
    words = np.zeros(total // 32 + 2, "<u4")
    start = 0
    for block in range(0, len(values), _BLOCK):
        ends = start + np.cumsum(widths[block : block + _BLOCK], dtype=np.int64)
        starts = ends - widths[block : block + _BLOCK]
        deposit(words, values[block : block + _BLOCK].astype(np.uint64), starts)
        start = int(ends[-1])
    return words.tobytes()[: (total + 7) // 8]


def read_variable(cursor: Cursor, widths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Read one field for each of `widths` (0 to 32 bits).

    Raises
    ------
    FormatError
        If the data end early or a pad bit is set.
    """
    window = windows(take_bits(cursor, int(widths.sum(dtype=np.int64))))
    values = np.empty(len(widths), np.uint32)
    start = 0
    for block in range(0, len(widths), _BLOCK):
        width = widths[block : block + _BLOCK]
        ends = start + np.cumsum(width, dtype=np.int64)
        starts = ends - width
        fields = window[starts >> 3] >> (starts & 7)
        values[block : block + _BLOCK] = fields & ((np.int64(1) << width.astype(np.int64)) - 1)
        start = int(ends[-1])
    return values


def windows(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The eight bytes from every byte on as one integer: a view, `len(data) - 7` long."""
    return np.ndarray((len(data) - _WINDOW + 1,), "<i8", data, 0, (1,))
