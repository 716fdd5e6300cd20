"""Layers as products of matrices: what each output is computed from, one row an output position.

A linear layer reads a vector, a convolution a patch of its input, a transposed convolution a patch of its input with
zeros between the pixels. In each group of channels the outputs at a position are the group's matrix (`Layer.blocks`,
flattened) times its part of the row. Positions are numbered as they lie in the output, without its channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcomp.model.graph import Node
from deepcomp.model.layers import Layer

__all__ = ["columns", "patches", "product"]


def patches(node: Node, layer: Layer, x: Tensor, at: Tensor | None = None) -> Tensor:
    """What a layer reads for its outputs.

    Parameters
    ----------
    node : Node
        The layer's operation.
    layer : Layer
        One that reads and makes values of the graph.
    x : Tensor
        Its input.
    at : int64 tensor, shape (n,), optional
        Positions of the output; all if not given.

    Returns
    -------
    float32 tensor, shape (n, groups, inputs a group × taps)
    """
    assert layer.reads is not None
    x = x.reshape(-1, *x.shape[layer.reads.dim :])
    windows = _windows(node, layer, x) if layer.shape[2:] else x
    spatial = len(layer.shape) - 2
    windows = windows.movedim(1, spatial + 1)  # positions, channels, taps
    sizes = windows.shape[: spatial + 1]
    index = torch.arange(math.prod(sizes)) if at is None else at
    rows = windows[torch.unravel_index(index, sizes)].reshape(len(index), layer.groups, -1, math.prod(layer.shape[2:]))
    return (rows.flip(3) if layer.kind == "conv_transpose" else rows).flatten(2).float()


def columns(layer: Layer, y: Tensor, at: Tensor | None = None) -> Tensor:
    """What a layer makes at positions of its output, float32 of shape (n, outputs); see `patches`."""
    assert layer.makes is not None
    found = y.movedim(layer.makes.dim, -1).reshape(-1, layer.outputs)
    return (found if at is None else found[at]).float()


def product(layer: Layer, rows: Tensor, weight: Tensor) -> Tensor:
    """What a layer makes of `patches` with a weight and no bias, shape (n, outputs); differentiable."""
    return torch.einsum("ngi,goi->ngo", rows, layer.blocks(weight).flatten(2)).flatten(1)


def _windows(node: Node, layer: Layer, x: Tensor) -> Tensor:
    """The patches of a convolution: a view of its padded input, shape (items, channels, *positions, *taps)."""
    kernel, given = layer.shape[2:], node.arguments

    def each(setting: Any) -> list[int]:
        """A setting for each dimension; one may stand for all."""
        return list(setting) * (len(kernel) // len(setting))

    stride, dilation, padding = each(given["stride"]), each(given["dilation"]), given["padding"]
    spans = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
    if layer.kind == "conv_transpose":
        x, stride = _spaced(x, stride), [1] * len(kernel)
        around = zip(spans, each(padding), each(given["output_padding"]), strict=True)
        pads = [(span - cut, span - cut + more) for span, cut, more in around]
    elif padding == "same":
        pads = [(span // 2, span - span // 2) for span in spans]
    else:
        pads = [(size, size) for size in each((0,) if padding == "valid" else padding)]
    x = F.pad(x, [size for pair in reversed(pads) for size in pair])
    for dim, (span, step, apart) in enumerate(zip(spans, stride, dilation, strict=True), 2):
        x = x.unfold(dim, span + 1, step)[..., ::apart]
    return x


def _spaced(x: Tensor, stride: list[int]) -> Tensor:
    """Feature maps with zeros between the pixels, which a transposed convolution slides over one by one."""
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    spaced = x.new_zeros(*x.shape[:2], *sizes)
    spaced[tuple([slice(None, None, step) for step in (1, 1, *stride)])] = x
    return spaced
