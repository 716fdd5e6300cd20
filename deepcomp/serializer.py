"""A network with its forms → file. `loader` is this backwards."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepcomp import entropy, wire
from deepcomp.container import Writer
from deepcomp.entropy.context import Before
from deepcomp.entry import GRAPH, MAX_METADATA, METADATA, PARAMETER, TABLE_TYPES, TENSOR, Entry, Part
from deepcomp.errors import InputError
from deepcomp.model.capture import Captured
from deepcomp.network import FAST, SMALLEST, Network
from deepcomp.weights import Form, Packed
from deepcomp.weights.dtypes import dtype_of, to_words
from deepcomp.weights.exact import exact

__all__ = ["measure", "write"]


def write(net: Network, writer: Writer, metadata: dict[str, Any], jobs: int = 1) -> Iterator[str]:
    """Write a network, one tensor at a time, giving each name as it is done.

    Parameters
    ----------
    net : Network
    writer : Writer
    metadata : dict
        JSON values that travel with the file.
    jobs : int
        Threads that pack and code tensors; the file does not depend on it.

    Raises
    ------
    InputError
        If a tensor or the metadata is more than a reader takes.
    """
    notes = json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
    if len(notes) > MAX_METADATA:
        raise InputError(f"metadata of {len(notes)} bytes found, at most {MAX_METADATA} expected")
    numbers: dict[str, int] = {}
    equal, rows = _Equal(net), _Rows(net)

    def describe(name: str, tensor: Tensor) -> Entry:
        try:
            kind = dtype_of(tensor.dtype)
        except KeyError:
            raise InputError(f"{name}: element type {tensor.dtype} found, which a file cannot hold") from None
        entry = Entry(kind, tuple(tensor.shape), net.roles.get(name, PARAMETER))
        if wrong := entry.misfit():
            raise InputError(f"{name}: {wrong}")
        return entry

    def encode(name: str) -> tuple[Entry, entropy.Parts]:
        tensor, coder = net.tensors[name], net.coders.get(name, net.coder)
        with rows.telling(name) as tell:
            found = []
            for packed, way in _ways(net.form(name) or exact(tensor), coder):
                entry = describe(name, tensor)
                found.append((entry, pack(packed, entry, way, rows.before(name) if way == "context" else None)))
            best = min(found, key=lambda one: len(one[0].pack()) + one[0].body)
            if coder != FAST:
                tell(*best)
        return best

    def encoded(name: str) -> tuple[Entry, entropy.Parts] | None:
        return None if name in net.tied else encode(name)

    for name, result in _in_order(encoded, list(net.tensors), jobs):
        source = net.tied.get(name)
        twin = source or equal.earlier(name)
        if twin is not None:
            entry = describe(name, net.tensors[name])
            entry.source, entry.tied = numbers[twin], source is not None
            body: entropy.Parts = []
        else:
            assert result is not None
            entry, body = result
        numbers[name] = len(numbers)
        writer.add(TENSOR, name, entry.pack(), body)
        yield name
    if net.captured is not None:
        writer.add(GRAPH, "", pack_graph(net.captured, numbers))
    writer.add(METADATA, "", notes)


def measure(net: Network, metadata: dict[str, Any], jobs: int = 1) -> int:
    """The bytes of the file that `write` makes, found by making it."""
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder) / "measured.dcz") as writer:
        deque(write(net, writer, metadata, jobs), maxlen=0)
    return writer.size


def _ways(form: Form, coder: str) -> Iterator[tuple[Packed, str]]:
    """What a weight may be packed as, and how the symbols of its elements are coded."""
    aligned = None if coder == FAST else form.aligned()
    if aligned is None or coder == SMALLEST:
        yield form.pack(), "auto"
    if aligned is not None:
        yield aligned, "context"


def pack(packed: Packed, entry: Entry, coder: str = "auto", before: Before | None = None) -> entropy.Parts:
    """Code a weight's symbols; note in `entry` what stands where, and return the parts of the body."""
    body: entropy.Parts = []
    part = Part(packed.code, packed.facts)
    for name, symbols in packed.symbols.items():
        aligned = len(symbols) == entry.count
        stream = entropy.encode_parts(symbols, coder if aligned else "auto", entry.shape, before if aligned else None)
        part.symbols[name] = (len(symbols), sum(map(len, stream)))
        body += stream
    for name, table in packed.tables.items():
        table = np.ascontiguousarray(table, table.dtype.newbyteorder("<"))
        part.tables[name] = (TABLE_TYPES[TABLE_TYPES.index(table.dtype)], table.size)
        body.append(table.reshape(-1).view(np.uint8).data)
    entry.parts.append(part)
    return body + (pack(packed.inner, entry, coder, before) if packed.inner is not None else [])


def pack_graph(captured: Captured, numbers: dict[str, int]) -> bytes:
    """The operations, behind the numbers of the tensors they refer to (as differences to the next one)."""
    out, expected = wire.varint(len(captured.names)), 0
    for name in captured.names:
        out += wire.zigzag(numbers[name] - expected)
        expected = numbers[name] + 1
    return out + captured.graph.to_bytes()


class _Equal:
    """Finds tensors stored exactly that equal an earlier one, bit for bit."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._seen: dict[tuple[Any, ...], list[str]] = {}

    def earlier(self, name: str) -> str | None:
        """The first tensor with the same bits, type and shape; None where this is the first."""
        if self._net.form(name) is not None:
            return None
        tensor = self._net.tensors[name]
        words = to_words(tensor)
        if words.nbytes < 16:
            return None  # a reference would cost as much
        glimpse = words[:: max(1, words.size // 64)].tobytes()
        peers = self._seen.setdefault((tensor.dtype, tuple(tensor.shape), glimpse), [])
        for peer in peers:
            if np.array_equal(to_words(self._net.tensors[peer]), words):
                return peer
        peers.append(name)
        return None


class _Rows:
    """Which rows of weights hold anything: told when one is coded, for the one behind it, whose inputs they may be.

    Only weights that a step has given a form are asked: others may turn out to equal an earlier tensor.
    """

    def __init__(self, net: Network) -> None:
        self._numbers = {name: number for number, name in enumerate(net.tensors)}
        weights = (name for name, tensor in net.tensors.items() if tensor.ndim > 1 and net.form(name) is not None)
        self._found: dict[str, Future[NDArray[np.uint8] | None]] = {
            name: Future() for name in weights if name not in net.tied
        }
        self._earlier = dict(itertools.pairwise([*self._found][::-1]))

    def before(self, name: str) -> Before | None:
        """Those of the last weight before one, once it is coded."""
        earlier = self._earlier.get(name)
        if earlier is None:
            return None
        rows = self._found[earlier].result()
        return None if rows is None else Before(self._numbers[name] - self._numbers[earlier], rows)

    @contextmanager
    def telling(self, name: str) -> Iterator[Callable[[Entry, entropy.Parts], None]]:
        """Within, what a weight has become can be told; whoever waits for it goes on afterwards in any case."""
        rows: list[NDArray[np.uint8] | None] = [None]

        def tell(entry: Entry, body: entropy.Parts) -> None:
            if name in self._found and len(entry.parts) == 1 and entry.parts[0].symbols:
                count, length = next(iter(entry.parts[0].symbols.values()))
                rows[0] = entropy.live_rows(b"".join(body)[:length], count, 0, entry.shape)

        try:
            yield tell
        finally:
            if name in self._found:
                self._found[name].set_result(rows[0])


def _in_order(work: Callable[[str], Any], names: list[str], jobs: int) -> Iterator[tuple[str, Any]]:
    """Each name with its result, in order; at most `jobs` + 1 results are held at a time."""
    if jobs == 1:
        yield from ((name, work(name)) for name in names)
        return
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[tuple[str, Future[Any]]] = deque()
        try:
            for name in names:
                waiting.append((name, pool.submit(work, name)))
                if len(waiting) > jobs:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
