"""Where each byte of a `.dcz` file goes, read from its index alone."""

from __future__ import annotations

import os
from typing import Any

from deepcomp.container.layout import HEADER, TRAILER
from deepcomp.entry import CONSTANT, ROLES, Entry
from deepcomp.loader import File
from deepcomp.weights import FORMS

__all__ = ["inspect"]


def inspect(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, Any]:
    """Describe a file: a row a tensor, and the frame around them; together all bytes of the file.

    Returns
    -------
    dict
        `file`, `bytes`, `format` (version), `metadata`, `tensors` (rows of `name shape dtype role
        form density bits bytes parts`; bits are per weight), `frame` (`header`, `index` with the
        graph's operations in it, `checksums`, `trailer`), `dense_bytes`, `ratio` and `runnable`.

    Raises
    ------
    InputError, FormatError
        See `loader.File`.
    """
    with File(path, max_bytes) as file:
        rows = [_row(name, entry, file) for name, entry in file.entries.items()]
        reader = file.reader
        frame = {
            "header": HEADER.size,
            "index": reader.index_size,
            "checksums": reader.checksum_bytes,
            "trailer": TRAILER.size,
        }
        dense = sum(entry.nbytes for entry in file.entries.values() if entry.role != CONSTANT)
        return {
            "file": os.fspath(path),
            "bytes": reader.size,
            "format": ".".join(map(str, reader.version)),
            "metadata": file.metadata,
            "tensors": rows,
            "frame": frame,
            "dense_bytes": dense,
            "ratio": dense / reader.size,
            "runnable": file.graph() is not None,
        }


def _row(name: str, entry: Entry, file: File) -> dict[str, Any]:
    parts: dict[str, int] = {}
    for part, size in entry.where():
        parts[part] = parts.get(part, 0) + size
    return {
        "name": name,
        "shape": list(entry.shape),
        "dtype": entry.dtype.name,
        "role": ROLES[entry.role],
        "form": _form(entry, file),
        "density": _density(entry, file),
        "bits": 8 * entry.body / entry.count if entry.count else 0.0,
        "bytes": entry.body,
        "parts": parts,
    }


def _form(entry: Entry, file: File) -> str:
    if entry.source is not None:
        return f"{'tied to' if entry.tied else 'same as'} {file.names[entry.source]}"
    names = [FORMS[part.code].name + str(part.facts.get("bits", "")) for part in entry.parts]
    return "(".join(names) + ")" * (len(names) - 1)


def _density(entry: Entry, file: File) -> float:
    """The share of the tensor's elements that are stored as values."""
    if entry.source is not None:
        return _density(file.entries[file.names[entry.source]], file)
    for part in entry.parts:
        if "gaps" in part.symbols and entry.count:
            return part.symbols["gaps"][0] / entry.count
    return 1.0
