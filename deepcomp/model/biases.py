"""Layers whose outputs a bias can shift, channel by channel."""

from __future__ import annotations

from collections.abc import Collection

from deepcomp.model.layers import Layer, Layers, Skip

__all__ = ["shiftable"]


def shiftable(layers: Layers, chosen: Collection[str]) -> tuple[list[Layer], dict[str, str]]:
    """The layers of the chosen weights that have a bias of their own, or can be given one.

    Returns
    -------
    list of Layer
        In the order they run.
    dict of str to str
        Why others do not, by the name of the weight.
    """
    found, skipped = [], {}
    for layer in layers:
        if layer.weight not in chosen:
            continue
        try:
            if layer.makes is None:
                raise Skip(f"{layer.kind} keeps its products to itself")
            layer.check_bias()
            shared = sum((other.bias or other.weight) == (layer.bias or layer.weight) for other in layers)
            if shared > 1:
                raise Skip(f"its {'bias' if layer.bias else 'weight'} is used {shared} times")
            found.append(layer)
        except Skip as skip:
            skipped[layer.weight] = str(skip)
    return found, skipped
