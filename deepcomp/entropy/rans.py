"""Range asymmetric numeral systems (rANS): within a fraction of a per cent of the entropy.

The coder of Duda (2013, arXiv:1311.2540), integers only: a 32-bit state, renormalised 16 bits at a
time, and probabilities f / 2**p, with the precision p that suits the array.

Layout::

    u8          p: 8, 10, 12 or 14
    table       (`tables`) a number t for each symbol: 0 if it does not occur, else 1 to p
    fields      for each symbol that occurs, in order, p - t bits: f less 2**(p - t), the highest
                power of two in it; zero bits up to the end of the byte
    lanes       their lengths (`lanes`, in 16-bit words), then for each lane a u32, the state, and
                u16 words

The frequencies add up to 2**p. With F the sum of the frequencies of lower symbols, a symbol is

    slot = state mod 2**p            the symbol is the one with F <= slot < F + f
    state = f * (state >> p) + slot - F
    if state < 2**16: state = state * 2**16 + the next word

The encoder, which works from the last symbol to the first, starts every lane at state 2**16: there
the decoder must arrive, with all words of the lane read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcomp.entropy import lanes
from deepcomp.entropy.bits import Parts, pack_variable, read_variable
from deepcomp.entropy.tables import read_table, write_table
from deepcomp.wire import Cursor

__all__ = ["Model", "decode", "encode", "estimate", "model", "normalise"]

_LOWER = 1 << 16
_PRECISIONS = {8: 1.0, 10: 1.0, 12: 1.0, 14: 1.005}  # 2**14 slots overflow the first cache: they have to pay
_FEW = 32  # lanes, below which a loop in Python is faster than numpy in lock-step
_LEAST = 1024  # bytes a lane, of which four are lost
_LOST = 3.0  # bytes: the state holds 16 bits at the start, and up to 15 are lost at the end


@dataclass(frozen=True)
class Model:
    """Frequencies that add up to 2**precision, and what they cost.

    frequency : int64, shape (256,)
    table : bytes
        The precision and the frequencies as they are stored.
    bits : float
        What all symbols take, coded with these frequencies.
    """

    precision: int
    frequency: NDArray[np.int64]
    table: bytes
    bits: float

    @property
    def first(self) -> NDArray[np.int64]:
        """The sum of the frequencies of all lower symbols."""
        return np.cumsum(self.frequency) - self.frequency


def model(histogram: NDArray[np.int64], fast: bool) -> Model:
    """The model with the precision that makes table and symbols smallest, for two symbols or more."""
    present = np.flatnonzero(histogram)
    counts = histogram[present].astype(np.float64)
    least, best = math.inf, None
    for precision, weight in _PRECISIONS.items():
        shares = normalise(counts, precision, fast)
        bits = float(counts @ (precision - np.log2(shares)))
        size = weight * (bits + precision * len(present))  # a field grows by a bit with each of the precision
        if size >= least:
            break
        least, best = size, (precision, shares, bits)
    assert best is not None
    precision, shares, bits = best
    frequency = np.zeros(len(histogram), np.int64)
    frequency[present] = shares
    return Model(precision, frequency, _table(frequency, precision, fast), bits)


def normalise(counts: NDArray[np.float64], precision: int, fast: bool) -> NDArray[np.int64]:
    """Scale positive counts to positive integers that add up to 2**precision.

    Symbols are served in the order of count / (frequency + 1/2) (the apportionment of Sainte-Laguë),
    which to first order is the order of bits saved. Only +, -, * and / are used: every machine finds
    the same frequencies.
    """
    total = 1 << precision
    frequency: NDArray[np.int64] = np.maximum(1, (counts * total / counts.sum()).astype(np.int64))
    missing = total - int(frequency.sum())
    if fast:
        from deepcomp.entropy import model_kernels

        model_kernels.apportion(counts, missing, frequency)
        return frequency
    for _ in range(missing):
        frequency[np.argmax(counts / (frequency + 0.5))] += 1
    for _ in range(-missing):
        frequency[np.argmin(np.where(frequency > 1, counts / (frequency - 0.5), np.inf))] -= 1
    return frequency


def _table(frequency: NDArray[np.int64], precision: int, fast: bool) -> bytes:
    present = frequency > 0
    below = (np.frexp(frequency[present])[1] - 1).astype(np.uint8)  # bits below the leading one
    numbers = np.zeros(len(frequency), np.uint8)
    numbers[present] = precision - below
    fields = (frequency[present] - (1 << below.astype(np.int64))).astype(np.uint32)
    return bytes([precision]) + write_table(numbers, fast) + pack_variable(fields, below)


def _read_model(cursor: Cursor, fast: bool) -> tuple[int, NDArray[np.int64]]:
    precision = cursor.byte()
    if precision not in _PRECISIONS:
        cursor.fail(f"a precision of {precision} bits, {', '.join(map(str, _PRECISIONS))} expected,")
    numbers = read_table(cursor, precision, fast)
    present = numbers > 0
    below = (precision - numbers[present]).astype(np.uint8)
    frequency = np.zeros(len(numbers), np.int64)
    frequency[present] = (1 << below.astype(np.int64)) + read_variable(cursor, below)
    if frequency.sum() != 1 << precision:
        cursor.fail(f"frequencies that add up to {frequency.sum()}, {1 << precision} expected,")
    return precision, frequency


def least(table: int) -> float:
    """About the fewest bytes `encode` takes beside the entropy, where a table of code lengths takes `table`."""
    return 1 + table + _LOST


def estimate(count: int, model: Model) -> float:
    """Bytes that `encode` takes for `count` symbols, right to a byte or so in a thousand."""
    k = lanes.choose(count, model.bits, _LEAST)
    return len(model.table) + model.bits / 8 + lanes.overhead(count, k, _LOST)


def encode(symbols: NDArray[np.uint8], model: Model, fast: bool) -> Parts:
    """Write symbols, at least two of which differ; with numba if `fast`, the bytes are the same."""
    k = lanes.choose(len(symbols), model.bits, _LEAST)
    number = -(-len(symbols) >> k)
    sizes = np.zeros(number, np.int64)
    if fast:
        from deepcomp.entropy import kernels

        out = np.empty(len(symbols) + 2 * number, np.uint16)  # at most one word a symbol
        used = kernels.encode_rans(kernels.frozen(symbols), 1 << k, _coding(model), model.precision, out, sizes)
        payload: bytes | memoryview = out[:used].data.cast("B")
    else:
        encoder = _encode_one_by_one if number < _FEW else _encode_lockstep
        payload = encoder(symbols, 1 << k, model, sizes)
    return [model.table, lanes.write(k, sizes), payload]


def _coding(model: Model) -> NDArray[np.uint64]:
    """Of each symbol: where a state is too large, a reciprocal of the frequency, what to add.

    With r = 2**(32 + p) // f + 1, x * r >> 32 + p is x // f for all x < f * 2**(32 - p), the states that
    need no word written first: r exceeds the true reciprocal by at most 1, which the product's
    fraction cannot carry over since x * f < 2**(32 + p); and the product stays below 2**64.
    """
    frequency = model.frequency.astype(np.uint64)
    shift = np.uint64(32 + model.precision)
    reciprocal = (np.uint64(1) << shift) // np.maximum(frequency, 1) + np.uint64(1)
    limit = frequency << np.uint64(32 - model.precision)
    others = np.uint64(1 << model.precision) - frequency
    return np.stack([limit, reciprocal, others, model.first.astype(np.uint64)], axis=1)


def _encode_one_by_one(symbols: NDArray[np.uint8], size: int, model: Model, sizes: NDArray[np.int64]) -> bytes:
    """Encode few lanes in plain Python."""
    precision, shares, firsts = model.precision, model.frequency.tolist(), model.first.tolist()
    coded: list[int] = []  # back to front
    for lane in reversed(range(len(sizes))):
        before, state = len(coded), _LOWER
        for symbol in reversed(symbols[lane * size : (lane + 1) * size].tolist()):
            share = shares[symbol]
            if state >= share << (32 - precision):
                coded.append(state & 0xFFFF)
                state >>= 16
            state = (state // share << precision) + state % share + firsts[symbol]
        coded += [state >> 16, state & 0xFFFF]
        sizes[lane] = len(coded) - before
    return np.array(coded[::-1], "<u2").tobytes()


def _encode_lockstep(symbols: NDArray[np.uint8], size: int, model: Model, sizes: NDArray[np.int64]) -> bytes:
    """Encode a symbol of every lane at a time, from the last to the first."""
    number, count = len(sizes), len(symbols)
    starts = np.arange(number) * (size + 2)
    layout = lanes.Lanes(count, size, starts, starts + size + 2)
    padded = np.zeros((number, size), np.uint8)
    padded.reshape(-1)[:count] = symbols
    precision, frequency, first = model.precision, model.frequency, model.first
    limit = frequency << (32 - precision)
    words = np.empty((number, size + 2), np.uint16)  # filled from the end of each row
    flat = words.reshape(-1)
    at, state = layout.ends - 1, np.full(number, _LOWER)
    for active, begin, end in reversed(list(lanes.steps(layout))):
        slab = np.ascontiguousarray(padded[:active, begin:end].T)
        x, to = state[:active], at[:active]
        for symbol in slab[::-1]:
            share = frequency[symbol]
            flat[to] = x.astype(np.uint16)
            full = x >= limit[symbol]
            to -= full
            x >>= full * 16
            quotient, rest = np.divmod(x, share)
            np.left_shift(quotient, precision, out=x)
            x += rest
            x += first[symbol]
    flat[at] = (state >> 16).astype(np.uint16)
    flat[at - 1] = state.astype(np.uint16)
    sizes[:] = layout.ends + 1 - at
    written = np.arange(size + 2) >= (size + 2 - sizes)[:, None]
    return words[written].tobytes()


def decode(cursor: Cursor, count: int, fast: bool) -> NDArray[np.uint8]:
    """Read `count` symbols, which take all that is left of the data.

    Raises
    ------
    FormatError
        If the frequencies do not add up, or a lane does not end in the first state with all its words read.
    """
    precision, frequency = _read_model(cursor, fast)
    layout = lanes.read(cursor, count, 2)
    if (layout.ends - layout.starts).min() < 2:
        cursor.fail("a lane without a state")
    begin = cursor.position
    words = np.frombuffer(bytes(cursor.take(cursor.left)), "<u2")
    decoder = _decode_fast if fast else _decode_one_by_one if len(layout.starts) < _FEW else _decode_lockstep
    out, states, ends = decoder(words, layout, frequency, precision)
    wrong = (states != _LOWER) | (ends != layout.ends)
    if wrong.any():
        cursor.position = begin + 2 * int(layout.starts[wrong.argmax()])
        cursor.fail("a lane that is cut short, too long or damaged")
    return out


_Decoded: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""The symbols; the last state of each lane and the word after it."""


def _slots(frequency: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Of each slot: the symbol, its frequency, and the slot less the first one of the symbol."""
    symbol = np.repeat(np.arange(len(frequency), dtype=np.uint8), frequency)
    first = np.cumsum(frequency) - frequency
    return symbol, frequency[symbol], np.arange(len(symbol)) - first[symbol]


def _decode_fast(
    words: NDArray[np.uint16], layout: lanes.Lanes, frequency: NDArray[np.int64], precision: int
) -> _Decoded:
    from deepcomp.entropy import kernels

    symbol, share, bias = _slots(frequency)
    slots = (symbol | share << 8 | bias << 24).astype(np.uint64)
    out = np.empty(layout.count, np.uint8)
    states, ends = np.empty((2, len(layout.starts)), np.uint64)
    size = layout.size
    for part, run, origin in lanes.runs(layout, words, 1):
        starts = (layout.starts[part] - origin).astype(np.uint64)
        lane_out = out[part.start * size : part.stop * size]
        kernels.decode_rans(kernels.frozen(run), starts, size, slots, precision, lane_out, states[part], ends[part])
        ends[part] += np.uint64(origin)
    return out, states.astype(np.int64), ends.astype(np.int64)


def _decode_lockstep(
    words: NDArray[np.uint16], layout: lanes.Lanes, frequency: NDArray[np.int64], precision: int
) -> _Decoded:
    """Decode a symbol of every lane at a time."""
    symbol_of, share_of, bias_of = _slots(frequency)
    number, size = len(layout.starts), layout.size
    state = _first_states(words, layout)
    ends = layout.starts + 2
    out = np.empty((number, size), np.uint8)
    slab = np.empty((lanes.SLAB, number), np.uint8)
    scratch = np.empty((2, number), np.int64)
    for active, begin, end in lanes.steps(layout):
        x, at, slot, part = state[:active], ends[:active], scratch[0, :active], scratch[1, :active]
        for step in range(end - begin):
            np.bitwise_and(x, len(symbol_of) - 1, out=slot)
            symbol_of.take(slot, out=slab[step, :active], mode="clip")
            np.right_shift(x, precision, out=x)
            np.multiply(x, share_of.take(slot, out=part, mode="clip"), out=x)
            np.add(x, bias_of.take(slot, out=part, mode="clip"), out=x)
            refill = x < _LOWER
            np.left_shift(x, np.multiply(refill, 16, out=part), out=x)
            np.bitwise_or(x, np.multiply(words.take(at, mode="clip"), refill, out=part), out=x)
            np.add(at, refill, out=at)
        out[:active, begin:end] = slab[: end - begin, :active].T
    return out.reshape(-1)[: layout.count], state, ends


def _decode_one_by_one(
    words: NDArray[np.uint16], layout: lanes.Lanes, frequency: NDArray[np.int64], precision: int
) -> _Decoded:
    """Decode few lanes in plain Python."""
    symbols, shares, biases = (column.tolist() for column in _slots(frequency))
    mask = (1 << precision) - 1
    out = np.empty(layout.count, np.uint8)
    states = _first_states(words, layout)
    ends = layout.starts + 2
    stream = words.data
    last = len(words) - 1
    for lane in range(len(layout.starts)):
        state, at = int(states[lane]), int(ends[lane])
        begin = lane * layout.size
        decoded = bytearray()
        for _ in range(min(layout.size, layout.count - begin)):
            slot = state & mask
            decoded.append(symbols[slot])
            state = shares[slot] * (state >> precision) + biases[slot]
            if state < _LOWER:
                state = state << 16 | stream[min(at, last)]
                at += 1
        out[begin : begin + len(decoded)] = decoded
        states[lane], ends[lane] = state, at
    return out, states, ends


def _first_states(words: NDArray[np.uint16], layout: lanes.Lanes) -> NDArray[np.int64]:
    low, high = (words.take(layout.starts + i, mode="clip").astype(np.int64) for i in (0, 1))
    return low | high << 16
