"""A weight judged by what its layers make of it: examples of their inputs, and of the outputs they should have.

The inputs are those that the network gives with its weights as their forms make them, and the outputs
those of the original network, both behind the activation function. So a weight that is found anew
makes up for what was lost before it (Nagel et al. 2020, eq. 25).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.model import ops
from deepcomp.model.graph import Stored, Value, references, transform
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.patches import columns, patches, product
from deepcomp.network import Network
from deepcomp.training.scratch import BUDGET, Pool

__all__ = ["Reconstruction"]

_SIZE = 64  # items a batch
_CHUNK = 4096  # rows judged at a time
_ACTIVATIONS = {
    name
    for names in (
        "relu relu6 hardtanh clamp clamp_min clamp_max clamp.Tensor clamp_min.Tensor clamp_max.Tensor",
        "leaky_relu prelu elu selu celu gelu silu mish softplus sigmoid tanh hardswish hardsigmoid",
    )
    for name in names.split()
}


@dataclass(frozen=True)
class _Site:
    """One use of the weight: `patches` that the layer reads, and what should become of them."""

    layer: Layer
    bias: Tensor
    activation: Callable[[Tensor], Tensor]
    rows: Tensor
    wanted: Tensor

    def errors(self, weight: Tensor, some: slice) -> Tensor:
        """Squared errors of some rows, added up over the channels; shape (n,)."""
        made = product(self.layer, self.rows[some], weight.float()) + self.bias
        return (self.activation(made) - self.wanted[some]).square().sum(1)


class Reconstruction:
    """Examples of what the layers of one weight should make of their inputs.

    Parameters
    ----------
    net : Network
        With data.
    layers : Layers
        Of this network.
    sites : sequence of Layer
        All the layers of the weight; each reads and makes values of the graph.
    what : str
        Who asks, for errors.
    samples : int
        Training items that are looked at.
    rows : int
        Positions of outputs that are drawn from all these, about as many of each batch; the same for the same seed.
    budget : int
        Bytes of examples that stay in memory; see `scratch`.

    Raises
    ------
    UsageError, InputError
        See `Network.observe`; also if the original's outputs are not finite.
    """

    def __init__(
        self,
        net: Network,
        layers: Layers,
        sites: Sequence[Layer],
        what: str,
        samples: int,
        rows: int,
        budget: int = BUDGET,
    ) -> None:
        if net.data is None:
            raise UsageError(f"{what}: needs data to calibrate on (--data)")
        self.generator = torch.Generator().manual_seed(net.seed)
        batches = -(-min(samples, len(net.data.train)) // _SIZE)
        share = -(-rows // (batches * len(sites)))
        self._sites = []
        for layer in sites:
            assert layer.reads is not None
            assert layer.makes is not None
            node, activation = layers.graph.nodes[layer.place], _activation(net, layers, layer)
            read, wanted = Pool(batches * share, budget), Pool(batches * share, budget)
            inputs = net.observe(what, [layer.reads.value], samples, _SIZE, formed=True)
            outputs = net.observe(what, [layer.makes.value], samples, _SIZE)
            for (_, x), (_, y) in zip(inputs, outputs, strict=True):
                at = torch.randperm(y.numel() // layer.outputs, generator=self.generator)[:share]
                read.add(patches(node, layer, x, at))
                wanted.add(activation(columns(layer, y, at)))
            if not wanted.rows.isfinite().all():
                raise InputError(f"{what}: the outputs of {layer.weight} on the calibration data are not all finite")
            self._sites.append(_Site(layer, _bias(net, layer), activation, read.rows, wanted.rows))

    def loss(self, weight: Tensor, count: int) -> Tensor:
        """The error of a weight on `count` neighbouring examples of each layer; differentiable."""
        found = []
        for site in self._sites:
            last = max(len(site.rows) - count, 0)
            start = int(torch.randint(last + 1, (), generator=self.generator))
            found.append(site.errors(weight, slice(start, start + count)))
        return torch.cat(found).mean()

    @torch.no_grad()
    def error(self, weight: Tensor) -> float:
        """The squared error of a weight, added up over the channels and averaged over all examples."""
        total, count = 0.0, 0
        for site in self._sites:
            for start in range(0, len(site.rows), _CHUNK):
                total += float(site.errors(weight, slice(start, start + _CHUNK)).double().sum())
            count += len(site.rows)
        return total / count


def _bias(net: Network, layer: Layer) -> Tensor:
    """A layer's bias as its form has it."""
    if layer.bias is None:
        return torch.zeros(layer.outputs)
    form = net.form(layer.bias)
    return (net.tensors[layer.bias].detach() if form is None else form.dense()).float()


def _activation(net: Network, layers: Layers, layer: Layer) -> Callable[[Tensor], Tensor]:
    """The activation function behind a layer, for `columns` of it; the identity where there is none to itself."""
    assert layer.makes is not None
    try:
        node = layers.graph.nodes[layers.reader(layer.makes.value)]
    except Skip:
        return _identity
    found = list(references((node.args, node.kwargs)))
    stored = [net.tensors[layers.names[entry.index]] for entry in found if isinstance(entry, Stored)]
    fits = all(tensor.numel() in (1, layer.outputs) for tensor in stored)
    if node.op not in _ACTIVATIONS or found.count(layer.makes.value) + len(stored) < len(found) or not fits:
        return _identity
    call, rank = ops.find(node.op).call, len(layers.shape(layer.makes.value))
    shape = [-1, *(layer.outputs if dim == layer.makes.dim else 1 for dim in range(1, rank))]

    def activation(made: Tensor) -> Tensor:
        def find(entry: Stored | Value) -> Tensor:
            return made.reshape(shape) if isinstance(entry, Value) else net.tensors[layers.names[entry.index]].float()

        found: Tensor = call(*transform(node.args, find), **transform(node.kwargs, find))
        return found.reshape(made.shape)

    return activation


def _identity(made: Tensor) -> Tensor:
    return made
