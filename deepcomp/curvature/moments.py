"""Second moments of what a layer reads: in the network as it was, x, and as the layers before now make it, x̂."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepcomp.model.layers import Layer, Layers
from deepcomp.model.patches import patches

__all__ = ["Moments", "damped"]

_NOISE = 1e-9  # of the squares: what their differences may be wrong by


def damped(second: Tensor, damping: float, least: Tensor | float = 0.0) -> Tensor:
    """Second moments that can be inverted: a share of the diagonal's mean is added to the diagonal.

    Parameters
    ----------
    second : float64 tensor, shape (groups, columns, columns)
    damping : float
        The share.
    least : float64 tensor, shape (groups,), or float
        What is added at least. Where nothing else is, 1 is.
    """
    diagonal = second.diagonal(dim1=1, dim2=2).mean(1)
    size = torch.maximum(damping * diagonal, torch.as_tensor(least, dtype=second.dtype))
    size = torch.where(size > 0, size, 1.0)
    return second + size[:, None, None] * torch.eye(second.shape[1], dtype=second.dtype)


class Moments:
    """Of the patches a layer reads, in each group of its channels; sums in float64.

    With a bias free to follow, an error e in a row of the layer shows as E (e (x̂ − E x̂))², as the bias makes up for the
    mean. What the layer made, W x, is regained best from x̂ by other weights:

        W* = W E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹        b* = b + W E x − W* E x̂

    (least squares; asymmetric calibration, Li et al. 2025, GPTAQ).

    Parameters
    ----------
    layers : Layers
    layer : Layer
        One that reads and makes values of the graph.
    centred : bool
        Whether the layer's bias is free to follow.
    """

    def __init__(self, layers: Layers, layer: Layer, centred: bool) -> None:
        assert layer.reads is not None
        assert layer.makes is not None
        self._node, self._layer, self._centred = layers.graph.nodes[layer.place], layer, centred
        self._read, self._made = (math.prod(layers.shape(axis.value)) for axis in (layer.reads, layer.makes))
        columns = layer.inputs // layer.groups * math.prod(layer.shape[2:])
        self._count = 0
        self._origin = torch.zeros(layer.groups, 1, columns)  # about the mean: sums about it stay exact in float32
        self._second = torch.zeros(layer.groups, columns, columns, dtype=torch.float64)
        self._cross = torch.zeros_like(self._second)
        self._sums = torch.zeros(2, layer.groups, columns, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor, rows: int, generator: torch.Generator) -> None:
        """Take notice of a batch of the layer's input, x and x̂, at so many positions of its output (or all)."""
        positions = before.numel() * self._made // self._read // self._layer.outputs
        at = torch.randperm(positions, generator=generator)[:rows] if rows < positions else None
        x, now = (patches(self._node, self._layer, value, at).movedim(1, 0) for value in (before, after))
        if not self._count:
            self._origin = now.mean(1, keepdim=True)
        x, now = x - self._origin, now - self._origin
        self._count += x.shape[1]
        self._second += (now.mT @ now).double()
        self._cross += (x.mT @ now).double()
        self._sums += torch.stack([x.double().sum(1), now.double().sum(1)])

    @property
    def means(self) -> Tensor:
        """E x and E x̂, float64 of shape (2, groups, columns)."""
        return self._sums / self._count + self._origin[:, 0]

    @property
    def energy(self) -> Tensor:
        """E ‖x̂‖² in each group, float64 of shape (groups,)."""
        covariance = self._moment(self._second, 1, centred=True)
        return covariance.diagonal(dim1=1, dim2=2).sum(1) + self.means[1].square().sum(1)

    def form(self, damping: float) -> Tensor:
        """H, `damped`: E[x̂ x̂ᵀ] or the covariance, float64 of shape (groups, columns, columns)."""
        return damped(self._moment(self._second, 1, self._centred), damping, _NOISE * self.energy)

    def target(self, blocks: Tensor, damping: float) -> Tensor:
        """W*, drawn to W as H is damped; blocks are float64 of shape (groups, rows, columns)."""
        form, second = self.form(damping), self._moment(self._second, 1, self._centred)
        cross = self._moment(self._cross, 0, self._centred) + (form - second)
        wanted: Tensor = torch.linalg.solve(form, (blocks @ cross).mT).mT
        return wanted

    def shift(self, before: Tensor, after: Tensor) -> Tensor:
        """What a bias must gain where blocks become others, shape (groups, rows)."""
        means = self.means[..., None]
        return (before @ means[0] - after @ means[1])[..., 0]

    def _moment(self, sums: Tensor, which: int, centred: bool) -> Tensor:
        """E[x x̂ᵀ] or, for `which` = 1, E[x̂ x̂ᵀ]; the covariance if centred."""
        beside, means = self._sums / self._count, self.means
        covariance = sums / self._count - beside[which][:, :, None] * beside[1][:, None]
        return covariance if centred else covariance + means[which][:, :, None] * means[1][:, None]
