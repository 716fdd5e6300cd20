"""Rounding with error feedback: what rounding a column loses, the columns not yet rounded make up for.

An error e in a row of a weight costs ½ s·e H eᵀ: H says which errors its inputs show, s how much the loss minds them.
Rounding the columns one by one, each time moving the rest of the row to where it now costs least, gives

    ½ s·e H eᵀ = ½ s Σ_j d_j (w_j − ŵ_j)²        d_j = 1/U_jj²,  H⁻¹ = Uᵀ U with U upper triangular

with w_j as the columns before have left it (the optimal brain surgeon: Hassibi & Stork 1993, Frantar & Alistarh 2022;
column by column with one factor for all rows: Frantar et al. 2023, GPTQ).

Rows are grouped, as a convolution groups its channels: weights are (groups, rows, columns), and each group has an H.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deepcomp.quantizer import half_up
from deepcomp.weights.levels import Levels

__all__ = ["Factor", "Rate", "feedback", "rate_steps"]

_BLOCK = 64  # columns whose errors are passed on to the columns behind them together


@dataclass(frozen=True)
class Factor:
    """A quadratic form, ready for rounding the columns in turn.

    Attributes
    ----------
    order : int64 tensor, shape (groups, columns)
        The columns in the order they are rounded: those with the largest inputs first.
    upper : float64 tensor, shape (groups, columns, columns)
        U, of the columns in that order.
    """

    order: Tensor
    upper: Tensor

    @classmethod
    def of(cls, second: Tensor) -> Self:
        """The factor of H, positive definite, float64 of shape (groups, columns, columns)."""
        order = second.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        sorted_ = second.gather(1, order[:, :, None].expand_as(second)).gather(2, order[:, None].expand_as(second))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(sorted_))
        return cls(order, torch.linalg.cholesky(inverse, upper=True))

    @property
    def costs(self) -> Tensor:
        """The d_j in the order of rounding, shape (groups, columns)."""
        return self.upper.diagonal(dim1=1, dim2=2).pow(-2)


def rate_steps(factor: Factor, sensitivity: Tensor, price: float) -> Tensor:
    """Steps for which finer ones would cost more bits than they are worth, one for each row.

    Rounding to steps Δ costs ½ s d Δ²/12 a weight on average, and halving Δ one bit, so where a bit may cost λ,
    Δ² = 12 λ / (s d ln 2), with d the mean of the d_j.

    Parameters
    ----------
    factor : Factor
    sensitivity : float64 tensor, shape (groups, rows)
        The s.
    price : float
        λ, in units of the loss.

    Returns
    -------
    float64 tensor, shape (groups, rows)
        Infinite where the loss does not mind.
    """
    return (12 * price / math.log(2) / (sensitivity * factor.costs.mean(1, keepdim=True))).sqrt()


@dataclass(frozen=True)
class Rate:
    """What integers cost in the file, to weigh against the error.

    Attributes
    ----------
    bits : float64 tensor, shape (n,)
        Of the integers from `lowest` on; those beyond either end cost what the end does.
    lowest : int
    price : float64 tensor, shape (groups, rows)
        What a bit may cost in each row, in units of ½ e H eᵀ.
    """

    bits: Tensor
    lowest: int
    price: Tensor

    @classmethod
    def of(cls, integers: Tensor, price: Tensor) -> Self:
        """Ideal code lengths of integers that occur as often as in `integers`; half a time if they do not."""
        lowest = int(integers.min()) - 1
        counts = torch.bincount((integers - lowest).long().reshape(-1)).double() + 0.5
        counts = torch.cat([counts, counts.new_full((1,), 0.5)])
        return cls(-(counts / counts.sum()).log2(), lowest, price)

    def round(self, x: Tensor, cost: Tensor) -> Tensor:
        """The best of the integer below, the one above and zero.

        Parameters
        ----------
        x : float64 tensor, shape (groups, rows)
            Weights in steps.
        cost : float64 tensor, the same shape
            Of an error of one step.
        """
        below = x.floor()
        choices = torch.stack([below, below + 1, torch.zeros_like(x)])
        bits = self.bits[(choices - self.lowest).long().clamp(0, len(self.bits) - 1)]
        best = (cost * (choices - x).square() + self.price * bits).argmin(0)
        return choices.gather(0, best[None])[0]


def feedback(
    weight: Tensor,
    factor: Factor,
    levels: Levels,
    keep: Tensor | None = None,
    rate: Rate | None = None,
) -> Tensor:
    """The integers q of the levels that weights get.

    Parameters
    ----------
    weight : float64 tensor, shape (groups, rows, columns)
    factor : Factor
        Of H in each group.
    levels : Levels
        In the weight's layout.
    keep : bool tensor of the weight's shape, optional
        Where weights may be anything but zero; the others make up for those that must be zero too.
    rate : Rate, optional
        Integers are chosen by error and bits; to the nearest, ties upwards, if not given.

    Returns
    -------
    float64 tensor of the weight's shape, whole numbers
    """

    def ordered(tensor: Tensor) -> Tensor:
        return tensor.gather(2, factor.order[:, None].expand(weight.shape))

    left, steps, low, high = map(ordered, (weight, levels.scale, levels.lowest, levels.highest))
    kept = None if keep is None else ordered(keep)
    found, upper, costs = torch.zeros_like(left), factor.upper, factor.costs
    columns = weight.shape[2]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.zeros_like(left[:, :, start:stop])
        for j in range(start, stop):
            w, step = left[:, :, j], steps[:, :, j]
            q = half_up(w / step) if rate is None else rate.round(w / step, costs[:, j, None] * step.square() / 2)
            q = q.clamp(low[:, :, j], high[:, :, j])
            found[:, :, j] = q if kept is None else q * kept[:, :, j]
            error = (w - found[:, :, j] * step) / upper[:, None, j, j]
            left[:, :, j + 1 : stop] -= error[:, :, None] * upper[:, None, j, j + 1 : stop]
            errors[:, :, j - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return torch.zeros_like(found).scatter_(2, factor.order[:, None].expand(weight.shape), found)
