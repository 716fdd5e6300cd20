"""Magnitude pruning (Han et al. 2015, §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.weights import Mask

__all__ = ["Prune"]


@dataclass
class Prune(Step):
    """Keep the largest weights; biases and vectors are never pruned.

    Attributes
    ----------
    density : float
        Share of weights kept, 0 to 1.
    per : {"layer", "network"}
        Whether each layer keeps that share, or all layers together, by one threshold.
    sigma : float, optional
        Instead of a density: weights below `sigma` × the layer's standard deviation are pruned.
    """

    do: ClassVar[str] = "prune"

    density: float = 0.5
    per: str = "layer"
    sigma: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.density <= 1:
            raise UsageError(f"prune.density = {self.density}: 0 to 1 expected")
        if self.per not in ("layer", "network"):
            raise UsageError(f"prune.per = {self.per!r}: layer or network expected")
        if self.sigma is not None and not 0 <= self.sigma < float("inf"):
            raise UsageError(f"prune.sigma = {self.sigma}: 0 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        weights = {name: _current(net, name, weight) for name, weight in net.weights(self.layers, self.skip)}
        if self.sigma is not None:
            keep = {name: weight.abs() >= self.sigma * weight.float().std() for name, weight in weights.items()}
        elif self.per == "network":
            keep = _largest_together(weights, self.density)
        else:
            keep = {name: largest(weight, self.density) for name, weight in weights.items()}
        for name, weight in weights.items():
            net.store(name, Mask.nonzero(weight, keep[name] & (weight != 0)))
        kept = sum(int(k.sum()) for k in keep.values())
        total = sum(weight.numel() for weight in weights.values())
        return {"weights": len(weights), "density": kept / total if total else 1.0}


def _current(net: Network, name: str, weight: Tensor) -> Tensor:
    """The weight as the steps before left it, so that masks only ever shrink."""
    form = net.form(name)
    return weight if form is None else form.dense()


def largest(weight: Tensor, density: float) -> Tensor:
    """Where the `density` share of largest magnitudes is, as a bool tensor; of equals the first ones."""
    size = weight.abs().reshape(-1).float()
    count = round(density * size.numel())
    if count == 0:
        return torch.zeros(weight.shape, dtype=torch.bool)
    threshold = size.kthvalue(size.numel() - count + 1).values
    keep = size > threshold
    level = torch.nonzero(size == threshold).reshape(-1)
    keep[level[: count - int(keep.sum())]] = True
    return keep.reshape(weight.shape)


def _largest_together(weights: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    if not weights:
        return {}
    sizes = [weight.numel() for weight in weights.values()]
    keep = largest(torch.cat([weight.reshape(-1).float() for weight in weights.values()]), density)
    parts = torch.split(keep, sizes)
    return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
