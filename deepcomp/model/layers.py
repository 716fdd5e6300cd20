"""The layers of a captured network as transformations see them: weights at work, and who reads what.

A transformation asks before it changes anything: does nothing else read this value, is this weight
used only here? A question whose answer is no raises `Skip`, which says why in one line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deepcomp.model.capture import Captured
from deepcomp.model.graph import Node, Stored, Value, references, transform

__all__ = ["RECURRENT", "SINGLE", "Axis", "Layer", "Layers", "Skip"]


class Skip(Exception):
    """Why a transformation leaves a place as it is, in one line."""


@dataclass(frozen=True)
class Axis:
    """The axis of a value that channels lie along, each in `repeat` neighbouring positions.

    `repeat` is more than one where feature maps have been flattened.
    """

    value: Value
    dim: int
    repeat: int = 1


@dataclass(frozen=True)
class Layer:
    """A weight at work: a matrix, kernel or table, and the operation that uses it.

    A recurrent operation has a layer for each of its matrices.

    Attributes
    ----------
    place : int
        Of the operation among the graph's nodes.
    kind : {"linear", "matmul", "conv", "conv_transpose", "embedding", "lstm", "gru", "rnn"}
        `matmul` is a product with a weight of shape (inputs, outputs).
    weight : str
        The weight's name; of tied tensors the first.
    bias : str, optional
        The bias' name, likewise.
    shape : tuple of int
        The weight's.
    groups : int
        Into which a convolution divides its channels.
    reads : Axis, optional
        The input channels; None where there are none (an embedding), or where they are no value of
        the graph (recurrent matrices but those that read the input).
    makes : Axis, optional
        The output channels; None for recurrent matrices, whose products are no values of the graph.
    adds : str
        The parameter of the operation that takes the bias; empty where none does.
    """

    place: int
    kind: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    groups: int = 1
    reads: Axis | None = None
    makes: Axis | None = None
    adds: str = ""

    @property
    def axes(self) -> tuple[int, int]:
        """The weight's axes of output channels and of input channels, one of them of a group only."""
        return (1, 0) if self.kind in ("matmul", "conv_transpose", "embedding") else (0, 1)

    @property
    def inputs(self) -> int:
        """Input channels, of all groups."""
        size = self.shape[self.axes[1]]
        return size if self.kind == "conv_transpose" else size * self.groups

    @property
    def outputs(self) -> int:
        """Output channels, of all groups."""
        size = self.shape[self.axes[0]]
        return size * self.groups if self.kind == "conv_transpose" else size

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered by itself, into one."""
        return self.groups == self.inputs == self.outputs > 1

    def check_bias(self) -> None:
        """Make sure that the layer has a bias or can be given one.

        Raises
        ------
        Skip
            If its operation takes none.
        """
        if not self.adds:
            raise Skip(f"its {self.kind} takes no bias")

    def blocks(self, weight: Tensor) -> Tensor:
        """The weight as (groups, outputs a group, inputs a group, taps), whatever its kind."""
        g, taps = self.groups, math.prod(self.shape[2:])
        if self.axes == (0, 1):
            return weight.reshape(g, self.outputs // g, self.inputs // g, taps)
        return weight.reshape(g, self.inputs // g, self.outputs // g, taps).transpose(1, 2)

    def unblocked(self, blocks: Tensor) -> Tensor:
        """The weight that `blocks` were made of."""
        return (blocks if self.axes == (0, 1) else blocks.transpose(1, 2)).reshape(self.shape)

    def by_output(self, numbers: Tensor) -> Tensor:
        """A number for each output channel, shape (outputs,), to fit `blocks`."""
        return numbers.reshape(self.groups, -1, 1, 1)

    def by_input(self, numbers: Tensor) -> Tensor:
        """A number for each input channel, shape (inputs,), to fit `blocks`."""
        return numbers.reshape(self.groups, 1, -1, 1)


class Layers:
    """A captured network as layers, in the order they run.

    Parameters
    ----------
    captured : Captured
    tensors : mapping of str to Tensor
        Those that the graph refers to, at least; only their shapes are looked at.
    values : sequence
        What each input and node holds, as `runtime.interpreter.trace` gives it.
    tied : mapping of str to str, optional
        Tensors that share memory with an earlier one, and that one.

    Attributes
    ----------
    graph : Graph
    names : list of str
        Names of the tensors by number; of tied ones the first.
    """

    def __init__(
        self,
        captured: Captured,
        tensors: Mapping[str, Tensor],
        values: Sequence[Any],
        tied: Mapping[str, str] | None = None,
    ) -> None:
        self.graph = captured.graph
        self.names = [(tied or {}).get(name, name) for name in captured.names]
        self._tensors, self._values = tensors, values
        self._readers: dict[Value, list[int]] = defaultdict(list)
        self._uses: dict[str, int] = defaultdict(int)
        for place, node in enumerate(self.graph.nodes):
            if node.op != "sym_size.int":  # which reads the shape, not the value
                self._note(place, (node.args, node.kwargs))
        self._note(len(self.graph.nodes), self.graph.outputs)
        self._at: dict[int, list[Layer]] = {}
        for place, node in enumerate(self.graph.nodes):
            if node.op in SINGLE:
                self._at[place] = self._single(place, node)
            elif node.op in RECURRENT:
                self._at[place] = self._recurrent(place, node)
        self._makers = {layer.makes.value: layer for layer in self if layer.makes is not None}

    def __iter__(self) -> Iterator[Layer]:
        return (layer for layers in self._at.values() for layer in layers)

    def at(self, place: int) -> list[Layer]:
        """The layers of a node: none, one, or the matrices of a recurrent operation."""
        return self._at.get(place, [])

    def value(self, place: int) -> Value:
        """What a node makes."""
        return Value(len(self.graph.inputs) + place)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a value, for the batch size of the trace; () where it is not one tensor."""
        return tuple(getattr(self._values[value.index], "shape", ()))

    def blank(self, structure: Any) -> Any:
        """Arguments of a node with values that hold nothing; tensors of the file stay references."""
        return transform(structure, lambda entry: self._values[entry.index] if isinstance(entry, Value) else entry)

    def readers(self, value: Value) -> list[str]:
        """What reads a value: operations by name, once for each time they do, and "the caller"."""
        return [self._called(place) for place in self._readers[value]]

    def reader(self, value: Value) -> int:
        """The place of the only node that reads a value.

        Raises
        ------
        Skip
            If several do, or the network gives the value out.
        """
        places = self._readers[value]
        if len(places) == 1 and places[0] < len(self.graph.nodes):
            return places[0]
        what = "its output" if value in self._makers else f"the {self._source(value)} behind it"
        raise Skip(f"{what} is read by {' and '.join(self.readers(value)) or 'nothing'}")

    def maker(self, value: Value) -> Layer:
        """The layer that makes a value.

        Raises
        ------
        Skip
            If it comes from elsewhere.
        """
        if value not in self._makers:
            raise Skip(f"{self._source(value)} comes before it, not a layer")
        return self._makers[value]

    def check_own(self, layer: Layer) -> None:
        """Make sure that a layer's weight and bias are used nowhere else.

        Raises
        ------
        Skip
            If its module is called twice, or tensors are tied.
        """
        for what, name in (("weight", layer.weight), ("bias", layer.bias)):
            if name is not None and self._uses[name] > 1:
                raise Skip(f"its {what} is used {self._uses[name]} times")

    def _note(self, place: int, arguments: Any) -> None:
        for entry in references(arguments):
            if isinstance(entry, Value):
                self._readers[entry].append(place)
            else:
                self._uses[self.names[entry.index]] += 1

    def _called(self, place: int) -> str:
        nodes = self.graph.nodes
        return nodes[place].op.partition(".")[0] if place < len(nodes) else "the caller"

    def _source(self, value: Value) -> str:
        """Where a value comes from, for messages."""
        place = value.index - len(self.graph.inputs)
        return self._called(place) if place >= 0 else f"the input {self.graph.inputs[value.index].name}"

    def _single(self, place: int, node: Node) -> list[Layer]:
        """The layer of an operation with one weight."""
        kind, source, weight, bias = SINGLE[node.op]
        given = node.arguments
        value, scaled = given[source], (given.get("alpha", 1), given.get("beta", 1)) != (1, 1)
        layer = self._layer(place, kind, given[weight], given.get(bias), given.get("groups", 1))
        if layer is None or scaled or not isinstance(value, Value) or (kind in _FLAT and len(layer.shape) != 2):
            return []
        behind = len(layer.shape) - 2  # dimensions that a convolution slides over
        reads = None if kind == "embedding" else self._axis(value, behind)
        return [replace(layer, reads=reads, makes=self._axis(self.value(place), behind), adds=bias)]

    def _recurrent(self, place: int, node: Node) -> list[Layer]:
        """The matrices of a recurrent operation, as PyTorch orders them: of each layer and direction in turn."""
        kind, given = RECURRENT[node.op], node.arguments
        stored, directions = given["params"], 2 if given["bidirectional"] else 1
        size = len(stored) // (given["num_layers"] * directions)
        found = []
        for start in range(0, len(stored), size):
            matrices, biases = [*stored[start : start + size]], (None, None, None)
            if given["has_biases"]:
                biases, matrices[2:4] = (*matrices[2:4], None), []
            reads = self._axis(given["input"], 0) if start < directions * size else None
            for weight, bias, source in zip(matrices, biases, (reads, None, None), strict=False):
                layer = self._layer(place, kind, weight, bias)
                found += [] if layer is None else [replace(layer, reads=source)]
        return found

    def _layer(self, place: int, kind: str, weight: Any, bias: Any, groups: int = 1) -> Layer | None:
        """A weight and a bias as a layer; None where one of them is computed."""
        if not (isinstance(weight, Stored) and isinstance(bias, Stored | None)):
            return None
        name, added = self.names[weight.index], None if bias is None else self.names[bias.index]
        return Layer(place, kind, name, added, tuple(self._tensors[name].shape), groups)

    def _axis(self, value: Value, behind: int) -> Axis:
        """The axis of a value that has so many others behind it."""
        return Axis(value, len(self.shape(value)) - 1 - behind)


_FLAT = ("linear", "matmul")
SINGLE = {  # kind, and the parameters that are its input, its weight and its bias
    "linear": ("linear", "input", "weight", "bias"),
    "addmm": ("matmul", "mat1", "mat2", "self"),
    "mm": ("matmul", "self", "mat2", ""),
    "matmul": ("matmul", "self", "other", ""),
    "embedding": ("embedding", "indices", "weight", ""),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding"),
        ("conv", "input", "weight", "bias"),
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
        ("conv_transpose", "input", "weight", "bias"),
    ),
}
RECURRENT = {"lstm.input": "lstm", "gru.input": "gru", "rnn_tanh.input": "rnn", "rnn_relu.input": "rnn"}
