"""File → tensors, or a runnable module: the serializer backwards."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepcomp import entropy, wire
from deepcomp.container import Reader, Record
from deepcomp.entry import CONSTANT, GRAPH, MAX_METADATA, METADATA, ROLES, TENSOR, Entry, Part
from deepcomp.errors import DeepcompError, FormatError, InputError, MissingTensorError, UsageError
from deepcomp.model.graph import Graph
from deepcomp.model.quantizers import bypassed, quantizers
from deepcomp.runtime.integer import Integer
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.weights import Form, Packed, form_class
from deepcomp.weights.dtypes import dtype_of, from_words

__all__ = ["RUNTIMES", "File", "load", "load_state_dict", "open_file"]

Module = TypeVar("Module", bound=nn.Module)
Decoded = TypeVar("Decoded")

RUNTIMES = ("float", "simulated", "integer")

MAX_BYTES = 4 << 30  # dense bytes a file may unfold to unasked …
MAX_RATIO = 2000  # … or this many times its own size; the smallest networks ever published reach 1,500
_ARENA = 512 << 20  # bytes of memory taken at a time for dense tensors
_ALIGN = 64


class File:
    """An open `.dcz` file: any tensor without reading the others.

    Parameters
    ----------
    path : path-like
    max_bytes : int, optional
        Dense bytes the file may unfold to. Default: 4 GiB, or 2,000 times the file if that is more.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If it is damaged, or declares more than `max_bytes`.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.reader = Reader(path)
        self._closed = False
        try:
            self.entries: dict[str, Entry] = {}
            self.names: list[str] = []  # of the tensors, by their numbers
            self._numbers: dict[str, int] = {}  # and backwards
            self._records: dict[str, Record] = {}
            self._others: dict[int, Record] = {}  # the graph and the metadata
            self._live: dict[int, NDArray[np.uint8]] = {}  # rows of tensors, by their numbers
            for record in self.reader.records:
                self._take(record)
            usual = max(MAX_BYTES, MAX_RATIO * self.reader.size)
            limit = usual if max_bytes is None else max_bytes
            total = sum(entry.nbytes for entry in self.entries.values())
            if total > limit:
                raise FormatError(f"{path}: {total} dense bytes declared, at most {limit} allowed (max_bytes)")
            limit = max(usual, limit)
            for name, entry in self.entries.items():
                if entry.work > limit:
                    found = f"tensor {name[:200]!r} takes {entry.work} bytes to decode"
                    raise FormatError(f"{path}: {found}, at most {limit} allowed (max_bytes)")
        except BaseException:
            self.reader.close()
            raise

    def _take(self, record: Record) -> None:
        """Find out what a record of the index is."""
        if record.kind == TENSOR:
            self.entries[record.name] = self._entry(record)
            self._records[record.name] = record
            self._numbers[record.name] = len(self.names)
            self.names.append(record.name)
        elif record.kind in (GRAPH, METADATA) and not record.name and not record.length:
            self._others[record.kind] = record
        else:
            found = f"a record of kind {record.kind}, named {record.name[:200]!r}, with a body of {record.length} bytes"
            raise FormatError(f"{self.reader.path}: {found}: none such is known")

    def _entry(self, record: Record) -> Entry:
        what = f"{self.reader.path}: tensor {record.name[:200]!r}"
        try:
            entry = Entry.unpack(record.head, len(self.entries), what)
        except FormatError as error:
            raise error if str(error).startswith(what) else FormatError(f"{what}: {error}") from None
        if entry.body != record.length:
            raise FormatError(f"{what}: parts of {entry.body} bytes found in a body of {record.length}")
        if entry.source is not None:
            twin = self.entries[self.names[entry.source]]
            if twin.source is not None or (twin.dtype, twin.shape) != (entry.dtype, entry.shape):
                raise FormatError(f"{what}: stands for tensor {entry.source}, which is not like it")
        return entry

    def keys(self) -> list[str]:
        """The names of the tensors, in the order of the file."""
        return [name for name, entry in self.entries.items() if entry.role != CONSTANT]

    @property
    def metadata(self) -> dict[str, Any]:
        """What was noted when the file was made: version, recipe, seed."""
        head = self._others[METADATA].head if METADATA in self._others else b"{}"
        try:
            found = json.loads(head.decode(), parse_constant=_refuse) if len(head) <= MAX_METADATA else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise FormatError(f"{self.reader.path}: metadata that is not a JSON object of at most {MAX_METADATA} bytes")
        return found

    def graph(self) -> tuple[Graph, list[str]] | None:
        """The operations and the names of the tensors they refer to; None in a file of weights alone."""
        if GRAPH not in self._others:
            return None
        cursor = wire.Cursor(self._others[GRAPH].head, 0, f"{self.reader.path}: graph")
        names, expected = [], 0
        for _ in range(cursor.varint(cursor.left)):
            number = expected + cursor.zigzag()
            if not 0 <= number < len(self.names):
                cursor.fail(f"tensor {number} found, one of {len(self.names)} expected")
            names.append(self.names[number])
            expected = number + 1
        start = cursor.position
        try:
            return Graph.from_bytes(cursor.take(cursor.left), len(names), start), names
        except FormatError as error:
            raise FormatError(f"{self.reader.path}: {error}") from None

    def module(self, tensors: Iterable[tuple[str, Tensor]], runtime: str = "simulated") -> Interpreter | None:
        """The operations with these tensors, by name; None in a file of weights alone.

        Parameters
        ----------
        runtime : str
            See `load`.
        """
        found = self.graph()
        if found is None:
            return None
        graph, names = found
        if runtime == "float":
            graph = bypassed(graph, quantizers(graph))
        roles = ((name, tensor, ROLES[self.entries[name].role]) for name, tensor in tensors)
        try:
            if runtime == "integer":
                return Integer(graph, names, roles, self.get_form)
            return Interpreter(graph, names, roles)
        except (FormatError, InputError) as error:
            path = str(self.reader.path)  # errors of a tensor's own name it already
            raise error if str(error).startswith(path) else type(error)(f"{path}: {error}") from None

    def get_tensor(self, name: str) -> Tensor:
        """One dense tensor.

        Raises
        ------
        MissingTensorError
            If there is no tensor of that name; a `KeyError`.
        InputError
            If the file has been closed.
        """
        return self._dense(name, _Arena(self._source(name)[1].nbytes + _ALIGN))

    def get_form(self, name: str) -> Form:
        """What one tensor is stored as: integers and scales, shared values, positions.

        Raises
        ------
        MissingTensorError, InputError
            See `get_tensor`.
        """

        def unpack(packed: Packed, entry: Entry) -> Form:
            return form_class(packed.code).unpack(packed, entry.shape, entry.dtype.torch)

        return self._decoded(name, unpack)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors, constants included; tied ones are the same object."""
        arena = _Arena(sum(entry.nbytes + _ALIGN for entry in self.entries.values() if entry.source is None))
        done: list[Tensor] = []
        for name, entry in self.entries.items():
            if entry.source is None:
                done.append(self._dense(name, arena))
            else:
                twin = done[entry.source]
                done.append(twin if entry.tied else twin.clone())
            yield name, done[-1]

    def _source(self, name: str) -> tuple[Record, Entry]:
        if name not in self.entries:
            raise MissingTensorError(f"{self.reader.path}: no tensor named {name[:200]!r}")
        entry = self.entries[name]
        if entry.source is not None:
            name = self.names[entry.source]
        return self._records[name], self.entries[name]

    def _dense(self, name: str, arena: _Arena) -> Tensor:
        """A tensor in memory of the arena."""

        def restore(packed: Packed, entry: Entry) -> Tensor:
            return form_class(packed.code).restore(packed, entry.shape, entry.dtype.torch, arena.zeros)

        return self._decoded(name, restore)

    def _decoded(self, name: str, make: Callable[[Packed, Entry], Decoded]) -> Decoded:
        """What is made of a tensor's parts; errors in them say where they come from."""
        record, entry = self._source(name)
        if self._closed:
            raise InputError(f"{self.reader.path}: closed already")
        body, offset = self.reader.body(record), self.reader.offset(record)
        try:
            return make(_unpack(entry, body, offset, partial(self._rows_before, record.name)), entry)
        except (FormatError, KeyError) as error:  # the key of an array, table or fact
            wrong = f"{error} is missing" if isinstance(error, KeyError) else error
            where = f"tensor {name[:200]!r} in bytes {offset} to {offset + len(body)}"
            raise FormatError(f"{self.reader.path}: {where}: {wrong}") from None

    def _rows_before(self, name: str, back: int) -> NDArray[np.uint8]:
        """Which rows hold anything of the tensor that stands so many before another; no more of it is decoded."""
        number = self._numbers[name] - back
        if number < 0:
            raise FormatError(f"inputs from {back} tensors back found, where {self._numbers[name]} stand")
        if number not in self._live:
            self._live[number] = self._live_rows(self.names[number])
        return self._live[number]

    def _live_rows(self, name: str) -> NDArray[np.uint8]:
        entry, record, rows = self.entries[name], self._records[name], None
        if len(entry.parts) == 1 and entry.parts[0].symbols:
            count, length = next(iter(entry.parts[0].symbols.values()))
            rows = entropy.live_rows(self.reader.body(record)[:length], count, self.reader.offset(record), entry.shape)
        if rows is None:
            raise FormatError(f"inputs from tensor {name[:200]!r} found, which does not say which of its rows are live")
        return rows

    def close(self) -> None:
        self._closed = True
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> File:
    """Open a `.dcz` file to read tensors one by one; see `File`."""
    return File(path, max_bytes)


def load_state_dict(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """All tensors of a file, by their original names, dense and in their original types.

    Raises
    ------
    InputError, FormatError
        See `File`.
    """
    with File(path, max_bytes) as file:
        return {name: tensor for name, tensor in file.tensors() if file.entries[name].role != CONSTANT}


@overload
def load(
    path: str | os.PathLike[str], *, into: None = None, runtime: str = "simulated", max_bytes: int | None = None
) -> nn.Module: ...
@overload
def load(
    path: str | os.PathLike[str], *, into: Module, runtime: str = "simulated", max_bytes: int | None = None
) -> Module: ...
def load(
    path: str | os.PathLike[str],
    *,
    into: nn.Module | None = None,
    runtime: str = "simulated",
    max_bytes: int | None = None,
) -> nn.Module:
    """The network of a file as a module in eval mode, ready to run; no source code is needed.

    Parameters
    ----------
    path : path-like
    into : nn.Module, optional
        A module of the user's own class: the weights are loaded into it, and it is returned.
    runtime : {"simulated", "float", "integer"}
        How activations are quantised, where the file has quantisers for them: rounded to their grids in
        floating-point arithmetic, not at all, or truly held as integers, which layers whose weights are on
        grids multiply and add up as such; see `runtime.integer`.
    max_bytes : int, optional
        See `File`.

    Raises
    ------
    UsageError
        If there is no such runtime, or one is chosen for `into`.
    InputError
        If the file holds weights alone and `into` is not given, the weights do not fit `into`, or nothing in it can
        run in integers where it should.
    FormatError
        See `File`.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime = {runtime!r}: one of {', '.join(RUNTIMES)} expected")
    if into is not None:
        return _fill(into, path, runtime, max_bytes)
    with File(path, max_bytes) as file:
        module = file.module(file.tensors(), runtime)
    if module is None:
        raise InputError(f"{path}: holds weights without a graph: load_state_dict(), or load(into=module), reads them")
    return module


def _fill(into: Module, path: str | os.PathLike[str], runtime: str, max_bytes: int | None) -> Module:
    """Load the weights of a file into a module of the user's own."""
    if runtime != "simulated":
        raise UsageError(f"runtime = {runtime!r}: into={type(into).__name__} brings operations of its own")
    try:
        into.load_state_dict(load_state_dict(path, max_bytes=max_bytes))
    except DeepcompError:
        raise
    except RuntimeError as error:
        raise InputError(f"{path}: does not fit {type(into).__name__}: {' '.join(str(error).split())}") from None
    return into.eval()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class _Arena:
    """Zeroed memory for dense tensors, taken in few large pieces.

    numpy asks the kernel for huge pages in large arrays; with them first writes take half the time
    that freshly allocated torch tensors take.
    """

    def __init__(self, total: int) -> None:
        self._left = total
        self._block = np.empty(0, np.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        padded = -(-size // _ALIGN) * _ALIGN
        if padded > self._block.size:
            self._block = np.zeros(max(padded, min(self._left, _ARENA)), np.uint8)
        piece, self._block = self._block[:size], self._block[padded:]
        self._left -= padded
        return from_words(piece.view(dtype_of(dtype).word), dtype, shape)


def _unpack(entry: Entry, body: memoryview, offset: int, rows_of: Callable[[int], NDArray[np.uint8]]) -> Packed:
    """What a body holds; `rows_of` gives the live rows of the tensor so many before it."""
    packed: Packed | None = None
    parts: list[tuple[Part, Packed]] = []
    position = 0
    for part in entry.parts:
        one = Packed(part.code, facts=part.facts)
        for name, (count, length) in part.symbols.items():
            stream = body[position : position + length]
            one.symbols[name] = entropy.decode(stream, count, offset + position, entry.shape, rows_of)
            position += length
        for name, (kind, count) in part.tables.items():
            one.tables[name] = np.frombuffer(body, kind, count, position)
            position += kind.itemsize * count
        parts.append((part, one))
    for _, one in reversed(parts):
        one.inner = packed
        packed = one
    assert packed is not None
    return packed
