"""What the axes of tensors carry, and one call as the rule of its operation sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from deepcomp.model.graph import Node, Stored
from deepcomp.model.ties import Ids, Ties

__all__ = ["FILTER", "SCALE", "Call", "Layout", "Result", "layouts_of"]

FILTER, SCALE = "filter", "scale"  # what an axis of a weight holds: filters, or scales of a batch norm
_PLAIN = "makes this dimension, which is not channels"


@dataclass(frozen=True)
class Layout:
    """The channels along each axis of a tensor."""

    axes: tuple[Ids, ...]

    @property
    def ndim(self) -> int:
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes))

    def put(self, axis: int, ids: Ids) -> Layout:
        """The layout with other channels along one axis."""
        axes = list(self.axes)
        axes[axis] = ids
        return Layout(tuple(axes))


Result: TypeAlias = "Layout | tuple[Layout, ...] | None"  # None: no tensor


@dataclass
class Call:
    """One node of the graph as its rule sees it.

    Attributes
    ----------
    node : Node
    given : dict
        Arguments by parameter name, layouts in place of tensors.
    found : Any
        The result: tensors without values.
    again : callable
        The operation with another tensor as its first operand.
    ties : Ties
    names : sequence of str
        Names of the stored tensors, by number.
    roles : dict
        Where `mark` notes what the axes of stored tensors hold.
    result : Layout, tuple of Layout, or None
        What the rule made.
    """

    node: Node
    given: dict[str, Any]
    found: Any
    again: Callable[[Tensor], Any]
    ties: Ties
    names: Sequence[str]
    roles: dict[tuple[str, int], str]
    result: Result = None

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def layouts(self) -> list[Layout]:
        """All operands that are tensors."""
        return list(layouts_of(tuple(self.given.values())))

    def mark(self, name: str, axis: int, role: str) -> None:
        """Note what an axis of an operand holds, if that is a tensor of the file."""
        entry = self.node.arguments[name]
        if isinstance(entry, Stored):
            self.roles[self.names[entry.index], axis % self[name].ndim] = role

    def freeze(self, axes: Sequence[Ids], what: str) -> None:
        for ids in axes:
            self.ties.freeze(ids, f"{self.node.op} {what}")

    def fixed(self, size: int, what: str = _PLAIN) -> Ids:
        return self.ties.fixed(size, f"{self.node.op} {what}")

    def plain(self, what: str = _PLAIN) -> list[Layout]:
        """Layouts without channels, one for each tensor of the result."""
        found = [
            entry
            for entry in (self.found if isinstance(self.found, tuple | list) else [self.found])
            if isinstance(entry, Tensor)
        ]
        return [Layout(tuple([self.fixed(size, what) for size in entry.shape])) for entry in found]

    def give(self, layouts: Sequence[Layout]) -> Result:
        """The layouts of the result's tensors, as the operation returns these."""
        if isinstance(self.found, tuple | list):
            return tuple(layouts)
        return layouts[0] if layouts else None

    def broadcast(self, layouts: Sequence[Layout]) -> Layout:
        """Tie tensors element by element, as broadcasting pairs them."""
        axes = []
        for place in range(-max(layout.ndim for layout in layouts), 0):
            here = [layout.axes[place] for layout in layouts if layout.ndim >= -place]
            first, *others = [ids for ids in here if len(ids) == max(map(len, here))]
            for ids in others:
                self.ties.unite(first, ids)
            axes.append(first)
        return Layout(tuple(axes))

    def tie_rows(self, ids: Ids, rows: int) -> None:
        """Tie the channels of each of several equal parts of an axis."""
        for row in ids.reshape(rows, -1):
            self.ties.unite(row, np.repeat(row[:1], len(row)))


def layouts_of(structure: Any) -> Iterator[Layout]:
    """Every layout in nested tuples, lists and mappings, in order."""
    if isinstance(structure, Layout):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from layouts_of(item)
    elif isinstance(structure, dict):
        yield from layouts_of(tuple(structure.values()))
