"""The grid on which a layer's input lies, and whether it is there for this layer alone.

Between a quantiser and the layer there may be what moves numbers, chooses among them or adds zeros: views, max-pooling,
ReLU, a concatenation of what is on one grid. It makes no difference whether that comes before the quantiser or behind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deepcomp.model import ops
from deepcomp.model.graph import Argument, Graph, Node, Value
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.placement import JOINS, is_view
from deepcomp.model.quantizers import STATIC

__all__ = ["InputGrid", "input_grid", "opened", "own_quantizer"]


@dataclass(frozen=True)
class InputGrid:
    """A static quantiser: the arguments of its operation."""

    scale: float
    zero_point: int
    bits: int
    symmetric: bool

    @classmethod
    def of(cls, node: Node) -> InputGrid:
        """That of a node `quantize.static`."""
        given = node.arguments
        return cls(given["scale"], given["zero_point"], given["bits"], given["symmetric"])

    def __call__(self, x: Tensor) -> Tensor:
        """What the operation makes of some numbers."""
        made: Tensor = ops.find(STATIC).call(x, self.scale, self.zero_point, self.bits, self.symmetric)
        return made


def input_grid(layers: Layers, layer: Layer) -> InputGrid | None:
    """The grid of static quantisers that a layer's input lies on; None where it lies on none."""
    assert layer.reads is not None
    return _grid(layers.graph, layer.reads.value)


def own_quantizer(layers: Layers, layer: Layer) -> int:
    """The place of the static quantiser whose only reader a layer is, views between them aside.

    Raises
    ------
    Skip
        If there is no such quantiser.
    """
    assert layer.reads is not None
    value: Argument = layer.reads.value
    while isinstance(value, Value) and (node := _maker(layers.graph, value)) is not None:
        if len(readers := layers.readers(value)) > 1:
            raise Skip(f"the quantiser before it is read by {' and '.join(readers)}")
        place = value.index - len(layers.graph.inputs)
        if node.op == STATIC:
            return place
        if not is_view(layers.graph, place):
            break
        value = node.args[0]
    raise Skip("no static quantiser stands before this layer alone")


def opened(graph: Graph, places: set[int]) -> Graph:
    """The graph with some of its quantisers letting everything through; values keep their numbers."""
    nodes = [
        Node("expand_as", (node.arguments["self"],) * 2) if place in places else node
        for place, node in enumerate(graph.nodes)
    ]
    return replace(graph, nodes=tuple(nodes))


def _grid(graph: Graph, value: Any) -> InputGrid | None:
    node = _maker(graph, value)
    if node is None:
        return None
    if node.op == STATIC:
        return InputGrid.of(node)
    if node.op in JOINS:
        found = {_grid(graph, entry) for entry in node.args[0]}  # type: ignore[union-attr]
        return found.pop() if len(found) == 1 else None
    through = node.op == "relu" or is_view(graph, value.index - len(graph.inputs))
    return _grid(graph, node.args[0]) if through else None


def _maker(graph: Graph, value: Any) -> Node | None:
    """The node that makes a value; None for inputs, and for what is no value."""
    place = value.index - len(graph.inputs) if isinstance(value, Value) else -1
    return graph.nodes[place] if place >= 0 else None
