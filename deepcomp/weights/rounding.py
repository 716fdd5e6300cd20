"""Rounding that is learnt: whether each weight of a grid goes to the integer below or above (Nagel et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcomp.weights.grid import Grid

__all__ = ["SoftRounding"]

_STRETCH, _SHIFT = 1.2, -0.1  # of the sigmoid, so that it reaches 0 and 1


class SoftRounding(nn.Module):
    """A grid whose weights lie between two neighbouring integers, each as near to one of them as it has learnt to be.

        w = s·(clamp(⌊W/s⌋ + h + z, 0, top) − z)        h = clamp(1.2 σ(v) − 0.1, 0, 1)

    (Nagel et al. 2020, eq. 22–23). At first h is the fraction of W/s, so that w = W where nothing is clipped.
    What lies on the grid stays there, and scales and zero-points are what they were.

    Parameters
    ----------
    grid : Grid
        Left as it is until `commit`.

    Attributes
    ----------
    logits : Parameter
        The v, in the shape of the weights the grid holds: all, or the survivors of a mask.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._grid = grid
        with torch.no_grad():
            self._scale = grid.spread(grid.scale).detach()
            self._zero = grid.spread(grid.quantizer.whole(grid.zero_point))
            steps = grid.latent / self._scale
            self._below, self._above = steps.floor(), steps.ceil()
            fraction = steps - self._below
            self.logits = nn.Parameter(-(_STRETCH / (fraction - _SHIFT) - 1).log())

    def share(self) -> Tensor:
        """h: how far up each weight is rounded, 0 to 1."""
        return (_STRETCH * self.logits.sigmoid() + _SHIFT).clamp(0, 1)

    def forward(self) -> Tensor:
        """The dense weight, float32; differentiable."""
        return self._grid.laid_out(self._at(self.share()))

    def hesitation(self, exponent: float) -> Tensor:
        """Σ 1 − |2h − 1|^β (eq. 24): how many weights are not yet decided; the larger β, the milder."""
        return (1 - (2 * self.share() - 1).abs().pow(exponent)).sum()

    @torch.no_grad()
    def commit(self) -> None:
        """Let the grid's weights be what has been decided: v ≥ 0 goes up."""
        self._grid.latent.data = self._at((self.logits >= 0).float())

    def _at(self, share: Tensor) -> Tensor:
        levels = (self._below.lerp(self._above, share) + self._zero).clamp(0, self._grid.quantizer.top)
        return (levels - self._zero) * self._scale
