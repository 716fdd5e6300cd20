"""Where quantisers of activations belong (Nagel et al. 2021, §2.3.2 and 2.3.3).

An activation is a floating-point value computed from a floating-point input, or by a layer from any input. So
positions and masks, which constants and whole numbers make, are none. Each is quantised once, whoever reads it:

===========================  ==================================================================================
operation                    where its result is quantised
===========================  ==================================================================================
a layer, and most others     behind it, or behind the last of what follows and treats number by number: an
                             activation function, a batch norm, a sum or product with what is no activation. All
                             these must be the only readers, and views may lie between
a view, max-pooling, ReLU    not at all: its numbers are on the grid of what it reads
a mean, average pooling      behind it, on the grid of what it reads
a concatenation              not at all, if nothing else reads its parts: they share one grid. Else behind it
a table (embedding)          not at all: the table is quantised
a mask before a softmax      not at all: no grid is to stretch to what it puts in
===========================  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deepcomp.model.graph import Graph, Node, Stored, Value, references
from deepcomp.model.layers import Layers, Skip

__all__ = ["AVERAGES", "ELEMENTWISE", "JOINS", "Site", "is_view", "placement"]


@dataclass(frozen=True)
class Site:
    """A place for a quantiser.

    Attributes
    ----------
    value : Value
        What it quantises. Whatever reads that is to read the quantiser.
    name : str
        The input; the module of the layer; or what makes the value, behind the layer that has run last: `conv1/add`.
    grid : int
        The number of the first site that has the same grid; often its own.
    average : bool
        Whether it takes over the grid of what it is the mean of, and has no say in it.
    input, output : bool
        Whether it quantises an input of the network; whether that gives out what it quantises, or a view of it.
    """

    value: Value
    name: str
    grid: int
    average: bool = False
    input: bool = False
    output: bool = False


def placement(layers: Layers, names: Sequence[str]) -> tuple[list[Site], dict[str, str]]:
    """The sites of a network without quantisers, in the order it runs, and why other places have none.

    Parameters
    ----------
    layers : Layers
    names : sequence of str
        Names of the tensors that the graph refers to by number, tied ones under their own.

    Returns
    -------
    list of Site
        With names that all differ: `#2` is added where one comes again.
    dict of str to str
        Reasons, by the name that the site would have.
    """
    walk = _Walk(layers, names)
    for number, entry in enumerate(layers.graph.inputs):
        if Value(number) in walk.active:
            walk.put(Value(number), entry.name, given=True)
    for place in range(len(layers.graph.nodes)):
        walk.visit(place)
    given_out = {walk.grids.get(entry) for entry in references(layers.graph.outputs) if isinstance(entry, Value)}
    return [replace(site, output=n in given_out) for n, site in enumerate(walk.sites)], walk.skipped


def is_view(graph: Graph, place: int) -> bool:
    """Whether a node only moves, copies or drops numbers, or puts zeros beside them."""
    node = graph.nodes[place]
    if node.op == "getitem":  # of views, not of what an operation has made
        source = node.args[0].index - len(graph.inputs) if isinstance(node.args[0], Value) else -1
        return source >= 0 and is_view(graph, source)
    return node.op in _VIEWS and not (node.op in _PADS and node.arguments["value"])


class _Walk:
    """A walk along the nodes of a graph in the order they run.

    Attributes
    ----------
    active : set of Value
        The activations.
    grids : dict of Value to int
        The number of the site on whose grid a value lies.
    """

    def __init__(self, layers: Layers, names: Sequence[str]) -> None:
        self.layers, self.nodes, self.names = layers, layers.graph.nodes, names
        self.active: set[Value] = set()
        self.sites: list[Site] = []
        self.skipped: dict[str, str] = {}
        self.grids: dict[Value, int] = {}
        self._covered: set[Value] = set()  # values that a quantiser further on, or at them, stands for
        self._masked: set[Value] = set()
        self._layer = ""  # the name of the last one visited
        self._fed = self._trace()

    def _trace(self) -> set[Value]:
        """The values that depend on what the inputs hold; those that are activations are noted."""
        fed = {Value(number) for number in range(len(self.layers.graph.inputs))}
        self.active |= {value for value in fed if self._floating(value)}
        for place in range(len(self.nodes)):
            value, read = self.layers.value(place), set(self._read(place))
            if read & fed:
                fed.add(value)
                if self._floating(value) and (read & self.active or self.layers.at(place)):
                    self.active.add(value)
        return fed

    def visit(self, place: int) -> None:
        """Find out what becomes of the result of a node."""
        value, name = self.layers.value(place), self._name(place)
        if value in self.active and value not in self._covered:
            self._settle(place, value, name)
        for layer in self.layers.at(place):
            self._layer = name
            source = layer.reads and layer.reads.value
            if source in self._fed - self.active:
                self.skipped[f"{name}/input"] = "it is computed from whole numbers alone"

    def put(self, value: Value, name: str, given: bool = False) -> None:
        """Place a quantiser for a value, which may be an input: at the end of its chain."""
        end = self._end(value)
        self.grids[end] = len(self.sites)
        self.sites.append(Site(end, self._unique(name), len(self.sites), input=given))

    def _settle(self, place: int, value: Value, name: str) -> None:
        op, sources = self.nodes[place].op, self._sources(place)
        view, joins = is_view(self.layers.graph, place), op in JOINS and not self._foreign(place)
        shared = self._common(sources)
        if self._masks(place):
            self._masked.add(value)
            self.skipped[self._unique(name)] = "what it puts in may be a mask, which no grid is to stretch to"
        elif self._masked.intersection(sources) and (view or op in ELEMENTWISE):
            self._masked.add(value)
        elif view or (shared is not None and (joins or op == "relu")) or (joins and self._share(place, sources)):
            self._inherit(value, sources[0])
        elif op in AVERAGES and shared is not None:
            self.grids[value] = len(self.sites)
            self.sites.append(Site(value, self._unique(name), shared, average=True))
        elif op == "embedding" and self._end(value) == value:
            self.skipped[self._unique(name)] = "its table is quantised, which makes what it looks up so"
        elif isinstance(self.layers.blank(value), Tensor):  # not a list, whose items come one by one
            self.put(value, name)

    def _common(self, sources: Sequence[Value]) -> int | None:
        """The first site of the grid that all of some values lie on; None where there is none."""
        firsts = {self.sites[self.grids[source]].grid if source in self.grids else None for source in sources}
        return firsts.pop() if len(firsts) == 1 else None

    def _inherit(self, value: Value, source: Value) -> None:
        """Let a value be on the grid of another, if that is on one."""
        if source in self.grids:
            self.grids[value] = self.grids[source]

    def _end(self, value: Value) -> Value:
        """The last of the values that follow from one number by number and are read by nothing else."""
        end, passed = value, [value]
        while (place := self._reader(value)) is not None and not self._masks(place):
            view = is_view(self.layers.graph, place)
            if not view and (self.nodes[place].op not in ELEMENTWISE or len(self._sources(place)) > 1):
                break
            value = self.layers.value(place)
            passed.append(value)
            end = end if view else value
        self._covered.update(passed[: passed.index(end) + 1])
        return end

    def _share(self, place: int, sources: Sequence[Value]) -> bool:
        """Let what a node joins have one grid, if all of it is quantised for this node alone."""
        numbers = [self.grids[source] for source in sources if source in self.grids]
        if len(numbers) < len(sources) or not all(self._leads(number, place) for number in numbers):
            return False
        for number in numbers:
            self.sites[number] = replace(self.sites[number], grid=numbers[0])
        return True

    def _leads(self, number: int, place: int) -> bool:
        """Whether a node alone reads what is on the grid of a site, which no other site shares."""
        site = self.sites[number]
        reader = self._reader(site.value)
        while reader is not None and reader != place and is_view(self.layers.graph, reader):
            reader = self._reader(self.layers.value(reader))
        return reader == place and site.grid == number

    def _masks(self, place: int) -> bool:
        """Whether a node puts infinities in, or what is no activation into what only a softmax reads."""
        if self.nodes[place].op not in _MASKS or not self._foreign(place):
            return False
        if any(isinstance(entry, float) and math.isinf(entry) for entry in self.nodes[place].args):
            return True
        while (reader := self._reader(self.layers.value(place))) is not None:
            if self.nodes[reader].op in ("softmax.int", "log_softmax.int"):
                return True
            if not is_view(self.layers.graph, reader) and self.nodes[reader].op not in ELEMENTWISE:
                return False
            place = reader
        return False

    def _reader(self, value: Value) -> int | None:
        """The place of the only node that reads a value; None where there are others."""
        try:
            return self.layers.reader(value)
        except Skip:
            return None

    def _read(self, place: int) -> list[Stored | Value]:
        """The tensors whose numbers a node reads."""
        node = self.nodes[place]
        given: Any = node.args[:1] if node.op in _VIEWS else (node.args, node.kwargs)
        return [] if node.op in _BLANK else list(references(given))

    def _sources(self, place: int) -> list[Value]:
        """The activations among them, each once."""
        found = (entry for entry in self._read(place) if isinstance(entry, Value) and entry in self.active)
        return list(dict.fromkeys(found))

    def _foreign(self, place: int) -> bool:
        """Whether it reads other tensors too."""
        return len(set(self._read(place))) > len(self._sources(place))

    def _floating(self, value: Value) -> bool:
        held = self.layers.blank(value)
        tensors = held if isinstance(held, tuple | list) else [held]
        return any(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors)

    def _name(self, place: int) -> str:
        """The module of a layer; else what is done behind the last layer."""
        node = self.nodes[place]
        while node.op == "getitem" and isinstance(node.args[0], Value):
            place = node.args[0].index - len(self.layers.graph.inputs)
            node = self.nodes[place]
        if self.layers.at(place):
            return _module(self.names, node)
        op = node.op.partition(".")[0]
        return f"{self._layer}/{op}" if self._layer else op

    def _unique(self, name: str) -> str:
        taken = {site.name for site in self.sites} | self.skipped.keys()
        found, number = name, 1
        while found in taken:
            number += 1
            found = f"{name}#{number}"
        return found


def _module(names: Sequence[str], node: Node) -> str:
    """The module of a layer's tensors, or the name of the first where that lies in none."""
    first = next(names[entry.index] for entry in references((node.args, node.kwargs)) if isinstance(entry, Stored))
    return first.rpartition(".")[0] or first


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PADS = _names("pad constant_pad_nd")
_VIEWS = _PADS | _names(
    """getitem reshape flatten.using_ints transpose.int permute slice.Tensor select.int unsqueeze squeeze squeeze.dim
    squeeze.dims expand to.dtype split.Tensor chunk index.Tensor unbind.int split_with_sizes repeat t expand_as gather
    index_select reshape_as unflatten.int broadcast_to tile repeat_interleave.self_int narrow movedim.int
    movedim.intlist swapaxes unfold flip roll rot90 diagonal diag_embed diag tril triu numpy_T mT tensor_split.sections
    tensor_split.indices take_along_dim sort topk pixel_shuffle pixel_unshuffle channel_shuffle im2col amax amin max
    min max.dim min.dim max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
    max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d.vec
    upsample_nearest2d.vec upsample_nearest3d.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec
    _upsample_nearest_exact3d.vec"""
)
AVERAGES = _names(
    """avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean mean.dim
    upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec _upsample_bilinear2d_aa.vec"""
)
JOINS = _names("cat stack hstack vstack dstack")
_MASKS = _names(
    """add.Tensor sub.Tensor masked_fill.Scalar masked_fill.Tensor where.self where.ScalarOther where.ScalarSelf
    baddbmm addbmm"""
)
ELEMENTWISE = (
    JOINS
    | _MASKS - {"baddbmm", "addbmm"}
    | _names(
        """relu gelu sigmoid tanh silu hardtanh hardswish hardsigmoid leaky_relu relu6 elu prelu softplus mish selu celu
    log_sigmoid softshrink hardshrink threshold clamp clamp.Tensor clamp_min clamp_max clamp_min.Tensor
    clamp_max.Tensor batch_norm mul.Tensor div.Tensor rsub.Tensor add.Scalar mul.Scalar sub.Scalar div.Scalar
    rsub.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar maximum minimum max.other min.other sqrt rsqrt exp exp2
    expm1 log log1p log2 log10 neg abs square reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh erf
    erfc sign floor ceil round trunc frac nan_to_num lerp.Scalar lerp.Tensor addcmul addcdiv pad constant_pad_nd"""
    )
)
_BLANK = _names("sym_size.int zeros_like ones_like full_like new_zeros new_ones new_full")
