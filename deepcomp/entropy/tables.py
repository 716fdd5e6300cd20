"""The code table of a stream: one small number, 0 to 15, for each symbol of its alphabet.

Huffman stores its code lengths this way, rANS the magnitudes of its frequencies; 0 stands for a
symbol that does not occur. Symbols are listed from 0 to the last that occurs.

Layout::

    varint      (alphabet size - 1) * 2 + form
    form 0      a nibble a symbol, low nibble first; an odd one out leaves a zero nibble
    form 1      a rank a symbol in unary (rank one-bits, then a zero-bit), bits from the lowest up,
                zero bits up to the end of the byte

A rank says how far a symbol's number lies from that of the last symbol that occurs (4 before the
first): with z counting the distances 0, +1, -1, +2, -2, …

* after a symbol that does not occur, rank 0 is another such symbol, and rank r > 0 means z = r - 1;
* else, rank 3 is a symbol that does not occur, r < 3 means z = r, and r > 3 means z = r - 1.

Alphabets sorted by frequency thus cost about one bit a symbol, smooth histograms two, holes one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcomp.entropy.bits import pack_fixed, read_fixed
from deepcomp.wire import Cursor, varint

__all__ = ["read_table", "write_table"]

_FIRST = 4
_ABSENT = 3  # the rank of an absent symbol behind one that occurs
_ALPHABET = 256


def write_table(numbers: NDArray[np.uint8]) -> bytes:
    """Write numbers up to 15, at least one of them not 0, in the shorter of the two forms."""
    numbers = numbers[: int(np.flatnonzero(numbers)[-1]) + 1]
    head = (len(numbers) - 1) * 2
    nibbles = pack_fixed(numbers, 4)
    ranks = _ranks(numbers.tolist())
    bits = np.ones(sum(ranks) + len(ranks), np.uint8)
    bits[np.cumsum(np.array(ranks) + 1) - 1] = 0
    unary = np.packbits(bits, bitorder="little").tobytes()
    return varint(head) + nibbles if len(nibbles) < len(unary) else varint(head + 1) + unary


def read_table(cursor: Cursor, most: int, fast: bool = False) -> NDArray[np.uint8]:
    """Read the numbers of an alphabet.

    Parameters
    ----------
    most : int
        The largest number allowed, at most 15.
    fast : bool
        Whether numba is to do it.

    Returns
    -------
    uint8, shape (256,), zero beyond the alphabet.

    Raises
    ------
    FormatError
        If the table is cut short, has a number above `most`, or ends in an absent symbol.
    """
    size, form = divmod(cursor.varint(2 * _ALPHABET - 1), 2)
    size += 1
    if form == 0:
        numbers = read_fixed(cursor, size, 4)
    else:
        found = _numbers_fast(cursor, size, most) if fast else None
        if found is None:  # the slow way says what is wrong, if anything is
            found = np.array(_numbers(cursor, _read_unary(cursor, size), most), np.uint8)
        numbers = found
    if numbers.max() > most:
        cursor.fail(f"a code table with {numbers.max()}, at most {most} expected,")
    if not numbers[-1]:
        cursor.fail("a code table that ends in a symbol without a code")
    table = np.zeros(_ALPHABET, np.uint8)
    table[:size] = numbers
    return table


def _ranks(numbers: list[int]) -> list[int]:
    ranks = []
    last, hole = _FIRST, False
    for number in numbers:
        if number == 0:
            ranks.append(0 if hole else _ABSENT)
        else:
            step = number - last
            distance = 2 * step - 1 if step > 0 else -2 * step
            ranks.append(distance + 1 if hole or distance >= _ABSENT else distance)
            last = number
        hole = number == 0
    return ranks


def _numbers(cursor: Cursor, ranks: list[int], most: int) -> list[int]:
    """`_ranks` backwards."""
    numbers = []
    last, hole = _FIRST, False
    for rank in ranks:
        hole, after_hole = rank == (0 if hole else _ABSENT), hole
        if hole:
            numbers.append(0)
            continue
        distance = rank - 1 if after_hole or rank > _ABSENT else rank
        last += (distance + 1) // 2 if distance % 2 else -distance // 2
        if not 1 <= last <= most:
            cursor.fail(f"a code table with {last}, 1 to {most} expected,")
        numbers.append(last)
    return numbers


def _read_unary(cursor: Cursor, count: int) -> list[int]:
    longest = 2 * 16 * count // 8 + 1  # no rank of a valid table is above 31
    data = np.frombuffer(cursor.data[cursor.position : cursor.position + longest], np.uint8)
    bits = np.unpackbits(data, bitorder="little")
    ends = np.flatnonzero(bits == 0)[:count]
    if len(ends) < count:
        cursor.fail("a code table cut short")
    used = int(ends[-1]) // 8 + 1
    if bits[ends[-1] : 8 * used].any():
        cursor.fail("pad bits that are not zero")
    cursor.take(used)
    ranks: list[int] = np.diff(ends, prepend=-1).tolist()
    return [rank - 1 for rank in ranks]


def _numbers_fast(cursor: Cursor, size: int, most: int) -> NDArray[np.uint8] | None:
    """`_numbers(_read_unary())` with numba; None, and nothing read, where anything is wrong."""
    from deepcomp.entropy import kernels

    numbers = np.empty(size, np.uint8)
    data = np.frombuffer(cursor.data[cursor.position :], np.uint8)
    bits = kernels.unary_numbers(kernels.frozen(data), most, numbers)
    if bits < 0 or (bits % 8 and data[bits // 8] >> (bits % 8)):
        return None
    cursor.take(-(-bits // 8))
    return numbers
