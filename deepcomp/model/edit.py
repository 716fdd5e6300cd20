"""Changes to a captured network, made one by one and put in order at the end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from deepcomp.model import ops
from deepcomp.model.capture import Captured
from deepcomp.model.graph import Argument, Graph, Node, Stored, Value, references, transform
from deepcomp.model.layers import Layer

__all__ = ["Edit"]


class Edit:
    """A captured network that is being changed.

    Nodes keep their places, and values and tensors their numbers, until `finish`; new ones come
    behind. A node may read values of later ones, as long as none needs itself.

    Parameters
    ----------
    captured : Captured
    tensors : mapping of str to Tensor
        All of the network; left as they are.

    Attributes
    ----------
    changed : dict of str to Tensor
        The tensors that are new or not what they were.
    """

    def __init__(self, captured: Captured, tensors: Mapping[str, Tensor]) -> None:
        self.changed: dict[str, Tensor] = {}
        self._tensors = tensors
        self._graph = captured.graph
        self._nodes = list(captured.graph.nodes)
        self._names = list(captured.names)
        self._constants = set(captured.constants)
        self._biases: dict[str, str] = {}  # those made, by the weight of their layer
        self._moved: dict[Value, Value] = {}

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is now."""
        return self.changed[name] if name in self.changed else self._tensors[name]

    def store(self, name: str, tensor: Tensor) -> Stored:
        """Change a tensor, or add one; how nodes refer to it."""
        self.changed[name] = tensor
        if name not in self._names:
            self._names.append(name)
        return Stored(self._names.index(name))

    def constant(self, name: str, tensor: Tensor) -> Stored:
        """Add a tensor that belongs to the operations and does not train."""
        self._constants.add(name)
        return self.store(name, tensor)

    def beside(self, name: str, leaf: str) -> str:
        """A name not yet taken, `leaf` in the module of the tensor `name`."""
        path = name.rpartition(".")[0]
        wanted = f"{path}.{leaf}" if path else leaf
        while wanted in self._tensors or wanted in self.changed:
            wanted += "_"
        return wanted

    def blocks(self, layer: Layer) -> Tensor:
        """A layer's weight as it is now, float64 as `Layer.blocks` has it."""
        return layer.blocks(self.tensor(layer.weight).detach().double())

    def set_blocks(self, layer: Layer, blocks: Tensor) -> None:
        """Change a layer's weight, in its own type."""
        self.store(layer.weight, layer.unblocked(blocks).to(self.tensor(layer.weight).dtype))

    def bias(self, layer: Layer) -> Tensor:
        """A layer's bias as it is now, float64 of shape (outputs,); zeros where it has none."""
        name = self._biases.get(layer.weight, layer.bias)
        zeros = torch.zeros(layer.outputs, dtype=torch.float64)
        return zeros if name is None else zeros + self.tensor(name).detach()

    def set_bias(self, layer: Layer, bias: Tensor) -> None:
        """Change a layer's bias, or give it one, in the type of its weight; see `Layer.check_bias`."""
        name = self._biases.get(layer.weight, layer.bias)
        if name is None:
            name = self._biases[layer.weight] = self.beside(layer.weight, "bias")
            self.change(layer.place, **{layer.adds: self.store(name, bias)})
        self.store(name, bias.to(self.tensor(layer.weight).dtype))

    def replace(self, place: int, op: str, arguments: Mapping[str, Argument]) -> None:
        """Let another operation stand at a place, with arguments by parameter name."""
        self._nodes[place] = Node(op, *ops.find(op).shorten(arguments))

    def change(self, place: int, /, **arguments: Argument) -> None:
        """Give the operation at a place other arguments."""
        node = self._nodes[place]
        self.replace(place, node.op, node.arguments | arguments)

    def add(self, op: str, arguments: Mapping[str, Argument]) -> Value:
        """A new operation, which runs as soon as what it reads is there; what it makes."""
        self._nodes.append(Node(op, *ops.find(op).shorten(arguments)))
        return Value(len(self._graph.inputs) + len(self._nodes) - 1)

    def bypass(self, value: Value, by: Value) -> None:
        """Let everything that reads a value read another one; what makes that one may go on to read it."""
        self._moved[value] = by

    def finish(self) -> Captured:
        """The changed network, without what nothing needs any more; see `Network.rewire`."""
        graph = self._sorted().replace({})
        used = graph.stored()
        numbers = {old: new for new, old in enumerate(used)}
        names = [self._names[number] for number in used]
        graph = graph.map(lambda entry: Stored(numbers[entry.index]) if isinstance(entry, Stored) else entry)
        return Captured(graph, names, {name: self.tensor(name) for name in names if name in self._constants})

    def _sorted(self) -> Graph:
        """All nodes, each behind those it reads, else in the order of their places."""
        first = len(self._graph.inputs)
        nodes = []
        for place, node in enumerate(self._nodes):
            final = partial(self._final, reader=Value(first + place))
            nodes.append(Node(node.op, transform(node.args, final), transform(node.kwargs, final)))
        graph = Graph(self._graph.inputs, tuple(nodes), transform(self._graph.outputs, self._final))
        order: dict[int, int] = {}  # place before → place after

        def visit(place: int) -> None:
            if place < 0 or place in order:
                return
            for entry in references((graph.nodes[place].args, graph.nodes[place].kwargs)):
                if isinstance(entry, Value):
                    visit(entry.index - first)
            order[place] = len(order)

        for place in range(len(graph.nodes)):
            visit(place)
        moved = {Value(first + before): Value(first + after) for before, after in order.items()}
        return Graph(graph.inputs, tuple([graph.nodes[place] for place in order]), graph.outputs).map(
            lambda entry: moved.get(entry, entry) if isinstance(entry, Value) else entry
        )

    def _final(self, entry: Stored | Value, reader: Value | None = None) -> Stored | Value:
        """What is read in place of a value, by the node that makes `reader` or by the caller."""
        while isinstance(entry, Value) and self._moved.get(entry, reader) != reader:
            entry = self._moved[entry]
        return entry
