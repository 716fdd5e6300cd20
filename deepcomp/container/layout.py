"""What stands where in a `.dcz` file.

::

    header    magic (4 bytes), major version (1), minor version (1)
    chunks    each: the bodies of one or more records, then their CRC-32 (4)
    index     one flag byte, then the records, plain or deflated
    trailer   index length (4), SHA-256 (32), CRC-32 (4)

Chunks follow each other without holes from the header to the index, so that only lengths are
stored and nothing can overlap. The SHA-256 covers every byte before it; the trailer's CRC-32 covers
header, index and the rest of the trailer, which is all a reader needs to find a record.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from deepcomp import wire
from deepcomp.errors import FormatError

__all__ = [
    "CHUNK",
    "HEADER",
    "INDEX_LIMIT",
    "LONGEST_NAME",
    "MAGIC",
    "MAJOR",
    "MINOR",
    "MOST_RECORDS",
    "TRAILER",
    "Record",
    "pack_index",
    "unpack_index",
]

MAGIC = b"\x93DCZ"
MAJOR, MINOR = 1, 0
HEADER = struct.Struct("<4sBB")
TRAILER = struct.Struct("<I32sI")
CRC = struct.Struct("<I")
CHUNK = 4096  # a writer closes a chunk once it holds this many bytes
INDEX_LIMIT = 1 << 28  # bytes of an index after inflating
MOST_RECORDS = 1 << 21
LONGEST_NAME = 1 << 16  # bytes
_DEFLATE_LIMIT = 1100  # no deflate stream grows by more than this factor

# Texts that indices are full of, the commonest last: deflate refers back to them from the first
# byte on. Part of the format; never changed within a major version.
DICTIONARY = (
    b"num_batches_trackedrunning_varrunning_meanembeddings.position_embeddings.weighttoken_type_embeddings"
    b"encoder.layers.0.self_attn.in_proj_weightout_proj.biasattention.self.query.weightkey.value.output.dense."
    b"LayerNorm.weight_ih_l0weight_hh_l0bias_ih_l0bias_hh_l0norm1.norm2.linear1.linear2.downsample.0.features."
    b"layer1.0.conv1.weightlayer2.0.bn1.biaslayer3.0.conv2.bn2.classifier.linear.conv3.conv2.conv1."
    b'{"recipe": "deep-compression", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "lossless", "seed": 0, "version": "0.1.0"}'
    b"fc3.biasfc3.weightfc2.biasfc2.weightfc1.biasfc1.weight"
)


@dataclass
class Record:
    """One entry of the index.

    Attributes
    ----------
    kind : int
        What it is: the layer above gives the numbers.
    name : str
        Unique among the records of its kind; a label, never a path.
    head : bytes
        Small description, kept in the index.
    length : int
        Bytes of the body.
    last : bool
        Whether the body closes its chunk.
    chunk, offset : int
        Where the chunk starts in the file, and the body within the chunk's bytes.
    """

    kind: int
    name: str
    head: bytes
    length: int
    last: bool = True
    chunk: int = 0
    offset: int = 0


def pack_index(records: list[Record]) -> bytes:
    """The index as it stands in the file: the smaller of plain and deflated."""
    plain = bytearray(wire.varint(len(records)))
    for record in records:
        plain += wire.varint(record.kind << 1 | record.last)
        plain += wire.text(record.name) + wire.varint(len(record.head)) + record.head + wire.varint(record.length)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    deflated = wire.varint(len(plain)) + squeeze.compress(bytes(plain)) + squeeze.flush()
    return b"\x01" + deflated if len(deflated) < len(plain) else b"\x00" + bytes(plain)


def unpack_index(raw: bytes, offset: int, what: str) -> list[Record]:
    """`pack_index` backwards, with the place of every body worked out.

    Raises
    ------
    FormatError
        If the index is not what `pack_index` writes, or is larger than `INDEX_LIMIT` or `MOST_RECORDS`.
    """
    outer = wire.Cursor(raw, offset, f"{what}: index")
    flag = outer.byte()
    if flag == 0:
        cursor = wire.Cursor(outer.take(outer.left), offset + 1, f"{what}: index")
    elif flag == 1:
        size = outer.varint(min(INDEX_LIMIT, _DEFLATE_LIMIT * len(raw)))
        inflate = zlib.decompressobj(-15, DICTIONARY)
        try:
            plain = inflate.decompress(outer.take(outer.left), size + 1)
        except zlib.error as error:
            raise FormatError(f"{what}: index does not inflate ({error}) at byte {offset}") from None
        if len(plain) != size or not inflate.eof or inflate.unused_data:
            raise FormatError(f"{what}: index does not inflate to the {size} bytes it declares, at byte {offset}")
        cursor = wire.Cursor(plain, 0, f"{what}: inflated index")
    else:
        outer.fail(f"index coding {flag} found, 0 or 1 expected")
    records: list[Record] = []
    seen: set[tuple[int, str]] = set()
    chunk, inside = HEADER.size, 0
    for _ in range(cursor.varint(min(cursor.left, MOST_RECORDS))):
        kind, last = divmod(cursor.varint(1 << 16), 2)
        name = cursor.text(LONGEST_NAME)
        head = bytes(cursor.take(cursor.varint(cursor.left)))
        record = Record(kind, name, head, cursor.varint(1 << 56), bool(last), chunk, inside)
        if (kind, name) in seen:
            cursor.fail(f"a second record named {name[:200]!r}")
        seen.add((kind, name))
        records.append(record)
        inside += record.length
        if record.last:
            chunk, inside = chunk + inside + (CRC.size if inside else 0), 0
    cursor.end()
    if inside or (records and not records[-1].last):
        raise FormatError(f"{what}: index ends within a chunk")
    if chunk != offset:
        raise FormatError(f"{what}: chunks end at byte {chunk}, but the index starts at byte {offset}")
    return records
