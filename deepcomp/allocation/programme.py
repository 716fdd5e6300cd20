"""The integer programme: one choice a layer, the least loss within a size, or the least size within a loss.

    min Σ loss    such that    Σ size ≤ budget, and each layer takes one of its choices

and the same with loss and size exchanged (Hubara et al. 2020, §4). Losses of layers are taken to add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcomp.allocation.highs import quiet

__all__ = ["Choice", "Infeasible", "cheapest", "mildest"]

_SCALE = 1e6  # of the largest number in what is made least: the solver stops within 1e-6 of the best
_TIE = 1e-8  # how much of it the number of bits decides

_Row: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What a layer may be given.

    Attributes
    ----------
    bits : int
    loss : float
        How much worse the network gets.
    size : float
        What it takes: bytes, or operations.
    """

    bits: int
    loss: float
    size: float


class Infeasible(Exception):
    """No choices keep the budget.

    Attributes
    ----------
    nearest : float
        The least budget that can be kept.
    """

    def __init__(self, budget: float, nearest: float) -> None:
        super().__init__(f"a budget of {budget:.10g} cannot be kept, {nearest:.10g} is the least that can")
        self.nearest = nearest


def mildest(layers: Mapping[str, Sequence[Choice]], size: float) -> dict[str, Choice]:
    """The choices that together lose least, of those that together are no larger than `size`.

    Of equally good ones those with fewer bits, above all in layers whose names come first.

    Parameters
    ----------
    layers : mapping of str to sequence of Choice
        Of each layer, at least one; all numbers finite.
    size : float

    Raises
    ------
    Infeasible
        If the smallest are larger.
    """
    return _Programme(layers).solve("loss", "size", size)


def cheapest(layers: Mapping[str, Sequence[Choice]], loss: float) -> dict[str, Choice]:
    """The choices of the least size, of those that together lose no more than `loss`; see `mildest`."""
    return _Programme(layers).solve("size", "loss", loss)


class _Programme:
    """A binary variable for each choice of each layer, layers by name."""

    def __init__(self, layers: Mapping[str, Sequence[Choice]]) -> None:
        self._names = sorted(layers)
        self._choices = [choice for name in self._names for choice in layers[name]]
        self._owner = np.repeat(np.arange(len(layers)), [len(layers[name]) for name in self._names])

    def solve(self, goal: str, spent: str, budget: float) -> dict[str, Choice]:
        """Make the sum of one number least, within a budget for another.

        The solver keeps the budget to a tolerance: where its answer is beyond, the budget is drawn in by as much.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        if not self._names:
            return {}
        wanted, cost = self._row(goal), self._row(spent)
        least = self._least(cost)
        nearest = math.fsum(least)
        if nearest > budget:
            raise Infeasible(budget, nearest)
        more = cost - least[self._owner]
        unit = float(more.max()) or 1.0
        margin, whole = 0.0, np.ones(len(cost))
        each = (self._owner == np.arange(len(self._names))[:, None]).astype(np.float64)
        while True:
            within = LinearConstraint(more[None] / unit, -np.inf, max(budget - nearest - margin, 0.0) / unit)
            rules = [LinearConstraint(each, 1, 1), within]
            with quiet():
                answer = milp(
                    self._objective(wanted), integrality=whole, bounds=Bounds(0, 1), constraints=rules, options=_EXACT
                )
            assert answer.x is not None, answer.message
            taken = answer.x > 0.5
            over = math.fsum(cost[taken]) - budget
            if over <= 0:
                break
            margin += over
        found = [choice for choice, chosen in zip(self._choices, taken, strict=True) if chosen]
        return dict(zip(self._names, found, strict=True))

    def _objective(self, wanted: _Row) -> _Row:
        """What is made least: the goal, then the bits, which count more in layers whose names come first."""
        more = wanted - self._least(wanted)[self._owner]
        bits = self._row("bits") * (2 - self._owner / len(self._names))
        return _SCALE * (more / (float(more.max()) or 1.0) + _TIE * bits / float(bits.max()))

    def _row(self, what: str) -> _Row:
        return np.array([getattr(choice, what) for choice in self._choices], np.float64)

    def _least(self, row: _Row) -> _Row:
        """The least number of each layer."""
        return np.array([row[self._owner == layer].min() for layer in range(len(self._names))])


_EXACT = {"mip_rel_gap": 0}  # the best answer, not one that is close to it
