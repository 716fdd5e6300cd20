"""Symbols to bytes and back: one self-describing stream for an array of non-negative integers.

This package knows arrays of symbols and runs of bytes, nothing of networks or files. A stream
does not store how many symbols it holds: who keeps it knows. Every stream begins with a byte::

    bits 0-3    method: 0 constant, 1 fixed, 2 huffman, 3 rans, 4 context
    bit 4       wide: the method codes tokens, raw bits follow (`tokens`)
    bit 5       folded: symbols lie around a centre (`folding`); Huffman and rANS only
    bits 6-7    zero; of a context stream see there for bits 5-7

If folded, a varint follows, the centre, and if wide another one: the bytes of raw bits, which stand at the very end.
Then the method's part:

constant
    varint      the value of every symbol; 0 in the stream of no symbols
fixed
    u8          width, 1 to 32
    fixed       the symbols, `width` bits each (`bits`)
huffman, rans
    see the modules of these names; symbols (or tokens) are 0 to 255
context
    see the package of this name; never wide

A stream of symbols below 256, folded where they are to be, is never wide. All integers are little-endian, bits are
counted from the lowest, pad bits are zero, a varint is an unsigned LEB128 in its shortest form.

numpy and, where there is enough to do (`jit`), numba write and read the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcomp import jit
from deepcomp.entropy import folding, huffman, planes, rans, tables, tokens
from deepcomp.entropy.bits import Parts, fixed_bytes, pack_fixed, read_fixed
from deepcomp.errors import UsageError
from deepcomp.wire import Cursor, varint

if TYPE_CHECKING:
    from deepcomp.entropy.context import Before, LiveRows

__all__ = ["CODERS", "Parts", "Symbols", "bits", "cost", "decode", "encode", "encode_parts", "live_rows", "planes"]

Symbols: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

CODERS = ("auto", "fixed", "huffman", "rans", "context", "smallest")

_CONSTANT, _FIXED, _HUFFMAN, _RANS, _CONTEXT = range(5)
_METHOD, _WIDE, _FOLDED = 0x0F, 0x10, 0x20
_SHORT = 5  # where the bits stand of what the first byte of a context stream says besides
_VALUES = 1 << 32
_BLOCK = 1 << 20  # symbols counted at a time
_SAMPLE = 1 << 15  # symbols counted to recognise noise

_RANS_PAYS = 0.984  # of the bytes with Huffman, which codes and decodes three times as fast
_FIXED_PAYS = 1.005  # of the bytes of the best, since fixed fields decode for next to nothing

# What numpy takes, for `jit`.
_COUNT_SECONDS = 1e-9
_ENCODE_SECONDS = 30e-9
_DECODE_SECONDS = {_CONSTANT: 0.0, _FIXED: 0.0, _HUFFMAN: 10e-9, _RANS: 40e-9}
_CONTEXT_SECONDS = (10e-6, 300e-6)  # for each symbol, and for each byte of the stream


def cost(symbols: Symbols) -> float:
    """Order-0 entropy of an array, in bits: what an ideal coder with a free table would take."""
    if symbols.dtype == np.uint8:
        return float(bits(_histogram(symbols.view(np.uint8), jit.pays(len(symbols) * _COUNT_SECONDS))))
    return float(bits(np.unique_counts(symbols).counts))


def bits(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    """Order-0 entropy in bits of symbols that occur so often, over the last axis."""
    counts = histogram.astype(np.float64)
    total = np.maximum(counts.sum(-1), 1)
    found: NDArray[np.float64] = total * np.log2(total) - (counts * np.log2(np.maximum(counts, 1))).sum(-1)
    return found


def encode(symbols: Symbols, coder: str = "auto", shape: tuple[int, ...] = (), before: Before | None = None) -> bytes:
    """Write symbols as one stream.

    Parameters
    ----------
    symbols : uint8, uint16 or uint32, shape (n,)
    coder : one of `CODERS`
        "auto" takes what is smallest of fixed fields, Huffman and rANS, but rANS only where that saves
        1.6 %, and fixed fields already where they come within 0.5 %. "smallest" takes what is smaller of
        that and "context". Symbols that are all the same are constant, whatever the coder.
    shape : tuple of int, optional
        Dimensions of the tensor whose elements the symbols are, for "context"; a reader must know them too.
    before : Before, optional
        The rows of a tensor before, whose layer may feed this one: for "context", which heeds them where that helps.

    Raises
    ------
    UsageError
        If there is no such coder, or "context" is asked for symbols of 2^31 and more.
    """
    return b"".join(encode_parts(symbols, coder, shape, before))


def encode_parts(
    symbols: Symbols, coder: str = "auto", shape: tuple[int, ...] = (), before: Before | None = None
) -> Parts:
    """The stream that `encode` writes, in pieces; some may be views of the symbols."""
    if coder not in CODERS:
        raise UsageError(f"coder {coder!r}: one of {', '.join(CODERS)} expected")
    if symbols.ndim != 1 or symbols.dtype not in (np.uint8, np.uint16, np.uint32):
        raise TypeError(f"symbols of {symbols.dtype}, shape {symbols.shape}: unsigned, at most 32 bits, 1-d expected")
    if not len(symbols):
        return [bytes([_CONSTANT, 0])]
    if coder in ("context", "smallest"):
        return _encode_context(symbols, coder, shape, before)
    fast = jit.pays(len(symbols) * _ENCODE_SECONDS)
    head, parts = _encode_plain(symbols, coder, fast)
    if head & _WIDE and (centre := folding.centre(symbols)) >= tokens.DIRECT:  # most symbols have raw bits
        folded = folding.fold(symbols, centre)
        other, fewer = (0, parts) if folded is None else _encode_plain(folded, coder, fast)
        if other & ~_WIDE in (_HUFFMAN, _RANS) and 5 + sum(map(len, fewer)) < sum(map(len, parts)):
            return [bytes([other | _FOLDED]), varint(centre), *fewer]
    return [bytes([head]), *parts]


def _encode_context(symbols: Symbols, coder: str, shape: tuple[int, ...], before: Before | None) -> Parts:
    from deepcomp.entropy import context  # whose tables most have no use for

    usual = encode_parts(symbols)
    size, largest = sum(map(len, usual)), int(symbols.max())
    if largest == symbols.min() or (coder == "smallest" and largest >= context.LIMIT):
        return usual
    short, stream = context.encode(symbols, shape, before, _context_pays(len(symbols), size))
    found: Parts = [bytes([_CONTEXT | short << _SHORT]), stream]
    return found if coder == "context" or sum(map(len, found)) < size else usual


def _encode_plain(symbols: Symbols, coder: str, fast: bool) -> tuple[int, Parts]:
    """The first byte of a stream that is not folded, and what follows."""
    largest = 255 if symbols.dtype == np.uint8 else int(symbols.max())
    if largest > 255:
        return _encode_wide(np.ascontiguousarray(symbols, np.uint32), largest, coder, fast)
    return _encode_bytes(np.ascontiguousarray(symbols, np.uint8), coder, 0, fast)


def _encode_wide(values: NDArray[np.uint32], largest: int, coder: str, fast: bool) -> tuple[int, Parts]:
    if values.min() == largest:
        return _CONSTANT, [varint(largest)]
    width = largest.bit_length()
    size = 2 + fixed_bytes(len(values), width)
    if coder != "fixed":
        symbols, extras = tokens.split(values, fast)
        method, parts = _encode_bytes(symbols, coder, len(extras), fast)
        stream = [varint(len(extras)), *parts, extras]
        if coder != "auto" or size > _FIXED_PAYS * (1 + sum(map(len, stream))):
            return method | _WIDE, stream
    return _FIXED, [bytes([width]), pack_fixed(values, width)]


def _encode_bytes(symbols: NDArray[np.uint8], coder: str, beside: int, fast: bool) -> tuple[int, Parts]:
    """Choose a method and write symbols with it; `beside` bytes of the stream do not depend on it."""
    if coder == "auto" and _noise(symbols, fast):
        return _FIXED, [bytes([8]), symbols.data]
    histogram = _histogram(symbols, fast)
    largest = int(histogram.nonzero()[0][-1])
    if histogram[largest] == len(symbols):
        return _CONSTANT, [varint(largest)]
    width = largest.bit_length()
    code = _code(histogram, coder, beside + 1 + fixed_bytes(len(symbols), width), beside, fast)
    if isinstance(code, huffman.Code):
        return _HUFFMAN, huffman.encode(symbols, code, fast)
    if isinstance(code, rans.Model):
        return _RANS, rans.encode(symbols, code, fast)
    return _FIXED, [bytes([width]), symbols.data if width == 8 else pack_fixed(symbols, width)]


def _code(
    histogram: NDArray[np.int64], coder: str, fixed: int, beside: int, fast: bool
) -> huffman.Code | rans.Model | None:
    """The code for symbols that occur so often; None where fields of one width do, which take `fixed` bytes."""
    if coder == "fixed":
        return None
    if coder == "rans":
        return rans.model(histogram, fast)
    count, ideal = int(histogram.sum()), beside + float(bits(histogram)) / 8
    if coder == "auto" and fixed <= _FIXED_PAYS * (ideal + tables.least(histogram)):
        return None  # no code can be so much shorter
    code = huffman.code(histogram, fast)
    if coder == "huffman":
        return code
    found: huffman.Code | rans.Model = code
    best = beside + huffman.estimate(count, code)
    if ideal + rans.least(len(code.table)) < _RANS_PAYS * best:  # else not even the entropy would pay
        model = rans.model(histogram, fast)
        shorter = beside + rans.estimate(count, model)
        if shorter < _RANS_PAYS * best:
            best, found = shorter, model
    return None if fixed <= _FIXED_PAYS * best else found


def _noise(symbols: NDArray[np.uint8], fast: bool) -> bool:
    """Whether symbols are so many, and a sample of them so even, that no code can pay."""
    if len(symbols) < 4 * _SAMPLE:
        return False
    sample = symbols[:: len(symbols) // _SAMPLE].copy()
    return 8 * len(sample) <= _FIXED_PAYS * float(bits(_histogram(sample, fast)))


def _histogram(symbols: NDArray[np.uint8], fast: bool) -> NDArray[np.int64]:
    if fast:
        from deepcomp.entropy import kernels

        counts: NDArray[np.int64] = kernels.histogram(kernels.frozen(symbols))
        return counts
    blocks = np.arange(0, len(symbols), _BLOCK)
    return sum((np.bincount(symbols[i : i + _BLOCK], minlength=256) for i in blocks), np.zeros(256, np.int64))


def decode(
    data: bytes | bytearray | memoryview,
    count: int,
    offset: int = 0,
    shape: tuple[int, ...] = (),
    rows_of: LiveRows | None = None,
) -> Symbols:
    """Read a stream of `count` symbols that takes all of `data`.

    Parameters
    ----------
    offset : int
        Where `data` starts in its file, for messages.
    shape : tuple of int, optional
        Dimensions of the tensor that the array is part of.
    rows_of : callable, optional
        Gives the `live_rows` of the tensor that stands so many tensors back.

    Returns
    -------
    uint8 where all symbols are below 256, else uint16 where they fit, else uint32; maybe a read-only
    view of `data`.

    Raises
    ------
    FormatError
        If the data are not a stream of `count` symbols.
    """
    cursor = Cursor(data, offset, "symbol stream")
    head = cursor.byte()
    method, beside = head & _METHOD, head & ~_METHOD
    allowed = {_HUFFMAN: _WIDE | _FOLDED, _RANS: _WIDE | _FOLDED, _CONTEXT: 7 << _SHORT}.get(method, _WIDE)
    if method > _CONTEXT or beside & ~allowed:
        cursor.fail(f"method {head}, at most {_CONTEXT} expected,")
    if not count and head:
        cursor.fail(f"method {method} for no symbols, {_CONSTANT} expected,")
    if method == _CONTEXT:
        from deepcomp.entropy import context

        return context.decode(cursor, head >> _SHORT, count, shape, rows_of, _context_pays(count, cursor.left))
    fast = jit.pays(count * _DECODE_SECONDS[method])
    centre = cursor.varint(_VALUES - 1) if head & _FOLDED else None
    read = _decode_wide if head & _WIDE else _decode_method
    symbols = read(method, cursor, count, fast)
    return symbols if centre is None else folding.unfold(symbols, centre, cursor)


def live_rows(
    data: bytes | bytearray | memoryview, count: int, offset: int = 0, shape: tuple[int, ...] = ()
) -> NDArray[np.uint8] | None:
    """Which rows of an array hold anything, 1 or 0, without the rest of it; None where its stream does not say.

    Parameters
    ----------
    data, count, offset, shape
        See `decode`.

    Raises
    ------
    FormatError
        If the data do not begin as a stream.
    """
    cursor = Cursor(data, offset, "symbol stream")
    short, head = divmod(cursor.byte(), 1 << _SHORT)
    if head != _CONTEXT or not count:
        return None
    from deepcomp.entropy import context

    return context.live_rows(cursor, short, count, shape)


def _decode_wide(method: int, cursor: Cursor, count: int, fast: bool) -> Symbols:
    extras = cursor.varint(cursor.left)
    end = len(cursor.data) - extras
    if end < cursor.position:
        cursor.fail(f"{extras} bytes of raw bits, {cursor.left} left,")
    inner = cursor.part(cursor.position, end)
    symbols = _decode_method(method, inner, count, fast)
    largest = symbols.max(initial=0)
    if not tokens.WIDE <= largest < tokens.TOKENS:
        inner.fail(f"tokens up to {largest}, {tokens.WIDE} to {tokens.TOKENS - 1} expected,")
    rest = cursor.part(end, len(cursor.data))
    values = tokens.join(symbols.astype(np.uint8, copy=False), rest, fast)
    rest.end()
    return values if largest > tokens.LAST_UINT16 else values.astype(np.uint16)


def _context_pays(count: int, size: int) -> bool:
    """Whether numba should code so many symbols in about so many bytes."""
    each, every = _CONTEXT_SECONDS
    return jit.pays(each * count + every * size)


def _decode_method(method: int, cursor: Cursor, count: int, fast: bool) -> Symbols:
    if method == _CONSTANT:
        value = cursor.varint(_VALUES - 1 if count else 0)
        symbols: Symbols = np.full(count, value, np.min_scalar_type(value))
    elif method == _FIXED:
        width = cursor.byte()
        if not 1 <= width <= 32:
            cursor.fail(f"fields of {width} bits, 1 to 32 expected,")
        symbols = read_fixed(cursor, count, width)
    elif method == _HUFFMAN:
        symbols = huffman.decode(cursor, count, fast)
    else:
        symbols = rans.decode(cursor, count, fast)
    cursor.end()
    return symbols
