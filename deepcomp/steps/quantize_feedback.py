"""Quantisation that makes up for its errors, with steps as coarse as the loss allows (GPTQ, rate-aware)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.curvature import Matrix, Moments, alongside, damped, fisher
from deepcomp.errors import UsageError
from deepcomp.model.graph import Value
from deepcomp.model.layers import Layer, Layers
from deepcomp.network import Network
from deepcomp.quantizer import SMALLEST_SCALE
from deepcomp.steps.step import Step
from deepcomp.weights import Form, Grid, Mask, Raw
from deepcomp.weights.feedback import Factor, Rate, feedback, rate_steps
from deepcomp.weights.levels import Levels
from deepcomp.weights.open_grids import fine_grid

__all__ = ["QuantizeFeedback"]


@dataclass
class QuantizeFeedback(Step):
    """Round the columns of each weight in turn, the columns not yet rounded making up for the error.

    What counts is the error of a layer's outputs on calibration inputs, as the layers before, rounded already, give
    them. The layer is drawn to what it made of the original inputs, and its bias follows (see `weights.feedback` and
    `curvature.Moments`). Weights that are not used by one layer alone (embeddings, recurrent matrices, shared
    weights) are judged by their gradients instead. No labels are used.

    A weight that `quantize` has put on a grid keeps its scales. Any other one gets a scale for each output channel (a
    row of a table), coarse where the loss minds little, so that everywhere the last bit is worth `price`, and its
    integers are chosen by error and by the bits they will take in the file; it has no set number of bits.

    Put this step behind `fold-bn` and `store`, and before activations are quantised. Like weights, biases get forms
    while the original ones stay what they were; what `store` has rounded is rounded again.

    Attributes
    ----------
    price : float
        λ: how far the outputs may move to save a bit, in nats of KL divergence from what they were, an item.
    thrift : float
        The share of λ at which bits count when integers are chosen; 0: these are the nearest.
    damping : float
        Added to the diagonal of second moments, as a share of its mean.
    samples : int
        Calibration inputs. All are in memory together, as far as layers need them.
    gradients : int
        Inputs that show how much the loss minds errors of each row.
    temperature : float
        Softens the outputs for that, as `curvature.fisher` says: then one price suits networks that are sure of
        themselves and others.
    rows : int
        Positions of a layer's outputs that are looked at, drawn from all samples.
    sequential : bool
        Whether layers see what those before, rounded, give them; the original network's values if not.
    """

    do: ClassVar[str] = "quantize-feedback"

    price: float = 8e-7
    thrift: float = 0.3
    damping: float = 0.03
    samples: int = 512
    gradients: int = 512
    temperature: float = 2.0
    rows: int = 32768
    sequential: bool = True

    def __post_init__(self) -> None:
        for key in ("samples", "gradients", "rows"):
            if getattr(self, key) < 1:
                raise UsageError(f"{self.do}.{key} = {getattr(self, key)}: 1 or more expected")
        if not 0 <= self.thrift < math.inf:
            raise UsageError(f"{self.do}.thrift = {self.thrift}: 0 or more expected")
        for key in ("price", "damping", "temperature"):
            if not 0 < getattr(self, key) < math.inf:
                raise UsageError(f"{self.do}.{key} = {getattr(self, key)}: more than 0 expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        matrices = [Matrix.of(layers, *named) for named in net.weights(self.layers, self.skip)]
        job = _Job(self, net, layers, matrices)
        places: dict[Value, list[Matrix]] = defaultdict(list)
        for matrix in matrices:
            if matrix.layer is None or matrix.layer.reads is None:
                job.round_by_gradients(matrix)
            else:
                places[matrix.layer.reads.value].append(matrix)
        by_gradients = len(matrices) - sum(map(len, places.values()))
        done, batches = by_gradients, list(net.inputs(self.do, self.samples))
        for value, pairs in alongside(job.original, job.current, places, batches):
            for matrix in places[value]:
                if net.progress:
                    net.progress(f"{self.do} {matrix.name}", done, len(matrices))
                job.round_by_inputs(matrix, pairs)
                done += 1
        weights = sum(map(Tensor.numel, job.whole.values()))
        return {"tensors": done, "by_gradients": by_gradients, "weights": weights}


class _Job:
    """The weights of a network on their way to grids.

    Attributes
    ----------
    whole : dict of str to Tensor
        The weights as they were: what forms hold before they round it.
    original, current : Interpreter
        The network with these weights, and with those rounded so far.
    """

    def __init__(self, step: QuantizeFeedback, net: Network, layers: Layers, matrices: Sequence[Matrix]) -> None:
        self.whole = {matrix.name: _unrounded(net, matrix.name) for matrix in matrices}
        self.original, self.current = net.interpreter(formed=True), net.interpreter(formed=True)
        for name, weight in self.whole.items():
            for network in (self.original, self.current):
                network.get_parameter(name).data.copy_(weight)
        self._step, self._net, self._layers = step, net, layers
        self._minded = fisher(net, step.do, self.original, matrices, step.gradients, step.temperature)
        self._generator = torch.Generator().manual_seed(net.seed)

    def round_by_gradients(self, matrix: Matrix) -> None:
        """Round a weight whose gradients say which errors matter."""
        found = self._minded[matrix.name]
        assert found.columns is not None
        energy = found.columns.diagonal(dim1=1, dim2=2).sum(1)
        form = damped(found.columns, self._step.damping)
        self._round(matrix, matrix.blocks(self.whole[matrix.name]).double(), form, energy)

    def round_by_inputs(self, matrix: Matrix, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Round the weight of a layer with these inputs, as they were and as they are; its bias follows."""
        layer, step = matrix.layer, self._step
        assert layer is not None
        bias = self._bias(layer)
        moments = Moments(self._layers, layer, centred=bias is not None)
        for before, after in pairs:
            share = -(-step.rows // len(pairs))
            moments.add(before, after if step.sequential else before, share, self._generator)
        whole = matrix.blocks(self.whole[matrix.name]).double()
        target, form = moments.target(whole, step.damping), moments.form(step.damping)
        rounded = self._round(matrix, target, form, moments.energy)
        if bias is not None and layer.bias is not None:
            value = bias.dense() + moments.shift(whole, rounded).reshape(-1)
            self._store(layer.bias, Raw(value.to(bias.dtype), bias.stored))

    def _bias(self, layer: Layer) -> Raw | None:
        """A layer's bias, if it has one that is free to follow its weight."""
        if layer.bias is None:
            return None
        form = self._net.form(layer.bias) or Raw(self._net.tensors[layer.bias])
        return form if isinstance(form, Raw) else None

    def _store(self, name: str, form: Form) -> None:
        self._net.store(name, form)
        self.current.get_parameter(name).data.copy_(form.dense())

    def _round(self, matrix: Matrix, target: Tensor, form: Tensor, energy: Tensor) -> Tensor:
        """Give a weight its grid; what it then is, float64 of shape (groups, rows, columns).

        Parameters
        ----------
        target : float64 tensor, shape (groups, rows, columns)
            What the weight should be.
        form : float64 tensor, shape (groups, columns, columns)
            H, positive definite.
        energy : float64 tensor, shape (groups,)
            What to divide by beside the rows of the Fisher information: F ≈ diag(rows) ⊗ H / energy.
        """
        name, step = matrix.name, self._step
        stored, whole = self._net.form(name), self.whole[name]
        mask, inner = (stored, stored.inner) if isinstance(stored, Mask) else (None, stored)
        keep = None if mask is None else matrix.blocks(_kept(mask))
        factor = Factor.of(form)
        if isinstance(inner, Grid):
            levels = Levels(inner, matrix.blocks)
            q = feedback(target, factor, levels, keep)
        else:
            rows = self._minded[name].rows
            minded = (rows + step.damping * rows.mean()) / energy.clamp_min(SMALLEST_SCALE)[:, None]
            steps = matrix.by_channel(rate_steps(factor, minded, step.price))
            at = None if mask is None else mask.positions
            levels = Levels(fine_grid(whole, steps, matrix.axis, at), matrix.blocks)
            q = feedback(target, factor, levels, keep)
            if step.thrift:
                q = feedback(target, factor, levels, keep, Rate.of(q, step.thrift * step.price / minded))
        grid = levels.grid(matrix.unblocked(q))
        self._store(name, grid if mask is None else Mask(mask.positions, grid, mask.shape))
        return q * levels.scale


def _unrounded(net: Network, name: str) -> Tensor:
    """A weight as its form holds it before that rounds it; zero where a mask says so."""
    form = net.form(name)
    if form is None:
        return net.tensors[name].detach()
    inner = form.unmasked
    if not isinstance(inner, Grid):
        return form.dense()
    if not isinstance(form, Mask):
        return inner.latent.detach().to(form.dtype)
    flat = torch.zeros(math.prod(form.shape), dtype=form.dtype)
    return flat.index_put_((form.positions,), inner.latent.detach().to(form.dtype)).reshape(form.shape)


def _kept(mask: Mask) -> Tensor:
    """Where a mask lets values be."""
    flat = torch.zeros(math.prod(mask.shape), dtype=torch.bool)
    return flat.index_fill_(0, mask.positions, True).reshape(mask.shape)
