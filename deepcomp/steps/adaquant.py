"""AdaQuant: layers are tuned one by one, until quantised they make what they made before (Hubara et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from deepcomp.errors import UsageError
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.training.one_by_one import OneByOne, Pace
from deepcomp.training.reconstruction import check_sites, grid_of
from deepcomp.training.tuning import Rates

__all__ = ["AdaQuant"]


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
    rows: int = Pace.rows
    batch: int = Pace.batch
    iterations: int = Pace.iterations
    weights: float = Rates.weights
    ranges: float = Rates.ranges
    inputs: float = Rates.inputs
    biases: float = Rates.biases
    sequential: bool = True
    held_out: float = Pace.held_out

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
        rates = Rates(self.weights, self.ranges, self.inputs, self.biases)
        pace = Pace(self.samples, rates, self.sequential, self.rows, self.batch, self.iterations, self.held_out)
        job, tuned = OneByOne(self.do, net, layers, sites, pace), {}
        for weight in job.walk():
            found = weight.tune(net.forms[weight.name])
            if found.better:
                weight.keep(found.state)
            tuned[weight.name] = {"before": found.before, "error": found.after, "reverted": not found.better}
        net.rewire(self.do, job.captured(), {})
        return {"tuned": tuned, "fixed_inputs": job.fixed, "skipped": skipped}

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
                grid_of(net.form(name))
            except Skip as skip:
                skipped[name] = str(skip)
        return {name: sites for name, sites in found.items() if name not in skipped}, skipped
