"""Lanes: a stream cut in pieces that decode independently of each other, and thus side by side.

An array of n symbols is cut in lanes of 2**k symbols, the last one shorter. numpy decodes all lanes
in lock-step, a symbol of each at a time; numba interleaves four, to keep the processor busy. A lane
costs one to two bytes, with rANS four, so short arrays are one lane.

Layout, in front of the lanes themselves, which follow each other without a gap::

    u8          k, 10 to 16
    varint      the length of the shortest of all lanes but the last
    u8          width, 0 to 32
    fixed       for each lane but the last, by how much it is longer, `width` bits

A single lane stores k alone. Lengths are in units of the coder: bytes for Huffman, 16-bit words for
rANS. The last lane extends to the end of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcomp.entropy.bits import pack_fixed, read_fixed
from deepcomp.wire import Cursor, varint

__all__ = ["ALONE", "SLAB", "Lanes", "choose", "overhead", "read", "runs", "steps", "write"]

_SMALLEST, _LARGEST = 10, 16
_ALONE = 14
ALONE = 1 << _ALONE  # symbols, up to which they are one lane
_BEYOND = 16  # units a decoder may look beyond a lane's symbols
SLAB = 64  # steps whose symbols are gathered before they are put in place


@dataclass(frozen=True)
class Lanes:
    """Where the lanes of `count` symbols lie.

    size : int
        Symbols a lane, but for the last.
    starts, ends : int64 arrays
        The units at which each lane starts and ends in the payload.
    """

    count: int
    size: int
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def last(self) -> int:
        """Symbols of the last lane."""
        return self.count - (len(self.starts) - 1) * self.size


def choose(count: int, bits: float, least: int) -> int:
    """The k for `count` symbols of `bits` in all: lanes of `least` bytes or more, and about √n of them."""
    if count <= ALONE:
        return _ALONE
    k = _SMALLEST
    while k < _LARGEST and (4 * count > 1 << 2 * k or 8 * least * count > bits * (1 << k)):
        k += 1
    return k


def overhead(count: int, k: int, each: float) -> float:
    """About how many bytes lanes add to the payload, with `each` bytes lost in every one of them."""
    lanes = -(-count >> k)
    return 1 + lanes * each + (lanes > 1) * (2 + lanes)


def write(k: int, lengths: NDArray[np.int64]) -> bytes:
    """Write the lengths of the lanes, in units."""
    if len(lengths) == 1:
        return bytes([k])
    shortest = int(lengths[:-1].min())
    longer = (lengths[:-1] - shortest).astype(np.uint32)
    width = int(longer.max()).bit_length()
    return bytes([k]) + varint(shortest) + bytes([width]) + pack_fixed(longer, width)


def read(cursor: Cursor, count: int, unit: int) -> Lanes:
    """Read what `write` wrote; the cursor then stands at the payload, which extends to its end.

    Parameters
    ----------
    count : int
        Symbols in all lanes together.
    unit : int
        Bytes in which lengths are counted.

    Raises
    ------
    FormatError
        If a field is out of range or the lanes are longer than the data.
    """
    k = cursor.byte()
    if not _SMALLEST <= k <= _LARGEST:
        cursor.fail(f"lanes of 2**{k} symbols, 2**{_SMALLEST} to 2**{_LARGEST} expected,")
    others = (count - 1) >> k
    bounds = np.zeros(others + 2, np.int64)
    if others:
        shortest = cursor.varint(cursor.left)
        width = cursor.byte()
        if width > 32:
            cursor.fail(f"fields of {width} bits, at most 32 expected,")
        longer = read_fixed(cursor, others, width)
        np.cumsum(longer + np.int64(shortest), out=bounds[1:-1])
    bounds[-1], rest = divmod(cursor.left, unit)
    if rest:
        cursor.fail(f"{cursor.left} bytes of payload, a multiple of {unit} expected,")
    if bounds[-2] > bounds[-1]:
        cursor.fail(f"lanes of {bounds[-2] * unit} bytes, {cursor.left} left,")
    return Lanes(count, 1 << k, bounds[:-1], bounds[1:])


def steps(layout: Lanes) -> Iterator[tuple[int, int, int]]:
    """(active lanes, first, end) of short runs of lock-steps: the last lane drops out where it ends."""
    number = len(layout.starts)
    for active, begin, end in ((number, 0, layout.last), (number - 1, layout.last, layout.size)):
        if active:
            for first in range(begin, end, SLAB):
                yield active, first, min(first + SLAB, end)


def runs(
    layout: Lanes, units: NDArray[np.unsignedinteger], each: float
) -> Iterator[tuple[slice, NDArray[np.unsignedinteger], int]]:
    """Runs of lanes, each with units in which it can be decoded without a check at every symbol.

    A decoder that reads up to `each` units a symbol from the start of a lane, and some more, whatever
    they are, must not overrun the payload: the lanes near its end are decoded from a padded copy.

    Yields
    ------
    slice of the lanes, the units, and where these start in the payload
    """
    number = len(layout.starts)
    most = int(each * min(layout.size, layout.count)) + _BEYOND
    safe = int(layout.starts.searchsorted(len(units) - most, "right"))
    if safe:
        yield slice(0, safe), units, 0
    if safe < number:
        origin = int(layout.starts[safe])
        padded = np.zeros(len(units) - origin + most, units.dtype)
        padded[: len(units) - origin] = units[origin:]
        yield slice(safe, number), padded, origin
