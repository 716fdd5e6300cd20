"""One tensor's description in the index of a file: its head bytes, written and read.

The head says what the body holds, so that a tensor's size, form and place of every byte are known
before anything of the body is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deepcomp import wire
from deepcomp.container.record import GRAPH, METADATA, MOST_DIMENSIONS, TENSOR
from deepcomp.weights import VALUES, Raw, form_class
from deepcomp.weights.dtypes import DTYPES, DType

__all__ = [
    "BUFFER",
    "CONSTANT",
    "GRAPH",
    "MAX_METADATA",
    "METADATA",
    "PARAMETER",
    "ROLES",
    "TABLE_TYPES",
    "TENSOR",
    "Entry",
    "Part",
]

PARAMETER, BUFFER, CONSTANT = 0, 1, 2  # roles of a tensor; constants belong to the graph alone
ROLES: tuple[Literal["parameter", "buffer", "constant"], ...] = ("parameter", "buffer", "constant")  # by these numbers
TABLE_TYPES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8", "<f4", "<i1"))
MAX_METADATA = 1 << 20  # bytes
_SAME, _TIED = 0x7E, 0x7F  # stand where a form's code stands: the tensor equals, or is, an earlier one
_MOST_BYTES = 1 << 62
_DECODING = 24  # bytes a symbol that the hungriest coder takes while it decodes an array


@dataclass
class Part:
    """One form of a tensor: what its share of the body holds.

    code : the form.
    facts : its numbers, by name.
    symbols : name → (symbols, bytes) of each coded array, in the order of the body.
    tables : name → (element type, elements) of each table, behind the arrays.
    """

    code: int
    facts: dict[str, int] = field(default_factory=dict)
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)
    tables: dict[str, tuple[np.dtype[Any], int]] = field(default_factory=dict)


@dataclass
class Entry:
    """A tensor: element type, shape, role and the forms it is made of, outermost first.

    For a tensor that equals an earlier one `parts` is empty and `source` the number of that
    tensor; `tied` says whether the two share memory.
    """

    dtype: DType
    shape: tuple[int, ...]
    role: int = PARAMETER
    parts: list[Part] = field(default_factory=list)
    source: int | None = None
    tied: bool = False

    @property
    def count(self) -> int:
        """Elements of the dense tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.count * self.dtype.size

    @property
    def work(self) -> int:
        """About the most bytes of memory that decoding takes besides the dense tensor itself."""
        arrays = [(form_class(part.code), count) for part in self.parts for count, _ in part.symbols.values()]
        decoding = _DECODING * max((count for _, count in arrays), default=0)
        return 2 * self.nbytes + decoding + sum(form.work * count for form, count in arrays)

    @property
    def body(self) -> int:
        """Bytes of the body."""
        return sum(size for _, size in self.where())

    def where(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each array and table, in the order of the body."""
        for part in self.parts:
            yield from ((name, length) for name, (_, length) in part.symbols.items())
            yield from ((name, kind.itemsize * count) for name, (kind, count) in part.tables.items())

    def misfit(self) -> str | None:
        """Why no file holds a tensor of this shape; None where one can."""
        if len(self.shape) > MOST_DIMENSIONS:
            return f"{len(self.shape)} dimensions found, at most {MOST_DIMENSIONS} expected"
        if math.prod(max(n, 1) for n in self.shape) * self.dtype.size > _MOST_BYTES:
            return f"impossible shape {self.shape}"
        return None

    def pack(self) -> bytes:
        """The head bytes: element type and role, shape, then the parts."""
        out = bytearray([self.dtype.code << 2 | self.role])
        out += wire.varint(len(self.shape)) + b"".join(map(wire.varint, self.shape))
        if self.source is not None:
            return bytes(out) + bytes([_TIED if self.tied else _SAME]) + wire.varint(self.source)
        previous = self.count
        for depth, part in enumerate(self.parts, 1):
            more = depth < len(self.parts)
            out += bytes([part.code | more << 7, len(part.facts) | len(part.symbols) << 3 | len(part.tables) << 7])
            out += b"".join(wire.zigzag(value) for value in part.facts.values())
            for count, length in part.symbols.values():
                out += wire.varint(0 if count == previous else count + 1) + wire.varint(length)
                previous = count
            for kind, count in part.tables.values():
                out += bytes([TABLE_TYPES.index(kind)]) + wire.varint(count)
        return bytes(out)

    @classmethod
    def unpack(cls, head: bytes, number: int, what: str) -> Entry:
        """`pack` backwards.

        Parameters
        ----------
        number : int
            The tensor's place among the tensors; it can only refer to earlier ones.
        what : str
            File and tensor, for error messages.
        """
        cursor = wire.Cursor(head, 0, f"{what}: head")
        code, role = divmod(cursor.byte(), 4)
        if code not in DTYPES or role not in (PARAMETER, BUFFER, CONSTANT):
            cursor.fail(f"element type {code} of role {role} found")
        shape = tuple(cursor.varint() for _ in range(cursor.varint(MOST_DIMENSIONS)))
        entry = cls(DTYPES[code], shape, role)
        if wrong := entry.misfit():
            cursor.fail(wrong)
        most = entry.count * entry.dtype.words
        previous, more, layer = entry.count, True, -1
        while more:
            code = cursor.byte()
            if code in (_SAME, _TIED) and not entry.parts:
                entry.tied, entry.source = code == _TIED, cursor.varint()
                if entry.source >= number:
                    cursor.fail(f"tensor {entry.source} referred to, an earlier one than {number} expected")
                break
            more, code = code >= 0x80, code & 0x7F
            form = form_class(code)
            if form.layer <= layer or more != (form.layer < VALUES):
                cursor.fail(f"{form.name} as part {len(entry.parts) + 1}, {'not ' if more else ''}the last")
            if form is not Raw and (not entry.count or entry.dtype.words > 1):
                cursor.fail(f"{form.name} of {entry.dtype.name} {shape}, raw expected")
            layer = form.layer
            sizes = cursor.byte()
            facts, symbols, tables = sizes & 7, sizes >> 3 & 15, sizes >> 7
            if facts > len(form.facts) or symbols > len(form.symbols) or tables > len(form.tables):
                cursor.fail(f"{facts} facts, {symbols} arrays and {tables} tables found in a {form.name}")
            part = Part(code, {name: cursor.zigzag() for name in form.facts[:facts]})
            for name in form.symbols[:symbols]:
                count = cursor.varint()
                if count == previous + 1:
                    cursor.fail(f"{previous} symbols spelled out, where 0 says as many as before")
                previous = count - 1 if count else previous
                if previous > most:
                    cursor.fail(f"{previous} symbols found in a tensor of {most}")
                part.symbols[name] = (previous, cursor.varint(1 << 48))
            for name in form.tables[:tables]:
                kind = cursor.byte()
                if kind >= len(TABLE_TYPES):
                    cursor.fail(f"table of type {kind} found")
                part.tables[name] = (TABLE_TYPES[kind], cursor.varint(1 << 48))
            entry.parts.append(part)
        cursor.end()
        return entry
