"""A network's operations as plain data, and the bytes they take in a file.

The bytes of a graph
--------------------
`varint` is an unsigned LEB128 integer; `text` is a varint length in bytes and as many bytes of
UTF-8; *folded* is a signed integer made unsigned: 0, -1, 1, -2, 2, … become 0, 1, 2, 3, 4, … ::

    graph   := varint inputs, input *, varint nodes, node *, value (the outputs)
    input   := text name, byte dtype, varint rank, varint size *
    node    := varint operation, byte counts, value *, (byte keyword, value) *
    value   := varint head, and what its kind says

A size is 0 where the dimension is free (the batch) and the size plus one elsewhere. `operation`,
`keyword` and `dtype` are the numbers of `deepcomp.model.ops`. The low four bits of `counts` are the
number of positional arguments, the high four that of keyword arguments. `head` is 8 n + kind:

    kind  what                   n, and what follows
    0     a value computed       n + 1 places back (see below)
    1     a tensor of the file   folded(its number - the number expected)
    2     an integer             folded(it), from -2^60 to 2^60 - 1
    3     a list or tuple        the number of items, values that follow
    4     by n                   0 None; 1 false; 2 true; 3 an integer, folded, as a varint;
                                 4 a list: varint items, value *; 5 a mapping: varint items, (text, value) *
    5     a dtype                its number
    6     a text                 its length in bytes, and the bytes of UTF-8
    7     a number               n = 0: eight bytes, IEEE 754 binary64, low byte first;
                                 n > 0: m x 10^e rounded to the nearest binary64, ties to even,
                                 with folded(e) = n - 1 and a varint folded(m)

Values are numbered inputs first, then nodes, one each; "n + 1 places back" counts from the node that
is being read (from one past the last, in the outputs), so a graph has no cycles. The expected
tensor is number 0 at the start and afterwards the one after the tensor referred to last, in reading
order. Kinds 4.4 and 4.5 stand in the outputs only, where kind 3 is a tuple. Nothing follows the
outputs. Arguments left out at the end take the defaults of the operation's schema.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from deepcomp.errors import CaptureError
from deepcomp.model import ops
from deepcomp.wire import Cursor, fold, unfold, varint, zigzag

__all__ = ["Argument", "Graph", "Input", "Node", "Stored", "Structure", "Value", "misfit", "references", "transform"]

MAX_BYTES = 1 << 20  # of a whole graph; what it becomes in memory is a few hundred times that
MAX_DEPTH = 4  # of lists in lists
MAX_RANK = 16
MAX_NAME = 1024  # bytes of a tensor's name
MAX_PARTS = 64  # of a name: modules in modules
MAX_TEXT = 255  # bytes of a name or a text argument
MAX_SIZE = 1 << 48
MAX_EXPONENT = 400  # a binary64 ends at 10^308

_MODULE_HAS = frozenset(dir(nn.Module()))
_VALUE, _STORED, _INTEGER, _ITEMS, _SPECIAL, _DTYPE, _TEXT, _FLOAT = range(8)
_NONE, _FALSE, _TRUE, _LONG, _LIST, _MAPPING = range(6)
_DTYPE_CODES = {dtype: code for code, dtype in ops.DTYPES.items()}
_KEYWORD_CODES = {name: code for code, name in ops.KEYWORDS.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file (a weight, buffer or constant), by its number."""

    index: int


@dataclass(frozen=True, slots=True)
class Value:
    """An input or the result of a node: inputs are numbered first, then nodes."""

    index: int


T = TypeVar("T")
Argument: TypeAlias = "bool | int | float | str | torch.dtype | Stored | Value | tuple[Argument, ...] | None"
Structure: TypeAlias = "Argument | tuple[Structure, ...] | list[Structure] | dict[str, Structure]"


@dataclass(frozen=True)
class Input:
    """A tensor the network is called with; None in `shape` is a free dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Node:
    """One call: the operation's name in `ops.NAMES` and its arguments, defaults left out."""

    op: str
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments by parameter name, defaults filled in."""
        operation = ops.find(self.op)
        filled = {parameter.name: parameter.default for parameter in operation.parameters}
        return filled | operation.bind(self.args, self.kwargs)


@dataclass(frozen=True)
class Graph:
    """Inputs, nodes in the order they run, and the outputs: values in tuples, lists and mappings."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: Structure

    def stored(self) -> list[int]:
        """Numbers of the tensors referred to, in the order of first use."""
        found = (entry for node in self.nodes for entry in references((node.args, node.kwargs)))
        everything = [*found, *references(self.outputs)]
        return list(dict.fromkeys(entry.index for entry in everything if isinstance(entry, Stored)))

    def map(self, change: Callable[[Stored | Value], Argument]) -> Graph:
        """The same graph with every reference changed."""
        nodes = (Node(n.op, transform(n.args, change), transform(n.kwargs, change)) for n in self.nodes)
        return Graph(self.inputs, tuple(nodes), transform(self.outputs, change))

    def replace(self, changes: Mapping[Value, Argument]) -> Graph:
        """The graph with values replaced, without the nodes that nothing needs any more.

        A replacement may itself be replaced. Tensors keep their numbers.
        """

        def final(entry: Stored | Value) -> Argument:
            found: Argument = entry
            while isinstance(found, Value) and found in changes:
                found = changes[found]
            return found

        whole = self.map(final)
        first = len(self.inputs)
        needed = set(references(whole.outputs))
        for index in range(len(whole.nodes) - 1, -1, -1):
            if Value(first + index) in needed:
                needed.update(references((whole.nodes[index].args, whole.nodes[index].kwargs)))
        kept = [index for index in range(len(whole.nodes)) if Value(first + index) in needed]
        moved = {Value(first + old): Value(first + new) for new, old in enumerate(kept)}
        pruned = Graph(self.inputs, tuple(whole.nodes[index] for index in kept), whole.outputs)
        return pruned.map(lambda entry: moved.get(entry, entry) if isinstance(entry, Value) else entry)

    def to_bytes(self) -> bytes:
        """The graph as this module's docstring lays it out.

        Raises
        ------
        CaptureError
            If a number or text does not fit, or the whole is larger than `MAX_BYTES`.
        """
        return _Writer().graph(self)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, tensors: int, offset: int = 0) -> Graph:
        """The graph that `to_bytes` wrote.

        Parameters
        ----------
        data : bytes-like
        tensors : int
            How many tensors the file has for the graph.
        offset : int
            Where `data` starts in its file, for error messages.

        Raises
        ------
        FormatError
            On anything but a graph of known operations, each called as its schema allows.
        """
        return _Reader(Cursor(data, offset, "graph"), tensors).graph()


def transform(structure: Any, change: Callable[[Stored | Value], Any]) -> Any:
    """A copy of nested tuples, lists and mappings with `change` applied to every reference."""
    if isinstance(structure, Stored | Value):
        return change(structure)
    if isinstance(structure, tuple):
        return tuple([transform(item, change) for item in structure])
    if isinstance(structure, list):
        return [transform(item, change) for item in structure]
    if isinstance(structure, dict):
        return {key: transform(item, change) for key, item in structure.items()}
    return structure


def references(structure: Any) -> Iterator[Stored | Value]:
    """Every reference in nested tuples, lists and mappings, in order."""
    if isinstance(structure, Stored | Value):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from references(item)
    elif isinstance(structure, dict):
        yield from references(tuple(structure.values()))


def misfit(name: str) -> str | None:
    """Why a tensor of a module cannot have this name; None where it can.

    A name is the path of attributes that leads to the tensor (`layer1.0.conv1.weight`). Those that
    modules have for their own use are refused, as torch's `add_module` refuses them: `self.double`
    is the method, whatever part has been given that name.
    """
    parts = name.split(".")
    if len(name.encode()) > MAX_NAME or len(parts) > MAX_PARTS:
        return f"longer than {MAX_NAME} bytes or {MAX_PARTS} parts"
    if not all(parts):
        return "with an empty part"
    if not name.isprintable() or "/" in name or "\\" in name:
        return "with a slash or an unprintable character"
    taken = [part for part in parts if part in _MODULE_HAS or part.startswith(("__", "_dcz"))]
    return f"with {taken[0]!r}, which modules keep for their own use" if taken else None


def _short(value: str) -> bytes:
    raw = value.encode()
    if len(raw) > MAX_TEXT:
        raise CaptureError(f"the text {value[:40]!r}… takes {len(raw)} bytes, at most {MAX_TEXT} expected")
    return raw


class _Writer:
    """Graph to bytes."""

    def __init__(self) -> None:
        self.place = 0  # the number of the value being written
        self.expected = 0  # the tensor most likely to be referred to next

    def graph(self, graph: Graph) -> bytes:
        out = [varint(len(graph.inputs))]
        for entry in graph.inputs:
            sizes = [varint(0 if size is None else size + 1) for size in entry.shape]
            out += [self.text(entry.name), bytes([_dtype_code(entry.dtype)]), varint(len(sizes)), *sizes]
        out.append(varint(len(graph.nodes)))
        for self.place, node in enumerate(graph.nodes, start=len(graph.inputs)):
            out += [varint(ops.CODES[node.op]), bytes([len(node.args) | len(node.kwargs) << 4])]
            out += [self.value(item) for item in node.args]
            for name, item in node.kwargs.items():
                out += [bytes([_KEYWORD_CODES[name]]), self.value(item)]
        self.place = len(graph.inputs) + len(graph.nodes)
        whole = b"".join([*out, self.value(graph.outputs)])
        if len(whole) > MAX_BYTES:
            raise CaptureError(f"the list of operations takes {len(whole)} bytes, at most {MAX_BYTES} expected")
        return whole

    def value(self, value: Structure, depth: int = 0) -> bytes:
        if depth == MAX_DEPTH and isinstance(value, tuple | list | dict):
            raise CaptureError(f"lists more than {MAX_DEPTH} deep")
        match value:
            case Value(index):
                return _head(_VALUE, self.place - index - 1)
            case Stored(index):
                step, self.expected = index - self.expected, index + 1
                return _head(_STORED, fold(step))
            case None:
                return _head(_SPECIAL, _NONE)
            case bool():
                return _head(_SPECIAL, _TRUE if value else _FALSE)
            case int() if -(1 << 60) <= value < 1 << 60:
                return _head(_INTEGER, fold(value))
            case int() if -(1 << 63) <= value < 1 << 63:
                return _head(_SPECIAL, _LONG) + zigzag(value)
            case float():
                return min(_decimal(value), _head(_FLOAT, 0) + struct.pack("<d", value), key=len)
            case str():
                return _head(_TEXT, len(_short(value))) + _short(value)
            case torch.dtype():
                return _head(_DTYPE, _dtype_code(value))
            case tuple():
                return _head(_ITEMS, len(value)) + b"".join([self.value(item, depth + 1) for item in value])
            case list():
                items = [self.value(item, depth + 1) for item in value]
                return _head(_SPECIAL, _LIST) + varint(len(items)) + b"".join(items)
            case dict():
                items = [self.text(key) + self.value(item, depth + 1) for key, item in value.items()]
                return _head(_SPECIAL, _MAPPING) + varint(len(items)) + b"".join(items)
            case _:
                raise CaptureError(f"a graph cannot hold {value!r:.60}")

    @staticmethod
    def text(value: str) -> bytes:
        raw = _short(value)
        return varint(len(raw)) + raw


def _dtype_code(dtype: torch.dtype) -> int:
    if dtype not in _DTYPE_CODES:
        raise CaptureError(f"a graph cannot hold the dtype {dtype}")
    return _DTYPE_CODES[dtype]


def _head(kind: int, number: int) -> bytes:
    return varint(number << 3 | kind)


def _decimal(value: float) -> bytes:
    """The shortest decimal that reads back as `value`: 1e-05 takes two bytes."""
    if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
        return bytes(16)  # longer than the eight bytes it competes with
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    mantissa = int("".join(map(str, digits)))
    return _head(_FLOAT, fold(int(exponent)) + 1) + zigzag(-mantissa if sign else mantissa)


class _Reader:
    """Bytes to graph: `_Writer` backwards, trusting nothing."""

    def __init__(self, cursor: Cursor, tensors: int) -> None:
        self.cursor = cursor
        self.tensors = tensors
        self.place = 0
        self.expected = 0

    def graph(self) -> Graph:
        cursor = self.cursor
        if cursor.left > MAX_BYTES:
            cursor.fail(f"{cursor.left} bytes, at most {MAX_BYTES} expected")
        inputs = tuple([self.input() for _ in range(self.count())])
        if len({entry.name for entry in inputs}) < len(inputs):
            cursor.fail("two inputs of one name")
        self.place = len(inputs)
        nodes = []
        for _ in range(self.count()):
            nodes.append(self.node())
            self.place += 1
        graph = Graph(inputs, tuple(nodes), self.value(outputs=True))
        cursor.end()
        return graph

    def count(self) -> int:
        """A number of things that take a byte or more each."""
        return self.cursor.varint(self.cursor.left)

    def input(self) -> Input:
        name = self.cursor.text(MAX_TEXT)
        if not name.isidentifier():
            self.cursor.fail(f"{name!r} as the name of an input")
        dtype = self.look_up(ops.DTYPES, self.cursor.byte(), "dtype")
        sizes = [self.cursor.varint(MAX_SIZE) for _ in range(self.cursor.varint(MAX_RANK))]
        return Input(name, dtype, tuple([size - 1 if size else None for size in sizes]))

    def node(self) -> Node:
        name = self.look_up(ops.NAMES, self.cursor.varint(), "operation")
        counts = self.cursor.byte()
        args = tuple([self.value() for _ in range(counts & 15)])
        kwargs: dict[str, Argument] = {}
        for _ in range(counts >> 4):
            keyword = self.look_up(ops.KEYWORDS, self.cursor.byte(), "keyword")
            if keyword in kwargs:
                self.cursor.fail(f"the keyword {keyword} twice")
            kwargs[keyword] = self.value()
        try:
            ops.find(name).bind(args, kwargs)
        except ValueError as error:
            self.cursor.fail(str(error))
        return Node(name, args, kwargs)

    def value(self, outputs: bool = False, depth: int = 0) -> Any:
        """An argument, or the outputs; `depth` counts the lists it lies in."""
        cursor = self.cursor
        head = cursor.varint()
        kind, number = head & 7, head >> 3
        match kind:
            case 0:
                if number >= self.place:
                    cursor.fail(f"a value {number + 1} places back, {self.place} there")
                return Value(self.place - 1 - number)
            case 1:
                index = self.expected + unfold(number)
                if not 0 <= index < self.tensors:
                    cursor.fail(f"tensor {index}, {self.tensors} in the file")
                self.expected = index + 1
                return Stored(index)
            case 2:
                return unfold(number)
            case 3:
                return tuple(self.items(number, depth, lambda below: self.value(outputs, below)))
            case 4:
                return self.special(number, outputs, depth)
            case 5:
                return self.look_up(ops.DTYPES, number, "dtype")
            case 6:
                if number > MAX_TEXT:
                    cursor.fail(f"a text of {number} bytes, at most {MAX_TEXT} expected")
                try:
                    return bytes(cursor.take(number)).decode()
                except UnicodeDecodeError:
                    cursor.fail("a text that is not UTF-8")
            case _:
                return self.number(number)

    def items(self, count: int, depth: int, read: Callable[[int], T]) -> list[T]:
        """`count` items, read with the depth at which they lie."""
        if depth == MAX_DEPTH:
            self.cursor.fail(f"lists more than {MAX_DEPTH} deep")
        if count > self.cursor.left:
            self.cursor.fail(f"{count} items, {self.cursor.left} bytes left")
        return [read(depth + 1) for _ in range(count)]

    def special(self, number: int, outputs: bool, depth: int) -> Any:
        cursor = self.cursor
        if number <= _TRUE:
            return (None, False, True)[number]
        if number == _LONG:
            return cursor.zigzag()
        if number == _LIST and outputs:
            return self.items(cursor.varint(), depth, lambda below: self.value(outputs, below))
        if number == _MAPPING and outputs:
            count = cursor.varint()
            pairs = self.items(count, depth, lambda below: (cursor.text(MAX_TEXT), self.value(outputs, below)))
            if len(dict(pairs)) < len(pairs):
                cursor.fail("a name twice in the outputs")
            return dict(pairs)
        cursor.fail(f"value {number} of kind {_SPECIAL}")

    def number(self, number: int) -> float:
        if number == 0:
            return float(struct.unpack("<d", self.cursor.take(8))[0])
        exponent = unfold(number - 1)
        if abs(exponent) > MAX_EXPONENT:
            self.cursor.fail(f"a number times ten to the {exponent}")
        return float(f"{self.cursor.zigzag()}e{exponent}")

    def look_up(self, table: Mapping[int, T], code: int, what: str) -> T:
        if code not in table:
            self.cursor.fail(f"unknown {what} {code}")
        return table[code]
