"""AdaRound: each weight is rounded down or up so that its layer's outputs stay what they were (Nagel et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from deepcomp.errors import UsageError
from deepcomp.model.layers import Layer, Skip
from deepcomp.model.quantizers import quantizers
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.training.reconstruction import Reconstruction, check_sites, grid_or_skip
from deepcomp.weights import Form, Grid
from deepcomp.weights.rounding import SoftRounding

__all__ = ["AdaRound"]

_WARM = 0.2  # share of the iterations without a push towards whole numbers
_MILD, _SHARP = 20.0, 2.0  # exponent of that push, first and last


@dataclass
class AdaRound(Step):
    """Round the weights that `quantize` has put on grids anew, one after the other in the order they run.

    Of each weight, the share by which it is rounded up is learnt by

        min E ‖f(W̃ x̂ + b) − f(W x + b)‖² + λ Σ 1 − |2h − 1|^β

    with x̂ as the layers before, rounded already, give it, and f the activation function behind the
    layer. The expectation is over items and positions, the norm over channels; β falls from 20 to 2, and the second
    term comes in after a fifth of the iterations (Nagel et al. 2020, eq. 24–25; Nagel et al. 2021, §3.4).
    Scales stay as they are. A weight that is not better for it than rounded to nearest stays so.

    Put this step behind `quantize` and before activations are quantised.

    Attributes
    ----------
    samples : int
        Calibration inputs.
    rows : int
        Positions of outputs to learn a weight from, drawn from all samples.
    batch : int
        Of these an iteration.
    iterations : int
        Of Adam, for each weight.
    rate : float
        Its learning rate.
    regularizer : float
        λ.
    """

    do: ClassVar[str] = "adaround"

    samples: int = 1024
    rows: int = 32768
    batch: int = 512
    iterations: int = 1000
    rate: float = 0.1
    regularizer: float = 0.01

    def __post_init__(self) -> None:
        for key in ("samples", "rows", "batch", "iterations"):
            if getattr(self, key) < 1:
                raise UsageError(f"adaround.{key} = {getattr(self, key)}: 1 or more expected")
        for key in ("rate", "regularizer"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UsageError(f"adaround.{key} = {getattr(self, key)}: 0 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        if quantizers(layers.graph):
            raise UsageError(f"{self.do}: activations are quantised already, weights are rounded before that")
        chosen = [name for name, _ in net.weights(self.layers, self.skip)]
        sites: dict[str, list[Layer]] = {}
        for layer in layers:
            if layer.weight in chosen:
                sites.setdefault(layer.weight, []).append(layer)
        skipped = {name: "no layer of the network multiplies with it" for name in chosen if name not in sites}
        rounded: dict[str, dict[str, float]] = {}
        for done, (name, here) in enumerate(sites.items()):
            try:
                grid = grid_or_skip(net.form(name))
                check_sites(here)
            except Skip as skip:
                skipped[name] = str(skip)
                continue
            if net.progress:
                net.progress(f"adaround {name}", done, len(sites))
            examples = Reconstruction(net, layers, here, self.do, self.samples, self.rows)
            rounded[name] = self._round(net.forms[name], grid, examples)
        return {"rounded": rounded, "skipped": skipped}

    def _round(self, form: Form, grid: Grid, examples: Reconstruction) -> dict[str, float]:
        """Learn the rounding of one weight; its error rounded to nearest, and as it is now."""
        before, integers, nearest = grid.latent.data, grid.integers(), examples.error(form.dense())
        soft = SoftRounding(grid)
        self._learn(soft, examples)
        soft.commit()
        found = examples.error(form.dense())
        if found >= nearest:
            grid.latent.data, found = before, nearest
        return {"nearest": nearest, "error": found, "moved": float((grid.integers() != integers).float().mean())}

    @torch.enable_grad()
    def _learn(self, soft: SoftRounding, examples: Reconstruction) -> None:
        optimiser = torch.optim.Adam(soft.parameters(), self.rate)
        for step in range(self.iterations):
            loss, done = examples.loss(soft(), self.batch), step / self.iterations
            if done >= _WARM:
                falls = (1 + math.cos(math.pi * (done - _WARM) / (1 - _WARM))) / 2
                loss = loss + self.regularizer * soft.hesitation(_SHARP + (_MILD - _SHARP) * falls)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
