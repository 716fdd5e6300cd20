"""One entry of the index of a `.dcz` file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GRAPH", "LONGEST_NAME", "METADATA", "MOST_DIMENSIONS", "MOST_RECORDS", "TENSOR", "Record"]

TENSOR, GRAPH, METADATA = 0, 1, 2  # kinds of record; only tensors have names and bodies
MOST_RECORDS = 1 << 21
LONGEST_NAME = 1 << 16  # bytes
MOST_DIMENSIONS = 32  # of a tensor


@dataclass
class Record:
    """One entry of the index.

    Attributes
    ----------
    kind : int
        What it is.
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
