"""Weights as a sample: every answer is exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deepcomp.quantizer import Bounds, Quantizer, half_even
from deepcomp.weights.ranges.histogram import Histogram
from deepcomp.weights.ranges.sample import Sample

__all__ = ["Values"]

_PIECE = 1 << 15  # numbers worked on at a time: they and what is made of them stay in the cache
_MOST_BINS = 512  # of a histogram to either side of zero


class Values(Sample):
    """Rows of weights.

    Parameters
    ----------
    rows : float32 tensor, shape (rows, n)
        NaN fills up short rows and counts for nothing.
    """

    def __init__(self, rows: Tensor) -> None:
        rows = rows if rows.shape[1] else rows.new_full((len(rows), 1), float("nan"))
        self._rows, self._count = rows, rows.shape[1] - rows.isnan().sum(1)
        self.values = rows.nan_to_num(0)
        self.low, self.high = self.values.amin(1).clamp(max=0), self.values.amax(1).clamp(min=0)

    @property
    def half(self) -> int:
        return min(1 << (self.values.shape[1] - 1).bit_length(), _MOST_BINS)

    def error(self, quantizer: Quantizer, bounds: Bounds) -> Tensor:
        quantizer = replace(quantizer, rounding=half_even)  # a tie errs alike either way
        scale, zero_point = quantizer.parameters(*bounds)
        out = torch.zeros(len(self.values), dtype=torch.float64)
        for rows, columns in self._pieces():
            x = self.values[rows, columns]
            wrong = quantizer.simulate(x, scale[rows, None], zero_point[rows, None]) - x
            out[rows] += wrong.square().sum(1, dtype=torch.float64)
        return out

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = self.values.shape
        height = max(_PIECE // columns, 1)
        for top in range(0, rows, height):
            for left in range(0, columns, _PIECE):
                yield slice(top, top + height), slice(left, left + _PIECE)

    def percentile(self, share: float) -> Bounds:
        ordered = torch.from_numpy(np.sort(self._rows.numpy(), axis=1))  # NaN sorts behind everything
        last = (self._count - 1).clamp(min=0)[:, None]

        def at(place: Tensor) -> Tensor:
            below = place.floor().long()
            above = torch.minimum(below + 1, last)
            between = (place - below).to(ordered.dtype)
            return torch.lerp(ordered.gather(1, below), ordered.gather(1, above), between)[:, 0].nan_to_num(0)

        outside = last.double() * share / 100
        return at(outside), at(last - outside)

    def spread(self, around_zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        there = self.values != 0
        count = there.sum(1).clamp(min=1)
        centre = torch.where(around_zero, 0, self.values.sum(1, dtype=torch.float64) / count)
        away = (self.values - centre[:, None].float()) * there
        mean = away.abs().sum(1, dtype=torch.float64) / count
        return centre, mean, (away.square().sum(1, dtype=torch.float64) / count).sqrt()

    def histogram(self, rows: slice) -> Histogram:
        return Histogram.of(self.values[rows], self.half)
