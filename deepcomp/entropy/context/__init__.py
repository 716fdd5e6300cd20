"""Adaptive arithmetic coding with mixed contexts, of integers that lie in rows, planes and taps.

Where Huffman and rANS know how often each symbol occurs, this coder learns, while it goes, how what it
codes depends on what lies around it: how busy its row and its column have been, what its neighbours
are, which rows, columns and kernels hold nothing at all, here and in the layer before. The more of these lie dead
in a weight, the more it takes off the order-0 entropy; it codes some million symbols a second.

Layout::

    varint      the symbol that stands for 0; each symbol less it is a signed integer
    varint      0: the arrangement follows from the dimensions of the tensor; else the number of rows, and
                varint planes, varint width
    varint      0: nothing is known of the inputs; else how many tensors back their rows are
    bytes       one number, the digits of an arithmetic code, as `model` and docs/format.md define it

The stream's first byte may say the second and the third (`short`): then it holds 1 more than the third, and the
second is 0.

The code has one form: as few bytes as name a number in the last interval, and of these the least. What is dead
comes first in it, and rows before all: so the rows of a layer before are known without the rest of it.

`tables`, `arithmetic`, `mixing`, `model`: each a room of its own, from the ground up; all work on one `memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcomp import jit
from deepcomp.entropy.context import arithmetic, mixing, model, tables
from deepcomp.entropy.context.layout import Before, Layout
from deepcomp.entropy.context.memory import Memory
from deepcomp.errors import UsageError
from deepcomp.wire import Cursor, varint

__all__ = ["LIMIT", "Before", "LiveRows", "decode", "encode", "live_rows"]

LiveRows: TypeAlias = Callable[[int], NDArray[np.uint8]]  # of the tensor so many back

LIMIT = 1 << 31  # symbols are below
_ROW_SECONDS = 5e-6  # what plain Python takes for a row that is dead or live
_WINDOW = 6  # bytes of the code that a decoder looks at
_SAMPLE = 1 << 16  # symbols that arrangements are tried on
_EVEN = 1 << 39  # a state that knows nothing: a chance of a half, never moved
_LEVEL = 1 << 27  # a leaning that knows nothing
_WEIGHT = 80_000  # of all predictions of a decision together, at first; 65,536 is one
_SHORT = 7  # the greatest number that the first byte has room for
_PREDICTIONS = (2, 2, 3, 4, 5, *[5] * 31)  # of each kind of decision


def encode(symbols: NDArray[Any], shape: tuple[int, ...], before: Before | None, fast: bool) -> tuple[int, bytes]:
    """Write symbols, at least one: what the stream's first byte says (`short`), and what follows it.

    Parameters
    ----------
    symbols : unsigned, shape (n,)
    shape : tuple of int
        Dimensions of the tensor whose elements the symbols are; () if they are not.
    before : Before, optional
        The rows of a layer before; left out of account where they do not fit, or do not help.
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
    layout, known = _arrange(integers, usual, before, fast)
    back, code = known.back if known else 0, _encode(integers, layout, known, fast)
    if layout == usual and back < _SHORT:
        return back + 1, varint(zero) + code
    head = b"\0" if layout == usual else b"".join(map(varint, (layout.rows, layout.planes, layout.width)))
    return 0, varint(zero) + head + varint(back) + code


def decode(
    cursor: Cursor, short: int, count: int, shape: tuple[int, ...], rows_of: LiveRows | None, fast: bool
) -> NDArray[Any]:
    """Read `count` symbols, at least one, up to the end of the data: `encode` backwards.

    Parameters
    ----------
    short : int
        What the stream's first byte says.
    rows_of : callable, optional
        Gives which rows hold anything of the tensor that stands so many tensors back; see `live_rows`.

    Returns
    -------
    uint8 where all symbols are below 256, else uint16 where they fit, else uint32

    Raises
    ------
    FormatError
        If the data are not such a stream.
    """
    zero = cursor.varint(LIMIT - 1)
    layout = _read_layout(cursor, short, count, shape)
    before = _read_before(cursor, short, layout, rows_of)
    integers = _decode(cursor, layout, before, fast)
    least, most = int(integers.min()) + zero, int(integers.max()) + zero
    if least < 0 or most >= LIMIT:
        cursor.fail(f"symbols from {least} to {most}, 0 to {LIMIT - 1} expected,")
    integers += np.int32(zero)
    return integers.astype(np.min_scalar_type(most))


def live_rows(cursor: Cursor, short: int, count: int, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Which rows of a stream of `count` symbols hold anything, 1 or 0; None where there is but one row.

    Raises
    ------
    FormatError
        If the data do not begin as such a stream.
    """
    cursor.varint(LIMIT - 1)
    rows = _read_layout(cursor, short, count, shape).rows
    if rows == 1:
        return None
    _read_back(cursor, short)
    data = np.array(cursor.take(cursor.left), np.uint8)
    fast = jit.pays(rows * _ROW_SECONDS)
    memory = _memory(Layout(rows, 0, 0, 0), np.empty(0, np.int32), data, None, encoding=False, fast=fast)
    _walk(memory, fast)
    if model.over(memory):
        cursor.fail("a code cut short")
    return np.array(memory.live_rows, np.uint8)


def _read_layout(cursor: Cursor, short: int, count: int, shape: tuple[int, ...]) -> Layout:
    rows = 0 if short else cursor.varint(count)
    if not rows:
        return Layout.of(shape, count)
    planes, width = cursor.varint(count), cursor.varint(count)
    if not planes or count % (rows * planes) or not 1 <= width <= count // (rows * planes):
        cursor.fail(f"{count} symbols in {rows} rows of {planes} planes, in lines of {width},")
    return Layout(rows, planes, count // (rows * planes), width)


def _read_back(cursor: Cursor, short: int) -> int:
    return short - 1 if short else cursor.varint()


def _read_before(cursor: Cursor, short: int, layout: Layout, rows_of: LiveRows | None) -> Before | None:
    back = _read_back(cursor, short)
    if not back:
        return None
    if rows_of is None:
        cursor.fail(f"inputs from {back} tensors back, where there is none,")
    before = Before(back, rows_of(back))
    if not layout.feeds(before.rows):
        cursor.fail(f"{layout.places} inputs of {layout.rows} rows, fed by {len(before.rows)} rows,")
    return before


def _arrange(
    integers: NDArray[np.int32], usual: Layout, before: Before | None, fast: bool
) -> tuple[Layout, Before | None]:
    """The arrangement with the shortest code, and whether to heed the layer before, tried on the first rows."""
    layouts, rows = [usual, *usual.pictures()], max(_SAMPLE // usual.places, 1)
    known = [None, before] if before is not None and usual.feeds(before.rows) else [None]
    if len(layouts) * len(known) == 1:
        return usual, None

    def size(way: tuple[Layout, Before | None]) -> int:
        return len(_encode(integers[: rows * usual.places], way[0].top(rows), way[1], fast))

    return min(product(layouts, known), key=size)


def _encode(integers: NDArray[np.int32], layout: Layout, before: Before | None, fast: bool) -> bytes:
    data = np.empty(len(integers) + 64, np.uint8)
    while True:
        memory = _memory(layout, integers, data, before, encoding=True, fast=fast)
        _walk(memory, fast)
        low, width, place, _ = (int(register) for register in memory.registers)
        if place <= len(data):
            break
        data = np.empty(2 * place, np.uint8)
    spare = next(n for n in (6, 5, 4) if -(-low >> 8 * n) << 8 * n < low + width)
    last = -(-low >> 8 * spare) << 8 * spare
    if last >> 8 * _WINDOW:
        arithmetic.carry(memory)
        last -= 1 << 8 * _WINDOW
    return data[:place].tobytes() + last.to_bytes(_WINDOW, "big")[: _WINDOW - spare]


def _decode(cursor: Cursor, layout: Layout, before: Before | None, fast: bool) -> NDArray[np.int32]:
    data = np.array(cursor.take(cursor.left), np.uint8)
    integers = np.zeros(layout.rows * layout.places, np.int32)
    memory = _memory(layout, integers, data, before, encoding=False, fast=fast)
    _walk(memory, fast)
    above, width, place, _ = (int(register) for register in memory.registers)
    spare = place - len(data)
    if not 4 <= spare <= _WINDOW:
        cursor.fail("a code cut short" if spare > _WINDOW else "a code longer than its symbols")
    unit, last = 1 << 8 * spare, int(data[-1]) if len(data) else 0
    if above >= unit or (spare < _WINDOW and (not last or (256 - last) * unit + above < width)):
        cursor.fail("a code that is not the shortest, or damaged,")
    return integers


def _walk(memory: Memory, fast: bool) -> None:
    if fast:
        from deepcomp.entropy.context import kernels

        kernels.walk(memory)
    else:
        model.walk(memory)


def _memory(
    layout: Layout,
    integers: NDArray[np.int32],
    data: NDArray[np.uint8],
    before: Before | None,
    *,
    encoding: bool,
    fast: bool,
) -> Memory:
    """What a walk over the integers begins with."""
    live = integers.reshape(layout.rows, layout.planes, layout.taps) != 0
    window = 0 if encoding else int.from_bytes(data[:_WINDOW].tobytes().ljust(_WINDOW, b"\0"), "big")
    weights = np.zeros((model.MIXES, mixing.INPUTS), np.int64)
    weights[:] = [[_WEIGHT // count] for count in _PREDICTIONS]
    arrays = {
        "values": integers,
        # what is not coded is live
        "live_rows": (live.any((1, 2)) | (layout.rows == 1)).astype(np.uint8),
        "live_planes": (live.any((0, 2)) | (layout.planes == 1)).astype(np.uint8),
        "live_taps": (live.any(0) | (layout.rows == 1)).reshape(-1).astype(np.uint8),
        "live_kernels": np.zeros(layout.planes, np.uint8),
        "fed": layout.fed(before),
        "plane_activity": np.zeros(layout.planes, np.int32),
        "tap_activity": np.zeros(layout.places, np.int32),
        "tap_lean": np.full(layout.places, _LEVEL, np.int32),
        "row": np.zeros(model.KNOWN, np.int64),
        "states": np.full(model.STATES, _EVEN, np.int64),
        "weights": weights.reshape(-1),
        "ages": np.zeros(model.MIXES, np.int64),
        "contexts": np.zeros(mixing.INPUTS, np.int64),
        "inputs": np.zeros(mixing.INPUTS, np.int64),
        "registers": np.array([window, 1 << 8 * _WINDOW, 0 if encoding else _WINDOW, encoding], np.int64),
        "data": data,
        "squash": tables.SQUASH,
        "stretch": tables.STRETCH,
        "reciprocal": tables.RECIPROCAL,
        "rate": tables.RATE,
        "level": tables.LEVEL,
    }
    views = arrays if fast else {name: memoryview(array) for name, array in arrays.items()}
    return Memory(layout.rows, layout.planes, layout.taps, layout.width, **views)
