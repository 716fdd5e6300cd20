"""Loops that numba compiles; imported only where `deepcomp.jit.pays` says that loading numba pays.

Each has a numpy twin of the same name and result beside its caller.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["layer", "row_sums", "scatter", "sort"]

_DEPTH = 64  # open halves at most: one a level of the binary search tree over the bins


@numba.njit(cache=True, nogil=True)
def layer(
    score: NDArray[np.float64],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    floor: NDArray[np.int32],
    first: int,
    cuts: NDArray[np.int32],
) -> NDArray[np.float64]:
    """One more cluster: the twin of `clustering._layer`, which says what goes in and out."""
    size = len(score)
    after = np.full(size, -np.inf)
    low, high = np.empty(_DEPTH, np.int64), np.empty(_DEPTH, np.int64)
    least, most = np.empty(_DEPTH, np.int64), np.empty(_DEPTH, np.int64)
    low[0], high[0], least[0], most[0] = first, size - 1, 0, size - 2
    open_halves = 1
    while open_halves:
        open_halves -= 1
        a, b, c, d = low[open_halves], high[open_halves], least[open_halves], most[open_halves]
        middle = (a + b) >> 1
        stop = min(d, middle - 1)
        start = min(max(c, floor[middle]), stop)
        best, cut = -np.inf, start
        for i in range(start, stop + 1):
            part = sums[middle] - sums[i]
            value = score[i] + part * part / (counts[middle] - counts[i])
            if value > best:
                best, cut = value, i
        after[middle], cuts[middle] = best, cut
        if a < middle:
            low[open_halves], high[open_halves] = a, middle - 1
            least[open_halves], most[open_halves] = c, cut
            open_halves += 1
        if middle < b:
            low[open_halves], high[open_halves] = middle + 1, b
            least[open_halves], most[open_halves] = cut, d
            open_halves += 1
    return after


@numba.njit(cache=True, nogil=True)
def scatter(gaps: NDArray[Any], index: NDArray[Any], values: NDArray[Any], words: NDArray[Any]) -> bool:
    """Write `values[index[i]]` behind `gaps[i]` more zeros into zeroed `words`; False if any lies outside."""
    place, size, many = np.uint64(0), np.uint64(len(words)), np.uint64(len(values))
    for i in range(len(gaps)):
        place += np.uint64(gaps[i])
        which = np.uint64(index[i])
        if place >= size or which >= many:
            return False
        words[place] = values[which]
        place += np.uint64(1)
    return True


@numba.njit(cache=True, nogil=True)
def row_sums(rows: NDArray[np.uint8], sums: NDArray[np.int64]) -> None:
    """Add up each row: `rows.sum(1)`, four times as fast."""
    for i in range(len(rows)):
        total = 0
        for j in range(rows.shape[1]):
            total += rows[i, j]
        sums[i] = total


@numba.njit(cache=True, nogil=True)
def sort(words: NDArray[np.uint32], spare: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Sort float32 numbers, given by their words, as numbers; the result lies in `spare`, `words` is used up.

    A radix sort, eleven bits at a time: numpy's own takes 40 ns a number on some processors.
    """
    counts = np.zeros((3, 2048), np.int64)
    for i in range(len(words)):
        word = words[i]
        word ^= np.uint32(0xFFFFFFFF) if word >> np.uint32(31) else np.uint32(0x80000000)  # ascends as the number does
        words[i] = word
        counts[0, word & np.uint32(0x7FF)] += 1
        counts[1, word >> np.uint32(11) & np.uint32(0x7FF)] += 1
        counts[2, word >> np.uint32(22)] += 1
    for digit in range(3):
        place = 0
        for value in range(2048):
            count = counts[digit, value]
            counts[digit, value] = place
            place += count
        shift = np.uint32(11 * digit)
        for i in range(len(words)):
            value = words[i] >> shift & np.uint32(0x7FF)
            spare[counts[digit, value]] = words[i]
            counts[digit, value] += 1
        words, spare = spare, words
    for i in range(len(words)):
        word = words[i]
        words[i] = word ^ (np.uint32(0x80000000) if word >> np.uint32(31) else np.uint32(0xFFFFFFFF))
    return words
