"""Magnitude pruning, at once or in rounds with training between them (Han et al. 2015, §3)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.network import Network, per_layer
from deepcomp.steps.step import Step
from deepcomp.training import Plan, train
from deepcomp.training.sensitivity import allowed, better_is_more, scan
from deepcomp.weights import Mask, Raw

__all__ = ["Prune"]

_SCHEDULES = ("linear", "cubic")


@dataclass
class Prune(Step):
    """Keep the largest weights; biases and vectors are never pruned.

    Attributes
    ----------
    density : float or table
        Share of weights kept, 0 to 1; a table gives it by layer pattern, and layers it does not
        name are not pruned.
    per : {"layer", "network"}
        Whether each layer keeps that share, or all layers together, by one threshold; layer by
        layer in any case where the densities are given or found so.
    rank : {"magnitude", "lamp"}
        What all layers together are compared by: magnitudes, or the share of its layer's energy
        that a weight has among those at least as large, which lets every layer keep what it cannot
        do without (Lee et al. 2021, LAMP, eq. 2). Within a layer both rank alike.
    sigma : float or table, optional
        Instead of a density: weights below `sigma` × the layer's standard deviation are pruned.
    tolerance : float, optional
        Instead of a density: each layer keeps the least share with which, it alone being pruned,
        the metric on held-out training items is at most so much worse (a sensitivity scan).
    plot : str
        Where the scan is drawn, as SVG.
    rounds : int
        Prune in so many rounds, each with training behind it.
    schedule : {"cubic", "linear"}
        How the density falls over the rounds (cubic: Zhu and Gupta 2017, eq. 1).
    retrain : table, optional
        Settings of the training behind each round, as those of `finetune`.
    """

    do: ClassVar[str] = "prune"
    writes: ClassVar[tuple[str, ...]] = ("plot",)

    density: float | dict[str, float] = 0.5
    per: str = "layer"
    rank: str = "magnitude"
    sigma: float | dict[str, float] | None = None
    tolerance: float | None = None
    plot: str = ""
    rounds: int = 1
    schedule: str = "cubic"
    retrain: Plan | None = None

    def __post_init__(self) -> None:
        for density in self.density.values() if isinstance(self.density, dict) else (self.density,):
            if not 0 <= density <= 1:
                raise UsageError(f"prune.density = {density}: 0 to 1 expected")
        for sigma in self.sigma.values() if isinstance(self.sigma, dict) else (self.sigma or 0.0,):
            if not 0 <= sigma < float("inf"):
                raise UsageError(f"prune.sigma = {sigma}: 0 or more expected")
        if self.per not in ("layer", "network"):
            raise UsageError(f"prune.per = {self.per!r}: layer or network expected")
        if self.plot and not self.plot.endswith(".svg"):
            raise UsageError(f"prune.plot = {self.plot!r}: a name ending in .svg expected")
        if self.plot and importlib.util.find_spec("matplotlib") is None:
            raise UsageError("prune.plot draws with matplotlib, which is not installed: pip install 'deepcomp[report]'")
        if self.rank not in _RANKS:
            raise UsageError(f"prune.rank = {self.rank!r}: one of {', '.join(_RANKS)} expected")
        if self.schedule not in _SCHEDULES:
            raise UsageError(f"prune.schedule = {self.schedule!r}: one of {', '.join(_SCHEDULES)} expected")
        if self.rounds < 1 or (self.rounds > 1 and self.retrain is None):
            raise UsageError(f"prune.rounds = {self.rounds}: 1 expected, or more with a [step.retrain] table")

    @staticmethod
    def form(weight: Tensor, density: float) -> Mask:
        """The weight with that share of its elements left."""
        return Mask.nonzero(weight, largest(weight, density) & (weight != 0))

    def run(self, net: Network) -> dict[str, Any]:
        said: dict[str, Any] = {}
        density = self.density
        if self.tolerance is not None:
            density, said["sensitivity"] = self._scanned(net)
        for number in range(1, self.rounds + 1):
            total, kept = self._prune(net, density, self._left(number))
            if self.retrain is not None:
                said["retrained"] = train(net, self.retrain, f"{self.do} {number}/{self.rounds}")["validation"]
        return {"weights": total, "density": kept / total if total else 1.0, **said}

    def _prune(self, net: Network, density: float | dict[str, float], left: float) -> tuple[int, int]:
        """One round; `left` says how much of the way to the final density is still to go."""
        total = kept = 0
        for name, weight, keep in self._chosen(net, density, left):
            mask = Mask.nonzero(weight, keep & (weight != 0))
            net.store(name, mask)
            total, kept = total + weight.numel(), kept + mask.positions.numel()
        return total, kept

    def _chosen(
        self, net: Network, density: float | dict[str, float], left: float
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each weight to prune, as it is now, and what to keep of it; one at a time where that is possible."""

        def now(final: float) -> float:
            return final + (1 - final) * left

        names = [name for name, _ in net.weights(self.layers, self.skip)]
        if self.sigma is None and self.per == "network" and not isinstance(density, dict):
            weights = {name: _current(net, name) for name in names}
            yield from _largest_together(weights, now(density), _RANKS[self.rank])
            return
        limits = density if self.sigma is None else self.sigma
        net.require(*limits if isinstance(limits, dict) else ())
        for name in names:
            limit = per_layer(limits, name)
            if limit is None:
                continue
            weight = _current(net, name)
            if self.sigma is None:
                yield name, weight, largest(weight, now(limit))
            else:
                yield name, weight, weight.abs() >= limit * weight.float().std(correction=0)

    def _left(self, number: int) -> float:
        """Share of the way still to go after a round."""
        left = 1 - number / self.rounds
        return left**3 if self.schedule == "cubic" else left

    def _scanned(self, net: Network) -> tuple[dict[str, float], dict[str, Any]]:
        """Densities from a sensitivity scan, and the scan."""
        assert self.tolerance is not None
        weights = {name: _current(net, name) for name, _ in net.weights(self.layers, self.skip)}
        found = scan(net, weights, self.form)
        chosen = {name: allowed(curve, self.tolerance, better_is_more(net)) for name, curve in found.items()}
        if self.plot:
            from deepcomp.report.plot import save_sensitivity

            save_sensitivity(self.plot, found, chosen)
        return chosen, {name: {"density": chosen[name], "curve": curve} for name, curve in found.items()}


def _current(net: Network, name: str) -> Tensor:
    """The weight as the steps before left it, so that masks only ever shrink."""
    form = net.form(name)
    values = form.unmasked if form is not None else None
    if values is not None and not isinstance(values, Raw):
        raise UsageError(f"prune: {name} is a {values.name} already, prune before weights are shared or quantised")
    return net.tensors[name] if form is None else form.dense()


def largest(weight: Tensor, density: float) -> Tensor:
    """Where the `density` share of largest magnitudes is, as a bool tensor; of equals the first ones."""
    size = weight.abs().reshape(-1)
    size = size if size.dtype == torch.float64 else size.float()
    count = round(density * size.numel())
    if count == 0:
        return torch.zeros(weight.shape, dtype=torch.bool)
    place = size.numel() - count
    threshold = float(np.partition(size.detach().numpy(), place)[place])
    keep = size > threshold
    level = torch.nonzero(size == threshold).reshape(-1)
    keep[level[: count - int(keep.sum())]] = True
    return keep.reshape(weight.shape)


def _magnitude(weight: Tensor) -> Tensor:
    return weight.abs().reshape(-1).float()


def _lamp(weight: Tensor) -> Tensor:
    """w² over the sum of all squares of the layer that are no smaller (Lee et al. 2021, eq. 2)."""
    energy = weight.reshape(-1).double() ** 2
    order = energy.argsort(descending=True, stable=True)
    score = torch.empty_like(energy)
    score[order] = energy[order] / energy[order].cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return score


_RANKS: dict[str, Callable[[Tensor], Tensor]] = {"magnitude": _magnitude, "lamp": _lamp}


def _largest_together(
    weights: dict[str, Tensor], density: float, score: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The best of all weights together."""
    if weights:
        keep = largest(torch.cat([score(weight) for weight in weights.values()]), density)
        parts = torch.split(keep, [weight.numel() for weight in weights.values()])
        for (name, weight), part in zip(weights.items(), parts, strict=True):
            yield name, weight, part.reshape(weight.shape)
