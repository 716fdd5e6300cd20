"""Training for the loss and for the bits of the file together (rate-penalised training)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepcomp.entry import PARAMETER
from deepcomp.errors import InputError, UsageError
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.training import Plan, train
from deepcomp.weights import Grid
from deepcomp.weights.grid import grid_of
from deepcomp.weights.open_grids import in_powers, narrowed, open_ended, out_of_powers, widened

__all__ = ["RateTrain"]

_FLAT = 0.1  # the first step of a weight whose values are all alike


@dataclass
class RateTrain(Plan, Step):
    """Train weights, the steps they are rounded by, and how many bits they take, all at once.

    Every weight that trains goes on a grid with one scale a tensor and as many integers as it needs, biases too. While
    it trains, the loss has λ times the bits that the weights will take added to it, by how large they are and by what
    else is alive in their rows, columns and kernels (`training.rate`). So most weights die, whole rows and columns
    first, and steps become as coarse as the loss allows. The context coder is made for what is left: put `code` behind.

    What is on a symmetric grid already keeps its scales to start with, and what is masked stays zero. So the step
    continues one before it, `quantize-feedback`, or `slim`. Needs data; the other settings are those of
    `training.Plan`. The last epoch is kept: earlier ones are better, and larger.

    Attributes
    ----------
    price : float
        λ: what a bit costs, in the unit of the loss, nats an item for cross-entropy.
    coarse : float
        The step of a weight at first, in standard deviations.
    vectors : float
        The step of vectors at first: of biases, and the parameters of normalisations; 0: these go on no grid, and train
        as what they are stored as.
    first : float
        The price to begin with where it is below `price`. It is then doubled until `price` is reached, and each time
        training starts from what the price before has left. The files of a curve or a budget train once what they have
        in common. 0: `price` at once.
    warm_epochs, warm_ramp : int, float
        `epochs` and `ramp` of the trainings behind the first.
    """

    do: ClassVar[str] = "rate-train"

    epochs: int = 20
    optimiser: str = "adam"
    rate: float = 1.5e-3
    scales: float = 5.0
    price: float = 1e-6
    warmup: float = 0.04
    choose: str = "last"
    coarse: float = 0.5
    vectors: float = 0.1
    first: float = 0.0
    warm_epochs: int = 8
    warm_ramp: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("first", 0), ("vectors", 0), ("warm_epochs", 0)):
            if not least <= getattr(self, key) < math.inf:
                raise UsageError(f"{key} = {getattr(self, key)}: a number expected, 0 or more")
        if not 0 < self.coarse < math.inf:
            raise UsageError(f"coarse = {self.coarse}: a number expected, more than 0")
        if not 0 <= self.warm_ramp <= 1:
            raise UsageError(f"warm_ramp = {self.warm_ramp}: 0 to 1 expected")
        if self.choose != "last":
            raise UsageError(f"choose = {self.choose!r}: last expected, the best epoch is one that bits cost little in")

    def run(self, net: Network) -> dict[str, Any]:
        names = list(self._put_on_grids(net))
        fine = [name for name in names if not in_powers(_grid(net, name))]
        for number, plan in enumerate(self._plans()):
            for name in fine if number else ():
                _free(net, name)
            said = train(net, plan, f"{self.do} at {plan.price:.3g}", self.layers, self.skip)
        alive = sum(_narrow(net, name) for name in names)
        weights = sum(net.tensors[name].numel() for name in names)
        prices = [plan.price for plan in self._plans()]
        return {"tensors": len(names), "weights": weights, "density": alive / max(weights, 1), "prices": prices, **said}

    def _plans(self) -> Iterator[Plan]:
        """How to train, for one price after the other."""
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(Plan)}
        price = min(self.first or self.price, self.price)
        yield Plan(**{**common, "price": price})
        while price < self.price:
            price = min(2 * price, self.price)
            yield Plan(**{**common, "price": price, "epochs": self.warm_epochs, "ramp": self.warm_ramp})

    def _put_on_grids(self, net: Network) -> Iterator[str]:
        """Give each weight a grid of as many integers as it may need; the names of those that have one."""
        for name, weight in net.weights(self.layers, self.skip, dims=1 if self.vectors else 2):
            if net.roles.get(name, PARAMETER) == PARAMETER and name not in net.frozen:
                net.refine(name, self._maker(grid_of(net.form(name)), tuple(weight.shape)))
                yield name

    def _maker(self, old: Grid | None, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor | None], Grid]:
        """What makes the grid of a weight of that shape, which may have one; see `Network.refine`."""

        def make(values: Tensor, at: Tensor | None) -> Grid:
            if old is not None and old.symmetric:
                return widened(old)
            if len(shape) < 2:
                return open_ended(values, self.vectors, shape, at)
            spread = float(values.double().std(correction=0).nan_to_num())
            return open_ended(values, self.coarse * spread or _FLAT, shape, at)

        return make


def _grid(net: Network, name: str) -> Grid:
    grid = grid_of(net.form(name))
    assert grid is not None
    return grid


def _free(net: Network, name: str) -> None:
    """Let the scale of a grid learn as finely as it did, whatever it has come to be."""
    grid = _grid(net, name)
    net.refine(name, lambda _values, _at: out_of_powers(grid))


def _narrow(net: Network, name: str) -> int:
    """Leave a grid the bits it needs; how many of its weights are not zero.

    Raises
    ------
    InputError
        If the last step of training has left numbers that are not finite.
    """
    grid = _grid(net, name)
    if not grid.dense().isfinite().all():
        raise InputError(f"{name}: not finite after training; a lower rate or price may help")
    net.refine(name, lambda _values, _at: narrowed(grid))
    return int(grid.offsets().count_nonzero())
