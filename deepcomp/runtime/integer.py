"""A network in integers, as a processor without floating-point units would run it: the reference for one.

Values are integers from the quantiser behind them (`quantize.static`) on. Layers whose weights lie on grids add up
products of int8 in int32, biases included, and the next quantiser takes the sums to its own scale by fixed-point
multiplication. What there is no rule for (`rules`) gets numbers instead, runs in floating point, and is listed.

Given the same integers before it, a quantiser's integers differ from those of the simulation in float32 by one at
most: sums are exact here and rounded there, and ties go up here and to the even integer there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepcomp.errors import FormatError, InputError
from deepcomp.model import ops
from deepcomp.model.graph import Graph, Stored, Value, references
from deepcomp.model.quantizers import STATIC
from deepcomp.runtime.call import Call, Made
from deepcomp.runtime.interpreter import Interpreter, Role, blamed
from deepcomp.runtime.levels import Levels
from deepcomp.runtime.rules import RULES
from deepcomp.runtime.weighted import WEIGHTED
from deepcomp.runtime.whole import Unfit
from deepcomp.weights import Form

__all__ = ["Integer"]

_FINE = 16  # steps in a step
_FAR = 8  # operations that a name reaches back


class Integer(Interpreter):
    """The network of a graph, in integers where it can be.

    Its tensors are those of the file, dense, for what runs in floating point; the integers were taken from the
    forms when it was made, so that it neither trains nor follows when other weights are loaded.

    `observe` gives out integers as they are held, and takes such back; `levels` says what they stand for.

    Parameters
    ----------
    graph, names, tensors
        See `Interpreter`.
    form : callable
        What the tensor of a name is stored as.

    Raises
    ------
    InputError
        If no layer can run in integers, a quantiser is none, or floating-point numbers are not all float32.
    FormatError
        See `Interpreter`.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        tensors: Iterable[tuple[str, Tensor, Role]],
        form: Callable[[str], Form],
    ) -> None:
        super().__init__(graph, names, tensors)
        self._dcz_names = list(names)
        self._dcz_levels: dict[Value, Levels] = {}
        self._dcz_reasons: dict[int, str] = {}
        program, homes = self._dcz, self._dcz.homes
        _check_types(graph, names, [home.tensor() for home in homes])
        known = (self._dcz_levels, _fine(graph), lambda n: homes[n].tensor(), lambda n: form(names[n]))
        for place in range(len(graph.nodes)):
            made = Value(len(graph.inputs) + place)
            try:
                program.own[place], levels = _rule(place, Call(graph.nodes[place], *known))
            except Unfit as reason:
                self._dcz_reasons[place] = str(reason)
                continue
            if levels is not None:
                self._dcz_levels[made] = levels
                program.readers[made.index] = partial(_numbers, levels)
        layers = [place for place, node in enumerate(graph.nodes) if node.op in WEIGHTED]
        if program.own.keys().isdisjoint(layers):
            why = self._reason(layers[0]) if layers else "there are no layers"
            raise InputError(f"nothing to run in integers: {why}")

    @property
    def levels(self) -> dict[Value, Levels]:
        """What integers stand for, by the values that are made of them."""
        return dict(self._dcz_levels)

    @property
    def float_operations(self) -> list[str]:
        """What runs in floating point, and why."""
        live = _live(self._dcz.graph)
        return [self._reason(place) for place in self._dcz_reasons if place in live]

    @property
    def quantizers(self) -> list[Value]:
        """The static quantisers, by what they make, in the order they run."""
        nodes = enumerate(self._dcz.graph.nodes, len(self._dcz.graph.inputs))
        return [Value(index) for index, node in nodes if node.op == STATIC]

    def called(self, value: Value) -> str:
        """A value by what makes it: `relu of conv2d layer1.0.conv1.weight`; quantisers are passed over."""
        graph, entry = self._dcz.graph, value
        words: list[str] = []
        for _ in range(_FAR):
            if entry.index < len(graph.inputs):
                return " of ".join([*words, f"input {graph.inputs[entry.index].name}"])
            place = entry.index - len(graph.inputs)
            node = graph.nodes[place]
            read = list(dict.fromkeys(references((node.args, node.kwargs))))
            stored = [self._dcz_names[found.index] for found in read if isinstance(found, Stored)]
            values = [found for found in read if isinstance(found, Value)]
            if stored or len(values) != 1:
                words.append(f"{_short(node.op)} {stored[0] if stored else f'(operation {place})'}")
                break
            words += [] if node.op == STATIC else [_short(node.op)]
            entry = values[0]
        return " of ".join(words)

    def _reason(self, place: int) -> str:
        return f"{self.called(Value(len(self._dcz.graph.inputs) + place))}: {self._dcz_reasons[place]}"


def _rule(place: int, call: Call) -> Made:
    """What an operation does with integers."""
    if call.node.op not in RULES:
        raise Unfit("there is no rule for it")
    try:
        return RULES[call.node.op](call)
    except (Unfit, FormatError, InputError):
        raise
    except Exception as error:  # arguments from a file that no operation takes
        raise blamed(error, place, call.node) from error


def _check_types(graph: Graph, names: Sequence[str], tensors: Iterable[Tensor]) -> None:
    """Insist that there is one kind of floating-point numbers."""
    kinds = [(entry.name, entry.dtype) for entry in graph.inputs]
    kinds += [(name, tensor.dtype) for name, tensor in zip(names, tensors, strict=True)]
    for name, kind in kinds:
        if kind.is_floating_point and kind != torch.float32:
            found = str(kind).removeprefix("torch.")
            raise InputError(f"{name}: {found} found; networks of float32 run in integers, and no others")


def _live(graph: Graph) -> set[int]:
    """The nodes that compute with what the network is given, not with its size alone."""
    live = set(range(len(graph.inputs)))
    for index, node in enumerate(graph.nodes, len(live)):
        read = {entry.index for entry in references((node.args, node.kwargs)) if isinstance(entry, Value)}
        if node.op != "sym_size.int" and not live.isdisjoint(read):
            live.add(index)
    return {index - len(graph.inputs) for index in live}


def _fine(graph: Graph) -> float:
    """See `Call`; in passing, insist that quantisers are some."""
    smallest = math.inf
    for place, node in enumerate(graph.nodes):
        if node.op == STATIC:
            given = {name: found for name, found in node.arguments.items() if name != "self"}
            try:
                ops.find(STATIC).call(torch.zeros(0), **given)
                step = float(torch.tensor(given["scale"], dtype=torch.float32))
                if not 0 < step < math.inf:
                    raise ValueError(f"scale {given['scale']} found, a number of float32 expected")
            except Exception as error:  # whatever a file may hold
                raise blamed(error, place, node) from error
            smallest = min(smallest, step)
    return smallest / _FINE


def _numbers(levels: Levels, held: Any) -> Any:
    """What is held as integers, for those who want numbers."""
    return [levels.decode(part) for part in held] if isinstance(held, tuple | list) else levels.decode(held)


def _short(op: str) -> str:
    return op.partition(".")[0]
