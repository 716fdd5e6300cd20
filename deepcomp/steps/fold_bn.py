"""Batch normalisation becomes part of the layer before it (Nagel et al. 2021, §3.2; Krishnamoorthi 2018, §3.2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.model.edit import Edit
from deepcomp.model.graph import Stored, Value
from deepcomp.model.layers import Axis, Layer, Layers, Skip
from deepcomp.network import Network, Statistics
from deepcomp.steps.step import Step
from deepcomp.weights import Form, Grid
from deepcomp.weights.grid import grid_of
from deepcomp.weights.rescaling import multiply

__all__ = ["FoldBN"]

_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class FoldBN(Step):
    """Fold batch norms into the convolutions, transposed convolutions and linear layers before them.

    W ← W γ/√(σ² + ε) and b ← β + (b − μ) γ/√(σ² + ε), with the running statistics μ and σ² and in
    float64; a missing bias is made. The outputs stay what they are in inference. The batch norms'
    tensors leave the network, so its file no longer loads into the class it came from.

    A weight that lies on a grid with a scale for each output channel keeps its integers: the scales become
    s γ/√(σ² + ε) and, where γ is negative, the integers change sides. So batch norms may stay while a network is
    trained with its weights quantised, and be merged behind (Nagel et al. 2021, §4.2). Other forms are refused.

    What a batch norm says of its layer's outputs stays known to later steps as `Network.statistics`:
    channels of mean β and standard deviation |γ|.
    """

    do: ClassVar[str] = "fold-bn"

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        assert net.captured is not None
        edit = Edit(net.captured, net.tensors)
        chosen = {name for name, _ in net.weights(self.layers, self.skip)}
        folded: dict[str, str] = {}
        skipped: dict[str, str] = {}
        statistics: dict[str, Statistics] = {}
        forms: dict[str, Form] = {}
        for place, node in enumerate(layers.graph.nodes):
            if node.op != "batch_norm":
                continue
            norm = _Norm(layers, place)
            try:
                layer = norm.layer()
                if layer.weight in chosen:
                    form = copy.deepcopy(net.form(layer.weight))
                    grid = _grid(form, layer)
                    statistics[layer.weight] = norm.fold(edit, layer, grid)
                    if form is not None and grid is not None:
                        forms[layer.weight] = form
                    folded[layer.weight] = ", ".join(layers.readers(layers.value(place)))
            except Skip as skip:
                skipped[str(norm)] = str(skip)
        if folded:
            captured = edit.finish()
            gone = set(net.captured.names) - set(captured.names)
            counters = {f"{name.rpartition('.')[0]}.num_batches_tracked" for name in gone}
            net.rewire(self.do, captured, edit.changed, gone | counters, forms)
            net.statistics |= statistics
        return {"folded": folded, "skipped": skipped}


class _Norm:
    """One batch norm, in float64."""

    def __init__(self, layers: Layers, place: int) -> None:
        self.layers, self.place = layers, place
        self.given = layers.graph.nodes[place].arguments

    def __str__(self) -> str:
        """The module it was, or where it stands."""
        names = [self.layers.names[entry.index] for entry in self.given.values() if isinstance(entry, Stored)]
        return names[0].rpartition(".")[0] or names[0] if names else f"operation {self.place}"

    def layer(self) -> Layer:
        """The layer it folds into.

        Raises
        ------
        Skip
            If there is none, or folding would change what something else reads.
        """
        layers, value = self.layers, self.given["input"]
        if self.given["running_mean"] is None:
            raise Skip("it has no running statistics")
        if any(isinstance(self.given[part], Value) for part in _PARTS):
            raise Skip("its scales or statistics are computed")
        layer = layers.maker(value)
        layers.reader(value)
        layers.check_own(layer)
        layer.check_bias()
        if layer.makes != Axis(value, 1):
            raise Skip(f"the channels of {layer.weight} lie along another axis than the one it normalises")
        return layer

    def fold(self, edit: Edit, layer: Layer, grid: Grid | None) -> Statistics:
        """Let the layer do what the batch norm does, and the grid of its weight; what its outputs are then like."""

        def part(name: str, otherwise: float) -> Tensor:
            entry = self.given[name]
            found = torch.tensor(otherwise) if entry is None else edit.tensor(self.layers.names[entry.index]).detach()
            return found.double().expand(layer.outputs)

        gamma, beta = part("weight", 1.0), part("bias", 0.0)
        mean, var = part("running_mean", 0.0), part("running_var", 1.0)
        scale = gamma / (var + self.given["eps"]).sqrt()
        edit.set_bias(layer, beta + (edit.bias(layer) - mean) * scale)
        edit.set_blocks(layer, edit.blocks(layer) * layer.by_output(scale))
        if grid is not None:
            multiply(grid, scale)
        edit.bypass(self.layers.value(self.place), self.given["input"])
        return Statistics(beta.clone(), gamma.abs())


def _grid(form: Form | None, layer: Layer) -> Grid | None:
    """The grid that a weight, or what a mask leaves of it, lies on; None where it lies on none.

    Raises
    ------
    Skip
        If several channels share a scale.
    """
    values = grid_of(form)
    if values is None:
        return None
    if not values.blocks.channelwise(layer.axes[0], layer.outputs):
        raise Skip(f"the scales of {layer.weight} are not one for each output channel")
    return values
