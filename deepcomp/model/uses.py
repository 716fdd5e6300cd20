"""What weights are used for, as far as the operations alone say: no shape is needed, so every graph answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deepcomp.model.capture import Captured
from deepcomp.model.graph import Node, Stored, Value, references
from deepcomp.model.layers import RECURRENT, SINGLE

__all__ = ["Use", "uses"]


@dataclass(frozen=True)
class Use:
    """One use of a weight.

    Attributes
    ----------
    kind : str
        As of `layers.Layer`.
    first, last : bool
        Whether no other weight is used before it, or behind it, on any way from the inputs to the outputs.
    """

    kind: str
    first: bool
    last: bool

    @property
    def axis(self) -> int:
        """The weight's axis of what is made of it: output channels, or the rows of a table."""
        return 1 if self.kind in ("matmul", "conv_transpose") else 0


def uses(captured: Captured, tied: Mapping[str, str]) -> dict[str, list[Use]]:
    """All uses of each weight, by its name; of tied tensors the first."""
    graph = captured.graph
    found: dict[str, list[Use]] = {}
    weights = [[captured.names[number] for number in _weights(node)] for node in graph.nodes]
    sources = [[] if node.op == "sym_size.int" else _values(node) for node in graph.nodes]
    first, count = len(graph.inputs), len(graph.nodes)
    behind = [False] * (first + count)  # whether a weight is used before a value is there
    before = [False] * (first + count)  # whether one is used behind it
    for place in range(count):
        behind[first + place] = bool(weights[place]) or any(behind[value] for value in sources[place])
    for place in reversed(range(count)):
        for value in sources[place]:
            before[value] |= bool(weights[place]) or before[first + place]
    for place, names in enumerate(weights):
        node = graph.nodes[place]
        kind = SINGLE[node.op][0] if node.op in SINGLE else RECURRENT.get(node.op, "")
        use = Use(kind, not any(behind[value] for value in sources[place]), not before[first + place])
        for name in names:
            found.setdefault(tied.get(name, name), []).append(use)
    return found


def _weights(node: Node) -> Iterator[int]:
    """The numbers of the weights a node multiplies with."""
    given = node.arguments
    if node.op in SINGLE:
        stored = given[SINGLE[node.op][2]]
        yield from [stored.index] if isinstance(stored, Stored) else []
    elif node.op in RECURRENT:
        yield from (entry.index for entry in given["params"] if isinstance(entry, Stored))


def _values(node: Node) -> list[int]:
    return [entry.index for entry in references((node.args, node.kwargs)) if isinstance(entry, Value)]
