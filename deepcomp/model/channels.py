"""The channels of a network that can be taken out, and the network without some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from deepcomp.errors import InputError
from deepcomp.model import ops
from deepcomp.model.capture import Captured
from deepcomp.model.flow import RULES, unknown
from deepcomp.model.graph import Graph, Node, Stored, Value, transform
from deepcomp.model.layout import FILTER, SCALE, Call, Layout, Result, layouts_of
from deepcomp.model.removal import rewrite
from deepcomp.model.ties import Ids, Ties

__all__ = ["FILTER", "OUTPUTS", "SCALE", "Channels", "Group", "Place"]

OUTPUTS = "tied to the network's outputs"  # why some filters stay
_Axis: TypeAlias = tuple[str | int, int]  # of a stored tensor, or of a result
MAX_SIZES = 1 << 25  # of all dimensions of all results; a graph of a few bytes can ask for any


@dataclass(frozen=True)
class Place:
    """Where the channels of a group lie along one axis of a tensor.

    Attributes
    ----------
    tensor : str
        Its name; of tied tensors the first.
    axis : int
    role : {"filter", "scale", ""}
        Whether the axis holds what makes the channels (filters, rows of a linear layer, columns of
        an embedding), the scales of a batch normalisation, or neither.
    indices : int64 array, shape (channels, entries)
        For each channel the positions that belong to it: several where a feature map was flattened.
    """

    tensor: str
    axis: int
    role: str
    indices: Ids


@dataclass(frozen=True)
class Group:
    """Channels of a kind: each lies in the same tensors, and goes from all of them or from none.

    Attributes
    ----------
    channels : int64 array, shape (channels,)
        Their numbers.
    places : tuple of Place
    """

    channels: Ids
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.channels)

    def by_role(self, role: str) -> list[Place]:
        return [place for place in self.places if place.role == role]


class Channels:
    """A captured network's channels, followed from its inputs to its outputs.

    Parameters
    ----------
    captured : Captured
    tensors : mapping of str to Tensor
        Those that the graph refers to, at least; only their shapes are looked at.
    values : sequence
        What every input and node holds, as `runtime.interpreter.trace` says.
    tied : mapping of str to str, optional
        Tensors that share memory with another one, and that one.

    Attributes
    ----------
    filters : list of (str, int)
        The tensors that make channels, and the axes along which their filters lie.
    groups : tuple of Group
        All channels that may go. In every group at least one must stay.
    staying : dict of str to str
        Tensors of two and more dimensions that have no filter to lose, and why.

    Raises
    ------
    InputError
        If the network's results are too large to follow.
    """

    def __init__(
        self,
        captured: Captured,
        tensors: Mapping[str, Tensor],
        values: Sequence[Any],
        tied: Mapping[str, str] | None = None,
    ) -> None:
        self._graph = captured.graph
        self._walk = _Walk(captured.graph, [(tied or {}).get(name, name) for name in captured.names], tensors, values)
        self._firsts = self._walk.ties.firsts(np.arange(len(self._walk.ties)))
        self.filters = [place for place, role in self._walk.roles.items() if role == FILTER]
        self.groups = self._grouped()
        movable = {place.tensor for group in self.groups for place in group.by_role(FILTER)}
        self.staying = {
            name: self._why(name, layout)
            for name, layout in self._walk.stored.items()
            if layout.ndim >= 2 and name not in movable
        }

    def without(self, channels: Iterable[int], tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
        """The network without some channels.

        Parameters
        ----------
        channels : iterable of int
            Numbers of channels of `groups`.
        tensors : mapping of str to Tensor

        Returns
        -------
        Graph
            The operations, with the tensors' numbers unchanged.
        dict of str to Tensor
            The tensors that have become smaller, by name; of tied ones the first.
        """
        stays = ~np.isin(self._firsts, np.fromiter(channels, np.int64))
        nodes = tuple([rewrite(call, lambda ids: int(stays[ids].sum())) for call in self._walk.calls])
        smaller: dict[str, Tensor] = {}
        for name, layout in self._walk.stored.items():
            for axis, ids in enumerate(layout.axes):
                if not stays[ids].all():
                    rest = torch.from_numpy(np.flatnonzero(stays[ids]))
                    smaller[name] = smaller.get(name, tensors[name]).detach().index_select(axis, rest)
        return Graph(self._graph.inputs, nodes, self._graph.outputs), smaller

    def _grouped(self) -> tuple[Group, ...]:
        """Channels that have filters and are free to go, put together by where they lie."""
        walk = self._walk
        made = [walk.stored[name].axes[axis] for name, axis in self.filters]
        numbers = dict.fromkeys(number for ids in made for number in self._firsts[ids].tolist())
        lies: dict[int, dict[_Axis, list[int]]] = {n: {} for n in numbers if walk.ties.why(n) is None}
        for name, layout in walk.everywhere():
            for axis, ids in enumerate(layout.axes):
                for position, number in enumerate(self._firsts[ids].tolist()):
                    if number in lies:
                        lies[number].setdefault((name, axis), []).append(position)
        alike: dict[tuple[tuple[_Axis, int], ...], list[int]] = {}
        for number, where in lies.items():
            alike.setdefault(tuple((axis, len(indices)) for axis, indices in where.items()), []).append(number)
        return tuple([self._group(found, [lies[number] for number in found]) for found in alike.values()])

    def _group(self, numbers: list[int], lie: list[dict[_Axis, list[int]]]) -> Group:
        places = [
            Place(name, axis, self._walk.roles.get((name, axis), ""), np.array([where[name, axis] for where in lie]))
            for name, axis in lie[0]
            if isinstance(name, str)
        ]
        return Group(np.array(numbers), tuple(places))

    def _why(self, name: str, layout: Layout) -> str:
        """Why no filter of a tensor may go."""
        ids = layout.axes[dict(self.filters).get(name, 0)]
        return next(filter(None, map(self._walk.ties.why, ids.tolist())), "it holds no filters")


class _Walk:
    """One pass over a graph, in which each operation's rule hands the channels on."""

    def __init__(
        self, graph: Graph, names: Sequence[str], tensors: Mapping[str, Tensor], values: Sequence[Any]
    ) -> None:
        self.ties = Ties()
        self.names = names
        self.values = values
        self.roles: dict[tuple[str, int], str] = {}
        self.stored = {name: self.new(tensors[name].shape) for name in dict.fromkeys(names)}
        self.layouts: list[Result] = []
        self.calls: list[Call] = []
        total = sum(size for tensor in _tensors(list(values)) for size in tensor.shape)
        if total > MAX_SIZES:
            raise InputError(f"dimensions of {total} in all in the network's results, at most {MAX_SIZES} expected")
        for found in values[: len(graph.inputs)]:
            axes = [self.ties.fixed(size, "tied to the network's inputs") for size in found.shape]
            self.layouts.append(Layout(tuple(axes)))
        for node, found in zip(graph.nodes, values[len(graph.inputs) :], strict=True):
            self.call(node, found)
        for layout in layouts_of(transform(graph.outputs, self.layout)):
            for ids in layout.axes:
                self.ties.freeze(ids, OUTPUTS)

    def new(self, shape: Sequence[int]) -> Layout:
        """The layout of a stored tensor."""
        axes = tuple([self.ties.new(size) for size in shape])
        for ids in axes:
            if len(ids) == 1:  # it would leave nothing, and it stands for many where tensors are broadcast
                self.ties.freeze(ids, "there is only one")
        return Layout(axes)

    def call(self, node: Node, found: Any) -> None:
        def again(first: Tensor) -> Any:
            operands, options = transform(node.args[1:], self.value), transform(node.kwargs, self.value)
            return ops.find(node.op).call(first, *operands, **options)

        given = transform(node.arguments, self.layout)
        call = Call(node, given, found, again, self.ties, self.names, self.roles)
        call.result = RULES.get(node.op, unknown)(call)
        self.calls.append(call)
        self.layouts.append(call.result)

    def value(self, entry: Stored | Value) -> Any:
        """A size; operations that are run again have no other operands than their first and sizes."""
        assert isinstance(entry, Value)
        return self.values[entry.index]

    def layout(self, entry: Stored | Value) -> Result:
        return self.layouts[entry.index] if isinstance(entry, Value) else self.stored[self.names[entry.index]]

    def everywhere(self) -> Iterator[tuple[str | int, Layout]]:
        """All layouts: of stored tensors under their names, of results under numbers."""
        yield from self.stored.items()
        yield from enumerate(layouts_of(tuple([call.result for call in self.calls])))


def _tensors(structure: Any) -> Iterator[Tensor]:
    """The tensors among results, or among several results of one operation."""
    for entry in structure if isinstance(structure, tuple | list) else [structure]:
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, tuple | list):
            yield from _tensors(entry)
