"""The heads of all tensors side by side: what a field holds in one is what it holds in the next, and deflate sees it.

::

    varint      number of tensors
    names       a text each
    types       a byte each: the head's, + 128 where the body closes its chunk
    shapes      number of dimensions, dimensions
    forms       of each part: form, counts, facts; of a reference: form, number
    symbols     of each array: how many it has
    tables      of each table: type, number of elements
    lengths     of each array: its bytes

Only where the fields of a head begin and end is known here, not what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deepcomp.container.record import LONGEST_NAME, MOST_DIMENSIONS, MOST_RECORDS, TENSOR, Record
from deepcomp.wire import Cursor, text, varint

__all__ = ["pack", "unpack"]

_LAST = 0x80  # of a type: the body closes its chunk
_MORE = 0x80  # of a form: another part follows
_REFERENCES = (0x7E, 0x7F)
_MOST_PARTS = 3
_TABLE_BYTES = (1, 2, 4, 8, 4, 1)  # of an element, by type
_LONGEST = 1 << 48  # bytes of an array, elements of a table


@dataclass(slots=True)
class _Part:
    """What one part adds to each column."""

    form: bytes
    arrays: int = 0
    tables: int = 0
    more: bool = False
    counts: list[bytes] = field(default_factory=list)
    kinds: list[tuple[int, int]] = field(default_factory=list)  # type and elements of each table
    lengths: list[int] = field(default_factory=list)

    @property
    def head(self) -> bytes:
        """The part as it stands in a head of its own."""
        arrays = (count + varint(length) for count, length in zip(self.counts, self.lengths, strict=True))
        return b"".join([self.form, *arrays, *map(_table, self.kinds)])

    @property
    def body(self) -> int:
        """Bytes of the body."""
        return sum(self.lengths) + sum(_TABLE_BYTES[kind] * count for kind, count in self.kinds)


def pack(tensors: list[Record]) -> bytes:
    """The columns of some tensors."""
    names, types, shapes = bytearray(varint(len(tensors))), bytearray(), bytearray()
    parts: list[_Part] = []
    for tensor in tensors:
        head = Cursor(tensor.head)
        names += text(tensor.name)
        types.append(head.byte() | _LAST * tensor.last)
        shapes += _shape(head)
        more = True
        while more:
            part = _part(head)
            for _ in range(part.arrays):
                part.counts.append(varint(head.varint()))
                part.lengths.append(head.varint())
            part.kinds += [_kind(head) for _ in range(part.tables)]
            parts.append(part)
            more = part.more
    forms = b"".join(part.form for part in parts)
    counts = b"".join(count for part in parts for count in part.counts)
    tables = b"".join(_table(kind) for part in parts for kind in part.kinds)
    lengths = b"".join(varint(length) for part in parts for length in part.lengths)
    return bytes(names + types + shapes) + forms + counts + tables + lengths


def unpack(cursor: Cursor) -> list[Record]:
    """`pack` backwards.

    Raises
    ------
    FormatError
        If the data end early, or a head has more parts, or a table another type, than there are.
    """
    names = [cursor.text(LONGEST_NAME) for _ in range(cursor.varint(min(cursor.left, MOST_RECORDS)))]
    types = [cursor.byte() for _ in names]
    shapes = [_shape(cursor) for _ in names]
    tensors = [_parts(cursor) for _ in names]
    parts = [part for tensor in tensors for part in tensor]
    for part in parts:
        part.counts = [varint(cursor.varint()) for _ in range(part.arrays)]
    for part in parts:
        part.kinds = [_kind(cursor) for _ in range(part.tables)]
    for part in parts:
        part.lengths = [cursor.varint(_LONGEST) for _ in range(part.arrays)]
    records = []
    for name, kind, shape, tensor in zip(names, types, shapes, tensors, strict=True):
        head = bytes([kind & ~_LAST]) + shape + b"".join(part.head for part in tensor)
        records.append(Record(TENSOR, name, head, sum(part.body for part in tensor), bool(kind & _LAST)))
    return records


def _shape(cursor: Cursor) -> bytes:
    rank = cursor.varint(MOST_DIMENSIONS)
    return b"".join([varint(rank), *(varint(cursor.varint()) for _ in range(rank))])


def _parts(cursor: Cursor) -> list[_Part]:
    """What the column of forms holds of a tensor."""
    parts = [_part(cursor)]
    while parts[-1].more:
        if len(parts) == _MOST_PARTS:
            cursor.fail(f"a tensor of more than {_MOST_PARTS} parts")
        parts.append(_part(cursor))
    return parts


def _part(cursor: Cursor) -> _Part:
    form = cursor.byte()
    if form in _REFERENCES:
        return _Part(bytes([form]) + varint(cursor.varint()))
    counts = cursor.byte()
    facts = b"".join(varint(cursor.varint()) for _ in range(counts & 7))
    return _Part(bytes([form, counts]) + facts, counts >> 3 & 15, counts >> 7, form >= _MORE)


def _kind(cursor: Cursor) -> tuple[int, int]:
    kind = cursor.byte()
    if kind >= len(_TABLE_BYTES):
        cursor.fail(f"table of type {kind} found")
    return kind, cursor.varint(_LONGEST)


def _table(kind: tuple[int, int]) -> bytes:
    return bytes([kind[0]]) + varint(kind[1])
