"""Grids with integers for everything: their scales say how fine they are, and bits are what the integers need."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcomp.quantizer import SMALLEST_SCALE, Quantizer
from deepcomp.weights.blocks import Blocks
from deepcomp.weights.grid import Grid
from deepcomp.weights.scales import HALF, SHORT, significant

__all__ = ["BITS", "fine_grid", "in_powers", "narrowed", "open_ended", "out_of_powers", "widened"]

BITS = 16
_REACH = 8192  # steps that any value is within, when a grid is made


def fine_grid(weight: Tensor, steps: Tensor, axis: int, at: Tensor | None = None) -> Grid:
    """A grid with integers for everything: its scales say how fine it is.

    Parameters
    ----------
    weight : Tensor
    steps : float64 tensor, shape (channels,)
        Of each channel along `axis`; larger than 0, maybe infinite. They are brought to four significant bits.
    axis : int
    at : int64 tensor, optional
        Flat positions of the weights that may be other than zero.
    """
    blocks, quantizer = Blocks(tuple(weight.shape), axis), Quantizer(BITS, symmetric=True)
    largest = float(weight.abs().max()) or 1.0
    coarse = steps.clamp(largest / (quantizer.top // 4), 4 * largest).float()
    scale = significant(coarse, SHORT).clamp_min(SMALLEST_SCALE)
    values = weight.float() if at is None else weight.float().reshape(-1)[at]
    return Grid(values, scale, torch.full_like(scale, quantizer.top // 2), BITS, True, blocks, at, weight.dtype)


def open_ended(values: Tensor, step: float, shape: tuple[int, ...], at: Tensor | None = None) -> Grid:
    """A grid of one scale with integers for everything, the scale as float16 has it.

    Parameters
    ----------
    values : Tensor
        A weight of that shape, or under a mask the values at its flat positions `at`.
    step : float
        The scale, positive; more where there are values too large for its integers.
    """
    furthest = float(values.abs().max()) if values.numel() else 0.0
    scale = significant(torch.tensor([max(step, furthest / _REACH, SMALLEST_SCALE)]), HALF)
    if torch.equal(significant(scale, SHORT), scale):  # one learnt from it would have to stay as short (`as_precise`)
        scale = scale * (1 + 2 ** (1 - HALF))
    middle = torch.full_like(scale, Quantizer(BITS, symmetric=True).top // 2)
    return Grid(values, scale, middle, BITS, True, Blocks(shape), at, values.dtype)


def widened(grid: Grid) -> Grid:
    """A symmetric grid with integers for everything."""
    return _of_bits(grid, BITS)


def in_powers(grid: Grid) -> bool:
    """Whether all scales are powers of two; those learnt from them stay such (`as_precise`)."""
    return torch.equal(significant(grid.scale.detach(), 1), grid.scale.detach())


def out_of_powers(grid: Grid) -> Grid:
    """A symmetric grid whose scales are not all powers of two, as those that learn may become by chance."""
    scale = grid.scale.detach() * (1 + 2 ** (1 - HALF) if in_powers(grid) else 1)
    return Grid(grid.latent, scale, grid.zero_point.detach(), grid.bits, True, grid.blocks, grid.at, grid.dtype)


def narrowed(grid: Grid) -> Grid:
    """A symmetric grid with no more bits than the integers of its weights need."""
    furthest = grid.offsets().abs().max() if grid.latent.numel() else 0
    return _of_bits(grid, max(2, int(furthest).bit_length() + 1))


def _of_bits(grid: Grid, bits: int) -> Grid:
    scale = grid.scale.detach()
    middle = torch.full_like(scale, Quantizer(bits, symmetric=True).top // 2)
    return Grid(grid.latent, scale, middle, bits, True, grid.blocks, grid.at, grid.dtype)
