"""Adaptive arithmetic coding with mixed contexts, of integers that lie in rows, planes and taps.

Where Huffman and rANS know how often each symbol occurs, this coder learns, while it goes, how what it
codes depends on what lies around it: how busy its row and its column have been, what its neighbours
are, which rows, columns and kernels hold nothing at all. On the sparse weights of rate-aware training it
takes a quarter to a half off the order-0 entropy; it codes some million symbols a second.

Layout::

    varint      the symbol that stands for 0; each symbol less it is a signed integer
    varint      0: the arrangement follows from the dimensions of the tensor; else the number of rows, and
                varint planes, varint width
    bytes       one number, the digits of an arithmetic code, as `model` and docs/format.md define it

The code has one form: as few bytes as name a number in the last interval, and of these the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepcomp.entropy.context import model, tables
from deepcomp.errors import UsageError
from deepcomp.wire import Cursor, varint

__all__ = ["LIMIT", "Layout", "decode", "encode"]

LIMIT = 1 << 31  # symbols are below
_WINDOW = 6  # bytes of the code that a decoder looks at
_SAMPLE = 1 << 16  # symbols that arrangements are tried on
_EVEN = 1 << 39  # a state that knows nothing: a chance of a half, never moved
_LEVEL = 1 << 27  # a leaning that knows nothing
_WEIGHT = 80_000  # of all predictions of a decision together, at first; 65,536 is one
_PREDICTIONS = (2, 2, 3, 4, 5, *[5] * 31)  # of each kind of decision


@dataclass(frozen=True)
class Layout:
    """How the integers of an array lie: in rows, each of planes, each of taps in lines of `width`.

    Rows are outputs. Of a convolution, planes are its inputs and taps those of a kernel; of a matrix, the
    columns are the taps of one plane, a picture's columns in lines as wide as that.
    """

    rows: int
    planes: int
    taps: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], count: int) -> Self:
        """The arrangement that the dimensions of a tensor say, where its elements are what is coded."""
        if len(shape) < 2 or math.prod(shape) != count:
            return cls(1, 1, count, count)
        if len(shape) == 2:
            return cls(shape[0], 1, shape[1], shape[1])
        return cls(shape[0], shape[1], math.prod(shape[2:]), shape[-1])

    def pictures(self) -> Iterator[Self]:
        """The same rows as square pictures in planes."""
        for width in range(2, math.isqrt(self.taps) + 1):
            if self.planes == 1 and self.rows > 1 and self.taps % width**2 == 0:
                yield type(self)(self.rows, self.taps // width**2, width**2, width)

    def top(self, rows: int) -> Self:
        """The first rows."""
        return type(self)(min(rows, self.rows), self.planes, self.taps, self.width)

    @property
    def row(self) -> int:
        """Symbols in a row."""
        return self.planes * self.taps


def encode(symbols: NDArray[Any], shape: tuple[int, ...], fast: bool) -> bytes:
    """Write symbols, at least one, as a stream without its first byte.

    Parameters
    ----------
    symbols : unsigned, shape (n,)
    shape : tuple of int
        Dimensions of the tensor whose elements the symbols are; () if they are not.
    fast : bool
        Whether numba is to do it.

    Raises
    ------
    UsageError
        If a symbol is not below 2^31.
    """
    values, counts = np.unique_counts(symbols)
    if int(values[-1]) >= LIMIT:
        raise UsageError(f"symbol {values[-1]}: below 2^31 expected of the context coder")
    zero = int(values[counts.argmax()])
    integers = (symbols.astype(np.int64) - zero).astype(np.int32)
    usual = Layout.of(shape, len(symbols))
    layout = _arrange(integers, usual, fast)
    head = b"\0" if layout == usual else b"".join(map(varint, (layout.rows, layout.planes, layout.width)))
    return varint(zero) + head + _encode(integers, layout, fast)


def decode(cursor: Cursor, count: int, shape: tuple[int, ...], fast: bool) -> NDArray[Any]:
    """Read `count` symbols, at least one, up to the end of the data: `encode` backwards.

    Returns
    -------
    uint8 where all symbols are below 256, else uint16 where they fit, else uint32

    Raises
    ------
    FormatError
        If the data are not such a stream.
    """
    zero = cursor.varint(LIMIT - 1)
    integers = _decode(cursor, _read_layout(cursor, count, shape), fast)
    least, most = int(integers.min()) + zero, int(integers.max()) + zero
    if least < 0 or most >= LIMIT:
        cursor.fail(f"symbols from {least} to {most}, 0 to {LIMIT - 1} expected,")
    symbols: NDArray[Any] = np.add(integers, zero, dtype=np.int64).astype(np.min_scalar_type(most))
    return symbols


def _read_layout(cursor: Cursor, count: int, shape: tuple[int, ...]) -> Layout:
    rows = cursor.varint(count)
    if not rows:
        return Layout.of(shape, count)
    planes, width = cursor.varint(count), cursor.varint(count)
    if not planes or count % (rows * planes) or not 1 <= width <= count // (rows * planes):
        cursor.fail(f"{count} symbols in {rows} rows of {planes} planes, in lines of {width},")
    return Layout(rows, planes, count // (rows * planes), width)


def _arrange(integers: NDArray[np.int32], usual: Layout, fast: bool) -> Layout:
    """The arrangement with the shortest code, tried on the first rows."""
    layouts, rows = [usual, *usual.pictures()], max(_SAMPLE // usual.row, 1)
    if len(layouts) == 1:
        return usual
    return min(layouts, key=lambda layout: len(_encode(integers[: rows * usual.row], layout.top(rows), fast)))


def _encode(integers: NDArray[np.int32], layout: Layout, fast: bool) -> bytes:
    data = np.empty(len(integers) + 64, np.uint8)
    while True:
        memory = _memory(layout, integers, data, encoding=True, fast=fast)
        _walk(memory, fast)
        low, width, place, _ = (int(register) for register in memory.registers)
        if place <= len(data):
            break
        data = np.empty(2 * place, np.uint8)
    spare = next(n for n in (6, 5, 4) if -(-low >> 8 * n) << 8 * n < low + width)
    last = -(-low >> 8 * spare) << 8 * spare
    if last >> 8 * _WINDOW:
        model.carry(memory)
        last -= 1 << 8 * _WINDOW
    return data[:place].tobytes() + last.to_bytes(_WINDOW, "big")[: _WINDOW - spare]


def _decode(cursor: Cursor, layout: Layout, fast: bool) -> NDArray[np.int32]:
    data = np.array(cursor.take(cursor.left), np.uint8)
    integers = np.zeros(layout.rows * layout.row, np.int32)
    memory = _memory(layout, integers, data, encoding=False, fast=fast)
    _walk(memory, fast)
    above, width, place, _ = (int(register) for register in memory.registers)
    spare = place - len(data)
    if not 4 <= spare <= _WINDOW:
        cursor.fail("a code cut short" if spare > _WINDOW else "a code longer than its symbols")
    unit, last = 1 << 8 * spare, int(data[-1]) if len(data) else 0
    if above >= unit or (spare < _WINDOW and (not last or (256 - last) * unit + above < width)):
        cursor.fail("a code that is not the shortest, or damaged,")
    return integers


def _walk(memory: model.Memory, fast: bool) -> None:
    if fast:
        from deepcomp.entropy.context import kernels

        kernels.walk(memory)
    else:
        model.walk(memory)


def _memory(
    layout: Layout, integers: NDArray[np.int32], data: NDArray[np.uint8], *, encoding: bool, fast: bool
) -> model.Memory:
    """What a walk over the integers begins with."""
    live = integers.reshape(layout.rows, layout.planes, layout.taps) != 0
    window = 0 if encoding else int.from_bytes(data[:_WINDOW].tobytes().ljust(_WINDOW, b"\0"), "big")
    weights = np.zeros((model.MIXES, model.INPUTS), np.int64)
    weights[:] = [[_WEIGHT // count] for count in _PREDICTIONS]
    arrays = (
        integers,
        # what is not coded is live
        (live.any((1, 2)) | (layout.rows == 1)).astype(np.uint8),
        (live.any((0, 2)) | (layout.planes == 1)).astype(np.uint8),
        (live.any(0) | (layout.rows == 1)).reshape(-1).astype(np.uint8),
        np.zeros(layout.planes, np.uint8),
        np.zeros(layout.planes, np.int32),
        np.zeros(layout.row, np.int32),
        np.full(layout.row, _LEVEL, np.int32),
        np.zeros(6, np.int64),
        np.full(model.STATES, _EVEN, np.int64),
        weights.reshape(-1),
        np.zeros(model.MIXES, np.int64),
        np.zeros(model.INPUTS, np.int64),
        np.zeros(model.INPUTS, np.int64),
        np.array([window, 1 << 8 * _WINDOW, 0 if encoding else _WINDOW, encoding], np.int64),
        data,
        *(np.array(table, np.int32) for table in (tables.SQUASH, tables.STRETCH, tables.RECIPROCAL, tables.RATE)),
        np.array(tables.LEVEL, np.uint8),
    )
    shape = (layout.rows, layout.planes, layout.taps, layout.width)
    return model.Memory(*shape, *(array if fast else memoryview(array) for array in arrays))
