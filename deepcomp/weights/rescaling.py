"""Other scales, set or learnt, while the integers of a grid stay what they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcomp.quantizer import SMALLEST_SCALE
from deepcomp.weights.grid import Grid
from deepcomp.weights.scales import as_precise

__all__ = ["Rescaling", "multiply", "rescale"]


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
    stored = as_precise(scale.float(), grid.scale)
    _put(grid, grid.offsets(), stored)
    return stored


@torch.no_grad()
def multiply(grid: Grid, factor: Tensor) -> None:
    """Multiply a grid, block by block, without rounding a weight again.

    A negative factor would make a scale negative. Instead the integers change sides, q ← top − q, and the zero-point
    with them: a symmetric grid, which reaches equally far both ways, keeps its own.

    Parameters
    ----------
    grid : Grid
        Changed in place. Its scales then take the room of float32 in the file.
    factor : float tensor, shape (blocks.count,)
        Of either sign; 0 leaves a scale of about nothing.
    """
    offsets = grid.offsets() * grid.spread(torch.where(factor < 0, -1.0, 1.0))
    zero_point = grid.quantizer.whole(grid.zero_point)
    grid.zero_point.data = torch.where(factor < 0, grid.quantizer.top - zero_point, zero_point)
    _put(grid, offsets, (grid.scale.double() * factor.abs()).clamp(min=SMALLEST_SCALE).float())


def _put(grid: Grid, offsets: Tensor, scale: Tensor) -> None:
    """Let a grid have these scales, and the weights that lie so many steps from zero."""
    grid.scale.data = scale  # not in place: a latent weight may be the original one's memory
    grid.latent.data = offsets * grid.spread(scale)


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
        return grid.laid_out(self._offsets * grid.spread(self.scale())).to(grid.dtype)

    def commit(self) -> None:
        """Let the grid have the scales that have been learnt."""
        rescale(self._grid, self.scale())
