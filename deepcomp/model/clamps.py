"""Activations that clamp, and bounds of each channel's own.

A clamp has a scale of its own: of channels divided by s, min(max(x, l), h) is what it was, divided
by s, only with bounds l/s and h/s. Given to each channel, bounds go through any rescaling.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from deepcomp.model.edit import Edit
from deepcomp.model.graph import Argument, Stored, Value
from deepcomp.model.layers import Axis, Layers, Skip

__all__ = ["Bounds", "bounds", "set_bounds"]

Bounds: TypeAlias = tuple[Tensor | None, Tensor | None]
"""From below and from above, each float64 of shape (channels × repeat,) or None."""


def bounds(layers: Layers, edit: Edit, place: int, axis: Axis) -> Bounds:
    """What a node clamps its channels to; (None, None) where it does not.

    Raises
    ------
    Skip
        If the bounds are computed, or vary along another axis than the channels'.
    """
    node, shape = layers.graph.nodes[place], layers.shape(axis.value)
    given = {"relu": {"min": 0.0}, "relu6": {"min": 0.0, "max": 6.0}}.get(node.op, node.arguments)

    def vector(bound: Any) -> Tensor | None:
        if bound is None:
            return None
        stored = isinstance(bound, Stored)
        found = edit.tensor(layers.names[bound.index]).double() if stored else torch.tensor(bound, dtype=torch.float64)
        lengths = (1,) * (len(shape) - found.ndim) + tuple(found.shape)
        if any(length > 1 for dim, length in enumerate(lengths) if dim != axis.dim):
            raise Skip("the clamp behind it has bounds along other axes")
        return found.reshape(-1).expand(shape[axis.dim])

    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    if isinstance(low, Value) or isinstance(high, Value):
        raise Skip("the clamp behind it has computed bounds")
    return vector(low), vector(high)


def set_bounds(layers: Layers, edit: Edit, place: int, axis: Axis, found: Bounds, weight: str) -> None:
    """Let a node clamp each channel to bounds of its own: constants beside a weight, of its type."""
    shape = [-1 if dim == axis.dim else 1 for dim in range(len(layers.shape(axis.value)))]
    arguments: dict[str, Argument] = {"self": axis.value}
    for key, leaf, bound in zip(("min", "max"), ("lower", "upper"), found, strict=True):
        if bound is not None:
            tensor = bound.reshape(shape).to(edit.tensor(weight).dtype)
            arguments[key] = edit.constant(edit.beside(weight, leaf), tensor)
    edit.replace(place, "clamp.Tensor", arguments)
