"""The inner loops of this package, compiled by numba; each has a twin in numpy with the same result.

Importing this module imports numba: callers ask `deepcomp.jit` first. All arithmetic is in uint64
(numba turns a mix with int64 into float64). Loops over lanes take four or six at a time, whose chains
of dependent instructions then overlap. Nothing here checks bounds: callers pass buffers that the worst
input cannot overrun, and check afterwards where every lane ended.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "count_planes",
    "decode_huffman",
    "decode_rans",
    "encode_huffman",
    "encode_rans",
    "finish_huffman",
    "frozen",
    "histogram",
    "huffman_runs",
    "join_planes",
    "join_tokens",
    "split_planes",
    "split_tokens",
]


def frozen(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A read-only view: arrays that are and are not writable would have a kernel compiled twice."""
    view = array.view()
    view.flags.writeable = False
    return view


U = np.uint64
BYTE = U(0xFF)
CODE = U(0xFFFF)
INDEX = U(0xFFF)  # Huffman tables have 2**12 entries
BLOCK = 4096  # words
LOWER = U(1 << 16)  # rANS states stay at or above this

_kernel = numba.njit(cache=True, nogil=True)
_inline = numba.njit(cache=True, nogil=True, inline="always")


@_inline
def _load(data, i):  # type: ignore[no-untyped-def]
    """Eight bytes from any position; the compiler makes one load of it."""
    return (
        U(data[i])
        | U(data[i + U(1)]) << U(8)
        | U(data[i + U(2)]) << U(16)
        | U(data[i + U(3)]) << U(24)
        | U(data[i + U(4)]) << U(32)
        | U(data[i + U(5)]) << U(40)
        | U(data[i + U(6)]) << U(48)
        | U(data[i + U(7)]) << U(56)
    )


@_inline
def _store4(data, i, value):  # type: ignore[no-untyped-def]
    data[i] = np.uint8(value)
    data[i + U(1)] = np.uint8(value >> U(8))
    data[i + U(2)] = np.uint8(value >> U(16))
    data[i + U(3)] = np.uint8(value >> U(24))


@_inline
def _store8(data, i, value):  # type: ignore[no-untyped-def]
    _store4(data, i, value)
    _store4(data, i + U(4), value >> U(32))


@_kernel
def histogram(symbols):  # type: ignore[no-untyped-def]
    """Count uint8 symbols; four tables, so that runs of a symbol do not wait for each other."""
    counts = np.zeros((4, 256), np.int64)
    whole = len(symbols) // 8 * 8
    for i in range(0, whole, 8):
        word = _load(symbols, U(i))
        for k in range(8):
            counts[k % 4, word >> U(8 * k) & BYTE] += 1
    for i in range(whole, len(symbols)):
        counts[0, symbols[i]] += 1
    return counts.sum(axis=0)


# --- Huffman ------------------------------------------------------------------------------------


@_kernel
def encode_huffman(symbols, size, codes, out, lengths):  # type: ignore[no-untyped-def]
    """Write the lanes of `size` symbols to `out`, their bytes to `lengths`; return the bytes in all.

    codes : uint32, code | bits << 16; out : uint8, eight bytes longer than what is written.
    """
    at = U(0)
    for begin in range(0, len(symbols), size):
        end = min(begin + size, len(symbols))
        start = at
        held = U(0)
        bits = U(0)
        i = U(begin)
        for _ in range((end - begin) // 4):  # 7 + 4 * 12 bits fit the register
            for k in range(4):
                code = U(codes[symbols[i + U(k)]])
                held |= (code & CODE) << bits
                bits += code >> U(16)
            i += U(4)
            _store8(out, at, held)
            at += bits >> U(3)
            held >>= bits & ~U(7)
            bits &= U(7)
        for j in range(i, U(end)):
            code = U(codes[symbols[j]])
            held |= (code & CODE) << bits
            bits += code >> U(16)
        _store8(out, at, held)
        at += (bits + U(7)) >> U(3)
        lengths[begin // size] = at - start
    return at


@_kernel
def huffman_runs(single, count):  # type: ignore[no-untyped-def]
    """Up to four symbols that any 12 bits begin with: symbols | bits << 32 | their number << 40.

    Empty where `count` symbols are too few to pay for it.
    """
    runs = np.empty(len(single) if count > len(single) else 0, np.uint64)
    for index in range(len(runs)):
        symbols = U(0)
        bits = U(0)
        number = U(0)
        while number < U(4):
            entry = U(single[U(index) >> bits])
            if bits + (entry >> U(8)) > U(12):
                break
            symbols |= (entry & BYTE) << (U(8) * number)
            bits += entry >> U(8)
            number += U(1)
        runs[index] = symbols | bits << U(32) | number << U(40)
    return runs


@_inline
def _window(data, at):  # type: ignore[no-untyped-def]
    """The 57 bits or more from bit `at` on."""
    return _load(data, at >> U(3)) >> (at & U(7))


@_inline
def _huffman_step(runs, out, window, place):  # type: ignore[no-untyped-def]
    """Decode a run. A place is symbols written << 8 | bits read since: one register, so that six lanes find room."""
    run = runs[window & INDEX]
    _store4(out, place >> U(8), run)
    run >>= U(32)
    return window >> (run & U(63)), place + run


@_inline
def _advance(at, place):  # type: ignore[no-untyped-def]
    """Move the bits read from the place to where the lane is read."""
    return at + (place & BYTE), place & ~BYTE


@_inline
def finish_huffman(single, runs, data, out, at, place, stop):  # type: ignore[no-untyped-def]
    """Decode one lane to its end, the last few symbols (all, without runs) one by one; return the bit after it."""
    while place + U(16 << 8) <= stop and len(runs):
        window = _window(data, at)
        for _ in range(4):
            window, place = _huffman_step(runs, out, window, place)
        at, place = _advance(at, place)
    for to in range(place >> U(8), stop >> U(8)):
        entry = U(single[_window(data, at) & INDEX])
        out[to] = np.uint8(entry)
        at += entry >> U(8)
    return at


@_kernel
def decode_huffman(data, starts, size, single, out, ends):  # type: ignore[no-untyped-def]
    """Decode the lanes that start at bytes `starts` into `out`; `ends` gets the bit after each.

    single : uint16[4096], symbol | bits << 8 of the code that any 12 bits begin with.
    Reads less than 12 bits * size + 16 bytes from the start of a lane.
    """
    runs = huffman_runs(single, len(out))
    span = U(size) << U(8)
    whole = len(out) // size
    lane = 0
    while lane + 6 <= whole:
        at0, at1, at2 = starts[lane] * U(8), starts[lane + 1] * U(8), starts[lane + 2] * U(8)
        at3, at4, at5 = starts[lane + 3] * U(8), starts[lane + 4] * U(8), starts[lane + 5] * U(8)
        place0 = U(lane) * span
        stop0 = place1 = place0 + span
        stop1 = place2 = place1 + span
        stop2 = place3 = place2 + span
        stop3 = place4 = place3 + span
        stop4 = place5 = place4 + span
        stop5 = place5 + span
        while True:
            near = min(stop0 - place0, stop1 - place1, stop2 - place2, stop3 - place3, stop4 - place4, stop5 - place5)
            rounds = near // U(16 << 8)  # of at most 16 symbols each
            if rounds == U(0):
                break
            for _ in range(rounds):
                window0, window1, window2 = _window(data, at0), _window(data, at1), _window(data, at2)
                window3, window4, window5 = _window(data, at3), _window(data, at4), _window(data, at5)
                for _k in range(4):  # 4 * 12 bits of the 57 or more in a window
                    window0, place0 = _huffman_step(runs, out, window0, place0)
                    window1, place1 = _huffman_step(runs, out, window1, place1)
                    window2, place2 = _huffman_step(runs, out, window2, place2)
                    window3, place3 = _huffman_step(runs, out, window3, place3)
                    window4, place4 = _huffman_step(runs, out, window4, place4)
                    window5, place5 = _huffman_step(runs, out, window5, place5)
                at0, place0 = _advance(at0, place0)
                at1, place1 = _advance(at1, place1)
                at2, place2 = _advance(at2, place2)
                at3, place3 = _advance(at3, place3)
                at4, place4 = _advance(at4, place4)
                at5, place5 = _advance(at5, place5)
        ends[lane] = finish_huffman(single, runs, data, out, at0, place0, stop0)
        ends[lane + 1] = finish_huffman(single, runs, data, out, at1, place1, stop1)
        ends[lane + 2] = finish_huffman(single, runs, data, out, at2, place2, stop2)
        ends[lane + 3] = finish_huffman(single, runs, data, out, at3, place3, stop3)
        ends[lane + 4] = finish_huffman(single, runs, data, out, at4, place4, stop4)
        ends[lane + 5] = finish_huffman(single, runs, data, out, at5, place5, stop5)
        lane += 6
    for rest in range(lane, len(starts)):
        place = U(rest) * span
        stop = min(place + span, U(len(out)) << U(8))
        ends[rest] = finish_huffman(single, runs, data, out, starts[rest] * U(8), place, stop)


# --- rANS ---------------------------------------------------------------------------------------


@_inline
def _rans_push(symbols, coding, precision, words, i, state, at):  # type: ignore[no-untyped-def]
    symbol = symbols[i]
    words[at - U(1)] = np.uint16(state)  # stays only if the state is too large
    full = U(state >= coding[symbol, 0])
    at -= full
    state >>= full * U(16)
    quotient = state * coding[symbol, 1] >> (U(32) + precision)
    return state + quotient * coding[symbol, 2] + coding[symbol, 3], at


@_inline
def _rans_flush(words, top, state, at, out, to):  # type: ignore[no-untyped-def]
    """Put a lane, its state in front, behind the others; return where the next one goes."""
    out[to] = np.uint16(state)
    out[to + U(1)] = np.uint16(state >> U(16))
    to += U(2)
    for i in range(at, top):
        out[to] = words[i]
        to += U(1)
    return to


@_kernel
def encode_rans(symbols, size, coding, precision, out, lengths):  # type: ignore[no-untyped-def]
    """Write the lanes of `size` symbols to the 16-bit words `out`; return the words in all.

    coding : uint64[256, 4], what `rans` makes of the frequencies.
    """
    step = U(size)
    precision = U(precision)
    words = np.empty(4 * size + 1, np.uint16)
    top0 = step + U(1)
    top1 = top0 + step
    top2 = top1 + step
    top3 = top2 + step
    to = U(0)
    lane = 0
    whole = len(symbols) // size
    while lane + 4 <= whole:
        begin = U(lane) * step
        at0, at1, at2, at3 = top0, top1, top2, top3
        x0 = x1 = x2 = x3 = LOWER
        for back in range(size):
            i = begin + step - U(1) - U(back)
            x0, at0 = _rans_push(symbols, coding, precision, words, i, x0, at0)
            x1, at1 = _rans_push(symbols, coding, precision, words, i + step, x1, at1)
            x2, at2 = _rans_push(symbols, coding, precision, words, i + U(2) * step, x2, at2)
            x3, at3 = _rans_push(symbols, coding, precision, words, i + U(3) * step, x3, at3)
        to = _rans_flush(words, top0, x0, at0, out, to)
        to = _rans_flush(words, top1, x1, at1, out, to)
        to = _rans_flush(words, top2, x2, at2, out, to)
        to = _rans_flush(words, top3, x3, at3, out, to)
        lengths[lane] = top0 - at0 + U(2)
        lengths[lane + 1] = top1 - at1 + U(2)
        lengths[lane + 2] = top2 - at2 + U(2)
        lengths[lane + 3] = top3 - at3 + U(2)
        lane += 4
    for rest in range(lane, len(lengths)):
        begin = U(rest) * step
        end = min(begin + step, U(len(symbols)))
        x0, at0 = LOWER, top0
        for back in range(end - begin):
            x0, at0 = _rans_push(symbols, coding, precision, words, end - U(1) - U(back), x0, at0)
        to = _rans_flush(words, top0, x0, at0, out, to)
        lengths[rest] = top0 - at0 + U(2)
    return to


@_inline
def _rans_pop(slots, words, precision, out, state, at, to):  # type: ignore[no-untyped-def]
    slot = slots[state & ((U(1) << precision) - U(1))]
    out[to] = np.uint8(slot)
    state = (slot >> U(8) & CODE) * (state >> precision) + (slot >> U(24))
    word = U(words[at])
    refill = state < LOWER
    return state << U(16) | word if refill else state, at + U(refill)


@_kernel
def decode_rans(words, starts, size, slots, precision, out, states, ends):  # type: ignore[no-untyped-def]
    """Decode the lanes that start at `starts` in 16-bit words; report each one's last state and end.

    slots : uint64[2**precision], symbol | frequency << 8 | (slot - first of the symbol) << 24.
    Reads at most size + 3 words from the start of a lane.
    """
    step = U(size)
    precision = U(precision)
    whole = len(out) // size
    lane = 0
    while lane + 4 <= whole:
        at0, at1, at2, at3 = starts[lane], starts[lane + 1], starts[lane + 2], starts[lane + 3]
        x0 = U(words[at0]) | U(words[at0 + U(1)]) << U(16)
        x1 = U(words[at1]) | U(words[at1 + U(1)]) << U(16)
        x2 = U(words[at2]) | U(words[at2 + U(1)]) << U(16)
        x3 = U(words[at3]) | U(words[at3 + U(1)]) << U(16)
        at0, at1, at2, at3 = at0 + U(2), at1 + U(2), at2 + U(2), at3 + U(2)
        to = U(lane) * step
        for i in range(to, to + step):
            x0, at0 = _rans_pop(slots, words, precision, out, x0, at0, i)
            x1, at1 = _rans_pop(slots, words, precision, out, x1, at1, i + step)
            x2, at2 = _rans_pop(slots, words, precision, out, x2, at2, i + U(2) * step)
            x3, at3 = _rans_pop(slots, words, precision, out, x3, at3, i + U(3) * step)
        states[lane], states[lane + 1], states[lane + 2], states[lane + 3] = x0, x1, x2, x3
        ends[lane], ends[lane + 1], ends[lane + 2], ends[lane + 3] = at0, at1, at2, at3
        lane += 4
    for rest in range(lane, len(starts)):
        at0 = starts[rest]
        x0 = U(words[at0]) | U(words[at0 + U(1)]) << U(16)
        at0 += U(2)
        to = U(rest) * step
        for i in range(to, min(to + step, U(len(out)))):
            x0, at0 = _rans_pop(slots, words, precision, out, x0, at0, i)
        states[rest], ends[rest] = x0, at0


# --- hybrid integers ----------------------------------------------------------------------------


@_kernel
def split_tokens(values, widths, tokens, extras):  # type: ignore[no-untyped-def]
    """Write a token for each value, and the raw bits to `extras`; return the bytes of these."""
    at = U(0)
    held = U(0)
    bits = U(0)
    for i in range(len(values)):
        value = U(values[i])
        if value < U(128):
            tokens[i] = np.uint8(value)
            continue
        # exponent and leading bits of the float64 are the token, as in tokens.split
        token = (np.float64(value).view(np.uint64) >> U(50)) - U(3992)
        tokens[i] = np.uint8(token)
        width = U(widths[token])
        held |= (value & ((U(1) << width) - U(1))) << bits
        bits += width
        _store8(extras, at, held)
        at += bits >> U(3)
        held >>= bits & ~U(7)
        bits &= U(7)
    return at + ((bits + U(7)) >> U(3))


@_kernel
def join_tokens(tokens, extras, first, widths, values):  # type: ignore[no-untyped-def]
    """Add its raw bits to the first value of each token; behind the raw bits lie eight bytes more."""
    at = U(0)
    for i in range(len(tokens)):
        token = tokens[i]
        width = U(widths[token])
        extra = _load(extras, at >> U(3)) >> (at & U(7)) & ((U(1) << width) - U(1))
        values[i] = U(first[token]) + extra
        at += width


# --- byte planes --------------------------------------------------------------------------------


@_kernel
def split_planes(words, rotate, planes):  # type: ignore[no-untyped-def]
    """Write byte k of every word, after a rotation to the left by `rotate` (0 or 1) bits, to planes[k]."""
    turn = U(rotate)
    top = U(8 * len(planes) - 1)
    for begin in range(0, len(words), BLOCK):  # read once from memory, then from the cache
        block = words[begin : begin + BLOCK]
        plane = planes[0][begin : begin + BLOCK]
        for i in range(len(block)):
            plane[i] = np.uint8(U(block[i]) << turn | (U(block[i]) >> top & turn))
        for k in range(1, len(planes)):
            plane = planes[k][begin : begin + BLOCK]
            shift = U(8 * k) - turn
            for i in range(len(block)):
                plane[i] = np.uint8(U(block[i]) >> shift)


@_kernel
def count_planes(words, rotate, counts):  # type: ignore[no-untyped-def]
    """Count the bytes of the planes that `split_planes` writes: counts[k, byte]."""
    turn = U(rotate)
    top = U(8 * len(counts) - 1)
    for i in range(len(words)):
        word = U(words[i]) << turn | (U(words[i]) >> top & turn)
        for k in range(len(counts)):
            counts[k, word >> U(8 * k) & BYTE] += 1


@_kernel
def join_planes(planes, rotate, words):  # type: ignore[no-untyped-def]
    """`split_planes` backwards."""
    turn = U(rotate)
    top = U(8 * len(planes) - 1)
    for begin in range(0, len(words), BLOCK):
        block = words[begin : begin + BLOCK]
        plane = planes[0][begin : begin + BLOCK]
        for i in range(len(block)):
            block[i] = U(plane[i]) >> turn | (U(plane[i]) & turn) << top
        for k in range(1, len(planes)):
            plane = planes[k][begin : begin + BLOCK]
            shift = U(8 * k) - turn
            for i in range(len(block)):
                block[i] |= U(plane[i]) << shift
