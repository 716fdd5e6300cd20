"""From layer to layer: what lies between the channels one weight makes and the next weight that reads them.

A chain goes through operations that treat channels alike and each by itself: activations that scale
with their input or clamp it, pooling, and other views of the same numbers. Each has a short rule
that says where the channels lie in its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from deepcomp.model import ops
from deepcomp.model.graph import Node
from deepcomp.model.layers import Axis, Layer, Layers, Skip

__all__ = ["Chain", "chain", "chains"]


@dataclass(frozen=True)
class Chain:
    """Two layers, the second of which alone reads what the first one makes.

    Attributes
    ----------
    first, second : Layer
    between : tuple of (int, Axis)
        The places of the nodes between them, in order, and where the channels lie in what each reads.
    """

    first: Layer
    second: Layer
    between: tuple[tuple[int, Axis], ...]

    @property
    def repeat(self) -> int:
        """How many neighbouring inputs of the second layer each output of the first one is."""
        return self.second.inputs // self.first.outputs


def chains(layers: Layers, chosen: Collection[str]) -> tuple[list[Chain], dict[str, str]]:
    """All chains between two chosen weights, in the order they run, and why there is none behind others.

    Parameters
    ----------
    layers : Layers
    chosen : collection of str
        Names of weights.

    Returns
    -------
    list of Chain
    dict of str to str
        Reasons, by the first weight.
    """
    found, skipped = [], {}
    for layer in layers:
        if layer.weight not in chosen:
            continue
        try:
            one = chain(layers, layer)
            if one.second.weight not in chosen:
                raise Skip(f"{one.second.weight} behind it is not to be changed")
            found.append(one)
        except Skip as skip:
            skipped[layer.weight] = str(skip)
    return found, skipped


def chain(layers: Layers, layer: Layer) -> Chain:
    """The chain that starts at a layer.

    Raises
    ------
    Skip
        If something else reads one of the values, or an operation without a rule lies between; if
        the weight or bias of either layer is used elsewhere too.
    """
    if layer.makes is None:
        raise Skip(f"{layer.kind} keeps its products to itself")
    layers.check_own(layer)
    axis, between = layer.makes, []
    while not layers.at(place := layers.reader(axis.value)):
        between.append((place, axis))
        axis = _Call(layers, place, axis).result()
    second, *others = layers.at(place)
    if others or second.reads != Axis(axis.value, axis.dim) or second.inputs != layer.outputs * axis.repeat:
        raise Skip(f"{layers.readers(axis.value)[0]} behind it does not read its channels one by one")
    try:
        layers.check_own(second)
    except Skip as skip:
        raise Skip(f"{second.weight} behind it: {skip}") from None
    return Chain(layer, second, tuple(between))


@dataclass(frozen=True)
class _Call:
    """A node of a chain, and where the channels lie in what it reads."""

    layers: Layers
    place: int
    axis: Axis

    @property
    def node(self) -> Node:
        return self.layers.graph.nodes[self.place]

    @property
    def shape(self) -> tuple[int, ...]:
        """What it reads."""
        return self.layers.shape(self.axis.value)

    @property
    def made(self) -> tuple[int, ...]:
        """What it makes."""
        return self.layers.shape(self.layers.value(self.place))

    def result(self) -> Axis:
        """Where the channels lie in what it makes."""
        rule = _RULES.get(self.node.op)
        if rule is None or self.node.args[0] != self.axis.value:
            raise Skip(f"{self.spoken} lies behind it")
        dim, repeat = rule(self)
        if self.made[dim] * self.axis.repeat != self.shape[self.axis.dim] * repeat:
            self.fail()
        return Axis(self.layers.value(self.place), dim, repeat)

    @property
    def spoken(self) -> str:
        return self.node.op.partition(".")[0]

    def fail(self) -> None:
        raise Skip(f"{self.spoken} behind it takes its channels apart or mixes them")


def _kept(call: _Call) -> tuple[int, int]:
    return call.axis.dim, call.axis.repeat


def _spatial(count: int) -> Callable[[_Call], tuple[int, int]]:
    """The rule of operations over the last `count` dimensions."""

    def rule(call: _Call) -> tuple[int, int]:
        if call.axis.dim >= len(call.shape) - count:
            call.fail()
        return _kept(call)

    return rule


def _mean(call: _Call) -> tuple[int, int]:
    given, rank = call.node.arguments, len(call.shape)
    dims = range(rank) if given["dim"] in (None, ()) else {dim % rank for dim in given["dim"]}
    if call.axis.dim in dims:
        call.fail()
    return call.axis.dim - (0 if given["keepdim"] else sum(dim < call.axis.dim for dim in dims)), call.axis.repeat


def _pad(call: _Call) -> tuple[int, int]:
    given, place = call.node.arguments, 2 * (len(call.shape) - 1 - call.axis.dim)
    if given["value"]:
        raise Skip(f"{call.spoken} behind it fills in {given['value']}")
    if any(given["pad"][place : place + 2]):
        call.fail()
    return _kept(call)


def _reshape(call: _Call) -> tuple[int, int]:
    """Channels that lie `inner` apart before do so afterwards, as neighbours where axes were joined."""
    dim, repeat = _kept(call)
    channels, outer = call.shape[dim] // repeat, math.prod(call.shape[:dim])
    for place, size in enumerate(call.made):
        if math.prod(call.made[:place]) == outer and size % channels == 0 and size:
            return place, size // channels
    call.fail()
    raise AssertionError


def _view(call: _Call) -> tuple[int, int]:
    """Run on a tensor with strides of zero but along the channels: in the result they still have one."""
    strides = [int(dim == call.axis.dim) for dim in range(len(call.shape))]
    probe = torch.empty_strided(call.shape, strides, device="meta")
    args, kwargs = call.layers.blank((call.node.args[1:], call.node.kwargs))
    view = ops.find(call.node.op).call(probe, *args, **kwargs)
    along = [dim for dim in range(view.ndim) if view.stride(dim) and view.shape[dim] > 1]
    if len(along) != 1:
        call.fail()
    return along[0], call.axis.repeat


_RULES: dict[str, Callable[[_Call], tuple[int, int]]] = {
    name: rule
    for rule, names in {
        _kept: """relu leaky_relu prelu relu6 hardtanh clamp clamp_min clamp_max clamp.Tensor clamp_min.Tensor
            clamp_max.Tensor""",
        _mean: "mean.dim",
        _pad: "pad constant_pad_nd",
        _reshape: "reshape flatten.using_ints",
        _view: """transpose.int permute t mT numpy_T movedim.int movedim.intlist swapaxes unsqueeze squeeze squeeze.dim
            squeeze.dims select.int slice.Tensor expand""",
        **{
            _spatial(count): f"""max_pool{count}d avg_pool{count}d adaptive_avg_pool{count}d
            upsample_nearest{count}d.vec reflection_pad{count}d replication_pad{count}d"""
            for count in (1, 2, 3)
        },
        _spatial(2): "upsample_bilinear2d.vec",
    }.items()
    for name in names.split()
}
