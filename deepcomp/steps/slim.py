"""Slim starts: of each layer a few units are left, and training makes do with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.channels import OUTPUTS
from deepcomp.model.graph import Value, references
from deepcomp.model.layers import Layer, Layers
from deepcomp.network import Network, per_layer
from deepcomp.steps.step import Step
from deepcomp.weights import Mask

__all__ = ["Slim"]


@dataclass
class Slim(Step):
    """Mask all output channels of a layer but the strongest, those with the most energy, and its bias likewise.

    The network keeps its shape, and a masked channel is zero from then on. What reads it is left as it is: `rate-train`
    removes what nothing depends on, and the context coder stores dead rows and columns for next to nothing.
    `prune-filters` takes channels out of the network instead.

    Put this step behind `fold-bn` and `store`, and before weights are quantised.

    Attributes
    ----------
    units : int or table
        Channels left, at least 1, or by layer pattern; layers that a table does not name, and those with fewer, are
        left as they are. So are, by a plain number, those that outputs are computed from without another layer.
    """

    do: ClassVar[str] = "slim"

    units: int | dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for units in self.units.values() if isinstance(self.units, dict) else (self.units,):
            if units < 1:
                raise UsageError(f"slim.units = {units}: 1 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        net.require(*self.units if isinstance(self.units, dict) else ())
        alive = {}
        biases = Counter(layer.bias for layer in net.layers(self.do) if layer.bias is not None)
        shared = {name for name, readers in biases.items() if readers > 1}
        for layer, units in self._chosen(net):
            blocks = layer.blocks(_value(net, layer.weight))
            energy = blocks.double().square().sum((2, 3)).reshape(-1)
            keep = energy.argsort(descending=True, stable=True).argsort() < units
            _mask(net, layer.weight, layer.unblocked(layer.by_output(keep).expand_as(blocks)))
            # What a bias has may be needed by another layer, or by all channels
            if layer.bias is not None and layer.bias not in shared and net.tensors[layer.bias].numel() == layer.outputs:
                _mask(net, layer.bias, keep)
            alive[layer.weight] = units
        return {"alive": alive}

    def _chosen(self, net: Network) -> Iterator[tuple[Layer, int]]:
        """The layers that get fewer channels, and how many."""
        names = {name for name, _ in net.weights(self.layers, self.skip)}
        layers, spared = net.layers(self.do), set()
        if isinstance(self.units, int):
            staying = net.channels(self.do).staying
            names -= {name for name, why in staying.items() if why == OUTPUTS}  # through depthwise layers, too
            spared = _last(layers)  # through what mixes channels, too
        for layer in layers:
            units = per_layer(self.units, layer.weight)
            chosen = layer.weight in names and layer.place not in spared and layer.makes is not None
            if chosen and units is not None and units < layer.outputs:
                yield layer, units


def _last(layers: Layers) -> set[int]:
    """The places of layers that some output is computed from without another layer."""
    graph, places = layers.graph, {layer.place for layer in layers}
    found, seen, left = set(), set(), [*references(graph.outputs)]
    while left:
        entry = left.pop()
        place = entry.index - len(graph.inputs) if isinstance(entry, Value) else -1
        if place in places:
            found.add(place)
        elif place >= 0 and place not in seen:
            seen.add(place)
            left += references((graph.nodes[place].args, graph.nodes[place].kwargs))
    return found


def _value(net: Network, name: str) -> Tensor:
    """A weight as the steps before left it."""
    form = net.form(name)
    return net.tensors[name].detach() if form is None else form.dense()


def _mask(net: Network, name: str, keep: Tensor) -> None:
    """Keep some elements of a weight; what is masked already stays so."""
    value = _value(net, name)
    net.store(name, Mask.nonzero(value, keep & (value != 0) if isinstance(net.form(name), Mask) else keep))
