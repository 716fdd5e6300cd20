"""All that decides what the layers of a weight make of their inputs, learnt together (Hubara et al. 2020, eq. 2).

Each part learns in a unit of its own: weights in steps of their grid, scales by factors, zero-points in shares of the
range, biases in typical errors of an output. So the same rates do for wide and narrow layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepcomp.model.input_grids import InputGrid
from deepcomp.model.layers import Layer
from deepcomp.model.patches import product
from deepcomp.training.quantizers import ActivationQuantizer
from deepcomp.training.ranges import Range
from deepcomp.training.reconstruction import Examples, grid_or_skip
from deepcomp.weights import Form, Grid, Mask, Raw
from deepcomp.weights.scales import as_precise

__all__ = ["Rates", "Settled", "Tuning", "tune"]

_LOOKS = 20  # at what has been learnt


@dataclass(frozen=True)
class Rates:
    """Learning rates, each in the unit of what it is for; 0 leaves that as it is.

    Attributes
    ----------
    weights : float
        In steps of the grid.
    ranges, inputs : float
        Of the grids of weights and of inputs: of a scale relative to itself, of a zero-point to the range.
    biases : float
        In root mean squared errors of an output before.
    """

    weights: float
    ranges: float
    inputs: float
    biases: float


@dataclass(frozen=True)
class Settled:
    """What decides it, as the file holds it.

    Attributes
    ----------
    sites : sequence of Layer
        All the layers of the weight.
    form : Form
        The weight's: a `Grid`, or a `Mask` over one.
    biases : mapping of str to Form
        Those of the layers, by name.
    inputs : sequence of InputGrid or None
        The grids of the layers' inputs, where examples are what comes before the quantiser.
    """

    sites: Sequence[Layer]
    form: Form
    biases: Mapping[str, Form]
    inputs: Sequence[InputGrid | None]

    def make(self, site: int, rows: Tensor) -> Tensor:
        """See `reconstruction.Make`."""
        layer, grid = self.sites[site], self.inputs[site]
        made = product(layer, rows if grid is None else grid(rows), self.form.dense().float())
        return made if layer.bias is None else made + self.biases[layer.bias].dense().float()


class Tuning(nn.Module):
    """The same while it learns.

    Parameters
    ----------
    before : Settled
        Left as it is.
    free : sequence of str
        The biases that learn, all of them `Raw`.
    unit : float
        In which biases learn.

    Attributes
    ----------
    moves, range, inputs, shifts
        What learns: weights, their grid, the grids of inputs, biases.
    """

    def __init__(self, before: Settled, free: Sequence[str], unit: float) -> None:
        super().__init__()
        grid = grid_or_skip(before.form)
        self._before, self._free, self._unit = before, list(free), unit
        self._latent, self._step = grid.latent.detach(), grid.spread(grid.scale.detach())
        self.moves = nn.Parameter(torch.zeros_like(grid.latent))
        scale, zero_point = grid.scale.detach(), grid.zero_point.detach()
        self.range = Range(scale, zero_point, grid.quantizer, partial(as_precise, like=scale))
        self.inputs = nn.ModuleList(nn.Identity() if one is None else ActivationQuantizer(one) for one in before.inputs)
        self.shifts = nn.ParameterList(torch.zeros(before.biases[name].shape) for name in free)

    def make(self, site: int, rows: Tensor) -> Tensor:
        """See `reconstruction.Make`; differentiable."""
        form, layer = self._before.form, self._before.sites[site]
        prefix = "inner." if isinstance(form, Mask) else ""
        weight = functional_call(form, {prefix + name: part for name, part in self._grid().items()}, ())
        made = product(layer, self.inputs[site](rows), weight.float())
        return made if layer.bias is None else made + self._biases()[layer.bias]

    def parts(self, rates: Rates) -> list[dict[str, Any]]:
        """What learns at which rate, as optimisers take it."""
        return [
            {"params": [self.moves], "lr": rates.weights},
            {"params": self.range.parameters(), "lr": rates.ranges},
            {"params": self.inputs.parameters(), "lr": rates.inputs},
            {"params": self.shifts.parameters(), "lr": rates.biases},
        ]

    @torch.no_grad()
    def settle(self) -> Settled:
        """What it has come to."""
        before, now = self._before, self._grid()
        grid, zero_point = grid_or_skip(before.form), self.range.quantizer.whole(now["zero_point"])
        form: Form = Grid(
            now["latent"], now["scale"], zero_point, grid.bits, grid.symmetric, grid.blocks, grid.at, grid.dtype
        )
        if isinstance(before.form, Mask):
            form = Mask(before.form.positions, form, before.form.shape)
        biases, moved = dict(before.biases), self._biases()
        for name in self._free:
            raw = before.biases[name]
            assert isinstance(raw, Raw)
            biases[name] = Raw(moved[name].to(raw.dtype), raw.stored)
        inputs = [one.settle() if isinstance(one, ActivationQuantizer) else None for one in self.inputs]
        return Settled(before.sites, form, biases, inputs)

    def _grid(self) -> dict[str, Tensor]:
        """The parameters of the weight's grid."""
        scale, zero_point = self.range()
        return {"latent": self._latent + self._step * self.moves, "scale": scale, "zero_point": zero_point}

    def _biases(self) -> dict[str, Tensor]:
        biases = {name: form.dense().float() for name, form in self._before.biases.items()}
        for name, shift in zip(self._free, self.shifts, strict=True):
            biases[name] = biases[name] + self._unit * shift
        return biases


def tune(
    before: Settled,
    free: Sequence[str],
    examples: Examples,
    rates: Rates,
    batch: int,
    iterations: int,
    generator: torch.Generator,
) -> Iterator[Settled]:
    """Learn from examples what should decide what layers make.

    Rounding makes errors go up and down on the way: the last state is not always the best.

    Parameters
    ----------
    before : Settled
        What decides it now.
    free : sequence of str
        The biases that learn; see `Tuning`.
    examples : Examples
        Of these layers.
    rates : Rates
        Of Adam at first; they fall to zero along half a cosine.
    batch : int
        Examples of each layer an iteration.
    iterations : int
    generator : torch.Generator
        Chooses them.

    Yields
    ------
    Settled
        What has been learnt, twenty times on the way, the last time at the end. Nothing if there is no error to begin
        with, and nothing more once it is too large for a number.
    """
    if not (error := examples.error(before.make)):
        return
    tuning = Tuning(before, free, math.sqrt(error / before.sites[0].outputs))
    optimiser = torch.optim.Adam(tuning.parts(rates))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for done in range(1, iterations + 1):
        with torch.enable_grad():
            loss = examples.loss(tuning.make, batch, generator) / error  # about 1: what is tiny counts as 0 for Adam
        if not loss.isfinite():
            return
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if done * _LOOKS // iterations > (done - 1) * _LOOKS // iterations:
            yield tuning.settle()
