"""Hand-made `.dcz` files: every number as an attacker likes it, every checksum right.

Written from `docs/format.md`, without deepcomp, so that a mistake there is not made here again. What
a function is not told otherwise is as the format wants it: an attack states the one thing wrong with it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

TENSOR, GRAPH, METADATA = 0, 1, 2
F32, F16, F64, I32, I64, U8, BOOL, C64 = 0, 1, 3, 6, 7, 8, 12, 18
SIZES = (4, 2, 2, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1, 1, 1, 1, 8, 16)  # bytes of each element type
RAW, CODEBOOK, MASK, ROWS, GRID, SHIFTED, SAME, TIED = 1, 2, 3, 4, 5, 6, 126, 127
TABLE_BYTES = (1, 2, 4, 8, 4, 1)  # of the types of tables' elements


def varint(number: int) -> bytes:
    """Any non-negative integer, those beyond 64 bits too."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def signed(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(len(raw)) + raw


# --- the file -----------------------------------------------------------------------------------


@dataclass
class Record:
    """One record; `length` is what the index says of the body where that is a lie."""

    kind: int
    name: str | bytes
    head: bytes
    body: bytes = b""
    last: bool = True
    length: int | None = None

    def listed(self) -> bytes:
        length = len(self.body) if self.length is None else self.length
        return varint(2 * self.kind + self.last) + text(self.name) + text(self.head) + varint(length)


def plain(records: Iterable[Record], count: int | None = None) -> bytes:
    """An index as it is."""
    listed = [record.listed() for record in records]
    return b"\x00" + varint(len(listed) if count is None else count) + b"".join(listed)


def deflated(content: bytes, size: int | None = None) -> bytes:
    """An index that unfolds to `content`; `size` is what it says of that."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"\x01" + varint(len(content) if size is None else size) + squeeze.compress(content) + squeeze.flush()


def in_columns(content: bytes, behind: bytes = b"") -> bytes:
    """An index of coding 2 that unfolds to `content`, and an open chunk."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"\x02" + squeeze.compress(content) + squeeze.flush() + behind


def chunks(records: Iterable[Record]) -> bytes:
    """The bodies, and behind each record with `last` the checksum of its chunk."""
    out, chunk = b"", b""
    for record in records:
        chunk += record.body
        if record.last and chunk:
            out, chunk = out + chunk + struct.pack("<I", zlib.crc32(chunk)), b""
    return out + chunk


def seal(content: bytes, index: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """Header, `content` (the chunks), index and a trailer with the right checksums; `length`: of the index."""
    header = b"\x93DCZ" + bytes(version)
    size = struct.pack("<I", len(index) if length is None else length)
    sha = hashlib.sha256(header + content + index + size).digest()
    crc = struct.pack("<I", zlib.crc32(header + index + size + sha))
    return header + content + index + size + sha + crc


def file(*records: Record, version: tuple[int, int] = (1, 0)) -> bytes:
    """A file of these records."""
    return seal(chunks(records), plain(records), version)


# --- tensors ------------------------------------------------------------------------------------


@dataclass
class Array:
    """A coded array; `count` is None for as many symbols as the array before, `length` where the head lies."""

    stream: bytes
    count: int | None = None
    length: int | None = None

    def head(self) -> bytes:
        length = len(self.stream) if self.length is None else self.length
        return varint(0 if self.count is None else self.count + 1) + varint(length)


@dataclass
class Table:
    kind: int
    content: bytes
    count: int | None = None

    def head(self) -> bytes:
        count = len(self.content) // TABLE_BYTES[self.kind] if self.count is None else self.count
        return bytes([self.kind]) + varint(count)


@dataclass
class Part:
    """One form of a tensor."""

    code: int
    facts: tuple[int, ...] = ()
    arrays: tuple[Array, ...] = ()
    tables: tuple[Table, ...] = ()

    def head(self, more: bool) -> bytes:
        sizes = len(self.facts) | len(self.arrays) << 3 | len(self.tables) << 7
        said = b"".join([*map(signed, self.facts), *(one.head() for one in (*self.arrays, *self.tables))])
        return bytes([self.code | more << 7, sizes]) + said

    def body(self) -> bytes:
        return b"".join([*(array.stream for array in self.arrays), *(table.content for table in self.tables)])


def shaped(dtype: int, shape: tuple[int, ...], role: int = 0, dimensions: int | None = None) -> bytes:
    """How the head of a tensor begins."""
    rank = len(shape) if dimensions is None else dimensions
    return bytes([4 * dtype | role]) + varint(rank) + b"".join(map(varint, shape))


def tensor(
    name: str | bytes, shape: tuple[int, ...], *parts: Part, dtype: int = F32, role: int = 0, last: bool = True
) -> Record:
    """A tensor of these forms, outermost first."""
    heads = [part.head(more=number < len(parts)) for number, part in enumerate(parts, 1)]
    return Record(
        TENSOR, name, shaped(dtype, shape, role) + b"".join(heads), b"".join(part.body() for part in parts), last
    )


def reference(name: str, shape: tuple[int, ...], number: int, how: int = TIED, dtype: int = F32) -> Record:
    """A tensor that equals, or is, tensor `number`."""
    return Record(TENSOR, name, shaped(dtype, shape) + bytes([how]) + varint(number))


def words(*values: float, kind: str = "f") -> Part:
    """Raw values of a struct type, which also gives the width of the table."""
    content = struct.pack(f"<{len(values)}{kind}", *values)
    return Part(RAW, tables=(Table({1: 0, 2: 1, 4: 2, 8: 3}[struct.calcsize(kind)], content),))


def planes(value: int, dtype: int = F32) -> Part:
    """Raw values whose bytes are all the same: a few bytes for any number of elements."""
    return Part(RAW, arrays=(Array(constant(value)),) * SIZES[dtype])


def codebook(index: bytes, *values: float, count: int | None = None) -> Part:
    return Part(CODEBOOK, (), (Array(index, count),), (Table(2, struct.pack(f"<{len(values)}f", *values)),))


def mask(gaps: bytes, count: int | None) -> Part:
    return Part(MASK, (), (Array(gaps, count),))


def rows(index: bytes, count: int | None, distinct: int) -> Part:
    return Part(ROWS, (distinct,), (Array(index, count),))


def grid(
    q: bytes,
    *scale: float,
    bits: int = 4,
    symmetric: int = 1,
    axis: int = -1,
    group: int = 1,
    size: int = 0,
    lowest: int = 0,
    zero_point: bytes | None = None,
    zero_points: int = 1,
) -> Part:
    arrays = (Array(q),) if zero_point is None else (Array(q), Array(zero_point, zero_points))
    table = Table(4, struct.pack(f"<{len(scale)}f", *scale))
    return Part(GRID, (bits, symmetric, axis, group, size, lowest), arrays, (table,))


# --- streams ------------------------------------------------------------------------------------


def constant(value: int) -> bytes:
    return b"\x00" + varint(value)


def fixed(width: int, *values: int) -> bytes:
    """Fields of one width."""
    whole = sum(value << width * place for place, value in enumerate(values))
    return bytes([1, width]) + whole.to_bytes((len(values) * width + 7) // 8, "little")


def nibbles(*numbers: int) -> bytes:
    """A code table, form 0."""
    whole = sum(number << 4 * place for place, number in enumerate(numbers))
    return varint(2 * (len(numbers) - 1)) + whole.to_bytes((len(numbers) + 1) // 2, "little")


# --- graphs -------------------------------------------------------------------------------------

NONE, FALSE, TRUE = (varint(8 * n + 4) for n in range(3))


def back(places: int = 1) -> bytes:
    """The value computed so many places back."""
    return varint(8 * (places - 1))


def stored(step: int = 0) -> bytes:
    """The tensor so many behind the expected one."""
    return varint(8 * (2 * step if step >= 0 else -2 * step - 1) + 1)


def integer(value: int) -> bytes:
    return varint(8 * (2 * value if value >= 0 else -2 * value - 1) + 2)


def items(*values: bytes, count: int | None = None) -> bytes:
    return varint(8 * (len(values) if count is None else count) + 3) + b"".join(values)


def element_type(code: int) -> bytes:
    return varint(8 * code + 5)


def string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(8 * len(raw) + 6) + raw


def node(operation: int, *arguments: bytes, keywords: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    said = b"".join([*arguments, *(bytes([key]) + value for key, value in keywords)])
    return varint(operation) + bytes([len(arguments) | len(keywords) << 4]) + said


def entrance(name: str | bytes = "x", dtype: int = F32, shape: tuple[int | None, ...] = (None, 2)) -> bytes:
    """An input."""
    sizes = b"".join(varint(0 if size is None else size + 1) for size in shape)
    return text(name) + bytes([dtype]) + varint(len(shape)) + sizes


def graph(
    *nodes: bytes,
    inputs: tuple[bytes, ...] | None = None,
    outputs: bytes | None = None,
    tensors: tuple[int, ...] = (),
    count: int | None = None,
) -> Record:
    """A graph; `tensors`: of each one referred to, its number less the number expected."""
    inputs = (entrance(),) if inputs is None else inputs
    return Record(
        GRAPH,
        "",
        varint(len(tensors))
        + b"".join(map(signed, tensors))
        + varint(len(inputs))
        + b"".join(inputs)
        + varint(len(nodes) if count is None else count)
        + b"".join(nodes)
        + (back() if outputs is None else outputs),
    )
