"""Section 5.5 of `docs/format.md`, for `independent_decoder`."""

from __future__ import annotations

import math
from typing import Any

from independent_source import Source, need


class Array(list[int]):
    """Symbols, and which rows of them are live, where their stream says so."""

    rows: list[int] | None = None


def arrangement(source: Source, short: int, n: int, shape: list[int]) -> tuple[int, int, int, int]:
    """Section 5.5: rows, planes, taps, and the width of a line."""
    rows, planes, width = 0 if short else source.varint(), 1, n
    if rows:
        planes, width = source.varint(), source.varint()
    elif len(shape) > 1 and math.prod(shape) == n:
        rows, planes, width = shape[0], (shape[1] if len(shape) > 2 else 1), shape[-1]
    rows = rows or 1
    need(planes and n % (rows * planes) == 0 and 1 <= width <= n // (rows * planes), "no such arrangement")
    return rows, planes, n // (rows * planes), width


def inputs(source: Source, short: int, rows: int, places: int, earlier: list[list[int] | None]) -> list[int]:
    """Section 5.5: what is known of the input of each place."""
    back = short - 1 if short else source.varint()
    if not back:
        return [0] * places
    need(back <= len(earlier) and earlier[-back], "inputs from a tensor that does not say which rows are live")
    feeding = earlier[-back] or []
    need(rows > 1 and len(feeding) <= places and places % len(feeding) == 0, "inputs that are not divided equally")
    return [1 + flag for flag in feeding for _ in range(places // len(feeding))]


class State:
    """Section 5.5: a value that moves towards what it is told."""

    def __init__(self, value: int = 0) -> None:
        self.value, self.count = value, 0

    def move(self, target: int, memory: int) -> None:
        self.value += (target - self.value) * (65536 // (self.count + 2)) >> 16
        self.count = min(self.count + 1, memory)


SQUASH = [min(max(round(65536 / (1 + 2 ** (-d / 128))), 1), 65535) for d in range(-2048, 2048)]
STRETCH = [next(d for d in range(-2047, 2048) if SQUASH[d + 2048] >= 16 * i + 8) for i in range(4096)]


class Code:
    """Section 5.5: the number that is read, and what decisions have learned."""

    def __init__(self, data: bytes) -> None:
        self.source, self.length, self.read = Source(data + b"\0" * 6), len(data), 6
        self.x, self.range = int.from_bytes(self.source.read(6), "big"), 2**48
        self.last = data[-1] if data else 0
        self.states: dict[Any, State] = {}
        self.weights: dict[Any, list[int]] = {}
        self.counts: dict[Any, int] = {}

    def bit(self, chance: int) -> int:
        bound = (self.range >> 16) * chance
        found = int(self.x < bound)
        self.x, self.range = (self.x, bound) if found else (self.x - bound, self.range - bound)
        if self.range < 2**32:
            need(self.read <= self.length + 6, "a code cut short")
            self.range, self.read = self.range << 16, self.read + 2
            self.x = self.x << 16 | int.from_bytes(self.source.read(2).ljust(2, b"\0"), "big")
        return found

    def alone(self, place: Any) -> int:
        state = self.states.setdefault(place, State(2**27))
        found = self.bit(min(max(state.value >> 12, 1), 65535))
        state.move((2**28 - 1) * found, 4095)
        return found

    def decide(self, kind: Any, *contexts: int) -> int:
        states = [self.states.setdefault((kind, j, c), State(2**27)) for j, c in enumerate(contexts)]
        weights = self.weights.setdefault(kind, [80000 // len(contexts)] * len(contexts))
        odds, count = [STRETCH[state.value >> 16] for state in states], self.counts.get(kind, 0)
        total = sum(o * w for o, w in zip(odds, weights, strict=True)) >> 16
        chance = SQUASH[min(max(total, -2047), 2047) + 2048]
        found = self.bit(chance)
        error = (65536 * found - chance) * (2**18 // (count + 32))
        weights[:] = [w + (o * error + 2**23 >> 24) for o, w in zip(odds, weights, strict=True)]
        self.counts[kind] = min(count + 1, 4095)
        for state in states:
            state.move((2**28 - 1) * found, 4095)
        return found

    def end(self) -> None:
        k = self.read - self.length
        need(4 <= k <= 6 and self.x < 256**k, "a code of another length")
        shortest = k == 6 or (self.last and (256 - self.last) * 256**k + self.x >= self.range)
        need(shortest, "a code that is not the shortest")


def level(state: State | int) -> int:
    return ((state if isinstance(state, int) else state.value) ** 2 // 64).bit_length()


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


def beside(plane: list[int], t: int, width: int) -> tuple[int, int, int, int, int]:
    """Section 5.5: w, ww, n, v, e."""
    x, up = t % width, t >= width
    w, ww = plane[t - 1] if x else 0, plane[t - 2] if x > 1 else 0
    north = plane[t - width] if up else 0
    return w, ww, north, plane[t - width - 1] if up and x else 0, plane[t - width + 1] if up and x < width - 1 else 0


def context(source: Source, short: int, n: int, shape: list[int], earlier: list[list[int] | None]) -> Array:
    """Section 5.5; `short` are bits 5 to 7 of the stream's first byte."""
    zero = source.varint()
    rows, planes, taps, width = arrangement(source, short, n, shape)
    fed = inputs(source, short, rows, planes * taps, earlier)
    code = Code(source.read())
    live_rows, live_planes = [1] * rows, [1] * planes
    for kind, flags in (("row", live_rows), ("plane", live_planes)):
        for i in range(len(flags) if len(flags) > 1 else 0):
            last = (flags[i - 1] if i else 0) + 2 * (flags[i - 2] if i > 1 else 0)
            known = 4 * fed[taps * i] if kind == "plane" else 0
            flags[i] = code.decide(kind, known, known + last)
    live = [[int(rows == 1)] * taps for _ in range(planes)]
    for p in range(planes if rows > 1 else 0):
        for t in range(taps if live_planes[p] else 0):
            w, ww, north, v, e = beside(live[p], t, width)
            nn, back = live[p][t - 2 * width] if t >= 2 * width else 0, live[p - 1][t] if p else 0
            known, pattern = 16 * fed[taps * p + t], w + 2 * north + 4 * e + 8 * v
            total = w + ww + north + nn + v + e + back
            live[p][t] = code.decide("tap", known + back, known + pattern, known + total)
    plane_activity = [State() for _ in range(planes)]
    tap_activity = [[State() for _ in range(taps)] for _ in range(planes)]
    tap_lean = [[State(2**15) for _ in range(taps)] for _ in range(planes)]
    kernels, above, found = [0] * planes, [[0] * taps for _ in range(planes)], []
    for r in range(rows):
        values = [[0] * taps for _ in range(planes)]
        found.append(values)
        if not live_rows[r]:
            continue
        row, local, row_lean, last, one, two = State(), State(), State(2**15), 0, 0, 0
        for p in range(planes):
            if not live_planes[p]:
                continue
            if planes > 1:
                i, j = level(row), level(plane_activity[p])
                flag = code.decide("kernel", one + 2 * two + 4 * kernels[p], i, j, 16 * (i // 2) + j // 2)
                one, two, kernels[p] = flag, one, flag
            for t in range(taps):
                value = 0
                if planes == 1 or kernels[p]:
                    if not live[p][t]:
                        continue
                    w, ww, north, v, e = beside(values[p], t, width)
                    back, u, own = values[p - 1][t] if p else 0, above[p][t], tap_activity[p][t].value
                    if planes > 1:
                        across = plane_activity[p].value
                    else:
                        x, across = t % width, 2 * own
                        west_and_east = (x > 0, -1), (x < width - 1 and t < taps - 1, 1)
                        for there, other in (*west_and_east, (t >= width, -width), (t + width < taps, width)):
                            across += tap_activity[p][t + other].value if there else own
                        across //= 6
                    g = 2 * w + 2 * north + v + e + ww + back
                    h = 2 * abs(w) + 2 * abs(north) + abs(v) + abs(e) + abs(ww) + abs(back)
                    position, i, j = level(own), level(row) // 2, level(across) // 2
                    first, both = 64 * min(abs(w) + abs(north), 3) + 8 * (position // 4) + j // 2, 16 * i + j
                    pattern = min(abs(w), 2) + 3 * min(abs(north), 2) + 9 * (bool(v) + bool(e)) + 27 * bool(ww)
                    if code.decide("zero", first, 8 * level(local) + min(h, 7), position, pattern, both):
                        scale = 6 + sign(g) * sum(abs(g) >= step for step in (1, 2, 3, 5, 9, 17))
                        signs = 9 * sign(back) + 3 * sign(north) + sign(w) + 13
                        leans = tap_lean[p][t], row_lean
                        turns = 3 * sign(u) + last + 4
                        negative = code.decide("sign", scale, *(lean.value >> 12 for lean in leans), signs, turns)
                        for lean, memory in zip(leans, (7, 15), strict=True):
                            lean.move(65535 * negative, memory)
                        last, exponent, size = 1 - 2 * negative, 0, 1
                        agreement = 12 + min(max(last * g, -12), 12)
                        contexts = first, agreement, position + 32 * negative, min(h, 23), both
                        while exponent < 30 and code.decide(exponent, *contexts):
                            exponent += 1
                        for _ in range(exponent):
                            node = min(2**exponent, 256) - 1 + size if size < 256 else 511
                            size = 2 * size + code.alone((negative, node))
                        value = values[p][t] = last * size
                for state, memory in ((row, 255), (local, 7), (plane_activity[p], 255), (tap_activity[p][t], 255)):
                    state.move(4096 * min(abs(value), 15), memory)
        above = values
    code.end()
    symbols = Array(zero + value for values in found for plane in values for value in plane)
    need(zero < 2**31 and min(symbols) >= 0 and max(symbols) < 2**31, "a symbol out of bounds")
    symbols.rows = live_rows if rows > 1 else None
    return symbols
