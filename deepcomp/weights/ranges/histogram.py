"""Histograms that merge exactly: what they hold depends on the numbers, not on their order or batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges.sample import Sample

__all__ = ["Histogram"]

_BATCH = 1 << 18  # numbers counted at a time
_NARROWEST = -1000  # binary exponent of the bins where there is nothing but zeros


@dataclass(frozen=True)
class Histogram(Sample):
    """Counts of numbers in bins as wide as a power of two, as many to either side of zero.

    The width is the least that the largest magnitude allows. So it only ever doubles, which merges
    bins in pairs, and numbers counted in whatever order and batches end up in the same bins.

    Attributes
    ----------
    counts : int64 tensor, shape (rows, 2·half)
        Bin half + k counts k·w ≤ x < (k + 1)·w, and bin half − 1 − k the same of −x, but no zeros.
    zeros : int64 tensor, shape (rows,)
    exponent : int64 tensor, shape (rows,)
        Binary logarithm of the width w.
    low, high : float64 tensors, shape (rows,)
        The smallest number of each row or 0, and the largest or 0.
    """

    counts: Tensor
    zeros: Tensor
    exponent: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, rows: Tensor, half: int) -> Self:
        """The histogram of finite numbers, with `half` bins, a power of two, to either side of zero.

        Parameters
        ----------
        rows : float tensor, shape (rows, n), n ≥ 1
        """
        low, high = rows.amin(1).double().clamp(max=0), rows.amax(1).double().clamp(min=0)
        largest = torch.maximum(-low, high)
        exponent = torch.frexp(largest).exponent.long() - (half.bit_length() - 1)
        exponent = torch.where(largest > 0, exponent, _NARROWEST).clamp(min=_NARROWEST)
        slots = torch.arange(len(rows))[:, None] * (2 * half + 1)  # the last of each row is for zeros
        counts = torch.zeros(len(rows) * (2 * half + 1), dtype=torch.int64)
        for part in torch.split(rows, max(_BATCH // max(len(rows), 1), 1), 1):
            bins = (part.abs().double() * _power(-exponent)).long()
            bins = torch.where(part < 0, ~bins, bins) + half
            bins = torch.where(part == 0, 2 * half, bins) + slots
            counts += torch.bincount(bins.reshape(-1), minlength=len(counts))
        counts = counts.reshape(len(rows), 2 * half + 1)
        return cls(counts[:, :-1], counts[:, -1], exponent, low, high)

    def merged(self, other: Self) -> Self:
        """The histogram of the numbers of both, which have equally many rows and bins."""
        exponent = torch.maximum(self.exponent, other.exponent)
        return type(self)(
            self._coarse(exponent) + other._coarse(exponent),
            self.zeros + other.zeros,
            exponent,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def _coarse(self, exponent: Tensor) -> Tensor:
        """The counts in wider bins."""
        shift = (exponent - self.exponent).clamp(max=63)[:, None]
        target = self.half + (torch.arange(-self.half, self.half) >> shift)
        return torch.zeros_like(self.counts).scatter_add_(1, target, self.counts)

    @property
    def half(self) -> int:
        return self.counts.shape[1] // 2

    @property
    def width(self) -> Tensor:
        """The width of a bin, float64, shape (rows, 1)."""
        return _power(self.exponent)

    def error(self, quantizer: Quantizer, bounds: Bounds) -> Tensor:
        """As of numbers spread evenly over each bin, so that bins may be wider than steps."""
        scale, z = (part.double()[:, None] for part in quantizer.parameters(*bounds))
        steps = torch.arange(-self.half, self.half + 1) * (self.width / scale)
        nearest = steps.round().clamp(-z, quantizer.top - z)
        integral = nearest / 12 + (steps - nearest) ** 3 / 3  # of (steps − nearest)², from 0
        return (self.counts * integral.diff() * (scale**3 / self.width)).sum(1)

    def percentile(self, share: float) -> Bounds:
        low = _tail(self.counts, self.zeros, share) * self.width[:, 0]
        high = -_tail(self.counts.flip(1), self.zeros, share) * self.width[:, 0]
        return low.clamp(self.low, self.high), high.clamp(self.low, self.high)

    def spread(self, around_zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = self.counts.sum(1).clamp(min=1)
        middles = (torch.arange(-self.half, self.half) + 0.5) * self.width
        centre = torch.where(around_zero, 0, (middles * self.counts).sum(1) / count)
        away = middles - centre[:, None]
        mean = (away.abs() * self.counts).sum(1) / count
        return centre, mean, ((away.square() * self.counts).sum(1) / count).sqrt()

    def histogram(self, rows: slice) -> Histogram:
        return Histogram(*(part[rows] for part in (self.counts, self.zeros, self.exponent, self.low, self.high)))


def _power(exponent: Tensor) -> Tensor:
    """2^exponent as a column; `torch.exp2` may be off by a bit."""
    return torch.from_numpy(np.ldexp(1.0, exponent.numpy()))[:, None]


def _tail(counts: Tensor, zeros: Tensor, share: float) -> Tensor:
    """Below which place `share` percent of the numbers lie, zeros among them; in bins from zero, shape (rows,)."""
    half = counts.shape[1] // 2
    counts = torch.cat([counts[:, :half], zeros[:, None], counts[:, half:]], 1)
    start = torch.cat([torch.arange(-half, 1), torch.arange(half)])  # zeros are a bin of their own, without width
    width = (torch.arange(2 * half + 1) != half).double()
    upto = counts.cumsum(1)
    rank = (upto[:, -1:] - 1).clamp(min=0).double() * share / 100
    at = (upto <= rank).sum(1, keepdim=True).clamp(max=2 * half)
    within = (rank - (upto - counts).gather(1, at)) / counts.gather(1, at).clamp(min=1)
    return (start[at] + within * width[at])[:, 0]
