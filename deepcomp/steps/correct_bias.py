"""Biases make up for what quantisation does to the mean of each output (Nagel et al. 2021, §3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.biases import shiftable
from deepcomp.model.edit import Edit
from deepcomp.model.expectation import expected_inputs
from deepcomp.model.graph import Value
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.patches import columns, patches, product
from deepcomp.model.quantizers import quantizers
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.weights import Raw

__all__ = ["CorrectBias"]


@dataclass
class CorrectBias(Step):
    """Take from each bias by how much the forms of the weights raise the layer's outputs on average.

    From data, b ← b − (E[ŷ] − E[y]) for each channel, with y of the original network and ŷ with all weights as
    their forms make them and the biases before it corrected. From statistics, b ← b − (Ŵ − W) E[x], with the mean
    that the batch normalisation before the layer gives its input. Both are taken over positions too, and before the
    activation function. Layers without a bias get one.

    The original biases stay what they were: like the weights', the corrected values are forms. Put this step
    behind `quantize` and before activations are quantised.

    Attributes
    ----------
    by : {"data", "statistics"}
        Calibration inputs, or `Network.statistics`, which `fold-bn` records.
    samples : int
        Calibration inputs.
    """

    do: ClassVar[str] = "correct-bias"

    by: str = "data"
    samples: int = 512

    def __post_init__(self) -> None:
        if self.by not in ("data", "statistics"):
            raise UsageError(f"correct-bias.by = {self.by!r}: data or statistics expected")
        if self.samples < 1:
            raise UsageError(f"correct-bias.samples = {self.samples}: 1 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        if quantizers(layers.graph):
            raise UsageError(f"{self.do}: activations are quantised already, biases are corrected before that")
        chosen = {name for name, _ in net.weights(self.layers, self.skip) if name in net.forms}
        found, skipped = shiftable(layers, chosen)
        if self.by == "data":
            return {"corrected": self._measured(net, net.biases(self.do, found)), "skipped": skipped}
        shifts, unknown = _expected(net, layers, found)
        known = [layer for layer in found if layer.place in shifts]
        moved = {
            bias: _store(net, bias, net.tensors[bias], shifts[layer.place])
            for layer, bias in zip(known, net.biases(self.do, known), strict=True)
        }
        return {"corrected": moved, "skipped": skipped | unknown}

    def _measured(self, net: Network, biases: Sequence[str]) -> dict[str, float]:
        """Correct the biases in the order they are used; by how much at most."""
        by_bias = {layer.bias: layer for layer in net.layers(self.do)}
        makers = {layer.makes.value: layer for layer in map(by_bias.__getitem__, biases) if layer.makes is not None}
        wanted, moved = self._means(net, makers), {}
        for done, (value, layer) in enumerate(makers.items()):
            if net.progress:
                net.progress(f"correct-bias {layer.weight}", done, len(makers))
            found = self._means(net, {value: layer}, formed=True)
            assert layer.bias is not None
            form = net.form(layer.bias)
            now = net.tensors[layer.bias] if form is None else form.dense()
            moved[layer.bias] = _store(net, layer.bias, now, found[value] - wanted[value])
        return moved

    def _means(self, net: Network, makers: Mapping[Value, Layer], formed: bool = False) -> dict[Value, Tensor]:
        """The mean of each channel of what layers make, float64."""
        sums: dict[Value, Tensor] = {}
        counts = dict.fromkeys(makers, 0)
        for value, outputs in net.observe(self.do, makers, self.samples, formed=formed):
            made = columns(makers[value], outputs).double()
            sums[value] = sums.get(value, torch.zeros(())) + made.sum(0)
            counts[value] += len(made)
        return {value: total / counts[value] for value, total in sums.items()}


def _expected(net: Network, layers: Layers, found: Sequence[Layer]) -> tuple[dict[int, Tensor], dict[str, str]]:
    """By how much outputs are raised, by the place of the layer; and of which layers that is not known."""
    assert net.captured is not None
    known = {name: (entry.mean, entry.std) for name, entry in net.statistics.items()}
    shifts, skipped = {}, {}
    for layer, mean in expected_inputs(layers, Edit(net.captured, net.tensors), known):
        if layer not in found:
            continue
        if isinstance(mean, Skip):
            skipped[layer.weight] = str(mean)
            continue
        change = net.forms[layer.weight].dense().float() - net.tensors[layer.weight].detach().float()
        read = mean[:1] if layer.shape[2:] else mean  # one image is as good as the batch
        rows = patches(layers.graph.nodes[layer.place], layer, read)
        shifts[layer.place] = product(layer, rows.mean(0, keepdim=True), change)[0]
    return shifts, skipped


def _store(net: Network, bias: str, now: Tensor, less: Tensor) -> float:
    """Let the form of a bias be what it is now less something; how much that is at most."""
    net.store(bias, Raw((now.detach().double() - less).to(now.dtype)))
    return float(less.abs().max())
