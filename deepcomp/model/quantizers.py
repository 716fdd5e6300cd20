"""Quantisers of activations: operations among a network's others, which whoever runs it may leave out.

A static one knows its scale and zero-point (`quantize.static`), a dynamic one takes them from what passes through
it (`quantize.dynamic`).
"""

from __future__ import annotations

from collections.abc import Collection

from deepcomp.model.graph import Argument, Graph, Value

__all__ = ["DYNAMIC", "STATIC", "bypassed", "quantizers"]

STATIC = "quantize.static"
DYNAMIC = "quantize.dynamic"


def quantizers(graph: Graph) -> list[int]:
    """The places of the quantisers among a graph's nodes."""
    return [place for place, node in enumerate(graph.nodes) if node.op in (STATIC, DYNAMIC)]


def bypassed(graph: Graph, places: Collection[int]) -> Graph:
    """The graph without some of its quantisers: what read them reads what they read. Tensors keep their numbers."""
    read: dict[Value, Argument] = {}
    for place in sorted(places):
        source = graph.nodes[place].args[0]
        behind = read.get(source, source) if isinstance(source, Value) else source  # of a long row, not one by one
        read[Value(len(graph.inputs) + place)] = behind
    return graph.replace(read)
