"""Scales that are learnt while the integers of a grid stay what they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcomp.weights.grid import Grid
from deepcomp.weights.scales import as_precise

__all__ = ["Rescaling", "rescale"]


@torch.no_grad()
def rescale(grid: Grid, scale: Tensor) -> Tensor:
    """Give a grid other scales, its integers staying.

    Parameters
    ----------
    grid : Grid
        Changed in place.
    scale : float tensor, shape (blocks.count,)
        Positive. Rounded to what takes no more room in the file than the scales that the grid has.

    Returns
    -------
    float32 tensor, shape (blocks.count,)
        The scales it has now.
    """
    offsets, stored = grid.offsets(), as_precise(scale.float(), grid.scale)
    grid.scale.data = stored  # not in place: a latent weight may be the original one's memory
    grid.latent.data = offsets * grid._spread(stored)
    return stored


class Rescaling(nn.Module):
    """A grid whose scales are learnt: w = s eᵃ (q − z), with q and z as they are and one `a` a scale.

    What it gives are the weights as the file will hold them: scales are rounded as `rescale` rounds them, which
    counts as the identity for gradients (the straight-through estimator).

    Parameters
    ----------
    grid : Grid
        Left as it is until `commit`.

    Attributes
    ----------
    logs : Parameter
        The a, float32 of shape (blocks.count,), zeros at first.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._grid, self._offsets = grid, grid.offsets()
        self._before = grid.scale.detach().clone()
        self.logs = nn.Parameter(torch.zeros_like(self._before))

    def scale(self) -> Tensor:
        """The scales, shape (blocks.count,); differentiable."""
        exact = self._before * self.logs.exp()
        return as_precise(exact.detach(), self._before) + (exact - exact.detach())

    def forward(self) -> Tensor:
        """The dense weight in its own type; differentiable."""
        grid = self._grid
        return grid.laid_out(self._offsets * grid._spread(self.scale())).to(grid.dtype)

    def commit(self) -> None:
        """Let the grid have the scales that have been learnt."""
        rescale(self._grid, self.scale())
