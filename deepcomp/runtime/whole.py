"""Weights as integers: what a form on a grid is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcomp.quantizer import SMALLEST_SCALE
from deepcomp.weights import Form, Grid, Mask, Rows

__all__ = ["Unfit", "Whole", "whole"]


class Unfit(Exception):
    """Why an operation runs in floating point, in one line."""


@dataclass(frozen=True)
class Whole:
    """A weight as numbers·scale, both in the shape of the weight.

    Attributes
    ----------
    numbers : int32 tensor
        The integers of a grid less their zero-points: up to 17 bits with the sign.
    scale : float32 tensor
        Positive.
    """

    numbers: Tensor
    scale: Tensor

    def change(self, layout: Callable[[Tensor], Tensor]) -> Whole:
        """The weight in another layout."""
        return Whole(layout(self.numbers), layout(self.scale))


@torch.no_grad()
def whole(form: Form) -> Whole:
    """The integers of a weight on a grid, under a mask or in repeated rows or neither.

    Raises
    ------
    Unfit
        If it is on none.
    """
    if isinstance(form, Rows):
        distinct = whole(form.inner)
        return Whole(distinct.numbers[form.index], distinct.scale[form.index])
    grid = form.unmasked
    if not isinstance(grid, Grid):
        raise Unfit(f"its weight is stored as {grid.name}, not on a grid")
    shape, spread = grid.blocks.shape, grid.blocks.spread
    zero_point = spread(grid.zero_point).expand(shape)
    if isinstance(form, Mask):
        integers = zero_point.reshape(-1).index_put((form.positions,), grid.integers()).reshape(shape)
    else:
        integers = grid.integers()
    signed = (integers - zero_point) * spread(grid.scale.sign())  # a scale of 0 makes no numbers at all
    return Whole(signed.nan_to_num().int(), spread(grid.scale.abs().clamp(min=SMALLEST_SCALE)).expand(shape))
