"""A weight judged by what its layers make of it: examples of their inputs, and of the outputs they should have.

The outputs are those of the original network, behind the activation function. The inputs may be those that the
network gives with its weights as their forms make them: so a weight that is found anew makes up for what was lost
before it (Nagel et al. 2020, eq. 25).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.model import ops
from deepcomp.model.graph import Stored, Value, references, transform
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.patches import columns, patches, product
from deepcomp.network import Network
from deepcomp.training.scratch import BUDGET, Pool
from deepcomp.weights import Form, Grid
from deepcomp.weights.grid import grid_of

__all__ = ["Examples", "Make", "Reconstruction", "check_sites", "grid_or_skip"]

Make: TypeAlias = Callable[[int, Tensor], Tensor]
"""What a layer, given by its number, makes of `patches` of its input, before the activation: shape (n, outputs)."""

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


def grid_or_skip(form: Form | None) -> Grid:
    """The grid that a weight, or what a mask leaves of it, lies on.

    Raises
    ------
    Skip
        If it lies on none.
    """
    grid = grid_of(form)
    if grid is None:
        raise Skip("it lies on no grid")
    return grid


def check_sites(sites: Sequence[Layer]) -> None:
    """Make sure that it can be seen what all layers of a weight make of it.

    Raises
    ------
    Skip
        If one reads or makes no value of the graph, or there are none.
    """
    if not sites:
        raise Skip("no layer of the network multiplies with it")
    for layer in sites:
        if layer.makes is None:
            raise Skip(f"{layer.kind} keeps its products to itself")
        if layer.reads is None:
            raise Skip(f"the {layer.kind} looks its rows up, of which the nearest are the best")


class Examples:
    """What the layers of one weight read at some positions of their outputs, and what they should make there.

    Parameters
    ----------
    net : Network
    layers : Layers
        Of this network.
    sites : sequence of Layer
        All the layers of the weight; see `check_sites`.
    most : int
        Examples there will be of each layer at most.
    budget : int
        Bytes of them that stay in memory; see `scratch`.
    """

    def __init__(self, net: Network, layers: Layers, sites: Sequence[Layer], most: int, budget: int = BUDGET) -> None:
        self._net, self._layers, self._sites = net, layers, sites
        self._activations = [_activation(net, layers, layer) for layer in sites]
        self._read = [Pool(most, budget) for _ in sites]
        self._wanted = [Pool(most, budget) for _ in sites]

    def add(self, site: int, rows: Tensor, made: Tensor) -> None:
        """Take in some more of a layer.

        Parameters
        ----------
        site : int
            The layer's number.
        rows : float32 tensor, shape (n, groups, inputs a group × taps)
            `patches` of what it reads.
        made : float32 tensor, shape (n, outputs)
            What the original layer makes there, before the activation function.
        """
        self._read[site].add(rows)
        self._wanted[site].add(self._activations[site](made))

    @torch.no_grad()
    def draw(self, site: int, before: Tensor, after: Tensor, count: int, generator: torch.Generator) -> None:
        """Take in some positions of a batch.

        Parameters
        ----------
        site : int
            The layer's number.
        before, after : Tensor
            What it reads in the original network, and what it is to make the same of.
        count : int
            Positions of its output, or all if there are fewer.
        """
        layer, node = self._sites[site], self._layers.graph.nodes[self._sites[site].place]
        assert layer.reads is not None
        assert layer.makes is not None
        read, made = (math.prod(self._layers.shape(axis.value)) for axis in (layer.reads, layer.makes))
        positions = before.numel() * made // read // layer.outputs
        at = torch.randperm(positions, generator=generator)[:count]
        rows = patches(node, layer, before, at)
        bias = 0 if layer.bias is None else self._net.tensors[layer.bias].detach().float()
        wanted = product(layer, rows, self._net.tensors[layer.weight].detach().float()) + bias
        self.add(site, rows if after is before else patches(node, layer, after, at), wanted)

    def check(self, what: str) -> None:
        """Insist that a weight can be learnt from these.

        Raises
        ------
        InputError
            If outputs are not finite.
        """
        if not all(pool.rows.isfinite().all() for pool in self._wanted):
            raise InputError(
                f"{what}: the outputs of {self._sites[0].weight} on the calibration data are not all finite"
            )

    def loss(self, make: Make, count: int, generator: torch.Generator) -> Tensor:
        """The error on `count` neighbouring examples of each layer; differentiable."""
        found = []
        for site, pool in enumerate(self._read):
            last = max(len(pool.rows) - count, 0)
            start = int(torch.randint(last + 1, (), generator=generator))
            found.append(self._errors(make, site, slice(start, start + count)))
        return torch.cat(found).mean()

    @torch.no_grad()
    def error(self, make: Make) -> float:
        """The squared error, added up over the channels and averaged over all examples."""
        total, count = 0.0, 0
        for site, pool in enumerate(self._read):
            for start in range(0, len(pool.rows), _CHUNK):
                total += float(self._errors(make, site, slice(start, start + _CHUNK)).double().sum())
            count += len(pool.rows)
        return total / count

    def _errors(self, make: Make, site: int, some: slice) -> Tensor:
        """Squared errors of some examples, added up over the channels; shape (n,)."""
        made = self._activations[site](make(site, self._read[site].rows[some]))
        return (made - self._wanted[site].rows[some]).square().sum(1)


class Reconstruction:
    """Examples of what the layers of one weight should make of inputs as the network gives them now.

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
        self._generator = torch.Generator().manual_seed(net.seed)
        batches = -(-min(samples, len(net.data.train)) // _SIZE)
        share = -(-rows // (batches * len(sites)))
        self._sites, self._biases = sites, [_bias(net, layer) for layer in sites]
        self._examples = Examples(net, layers, sites, batches * share, budget)
        for site, layer in enumerate(sites):
            assert layer.reads is not None
            assert layer.makes is not None
            node = layers.graph.nodes[layer.place]
            inputs = net.observe(what, [layer.reads.value], samples, _SIZE, formed=True)
            outputs = net.observe(what, [layer.makes.value], samples, _SIZE)
            for (_, x), (_, y) in zip(inputs, outputs, strict=True):
                at = torch.randperm(y.numel() // layer.outputs, generator=self._generator)[:share]
                self._examples.add(site, patches(node, layer, x, at), columns(layer, y, at))
        self._examples.check(what)

    def loss(self, weight: Tensor, count: int) -> Tensor:
        """The error of a weight on `count` neighbouring examples of each layer; differentiable."""
        return self._examples.loss(self._with(weight), count, self._generator)

    def error(self, weight: Tensor) -> float:
        """The squared error of a weight, added up over the channels and averaged over all examples."""
        return self._examples.error(self._with(weight))

    def _with(self, weight: Tensor) -> Make:
        return lambda site, rows: product(self._sites[site], rows, weight.float()) + self._biases[site]


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
