"""The quantisers of a network, to be switched on one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from deepcomp.diagnosis.findings import ACTIVATION, WEIGHT
from deepcomp.model.graph import Graph, Value
from deepcomp.model.placement import placement
from deepcomp.model.quantizers import bypassed, quantizers
from deepcomp.network import Network
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.weights import Form
from deepcomp.weights.grid import grid_of

__all__ = ["Board", "Switch", "bare"]


@dataclass(frozen=True)
class Switch:
    """A quantiser of a weight or of an activation.

    Attributes
    ----------
    kind, name, bits
        As of `findings.Single`.
    forms : tuple of str
        Of a weight: the tensors whose forms come with it, which are its own and that of the bias corrected for it.
    place : int
        Of an activation: the quantiser's among the nodes.
    source : Value, optional
        Of an activation: what it quantises, in the graph without quantisers.
    """

    kind: str
    name: str
    bits: int | None
    forms: tuple[str, ...] = ()
    place: int = -1
    source: Value | None = None


class Board:
    """All quantisers of a network.

    Parameters
    ----------
    net : Network
        Behind its recipe, with operations.

    Attributes
    ----------
    bare : Network
        The network without quantisers, its weights as they were.
    weights, activations : list of Switch
        In the order of the tensors, and in the order they run.

    Raises
    ------
    InputError
        See `Network.layers`.
    """

    def __init__(self, net: Network) -> None:
        assert net.captured is not None
        self.net = replace(net, captured=replace(net.captured, graph=net.captured.graph.replace({})))
        self.bare = bare(self.net)
        self.layers = self.bare.layers("diagnose")
        self.weights = self._weights()
        self.activations = self._activations()

    def module(self, on: Collection[Switch]) -> Interpreter:
        """The network with some of its quantisers on."""
        forms = {name: self.net.forms[name] for switch in on for name in switch.forms}
        return _with(self.net, forms, {switch.place for switch in on}).interpreter(formed=True)

    def _weights(self) -> list[Switch]:
        """The tensors whose forms are not what they were; biases go with their weights."""
        forms, tensors = self.net.forms, self.net.tensors
        changed = [name for name in tensors if name in forms and not torch.equal(forms[name].dense(), tensors[name])]
        biases = {layer.weight: layer.bias for layer in self.layers if layer.weight in changed}
        taken = set(biases.values())
        groups = {name: (name, biases.get(name)) for name in changed if name not in taken}
        return [
            Switch(WEIGHT, name, _bits(forms[name]), tuple(part for part in group if part in changed))
            for name, group in groups.items()
        ]

    def _activations(self) -> list[Switch]:
        """The quantisers among the operations, named as `model.placement` has it; others by their numbers."""
        captured = self.net.captured
        assert captured is not None
        sites, _ = placement(self.layers, captured.names)
        names, found = {site.value: site.name for site in sites}, []
        for place, source in _sources(captured.graph).items():
            name, bits = names.pop(source, f"quantiser {place}"), captured.graph.nodes[place].arguments["bits"]
            found.append(Switch(ACTIVATION, name, bits, place=place, source=source))
        return found


def bare(net: Network) -> Network:
    """A network without quantisers, its weights as they were."""
    return _with(net, {}, ())


def _with(net: Network, forms: Mapping[str, Form], places: Collection[int]) -> Network:
    """A network with some of its forms, and with the quantisers at some places."""
    assert net.captured is not None
    graph = net.captured.graph
    off = set(quantizers(graph)) - set(places)
    return replace(net, forms=dict(forms), captured=replace(net.captured, graph=bypassed(graph, off)))


def _bits(form: Form) -> int | None:
    grid = grid_of(form)
    return None if grid is None else grid.bits


def _sources(graph: Graph) -> dict[int, Value]:
    """What the quantisers read, by their places, as the graph without them numbers it."""
    places = [place for place in quantizers(graph) if isinstance(graph.nodes[place].args[0], Value)]
    read = tuple(graph.nodes[place].args[0] for place in places)
    shown = bypassed(Graph(graph.inputs, graph.nodes, (graph.outputs, read)), quantizers(graph))
    assert isinstance(shown.outputs, tuple)
    found = shown.outputs[1]
    assert isinstance(found, tuple)
    return {place: value for place, value in zip(places, found, strict=True) if isinstance(value, Value)}
