"""What the weights of a network are multiplied with, and how often."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from deepcomp.model.graph import Graph, Value, references
from deepcomp.model.layers import RECURRENT, SINGLE, Layer, Layers
from deepcomp.model.placement import JOINS, is_view
from deepcomp.model.quantizers import DYNAMIC, STATIC

__all__ = ["Work", "works"]

_FLOAT = 32  # bits of an activation that no quantiser has touched


@dataclass(frozen=True)
class Work:
    """What a weight does for the batch that its network was traced with, all its uses together.

    Attributes
    ----------
    macs : int
        Multiply-accumulates; none of a table.
    bits : int
        The same, each counted as often as the activation has bits: times the bits of the weight, bit operations.
    """

    macs: int = 0
    bits: int = 0


def works(layers: Layers) -> dict[str, Work]:
    """What each weight does, by its name; of tied tensors the first.

    Activations have the bits of the quantiser they come from, or 32. Those that a recurrent operation keeps to itself
    count as what it reads.
    """
    found: dict[str, Work] = defaultdict(Work)
    for layer in layers:
        source, before = _source(layers, layer), found[layer.weight]
        macs = _macs(layers, layer, source)
        found[layer.weight] = Work(before.macs + macs, before.bits + macs * _bits(layers.graph, source))
    return dict(found)


def _source(layers: Layers, layer: Layer) -> Any:
    """What a layer reads."""
    node = layers.graph.nodes[layer.place]
    return node.arguments["input" if node.op in RECURRENT else SINGLE[node.op][1]]


def _macs(layers: Layers, layer: Layer, source: Value) -> int:
    """Of one use of a weight."""
    weights, read = math.prod(layer.shape), layers.shape(source)
    if layer.kind == "embedding":
        return 0
    if layer.kind == "conv_transpose":
        return math.prod(read) * weights // layer.inputs
    if layer.makes is None:  # a recurrent matrix: once for each step
        return math.prod(read[:-1]) * weights
    return math.prod(layers.shape(layer.makes.value)) * weights // layer.outputs


def _bits(graph: Graph, value: Value) -> int:
    """Bits of an activation, which keeps its grid where it is only moved."""
    place = value.index - len(graph.inputs)
    if place < 0:
        return _FLOAT
    node = graph.nodes[place]
    if node.op in (STATIC, DYNAMIC):
        return int(node.arguments["bits"])
    if node.op != "relu" and node.op not in JOINS and not is_view(graph, place):
        return _FLOAT
    return max(_bits(graph, entry) for entry in references(node.args[:1]) if isinstance(entry, Value))
