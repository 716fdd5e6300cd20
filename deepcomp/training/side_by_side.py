"""Two networks on the same inputs, layer by layer: the original one, and the one that is being tuned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from deepcomp.model.capture import Captured
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Value
from deepcomp.model.input_grids import InputGrid, input_grid, opened, own_quantizer
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.quantizers import quantizers
from deepcomp.network import Network
from deepcomp.training.in_step import in_step
from deepcomp.weights import Form

__all__ = ["Pairs", "SideBySide"]

Pairs = Iterator[tuple[Tensor, Tensor]]


class SideBySide:
    """What layers read in the original network, and what they are to be tuned for.

    The network's own operations and forms stay as they are: what has been found goes to `put` and `grids`, and layers
    further on see it.

    Parameters
    ----------
    net : Network
        Its activations may be quantised.
    layers : Layers
        Of this network.
    chosen : sequence of Layer
        Those that are tuned; they read values of the graph.
    batches : sequence of mappings of str to Tensor
        Inputs.
    sequential : bool
        Whether layers are tuned for what those before them give by now; if not, for what they read in the original
        network, on the grid that a static quantiser puts it on.
    inputs : bool
        Whether quantisers are tuned that stand before one layer alone.

    Attributes
    ----------
    grids : dict of Layer to InputGrid
        These quantisers, by the layer that reads them. Layers are shown what comes before them.
    fixed : dict of Layer to str
        Why other layers have none.
    """

    def __init__(
        self,
        net: Network,
        layers: Layers,
        chosen: Sequence[Layer],
        batches: Sequence[Mapping[str, Tensor]],
        sequential: bool,
        inputs: bool,
    ) -> None:
        self._net, self._layers, self._batches, self._sequential = net, layers, batches, sequential
        self._places: dict[Layer, int] = {}
        self.fixed: dict[Layer, str] = {}
        self._stops: dict[Value, list[Layer]] = defaultdict(list)
        for layer in chosen:
            assert layer.reads is not None
            self._stops[layer.reads.value].append(layer)
            try:
                if inputs:
                    self._places[layer] = own_quantizer(layers, layer)
            except Skip as skip:
                self.fixed[layer] = str(skip)
        graph, tuned = layers.graph, set(self._places.values())
        self.grids = {layer: InputGrid.of(graph.nodes[place]) for layer, place in self._places.items()}
        assert net.captured is not None
        self._bare, self._open = opened(graph, set(quantizers(graph))), opened(graph, tuned)
        self._original = replace(net, captured=replace(net.captured, graph=self._bare)).interpreter()
        self._current = replace(net, captured=replace(net.captured, graph=self._open)).interpreter(formed=True)

    def walk(self) -> Iterator[tuple[Layer, Pairs]]:
        """The layers in the order their inputs are there, each with these inputs.

        Yields
        ------
        Layer, and pairs of tensors
            For each batch what it reads in the original network, and what it is to be tuned for; to be looked at before
            the next layer comes.
        """
        original = in_step(self._original, self._bare, self._stops, self._batches)
        current = in_step(self._current, self._open, self._stops, self._batches)
        change: InputGrid | None = None
        for value in sorted(self._stops, key=lambda stop: stop.index):
            before = next(original)
            after = current.send(change) if self._sequential else None
            for layer in self._stops[value]:
                yield layer, self._pairs(layer, before, after)
            change = self.grids.get(self._stops[value][0])  # if it has one, it is the only one here

    def put(self, name: str, form: Form) -> None:
        """Let the network that is tuned have another weight or bias."""
        self._current.get_parameter(name).data.copy_(form.dense())

    def captured(self) -> Captured:
        """The network's operations, with `grids` as they are now."""
        assert self._net.captured is not None
        edit = Edit(self._net.captured, self._net.tensors)
        for layer, place in self._places.items():
            edit.change(place, scale=self.grids[layer].scale, zero_point=self.grids[layer].zero_point)
        return edit.finish()

    def _pairs(self, layer: Layer, before: list[Tensor], after: list[Tensor] | None) -> Pairs:
        if after is not None:
            return zip(before, after, strict=True)
        grid = None if layer in self.grids else input_grid(self._layers, layer)
        return ((x, x if grid is None else grid(x)) for x in before)
