"""Canonical Huffman codes of at most 12 bits: optimal lengths, code table, encoder, decoders.

Layout: the table of code lengths (`tables`, 0 to 12), the lanes' lengths (`lanes`, in bytes), and the
lanes: the codes of their symbols from the lowest bit of the first byte up, filled up with zero bits
to a whole byte.

Codes are canonical. Symbols are ordered by (length, symbol); the first code is all zeros, each next
one is the last plus one, shifted left where the length grows. A code is written with its first
(highest) bit first, so that a decoder sees it, reversed, in the low bits of what is left. The code is
complete: the sum of 2**-length is exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcomp.entropy import lanes
from deepcomp.entropy.bits import Parts, deposit, windows
from deepcomp.entropy.tables import read_table, write_table
from deepcomp.wire import Cursor

__all__ = ["Code", "canonical_codes", "code", "decode", "encode", "estimate"]

LONGEST = 12
_FEW = 16  # lanes, below which a loop in Python is faster than numpy in lock-step
_LEAST = 512  # bytes a lane, of which one and a half are lost
_LOST = 0.44  # bytes, on average, to fill up a lane's last byte
_ROOM = 16  # bytes a decoder may look beyond the codes
_BLOCK = 1 << 17  # symbols encoded at a time
_STRIDE = 1 << 10  # bytes looked at together
_SPAN = np.append(0, 1 << np.arange(LONGEST - 1, -1, -1))  # of 2**12 table entries, those of a code of each length
# of every 12 bits, the same back to front
_REVERSED = (np.arange(1 << LONGEST)[:, None] >> np.arange(LONGEST)[::-1] & 1) @ (1 << np.arange(LONGEST))


@dataclass(frozen=True)
class Code:
    """A canonical code, and what it costs.

    lengths : uint8, shape (256,)
        Of each symbol's code; 0 for symbols that do not occur.
    table : bytes
        The lengths as they are stored.
    bits : int
        What all symbols take, coded so.
    """

    lengths: NDArray[np.uint8]
    table: bytes
    bits: int


def code(histogram: NDArray[np.int64], fast: bool) -> Code:
    """An optimal prefix code of at most 12 bits.

    More frequent symbols never have longer codes; of equally frequent ones, the lower symbol has
    the shorter code.

    Parameters
    ----------
    histogram : int64, shape (256,)
        How often each symbol occurs; at least two do.
    fast : bool
        Whether numba does the work; the code is the same.
    """
    symbols = np.flatnonzero(histogram)
    order = symbols[np.argsort(-histogram[symbols], kind="stable")]
    longest = min(LONGEST, len(order) - 1)  # no optimal code of n symbols is longer than n - 1
    lengths = np.zeros(len(histogram), np.uint8)
    lengths[order] = _package_merge(histogram[order][::-1], longest, fast)[::-1]
    return Code(lengths, write_table(lengths, fast), int(histogram @ lengths))


def _package_merge(weights: NDArray[np.int64], longest: int, fast: bool) -> NDArray[np.int64]:
    """Lengths of at most `longest`, for ascending weights (Larmore & Hirschberg 1990).

    Level by level, the leaves are merged with pairs of the level before. The cheapest 2n - 2 items
    of the last level are the solution: a leaf in it adds one bit to its symbol's code, a pair stands
    for two items of the level before, and so on down.
    """
    number = len(weights)
    lengths = np.zeros(number, np.int64)
    if fast:
        from deepcomp.entropy import model_kernels

        model_kernels.package_merge(weights, longest, lengths)
        return lengths
    leaves: list[NDArray[np.bool_]] = []
    items = weights
    for _ in range(longest):
        pairs = items[: len(items) // 2 * 2].reshape(-1, 2).sum(axis=1) if leaves else items[:0]
        both = np.concatenate([weights, pairs])
        order = np.argsort(both, kind="stable")
        leaves.append(order < number)
        items = both[order]
    taken = 2 * number - 2
    for leaf in reversed(leaves):
        own = int(np.count_nonzero(leaf[:taken]))
        lengths[:own] += 1
        taken = 2 * (taken - own)
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The code of each symbol, its first bit lowest, for complete code lengths."""
    codes = np.zeros(len(lengths), np.uint32)
    symbols = np.flatnonzero(lengths)
    order = symbols[np.argsort(lengths[symbols], kind="stable")]
    span = _SPAN[lengths[order]]
    codes[order] = _REVERSED[np.cumsum(span) - span]
    return codes


def _lookup(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """symbol | length << 8 of the code that each index of as many bits as the longest code begins with."""
    longest = int(lengths.max())
    codes = canonical_codes(lengths)
    table = np.zeros(1 << longest, np.uint16)
    for symbol, (code, length) in enumerate(zip(codes.tolist(), lengths.tolist(), strict=True)):
        if length:
            table[code :: 1 << length] = symbol | length << 8
    return table


def _lookup_fast(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """`_lookup`, but always for indices of 12 bits."""
    from deepcomp.entropy import model_kernels

    table = np.empty(1 << LONGEST, np.uint16)
    model_kernels.huffman_table(lengths, table)
    return table


def estimate(count: int, code: Code) -> float:
    """Bytes that `encode` takes for `count` symbols, right to a byte or so in a thousand."""
    k = lanes.choose(count, code.bits, _LEAST)
    return len(code.table) + code.bits / 8 + lanes.overhead(count, k, _LOST)


def encode(symbols: NDArray[np.uint8], code: Code, fast: bool) -> Parts:
    """Write symbols, at least two of which differ; with numba if `fast`, the bytes are the same."""
    k = lanes.choose(len(symbols), code.bits, _LEAST)
    codes = canonical_codes(code.lengths)
    sizes = np.zeros(-(-len(symbols) >> k), np.int64)
    if fast:
        from deepcomp.entropy import kernels

        out = np.empty(code.bits // 8 + len(sizes) + _ROOM, np.uint8)
        entries = codes | code.lengths.astype(np.uint32) << 16
        used = kernels.encode_huffman(kernels.frozen(symbols), 1 << k, entries, out, sizes)
        payload: bytes | memoryview = out[:used].data
    else:
        payload = _encode_lanes(_groups(symbols, 1 << k), codes, code.lengths, code.bits, sizes)
    return [code.table, lanes.write(k, sizes), payload]


def _groups(symbols: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    """Some lanes at a time, one a row, the last one by itself."""
    whole = len(symbols) // size
    step = max(1, _BLOCK // size)
    for lane in range(0, whole, step):
        yield symbols[lane * size : min(lane + step, whole) * size].reshape(-1, size)
    if len(symbols) % size:
        yield symbols[whole * size :].reshape(1, -1)


def _encode_lanes(
    groups: Iterator[NDArray[np.uint8]],
    codes: NDArray[np.uint32],
    lengths: NDArray[np.uint8],
    bits: int,
    sizes: NDArray[np.int64],
) -> bytes:
    """Put every code at the running sum of the lengths before it."""
    words = np.zeros((bits + 8 * len(sizes)) // 32 + 2, "<u4")
    wide_codes = codes.astype(np.uint64)
    start = lane = 0
    for group in groups:
        width = lengths[group]
        ends = np.cumsum(width, axis=1, dtype=np.int64)
        size = (ends[:, -1] + 7) >> 3
        starts = ends - width + (8 * (start + np.cumsum(size) - size))[:, None]
        deposit(words, wide_codes[group].reshape(-1), starts.reshape(-1))
        sizes[lane : lane + len(group)] = size
        lane += len(group)
        start += int(size.sum())
    return words.tobytes()[:start]


def decode(cursor: Cursor, count: int, fast: bool) -> NDArray[np.uint8]:
    """Read `count` symbols, which take all that is left of the data; with numba if `fast`.

    Raises
    ------
    FormatError
        If the code is not complete, a lane does not end where the next one begins, or a pad bit is set.
    """
    if fast and count <= lanes.ALONE:
        from deepcomp.entropy import model_kernels
        from deepcomp.entropy.kernels import frozen

        out = np.empty(count, np.uint8)
        if model_kernels.decode_short(frozen(np.frombuffer(cursor.data[cursor.position :], np.uint8)), out):
            cursor.take(cursor.left)
            return out  # else the long way says what is wrong
    lengths = read_table(cursor, LONGEST, fast)
    kraft = int(_SPAN[lengths].sum())
    if kraft != 1 << LONGEST:
        cursor.fail(f"a code that fills {kraft} of {1 << LONGEST} table entries")
    layout = lanes.read(cursor, count, 1)
    begin = cursor.position
    data = np.frombuffer(cursor.take(cursor.left), np.uint8)
    decoder = _decode_fast if fast else _decode_one_by_one if len(layout.starts) < _FEW else _decode_lockstep
    out, ends = decoder(data, layout, _lookup_fast(lengths) if fast else _lookup(lengths))
    wrong = (ends + 7) >> 3 != layout.ends
    if not wrong.any():
        wrong = (ends % 8 > 0) & (data[layout.ends - 1] >> (ends % 8).astype(np.uint8) > 0)
    if wrong.any():
        cursor.position = begin + int(layout.starts[wrong.argmax()])
        cursor.fail("a lane that is cut short, too long or damaged")
    return out


_Decoded: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]  # the symbols; the bit after each lane


def _decode_fast(data: NDArray[np.uint8], layout: lanes.Lanes, table: NDArray[np.uint16]) -> _Decoded:
    from deepcomp.entropy import kernels

    out = np.empty(layout.count, np.uint8)
    ends = np.empty(len(layout.starts), np.uint64)
    size = layout.size
    for part, run, origin in lanes.runs(layout, data, LONGEST / 8):
        starts = (layout.starts[part] - origin).astype(np.uint64)
        symbols = out[part.start * size : part.stop * size]
        kernels.decode_huffman(kernels.frozen(run), starts, size, table, symbols, ends[part])
        ends[part] += np.uint64(8 * origin)
    return out, ends.astype(np.int64)


def _decode_lockstep(data: NDArray[np.uint8], layout: lanes.Lanes, table: NDArray[np.uint16]) -> _Decoded:
    """Decode a symbol of every lane at a time."""
    number, size = len(layout.starts), layout.size
    longest = len(table).bit_length() - 1
    refill = 56 // longest  # codes in a window of 64 bits that starts at a byte
    symbol_of, length_of = table.astype(np.uint8), (table >> 8).astype(np.int64)
    window_at = windows(np.concatenate([data, np.zeros(longest * size // 8 + _ROOM, np.uint8)]))
    out = np.empty((number, size), np.uint8)
    slab = np.empty((lanes.SLAB, number), np.uint8)
    ends = layout.starts * 8
    scratch = np.empty((2, number), np.int64)
    for active, first, end in lanes.steps(layout):
        at, index, length = ends[:active], scratch[0, :active], scratch[1, :active]
        for step in range(end - first):
            if step % refill == 0:
                window = window_at[at >> 3]
                np.right_shift(window, np.bitwise_and(at, 7, out=length), out=window)
            np.bitwise_and(window, len(table) - 1, out=index)
            symbol_of.take(index, out=slab[step, :active], mode="clip")
            length_of.take(index, out=length, mode="clip")
            np.right_shift(window, length, out=window)
            np.add(at, length, out=at)
        out[:active, first:end] = slab[: end - first, :active].T
    return out.reshape(-1)[: layout.count], ends


def _decode_one_by_one(data: NDArray[np.uint8], layout: lanes.Lanes, table: NDArray[np.uint16]) -> _Decoded:
    """Decode few lanes: numpy finds how long a code would be at every bit, Python hops from code to code."""
    out = np.empty(layout.count, np.uint8)
    ends = np.full(len(layout.starts), 8 * (len(data) + _ROOM))  # what a lane that overruns the data keeps
    symbol_of, length_of = table.astype(np.uint8), (table >> 8).astype(np.int64)
    window_at = windows(np.concatenate([data, np.zeros(_ROOM, np.uint8)]))
    eight = np.arange(8)
    for lane, start in enumerate(layout.starts.tolist()):
        done, left = lane * layout.size, min(layout.size, layout.count - lane * layout.size)
        hop = 0
        for block in range(start, len(data), _STRIDE):
            index = (window_at[block : min(block + _STRIDE, len(data)), None] >> eight & len(table) - 1).reshape(-1)
            hops = (length_of[index] + np.arange(len(index))).tolist()
            places = []
            while hop < len(hops):
                places.append(hop)
                hop = hops[hop]
            out[done : done + min(left, len(places))] = symbol_of[index[places[:left]]]
            if len(places) >= left:
                ends[lane] = 8 * block + [*places, hop][left]
                break
            done += len(places)
            left -= len(places)
            hop -= len(hops)
    return out, ends
