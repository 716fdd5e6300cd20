"""Quantisers while they learn, of weights and of activations: rounding counts as the identity for gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepcomp.model.input_grids import InputGrid
from deepcomp.quantizer import SMALLEST_SCALE, Quantizer, Rounding, half_up, stochastic
from deepcomp.training.narrow import Narrow, is_narrow
from deepcomp.training.ranges import Range, Scale, four_digits
from deepcomp.weights import Form, Grid, Scaled
from deepcomp.weights.scales import as_precise

__all__ = ["PENALTIES", "ROUNDINGS", "ActivationQuantizer", "LevelQuantizer", "WeightQuantizer", "learning"]

_ANY = 0.01  # a scale for weights that are all zero, which lie on any grid

ROUNDINGS: dict[str, Rounding | None] = {"nearest": half_up, "stochastic": stochastic(), "none": None}


def learning(form: Form, rounding: str = "nearest") -> nn.Module:
    """A form as it learns: one that has scales learns them too, values of 16 bits in 32; `settle` hands them to it.

    Parameters
    ----------
    form : Form
        Trains in place.
    rounding : {"nearest", "stochastic", "none"}
        Of weights on a grid, in train mode.
    """
    values = form.unmasked
    if isinstance(values, Grid):
        return WeightQuantizer(values, rounding)
    if isinstance(values, Scaled):
        return LevelQuantizer(form, values)
    return Narrow(form) if any(map(is_narrow, form.parameters())) else form


class WeightQuantizer(nn.Module):
    """A weight on a grid: the latent weight, scales and zero-points learn.

    Parameters
    ----------
    grid : Grid
        Of a whole weight, or of what a mask leaves of it.
    rounding : str
        See `learning`. In eval mode it is always to the nearest.
    """

    def __init__(self, grid: Grid, rounding: str) -> None:
        super().__init__()
        self.grid, self.rounding = grid, ROUNDINGS[rounding]
        scale, zero_point = _alive(grid.scale.detach()), grid.zero_point.detach()
        self.range = Range(scale, zero_point, grid.quantizer, partial(as_precise, like=scale))
        places = torch.arange(math.prod(grid.blocks.shape)) if grid.at is None else grid.at
        self.count: Tensor
        self.register_buffer("count", torch.bincount(grid.blocks.at(places), minlength=grid.blocks.count))
        grid.requires_grad_(False)
        grid.latent.requires_grad_(True)

    def forward(self) -> Tensor:
        """The dense weight."""
        grid, rounding = self.grid, self.rounding if self.training else half_up
        values: Tensor = grid.latent
        if rounding is not None:
            values = replace(grid.quantizer, rounding=rounding).simulate(values, *self._spread())
        return grid.laid_out(values).to(grid.dtype)

    def penalty(self, kind: str) -> Tensor:
        """How far the latent weights are from the grid, squared and summed; see `PENALTIES`."""
        grid, (scale, zero_point) = self.grid, self._spread()
        quantizer = grid.quantizer
        levels = quantizer.integers(grid.latent, scale, zero_point) - quantizer.whole(zero_point)
        return PENALTIES[kind](grid.latent - scale * levels, scale).sum()

    def steps(self) -> Tensor:
        """The dense weight in steps of its scale, not rounded; zeros where a mask has none."""
        return self.grid.laid_out(self.grid.latent / self._spread()[0])

    @torch.no_grad()
    def settle(self) -> None:
        """Let the grid have the scales and zero-points that have been learnt."""
        scale, zero_point = self.range()
        self.grid.scale.data, self.grid.zero_point.data = scale, self.grid.quantizer.whole(zero_point)

    def _spread(self) -> tuple[Tensor, Tensor]:
        """The scale and the zero-point of each weight held."""
        scale, zero_point = self.range(self.count)
        return self.grid.spread(scale), self.grid.spread(zero_point)


def _alive(scale: Tensor) -> Tensor:
    """Scales to learn from: those of blocks that are all zero, which is as good as none, are the median of the others.

    Weights that grow in such a block then grow by steps of a size. Zero stays zero on any grid.
    """
    dead = scale <= SMALLEST_SCALE
    return torch.where(dead, scale[~dead].median() if not dead.all() else torch.tensor(_ANY), scale)


class LevelQuantizer(nn.Module):
    """A weight of few levels: the latent weight and the scales learn, which `Scaled` gives gradients fit for descent.

    Parameters
    ----------
    form : Form
        The levels, or a mask over them.
    levels : Scaled
    """

    def __init__(self, form: Form, levels: Scaled) -> None:
        super().__init__()
        self.form = form
        self._name = "scale" if form is levels else "inner.scale"
        start = levels.scale.detach().clone()
        self.scale = Scale(start, partial(as_precise, like=start))
        levels.scale.requires_grad_(False)

    def forward(self) -> Tensor:
        """The dense weight."""
        dense: Tensor = functional_call(self.form, {self._name: self.scale(1.0)}, ())
        return dense

    @torch.no_grad()
    def settle(self) -> None:
        """Let the levels have the scales that have been learnt."""
        self.form.get_parameter(self._name).data = self.scale()


class ActivationQuantizer(nn.Module):
    """A static quantiser of an activation: its scale and its zero-point learn.

    Parameters
    ----------
    grid : InputGrid
        What it starts from.
    """

    def __init__(self, grid: InputGrid) -> None:
        super().__init__()
        self._grid = grid
        scale, zero_point = torch.tensor([grid.scale, grid.zero_point], dtype=torch.float32)
        self.range = Range(scale, zero_point, Quantizer(grid.bits, grid.symmetric), four_digits)

    def forward(self, x: Tensor, count: int | None = None) -> Tensor:
        """x̂; for `count` see `Range`."""
        return self.range.quantizer.simulate(x, *self.range(count))

    def of_items(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x̂ of a batch, as LSQ learns: called like the operation, whose literals are not what counts any more."""
        return self.forward(x, x[:1].numel())

    @torch.no_grad()
    def settle(self) -> InputGrid:
        """The grid as operations hold it: scales are literals of four digits, which take few bytes."""
        scale, zero_point = self.range()
        whole = self.range.quantizer.whole(zero_point)
        return replace(self._grid, scale=float(f"{float(scale):.4g}"), zero_point=int(whole))


def _sine(distance: Tensor, scale: Tensor) -> Tensor:
    within = (scale / math.pi * (math.pi * distance / scale).sin()).square()
    return torch.where(2 * distance.abs() <= scale, within, distance.square())


PENALTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distance": lambda distance, scale: distance.square(),
    "sine": _sine,  # as steep on the grid, flat half way between two levels
}
"""What weights cost that lie off the grid, by their distance to the nearest level and the scale."""
