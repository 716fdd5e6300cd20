"""What layers read on average, without data: from what is known of the layers before them.

The output of a layer, Gaussian in each channel, stays known through all that adds, averages or moves numbers, for that
takes means to means, and through a clamp right behind it, by the mean of a clipped Gaussian (Nagel et al. 2021,
eq. 21). Behind a clamp the mean is known, but not the spread that a second one would ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from deepcomp.model import ops
from deepcomp.model.clamps import bounds
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Stored, Value, references, transform
from deepcomp.model.layers import Layer, Layers, Skip

__all__ = ["clipped_mean", "expected_inputs"]

_CLAMPS = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"}
_CLAMPS |= {f"{name}.Tensor" for name in ("clamp", "clamp_min", "clamp_max")}
_LINEAR = {
    name
    for names in (
        "add.Tensor sub.Tensor add.Scalar sub.Scalar mul.Scalar div.Scalar neg cat stack",
        "mean.dim avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        "reshape flatten.using_ints transpose.int permute t mT numpy_T movedim.int movedim.intlist swapaxes unsqueeze",
        "squeeze squeeze.dim squeeze.dims select.int slice.Tensor index_select expand pad constant_pad_nd",
        "upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_bilinear2d.vec",
    )
    for name in names.split()
}


def expected_inputs(
    layers: Layers, edit: Edit, statistics: Mapping[str, tuple[Tensor, Tensor]]
) -> Iterator[tuple[Layer, Tensor | Skip]]:
    """The mean of each layer's input.

    Parameters
    ----------
    layers : Layers
    edit : Edit
        Of the same network; nothing is changed.
    statistics : mapping of str to (mean, std)
        Of the output channels of layers, by weight; each float64 of shape (outputs,).

    Yields
    ------
    Layer, and float64 tensor or Skip
        In the order they run, all that read a value: the mean in the shape of that value, or why it is not known.
    """
    means = _Means(layers, edit, statistics)
    nodes = layers.graph.nodes
    last = {value: place for place, node in enumerate(nodes) for value in references((node.args, node.kwargs))}
    for place in range(len(nodes)):
        yield from ((layer, means.known[layer.reads.value]) for layer in layers.at(place) if layer.reads is not None)
        means.step(place)
        means.known = {value: mean for value, mean in means.known.items() if last.get(value, place) > place}


def clipped_mean(mean: Tensor, std: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """E[min(max(x, low), high)] of Gaussian x, elementwise; None does not clip."""
    clipped = mean
    if low is not None:
        clipped = clipped + _rectified_mean(low - mean, std)
    if high is not None:
        clipped = clipped - _rectified_mean(mean - high, std)
    return clipped


def _rectified_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E[max(x, 0)] of Gaussian x: μ Φ(μ/σ) + σ φ(μ/σ)."""
    ratio = mean / std.clamp_min(torch.finfo(std.dtype).tiny)
    below: Tensor = torch.special.ndtr(ratio)
    return mean * below + std * (-(ratio**2) / 2).exp() / math.sqrt(2 * math.pi)


class _Means:
    """The means of a network's values, one operation after the other."""

    def __init__(self, layers: Layers, edit: Edit, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.layers, self.edit, self.statistics = layers, edit, statistics
        self.known: dict[Value, Tensor | Skip] = {
            Value(index): Skip(f"without data nothing is known of the input {entry.name}")
            for index, entry in enumerate(layers.graph.inputs)
        }

    def step(self, place: int) -> None:
        """Find the mean of what a node makes, or why it is not known."""
        value = self.layers.value(place)
        try:
            self.known[value] = self._mean(place)
        except Skip as skip:
            self.known[value] = skip

    def _mean(self, place: int) -> Tensor:
        node = self.layers.graph.nodes[place]
        if layers := self.layers.at(place):
            return self._over(layers[0], self._gaussian(layers[0])[0])
        if node.op in _CLAMPS:
            return self._clamped(place, node.arguments["self"])
        scales = node.op in ("mul.Tensor", "div.Tensor") and not isinstance(node.arguments["other"], Value)
        if node.op not in _LINEAR and not scales:
            raise Skip(f"the mean behind {node.op.partition('.')[0]} is not known")
        args, kwargs = transform((node.args, node.kwargs), self._argument)
        found: Tensor = ops.find(node.op).call(*args, **kwargs)
        return found

    def _clamped(self, place: int, value: Value) -> Tensor:
        try:
            layer = self.layers.maker(value)
        except Skip as skip:
            op = self.layers.graph.nodes[place].op.partition(".")[0]
            raise Skip(f"the mean behind {op} is not known: {skip}") from None
        assert layer.makes is not None
        limits = bounds(self.layers, self.edit, place, layer.makes)
        return self._over(layer, clipped_mean(*self._gaussian(layer), *limits))

    def _gaussian(self, layer: Layer) -> tuple[Tensor, Tensor]:
        if layer.weight not in self.statistics:
            raise Skip(f"nothing is known of the outputs of {layer.weight} (fold-bn records it)")
        return self.statistics[layer.weight]

    def _over(self, layer: Layer, numbers: Tensor) -> Tensor:
        """A number a channel, in the shape of what the layer makes."""
        assert layer.makes is not None
        shape = self.layers.shape(layer.makes.value)
        return numbers.reshape([-1 if dim == layer.makes.dim else 1 for dim in range(len(shape))]).expand(shape)

    def _argument(self, entry: Stored | Value) -> Any:
        """What an operation on means is called with: tensors of the network, means, and sizes."""
        if isinstance(entry, Stored):
            return self.edit.tensor(self.layers.names[entry.index])
        held, found = self.layers.blank(entry), self.known[entry]
        if not isinstance(held, Tensor | list):
            return held
        if isinstance(found, Skip):
            raise found
        return found
