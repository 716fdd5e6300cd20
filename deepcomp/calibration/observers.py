"""Observers: what is kept of activations that pass by, whatever their order and batches.

Memory does not grow with what is seen, and all that is kept is exact: extremes, and counts in bins that only merge.
So the same data, shuffled or batched otherwise, gives the same ranges to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges import Histogram, range_of

__all__ = ["Distribution", "Extremes"]

_HALF = 1 << 12  # bins to either side of zero; 2,048 of them at least lie up to the largest magnitude


class Extremes:
    """The smallest and the largest number seen.

    Parameters
    ----------
    name : str
        What is observed, for messages.
    axis : int, optional
        The channel dimension, for extremes of each channel; None: of the whole tensor.
    """

    def __init__(self, name: str, axis: int | None = None) -> None:
        self.name, self.axis = name, axis
        self._bounds: Bounds | None = None

    @property
    def bounds(self) -> Bounds:
        """The smallest and the largest number, float64, shape (1,) or (channels,).

        Raises
        ------
        UsageError
            Nothing was observed.
        """
        if self._bounds is None:
            raise _unseen(self.name)
        return self._bounds

    def observe(self, x: Tensor) -> None:
        """Take notice of a batch.

        Raises
        ------
        InputError
            Naming the value, if it holds NaN or infinity, or another number of channels than before.
        """
        if x.numel():
            self._take(self._rows(x.detach().cpu()))

    def _take(self, rows: Tensor) -> None:
        low, high = (end.double() for end in rows.aminmax(dim=1))
        if not (low.isfinite().all() and high.isfinite().all()):
            bad = rows[~rows.isfinite()]
            raise InputError(f"{self.name}: {bad[0]} and {len(bad) - 1} more of {rows.numel()} activations not finite")
        if self._bounds is not None:
            if len(low) != len(self._bounds[0]):
                raise InputError(f"{self.name}: {len(low)} channels found, {len(self._bounds[0])} expected")
            low, high = torch.minimum(low, self._bounds[0]), torch.maximum(high, self._bounds[1])
        self._bounds = low, high

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)


class Distribution(Extremes):
    """Extremes and a histogram of what was seen: 64 KiB a tensor, or a channel."""

    _histogram: Histogram | None = None

    def _take(self, rows: Tensor) -> None:
        super()._take(rows)
        batch = Histogram.of(rows, _HALF)
        self._histogram = batch if self._histogram is None else self._histogram.merged(batch)

    @property
    def histogram(self) -> Histogram:
        """Counts of all that was seen, one row or one a channel.

        Raises
        ------
        UsageError
            Nothing was observed.
        """
        if self._histogram is None:
            raise _unseen(self.name)
        return self._histogram

    def range(self, quantizer: Quantizer, method: str = "mse", percentile: float = 0.01) -> Bounds:
        """The range by a method of `weights.ranges`, float64, shape (1,) or (channels,); it holds 0.

        Raises
        ------
        UsageError
            Nothing was observed, or there is no such method.
        """
        return range_of(self.histogram, quantizer, method, percentile)


def _unseen(name: str) -> UsageError:
    return UsageError(f"{name}: nothing was observed, so there is no range")
