"""AdaQuant: layers are tuned one by one, until quantised they make what they made before (Hubara et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.training.reconstruction import Examples, check_sites, grid_or_skip
from deepcomp.training.side_by_side import Pairs, SideBySide
from deepcomp.training.tuning import Rates, Settled, tune
from deepcomp.weights import Form, Raw

__all__ = ["AdaQuant"]

_SIZE = 64  # items a batch, at most


@dataclass
class AdaQuant(Step):
    """Tune all that decides what a layer makes, one layer after the other; no labels are read.

    Learnt together are the weights, which may go to any level of their grid; its scales and, if it is asymmetric,
    zero-points; the range of the static quantiser before the layer; and the bias. By Adam they make small

        E ‖f(Q(W) Q(x̂) + b) − f(W x + b)‖²

    with the original network's outputs on the right and f the activation function behind the layer (Hubara et al. 2020,
    eq. 2). The expectation is over items and positions, the norm over channels, and rounding counts as the identity for
    gradients.

    A layer that is not better for it on inputs held out stays altogether as it was. What is judged is what is
    stored. The range of an input stays, and the report says why, where others read it too. What a mask has made zero
    stays zero. A weight that several layers use is learnt from all of them, and layers without a bias get none.

    Put this step behind `quantize`, and behind `quantize-activations` where activations are to be quantised.

    Attributes
    ----------
    samples : int
        Calibration inputs.
    rows : int
        Positions of outputs to learn a weight from, drawn from all samples, about as many of each batch.
    batch : int
        Of these an iteration.
    iterations : int
        Of Adam, for each weight.
    weights : float
        The learning rate of weights at first, in steps of their grid. It falls to zero, as the others.
    ranges, inputs : float
        Those of grids of weights and of inputs: relative to the scale, and to the range for zero-points.
    biases : float
        That of biases, in root mean squared errors of the layer's outputs. Parts with a rate of 0 stay as they are.
    sequential : bool
        Whether x̂ is what the layers before give, tuned and quantised; if not, it is x, the original network's.
    held_out : float
        The share of samples that layers are judged by and do not learn from.
    """

    do: ClassVar[str] = "adaquant"

    samples: int = 1024
    rows: int = 32768
    batch: int = 512
    iterations: int = 1000
    weights: float = 0.005
    ranges: float = 0.003
    inputs: float = 0.01
    biases: float = 0.01
    sequential: bool = True
    held_out: float = 0.125

    def __post_init__(self) -> None:
        for key in ("samples", "rows", "batch", "iterations"):
            if getattr(self, key) < 1:
                raise UsageError(f"{self.do}.{key} = {getattr(self, key)}: 1 or more expected")
        for key in ("weights", "ranges", "inputs", "biases"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"{self.do}.{key} = {getattr(self, key)}: 0 to 1 expected")
        if not 0 < self.held_out < 1:
            raise UsageError(f"{self.do}.held_out = {self.held_out}: more than 0 and less than 1 expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        sites, skipped = self._sites(net, layers)
        job = _Job(self, net, layers, sites)
        return {"tuned": job.run(), "fixed_inputs": job.fixed, "skipped": skipped}

    def _sites(self, net: Network, layers: Layers) -> tuple[dict[str, list[Layer]], dict[str, str]]:
        """The layers of each weight to tune; and why other weights stay as they are."""
        found: dict[str, list[Layer]] = {name: [] for name, _ in net.weights(self.layers, self.skip)}
        for layer in layers:
            if layer.weight in found:
                found[layer.weight].append(layer)
        skipped = {}
        for name, sites in found.items():
            try:
                check_sites(sites)
                grid_or_skip(net.form(name))
            except Skip as skip:
                skipped[name] = str(skip)
        return {name: sites for name, sites in found.items() if name not in skipped}, skipped


class _Job:
    """A network on its way through the step.

    Attributes
    ----------
    fixed : dict of str to str
        Why the range of an input stays, by the weight.
    """

    def __init__(self, step: AdaQuant, net: Network, layers: Layers, sites: Mapping[str, list[Layer]]) -> None:
        self._step, self._net, self._layers, self._sites = step, net, layers, sites
        batches, self._learning = _draw(net, step)
        self._held = len(batches) - self._learning
        chosen = [layer for here in sites.values() for layer in here]
        self._pair = SideBySide(net, layers, chosen, batches, step.sequential, step.inputs > 0)
        self._generator = torch.Generator().manual_seed(net.seed)
        self.fixed = {layer.weight: reason for layer, reason in self._pair.fixed.items()}

    def run(self) -> dict[str, Any]:
        """Tune the weights in the order they are used; what the report says of each."""
        said: dict[str, Any] = {}
        for layer, pairs in self._pair.walk():
            if layer.weight not in said:
                if self._net.progress:
                    self._net.progress(f"{self._step.do} {layer.weight}", len(said), len(self._sites))
                said[layer.weight] = self._tune(layer.weight, *self._examples(layer, pairs))
        self._net.rewire(self._step.do, self._pair.captured(), {})
        return said

    def _examples(self, layer: Layer, pairs: Pairs) -> tuple[Examples, Examples]:
        """Of all layers of a weight, the first of which has come: examples to learn from, and others to judge by."""
        sites = self._sites[layer.weight]
        share = -(-self._step.rows // (self._learning * len(sites)))
        learnt, held = (
            Examples(self._net, self._layers, sites, count * share) for count in (self._learning, self._held)
        )
        others = (entry for entry in self._pair.walk() if entry[0] in sites)
        for site, seen in [(layer, pairs)] if len(sites) == 1 else islice(others, len(sites)):
            for number, (before, after) in enumerate(seen):
                into = learnt if number < self._learning else held
                into.draw(sites.index(site), before, after, share, self._generator)
        for examples in (learnt, held):
            examples.check(self._step.do)
        return learnt, held

    def _tune(self, name: str, learnt: Examples, held: Examples) -> dict[str, Any]:
        """Tune the layers of a weight, and keep what is best for inputs held out."""
        step, now = self._step, self._settled(name)
        free = self._free(now) if step.biases else []
        rates = Rates(step.weights, step.ranges, step.inputs, step.biases)
        best, before = now, held.error(now.make)
        error = before
        for state in tune(now, free, learnt, rates, step.batch, step.iterations, self._generator):
            if (found := held.error(state.make)) < error:
                best, error = state, found
        if best is not now:
            self._keep(name, best, free)
        return {"before": before, "error": error, "reverted": best is now}

    def _settled(self, name: str) -> Settled:
        """What the layers of a weight are now."""
        sites, net = self._sites[name], self._net
        biases = [site.bias for site in sites if site.bias is not None]
        forms: dict[str, Form] = {bias: net.form(bias) or Raw(net.tensors[bias]) for bias in biases}
        return Settled(sites, net.forms[name], forms, [self._pair.grids.get(site) for site in sites])

    def _free(self, settled: Settled) -> list[str]:
        """The biases that no layers but these use, one number a channel."""
        taken = {layer.bias for layer in self._layers if layer not in settled.sites}
        shape = (settled.sites[0].outputs,)
        return [
            name
            for name, form in settled.biases.items()
            if name not in taken and isinstance(form, Raw) and form.shape == shape
        ]

    def _keep(self, name: str, settled: Settled, free: Sequence[str]) -> None:
        """Let the network have what has been found, and the layers further on see it."""
        for tensor, form in {name: settled.form, **{bias: settled.biases[bias] for bias in free}}.items():
            self._net.store(tensor, form)
            self._pair.put(tensor, form)
        for site, grid in zip(settled.sites, settled.inputs, strict=True):
            if grid is not None:
                self._pair.grids[site] = grid


def _draw(net: Network, step: AdaQuant) -> tuple[list[dict[str, Tensor]], int]:
    """Calibration inputs in batches, and how many of these are to learn from; the others are held out."""
    if net.data is None:
        raise UsageError(f"{step.do}: needs data to calibrate on (--data)")
    items = min(step.samples, len(net.data.train))
    if items < 2:
        raise InputError(f"{step.do}: {items} calibration input found, 2 or more expected: some are held out")
    held = min(max(round(step.held_out * items), 1), items - 1)
    size = min(_SIZE, held, items - held)
    batches = list(net.inputs(step.do, items, size))
    return batches, len(batches) - -(-held // size)
