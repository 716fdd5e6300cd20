"""What stands where in a `.dcz` file.

::

    header    magic (4 bytes), major version (1), minor version (1)
    chunks    each: the bodies of one or more records, then their CRC-32 (4)
    index     the records: a byte that says how, and then plain, deflated, or in columns and deflated;
              behind the latter the bodies of the last chunk, if that is not closed
    trailer   index length (4), SHA-256 (32), CRC-32 (4)

Chunks follow each other without holes from the header to the index, so that only lengths are
stored and nothing can overlap. The SHA-256 covers every byte before it; the trailer's CRC-32 covers
header, index and the rest of the trailer, which is all a reader needs to find a record.
"""

from __future__ import annotations

import struct
import zlib

from deepcomp import wire
from deepcomp.container import columns
from deepcomp.container.dictionaries import IN_COLUMNS, LISTED
from deepcomp.container.record import GRAPH, LONGEST_NAME, METADATA, MOST_RECORDS, TENSOR, Record
from deepcomp.errors import FormatError

__all__ = [
    "CHUNK",
    "HEADER",
    "INDEX_LIMIT",
    "MAGIC",
    "MAJOR",
    "MINOR",
    "TRAILER",
    "pack_index",
    "unpack_index",
]

MAGIC = b"\x93DCZ"
MAJOR, MINOR = 1, 1
HEADER = struct.Struct("<4sBB")
TRAILER = struct.Struct("<I32sI")
CRC = struct.Struct("<I")
CHUNK = 4096  # a writer closes a chunk once it holds this many bytes
INDEX_LIMIT = 1 << 28  # bytes of an index after inflating
PLAIN, DEFLATED, COLUMNS = range(3)  # codings of an index; the last is what is written
_DEFLATE_LIMIT = 1100  # no deflate stream grows by more than this factor


def pack_index(records: list[Record]) -> bytes:
    """The index of tensors, a graph and metadata as it stands in the file, in columns."""
    others = {record.kind: record.head for record in records if record.kind != TENSOR}
    graph, metadata = others.get(GRAPH, b""), others.get(METADATA, b"")
    tensors = columns.pack([record for record in records if record.kind == TENSOR])
    plain = tensors + wire.varint(len(graph)) + graph + metadata
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, IN_COLUMNS)
    return bytes([COLUMNS]) + squeeze.compress(plain) + squeeze.flush()


def unpack_index(raw: bytes, offset: int, what: str) -> tuple[list[Record], bytes]:
    """The records of an index, with the place of every body worked out, and the chunk that stands behind it.

    Parameters
    ----------
    raw : bytes
        All between the chunks and the trailer.
    offset : int
        Where that starts in the file.
    what : str
        The file, for error messages.

    Raises
    ------
    FormatError
        If it is no index, or larger than `INDEX_LIMIT` or `MOST_RECORDS`.
    """
    cursor = wire.Cursor(raw, offset, f"{what}: index")
    coding, behind = cursor.byte(), b""
    if coding == PLAIN:
        records = _listed(wire.Cursor(cursor.take(cursor.left), offset + 1, f"{what}: index"))
    elif coding == DEFLATED:
        size = cursor.varint(min(INDEX_LIMIT, _DEFLATE_LIMIT * len(raw)))
        plain, whole, rest = _inflate(cursor, LISTED, size)
        if len(plain) != size or not whole or rest:
            raise FormatError(f"{what}: index does not inflate to the {size} bytes it declares, at byte {offset}")
        records = _listed(wire.Cursor(plain, 0, f"{what}: inflated index"))
    elif coding == COLUMNS:
        plain, whole, behind = _inflate(cursor, IN_COLUMNS, INDEX_LIMIT)
        if not whole:
            raise FormatError(f"{what}: index does not inflate to {INDEX_LIMIT} bytes at most, at byte {offset}")
        records = _in_columns(wire.Cursor(plain, 0, f"{what}: inflated index"))
    else:
        cursor.fail(f"index coding {coding} found, at most {COLUMNS} expected")
    _place(records, offset, offset + len(raw) - len(behind), len(behind), what)
    return records, behind


def _inflate(cursor: wire.Cursor, dictionary: bytes, limit: int) -> tuple[bytes, bool, bytes]:
    """What the rest of an index inflates to, whether that is all and not too much, and what stands behind it."""
    inflate, offset = zlib.decompressobj(-15, dictionary), cursor.position
    try:
        plain = inflate.decompress(cursor.take(cursor.left), limit + 1)
    except zlib.error as error:
        cursor.position = offset
        cursor.fail(f"does not inflate ({error})")
    return plain, inflate.eof and len(plain) <= limit, inflate.unused_data


def _listed(cursor: wire.Cursor) -> list[Record]:
    """Records one after another."""
    records: list[Record] = []
    for _ in range(cursor.varint(min(cursor.left, MOST_RECORDS))):
        kind, last = divmod(cursor.varint(1 << 16), 2)
        name = cursor.text(LONGEST_NAME)
        head = bytes(cursor.take(cursor.varint(cursor.left)))
        records.append(Record(kind, name, head, cursor.varint(1 << 56), bool(last)))
    cursor.end()
    if records and not records[-1].last:
        cursor.fail("ends within a chunk")
    return records


def _in_columns(cursor: wire.Cursor) -> list[Record]:
    """Tensors in columns, the graph, metadata."""
    records = columns.unpack(cursor)
    for kind, size in ((GRAPH, cursor.varint(cursor.left)), (METADATA, None)):
        if head := bytes(cursor.take(cursor.left if size is None else size)):
            records.append(Record(kind, "", head, 0, last=False))
    return records


def _place(records: list[Record], end: int, behind: int, size: int, what: str) -> None:
    """Find out where bodies are: closed chunks end at byte `end`, one of `size` bytes that is open is at `behind`."""
    seen: set[tuple[int, str]] = set()
    chunk, inside, first = HEADER.size, 0, 0
    for number, record in enumerate(records, 1):
        if (record.kind, record.name) in seen:
            raise FormatError(f"{what}: index: a second record named {record.name[:200]!r} at byte {end}")
        seen.add((record.kind, record.name))
        record.chunk, record.offset = chunk, inside
        inside += record.length
        if record.last:
            chunk, inside, first = chunk + inside + (CRC.size if inside else 0), 0, number
    if chunk != end:
        raise FormatError(f"{what}: chunks end at byte {chunk}, but the index starts at byte {end}")
    if inside != size:
        raise FormatError(f"{what}: bodies of {inside} bytes expected behind the index, {size} found at byte {behind}")
    for record in records[first:]:
        record.chunk = behind
