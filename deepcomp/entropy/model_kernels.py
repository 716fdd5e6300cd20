"""Loops over alphabets and short streams, compiled by numba: code lengths, frequencies, their tables.

They have twins with the same result, as the loops over symbols in `kernels` have. All of it is little
work: what these save is the time numpy takes to be called, which networks of many small tensors feel.
They check bounds, and refuse what is wrong without saying why: their twins do that.
"""

from __future__ import annotations

import numba
import numpy as np

from deepcomp.entropy.kernels import finish_huffman, huffman_runs

__all__ = ["apportion", "decode_short", "huffman_table", "package_merge", "read_table", "write_table"]

LONGEST_TABLE = 2 + 256 * 32 // 8  # bytes: no rank of a valid table is above 31

_kernel = numba.njit(cache=True, nogil=True)


@_kernel
def package_merge(weights, longest, lengths):  # type: ignore[no-untyped-def]
    """The twin of `huffman._package_merge`, which says what goes in and out; adds to `lengths`."""
    number = len(weights)
    leaf = np.empty((longest, 2 * number), np.bool_)
    items, merged = np.empty((2, 2 * number), np.int64)
    count = 0
    for level in range(longest):
        pairs = count // 2
        count = number + pairs
        i = j = 0
        for k in range(count):
            pair = items[2 * j] + items[2 * j + 1] if j < pairs else 0
            leaf[level, k] = j == pairs or (i < number and weights[i] <= pair)
            if leaf[level, k]:
                merged[k] = weights[i]
                i += 1
            else:
                merged[k] = pair
                j += 1
        items, merged = merged, items
    taken = 2 * number - 2
    for level in range(longest - 1, -1, -1):
        own = 0
        for k in range(taken):
            own += leaf[level, k]
        for i in range(own):
            lengths[i] += 1
        taken = 2 * (taken - own)


@_kernel
def apportion(counts, missing, frequency):  # type: ignore[no-untyped-def]
    """The twin of the loops of `rans.normalise`: hand out `missing` slots, or take as many back."""
    for _ in range(missing):
        most, found = 0.0, 0
        for i in range(len(counts)):
            worth = counts[i] / (frequency[i] + 0.5)
            if worth > most:
                most, found = worth, i
        frequency[found] += 1
    for _ in range(-missing):
        least, found = np.inf, 0
        for i in range(len(counts)):
            worth = counts[i] / (frequency[i] - 0.5)
            if worth < least and frequency[i] > 1:
                least, found = worth, i
        frequency[found] -= 1


@_kernel
def write_table(numbers, out):  # type: ignore[no-untyped-def]
    """The twin of `tables.write_table`: write nibbles or ranks to `out`; return bytes * 2 + form."""
    most = 8 * ((len(numbers) + 1) // 2)
    at, last, hole = 0, np.int64(4), False
    for number in numbers:
        rank = np.int64(0 if hole else 3)
        if number:
            step = np.int64(number) - last
            distance = 2 * step - 1 if step > 0 else -2 * step
            rank = distance + (hole or distance >= 3)
            last = np.int64(number)
        hole = number == 0
        if at + rank >= most:  # nibbles are shorter
            out[: most // 8] = 0
            for i in range(len(numbers)):
                out[i // 2] |= numbers[i] << (4 * (i % 2))
            return most // 4
        for _ in range(rank):
            out[at >> 3] |= 1 << (at & 7)
            at += 1
        at += 1
    return 2 * ((at + 7) // 8) + 1


@_kernel
def _nibbles(data, numbers):  # type: ignore[no-untyped-def]
    """Read four bits for each number; return the bits, -1 at the end of the data."""
    bits = 4 * len(numbers)
    if bits > 8 * len(data):
        return -1
    for i in range(len(numbers)):
        numbers[i] = data[i // 2] >> (4 * (i % 2)) & 15
    return bits


@_kernel
def _unary(data, numbers):  # type: ignore[no-untyped-def]
    """Read ranks in unary and make numbers of them; return the bits, -1 where one is out of range."""
    at, last, hole = 0, 4, False
    for i in range(len(numbers)):
        rank = 0
        while at < 8 * len(data) and data[at >> 3] >> (at & 7) & 1:
            rank += 1
            at += 1
        at += 1
        after = hole
        hole = rank == (0 if after else 3)
        if hole:
            numbers[i] = 0
            continue
        distance = rank - 1 if after or rank > 3 else rank
        last += (distance + 1) // 2 if distance % 2 else -(distance // 2)
        if last < 1 or last > 15:
            return -1
        numbers[i] = last
    return at if at <= 8 * len(data) else -1


@_kernel
def read_table(data, most, table):  # type: ignore[no-untyped-def]
    """The twin of `tables.read_table`: fill a zeroed table; return the bytes read, -1 where anything is wrong."""
    data = data[:LONGEST_TABLE]  # so that a hostile rank has an end
    start = 1 if len(data) and data[0] < 128 else 2
    if len(data) <= start or (start == 2 and not 0 < data[1] < 4):
        return -1
    head = np.int64(data[0] & 127) + 128 * np.int64(data[1] * (start - 1))  # a varint below 512
    numbers = table[: head // 2 + 1]
    bits = _unary(data[start:], numbers) if head % 2 else _nibbles(data[start:], numbers)
    if bits < 0 or numbers.max() > most or numbers[-1] == 0:
        return -1
    end = start + (bits + 7) // 8
    return end if bits % 8 == 0 or data[end - 1] >> (bits % 8) == 0 else -1


@_kernel
def decode_short(data, out):  # type: ignore[no-untyped-def]
    """The twin of `huffman.decode` for one lane; returns whether all is well."""
    lengths = np.zeros(256, np.uint8)
    start = read_table(data, 12, lengths) + 1
    most = 12 * len(out) // 8 + 16
    if start <= 0 or start > len(data) or len(data) - start > most:
        return False
    k, filled = data[start - 1], np.int64(0)
    for length in lengths:
        filled += np.int64(4096) >> length if length else 0
    if filled != 4096 or not 10 <= k <= 16 or len(out) > 1 << k:
        return False
    single = np.empty(4096, np.uint16)
    huffman_table(lengths, single)
    lane = np.zeros(most + 8, np.uint8)
    lane[: len(data) - start] = data[start:]
    runs = huffman_runs(single, len(out))
    end = np.int64(finish_huffman(single, runs, lane, out, np.uint64(0), np.uint64(0), np.uint64(len(out) << 8)))
    return (end + 7) // 8 == len(data) - start and (end % 8 == 0 or data[-1] >> (end % 8) == 0)


@_kernel
def huffman_table(lengths, table):  # type: ignore[no-untyped-def]
    """symbol | length << 8 of the code that each index of 12 bits begins with, for complete code lengths."""
    code = 0
    for length in range(1, 13):
        code <<= 1
        for symbol in range(len(lengths)):
            if lengths[symbol] == length:
                first = 0
                for bit in range(length):
                    first |= (code >> (length - 1 - bit) & 1) << bit
                for index in range(first, len(table), 1 << length):
                    table[index] = symbol | length << 8
                code += 1
