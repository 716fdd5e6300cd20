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

from deepcomp.entropy.bits import fixed_bytes, pack_fixed, read_fixed
from deepcomp.wire import Cursor, varint

__all__ = ["least", "read_table", "write_table"]

_FIRST = 4
_ABSENT = 3  # the rank of an absent symbol behind one that occurs
_ALPHABET = 256


def write_table(numbers: NDArray[np.uint8], fast: bool = False) -> bytes:
    """Write numbers up to 15, at least one of them not 0, in the shorter of the two forms; with numba if `fast`."""
    numbers = numbers[: int(numbers.nonzero()[0][-1]) + 1]
    head = (len(numbers) - 1) * 2
    if fast:
        from deepcomp.entropy import model_kernels

        out = np.zeros(fixed_bytes(len(numbers), 4), np.uint8)
        size, form = divmod(int(model_kernels.write_table(numbers, out)), 2)
        return varint(head + form) + out[:size].tobytes()
    ends = (_ranks(numbers) + 1).cumsum()
    size = int(ends[-1])
    if fixed_bytes(len(numbers), 4) < fixed_bytes(size, 1):
        return varint(head) + pack_fixed(numbers, 4)
    bits = np.ones(size, np.uint8)
    bits[ends - 1] = 0
    return varint(head + 1) + np.packbits(bits, bitorder="little").tobytes()


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
    if fast:
        from deepcomp.entropy import model_kernels
        from deepcomp.entropy.kernels import frozen

        table = np.zeros(_ALPHABET, np.uint8)
        used = model_kernels.read_table(frozen(np.frombuffer(cursor.data[cursor.position :], np.uint8)), most, table)
        if used > 0:
            cursor.take(used)
            return table  # else the slow way says what is wrong
    size, form = divmod(cursor.varint(2 * _ALPHABET - 1), 2)
    size += 1
    if form == 0:
        numbers = read_fixed(cursor, size, 4)
    else:
        numbers = np.array(_numbers(cursor, _read_unary(cursor, size), most), np.uint8)
    if numbers.max() > most:
        cursor.fail(f"a code table with {numbers.max()}, at most {most} expected,")
    if not numbers[-1]:
        cursor.fail("a code table that ends in a symbol without a code")
    table = np.zeros(_ALPHABET, np.uint8)
    table[:size] = numbers
    return table


def least(histogram: NDArray[np.int64]) -> float:
    """Bytes that no table for symbols that occur so often is smaller than."""
    return 1 + (int(histogram.nonzero()[0][-1]) + 1) / 8


def _ranks(numbers: NDArray[np.uint8]) -> NDArray[np.int64]:
    present = numbers > 0
    hole = np.zeros(len(numbers), np.bool_)  # whether the symbol before does not occur
    hole[1:] = ~present[:-1]
    occurring = numbers[present].astype(np.int64)
    step = occurring.copy()
    step[0] -= _FIRST
    step[1:] -= occurring[:-1]
    distance = 2 * np.abs(step) - (step > 0)
    ranks = np.where(hole, 0, _ABSENT)
    ranks[present] = distance + (hole[present] | (distance >= _ABSENT))
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
