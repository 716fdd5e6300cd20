"""The levels of a grid as rounding with feedback needs them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from deepcomp.quantizer import Quantizer
from deepcomp.weights.grid import Grid
from deepcomp.weights.open_grids import BITS, narrowed

__all__ = ["Levels"]


class Levels:
    """The levels scale·q, lowest ≤ q ≤ highest, that a grid has for each weight.

    Parameters
    ----------
    grid : Grid
    layout : callable
        Lays out a tensor of the weight's shape as it is rounded.

    Attributes
    ----------
    scale, lowest, highest : float64 tensors in that layout
    """

    def __init__(self, grid: Grid, layout: Callable[[Tensor], Tensor]) -> None:
        def spread(values: Tensor) -> Tensor:
            return layout(grid.blocks.spread(values.detach()).expand(grid.blocks.shape)).double()

        quantizer = Quantizer(grid.bits, grid.symmetric)
        self._grid = grid
        self.scale, zero_point = spread(grid.scale), spread(quantizer.whole(grid.zero_point))
        self.lowest, self.highest = -zero_point, quantizer.top - zero_point

    def grid(self, q: Tensor) -> Grid:
        """The grid with other integers, given in the weight's shape; of no more bits than a fine one needs for them."""
        old = self._grid
        scale, zero_point = old.scale.detach(), old.zero_point.detach()
        values = (q * old.blocks.spread(scale.double())).float()
        held = values if old.at is None else values.reshape(-1)[old.at]
        grid = Grid(held, scale, zero_point, old.bits, old.symmetric, old.blocks, old.at, old.dtype)
        return narrowed(grid) if old.bits == BITS else grid
