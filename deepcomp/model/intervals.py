"""Between which numbers the values of a network lie, as far as that follows from what is known of some.

Bounds of a value are two tensors that broadcast against it, of size 1 along the batch: most often one number for each
channel. They go through what treats number by number, sums and products, concatenation, averages and views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deepcomp.model import ops
from deepcomp.model.graph import Node, Stored, Value, references, transform
from deepcomp.model.layers import Layers
from deepcomp.model.placement import AVERAGES, ELEMENTWISE, JOINS, is_view

__all__ = ["Interval", "intervals"]

Interval: TypeAlias = tuple[Tensor, Tensor]
"""The least and the greatest number."""

_POINTS = 257  # at which a function is looked at between its bounds, both of them among these
_PAIRS = frozenset({"add.Tensor", "sub.Tensor", "mul.Tensor", "maximum", "minimum", "max.other", "min.other"})


def intervals(layers: Layers, tensors: Mapping[str, Tensor], known: Mapping[Value, Interval]) -> dict[Value, Interval]:
    """Bounds of all values for which they can be told.

    Those of a function of one value are exact where it has its extremes at the ends of the interval, as monotone
    functions do, and else up to a 256th of it. Those of sums and products are the widest: as if their parts were at
    their extremes together.

    Parameters
    ----------
    layers : Layers
    tensors : mapping of str to Tensor
        All of the network.
    known : mapping of Value to pair of Tensor
        Bounds of values where something is known: float64, with as many dimensions as the value.
    """
    found = dict(known)
    for place, node in enumerate(layers.graph.nodes):
        value, view = layers.value(place), is_view(layers.graph, place)
        read = list(references(node.args[:1] if view else (node.args, node.kwargs)))
        bounds = [found[entry] for entry in read if isinstance(entry, Value) and entry in found]
        foreign = any(isinstance(entry, Value) and entry not in found for entry in read)
        if value in found or foreign or not bounds:
            continue
        if view or (len(bounds) == len(read) and node.op in AVERAGES | JOINS):
            found[value] = _flat(bounds, len(layers.shape(value)))
        elif len(bounds) == 1 and node.op in ELEMENTWISE - JOINS:
            low, high = _image(layers, tensors, node, bounds[0])
            shape = layers.shape(value)
            if low.ndim == len(shape) and all(n in (1, size) for n, size in zip(low.shape, shape, strict=True)):
                found[value] = low, high
        elif len(bounds) == 2 and node.op in _PAIRS:
            found[value] = _corners(node, bounds)
    return found


def _flat(bounds: Sequence[Interval], rank: int) -> Interval:
    """Bounds of all numbers of several values together, and of 0, which views may put in, for one of that rank."""
    low = torch.stack([low.amin() for low, _ in bounds]).amin().clamp(max=0)
    high = torch.stack([high.amax() for _, high in bounds]).amax().clamp(min=0)
    return low.reshape([1] * rank), high.reshape([1] * rank)


def _image(layers: Layers, tensors: Mapping[str, Tensor], node: Node, bounds: Interval) -> Interval:
    """Bounds of a function of one value."""
    function: Callable[..., Any] = ops.find(node.op).call

    def at(share: float) -> Any:
        def find(entry: Stored | Value) -> Tensor:
            stored = isinstance(entry, Stored)
            return tensors[layers.names[entry.index]].detach().double() if stored else torch.lerp(*bounds, share)

        return function(*transform(node.args, find), **transform(node.kwargs, find))

    made = torch.stack([at(place / (_POINTS - 1)) for place in range(_POINTS)])
    return made.amin(0), made.amax(0)


def _corners(node: Node, bounds: Sequence[Interval]) -> Interval:
    function: Callable[..., Any] = ops.find(node.op).call
    made = torch.stack([function(a, b, **node.kwargs) for a in bounds[0] for b in bounds[1]])
    return made.amin(0), made.amax(0)
