"""Outputs of quantised layers get back the mean and the spread they should have (Hubara et al. 2020, §5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.model.biases import shiftable
from deepcomp.model.graph import Value
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.patches import columns
from deepcomp.network import Network, Statistics
from deepcomp.steps.step import Step
from deepcomp.training.in_step import Change, in_step
from deepcomp.weights import Form, Grid, Raw
from deepcomp.weights.grid import grid_of
from deepcomp.weights.rescaling import rescale

__all__ = ["TuneBN"]

_DEAD = 1e-4  # of the largest spread of a layer's channels: a smaller one says nothing about a scale


@dataclass
class TuneBN(Step):
    """Re-estimate the batch norms that were folded into quantised layers, from calibration inputs.

    A layer makes ŷ of what the layers before, tuned already, give it, with its bias b. For each output channel

        s ← s σ/σ̂        b ← μ − (E ŷ − b) σ/σ̂

    so that the channel has the mean μ and the standard deviation σ it should have, before the activation function and
    over items and positions. The integers of the weights stay what they are: scales and biases alone change, and as
    forms, the original tensors do not. Layers without a bias get one.

    A channel without spread keeps its scale. So does a weight that has no scale for each output channel; the
    report says why under `mean_only`, and `skipped` are layers whose bias cannot move either.

    Put this step behind those that choose integers, `quantize` or later; activations may be quantised by then.

    Attributes
    ----------
    by : {"difference", "batch-norm"}
        Whether μ and σ are what the original network has on the same inputs, or the β and |γ| of the batch norm that
        `fold-bn` has folded into the layer (`Network.statistics`), as in the paper. The difference is
        defined for any layer, and few inputs do it no harm.
    momentum : float, optional
        How far each batch of 64 moves what is known of ŷ, which is that it should be at first (0.1 in the paper). If
        not given, all inputs count the same.
    samples : int
        Calibration inputs. All are in memory together, as far as layers need them.
    """

    do: ClassVar[str] = "tune-bn"

    by: str = "difference"
    momentum: float | None = None
    samples: int = 512

    def __post_init__(self) -> None:
        if self.by not in ("difference", "batch-norm"):
            raise UsageError(f"{self.do}.by = {self.by!r}: difference or batch-norm expected")
        if self.momentum is not None and not 0 < self.momentum <= 1:
            raise UsageError(f"{self.do}.momentum = {self.momentum}: more than 0 and up to 1 expected")
        if self.samples < 1:
            raise UsageError(f"{self.do}.samples = {self.samples}: 1 or more expected")

    @torch.no_grad()
    def run(self, net: Network) -> dict[str, Any]:
        chosen = {name for name, _ in net.weights(self.layers, self.skip) if name in net.forms}
        found, skipped = shiftable(net.layers(self.do), chosen)
        if self.by == "batch-norm":
            skipped |= {layer.weight: "no batch norm is known of it" for layer in found if not _known(net, layer)}
            found = [layer for layer in found if _known(net, layer)]
        biases = net.biases(self.do, found)
        layers, wanted = net.layers(self.do), self._wanted(net, biases)
        makers = _makers(layers, biases)
        tuned: dict[str, dict[str, float]] = {}
        mean_only: dict[str, str] = {}
        walk = in_step(net.interpreter(formed=True), layers.graph, makers, list(net.inputs(self.do, self.samples)))
        change: Change | None = None
        for layer in makers.values():
            outputs = walk.send(change)
            if net.progress:
                net.progress(f"{self.do} {layer.weight}", len(tuned), len(makers))
            try:
                grid = _grid(layers, layer, net.forms[layer.weight])
            except Skip as skip:
                grid, mean_only[layer.weight] = None, str(skip)
            change, tuned[layer.weight] = self._tune(net, layer, grid, wanted[str(layer.bias)], outputs)
        return {"tuned": tuned, "mean_only": mean_only, "skipped": skipped}

    def _wanted(self, net: Network, biases: Sequence[str]) -> dict[str, Statistics]:
        """What the outputs of layers should be like, by their biases."""
        if self.by == "batch-norm":
            return {
                str(layer.bias): net.statistics[layer.weight] for layer in _makers(net.layers(self.do), biases).values()
            }
        original = net.original()
        makers = _makers(original.layers(self.do), biases)
        running = {value: _Running() for value in makers}
        for value, held in original.observe(self.do, makers, self.samples):
            running[value].add(columns(makers[value], held))
        return {str(layer.bias): running[value].statistics(layer) for value, layer in makers.items()}

    def _tune(
        self, net: Network, layer: Layer, grid: Grid | None, wanted: Statistics, outputs: Sequence[Tensor]
    ) -> tuple[Change, dict[str, float]]:
        """Give a layer the scales and the bias it should have; what becomes of its outputs, and how far all moved."""
        running = _Running(wanted, self.momentum)
        for made in outputs:
            running.add(columns(layer, made))
        now, factor = running.statistics(layer), torch.ones_like(wanted.std)
        if grid is not None:
            alive = torch.minimum(now.std, wanted.std) > _DEAD * wanted.std.max()
            before = grid.scale.double()
            factor = rescale(grid, before * torch.where(alive, wanted.std / now.std, 1.0)) / before
        assert layer.bias is not None
        form = net.form(layer.bias) or Raw(net.tensors[layer.bias])
        bias, stored = form.dense().double(), form.stored if isinstance(form, Raw) else form.dtype
        tuned = Raw((wanted.mean - factor * (now.mean - bias)).to(form.dtype), stored)
        net.store(layer.bias, tuned)
        shift = tuned.dense() - factor * bias
        moved = {"scale": float((factor - 1).abs().max()), "bias": float((tuned.dense() - bias).abs().max())}
        return partial(_moved, layer, factor, shift), moved


class _Running:
    """Mean and spread of channels, batch after batch.

    Parameters
    ----------
    start : Statistics, optional
        What they are before the first batch.
    momentum : float, optional
        How much each batch counts; if not given, as many rows as it has, and the start nothing.
    """

    def __init__(self, start: Statistics | None = None, momentum: float | None = None) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self._first = zero if start is None else start.mean
        self._second = zero if start is None else start.std.square() + start.mean.square()
        self._momentum, self._seen = momentum, 0

    def add(self, rows: Tensor) -> None:
        """Take notice of numbers of shape (n, channels)."""
        rows = rows.double()
        self._seen += len(rows)
        share = self._momentum or len(rows) / self._seen
        self._first = self._first.lerp(rows.mean(0), share)
        self._second = self._second.lerp(rows.square().mean(0), share)

    def statistics(self, layer: Layer) -> Statistics:
        """What they are now.

        Raises
        ------
        InputError
            If they are not finite, naming the layer's weight.
        """
        found = Statistics(self._first, (self._second - self._first.square()).clamp_min(0).sqrt())
        if not found.std.isfinite().all():
            raise InputError(f"tune-bn: the outputs of {layer.weight} on the calibration data are not all finite")
        return found


def _known(net: Network, layer: Layer) -> bool:
    return layer.weight in net.statistics


def _makers(layers: Layers, biases: Sequence[str]) -> dict[Value, Layer]:
    """The layers of some biases, by what they make."""
    return {layer.makes.value: layer for layer in layers if layer.makes is not None and layer.bias in biases}


def _grid(layers: Layers, layer: Layer, form: Form) -> Grid:
    """The grid that a layer's weight lies on, with a scale for each output channel."""
    grid = grid_of(form)
    if grid is None:
        raise Skip("it lies on no grid")
    if not grid.blocks.channelwise(layer.axes[0], layer.outputs):
        raise Skip("its scales are not one for each output channel")
    layers.check_own(layer)
    return grid


def _moved(layer: Layer, factor: Tensor, shift: Tensor, made: Tensor) -> Tensor:
    """What a layer made, each channel times a factor and shifted."""
    assert layer.makes is not None
    shape = [-1 if dim == layer.makes.dim else 1 for dim in range(made.ndim)]
    return factor.reshape(shape).to(made.dtype) * made + shift.reshape(shape).to(made.dtype)
