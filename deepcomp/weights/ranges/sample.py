"""What range methods ask of numbers: weights answer exactly, a histogram up to a bin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from deepcomp.quantizer import Bounds, Quantizer

if TYPE_CHECKING:
    from deepcomp.weights.ranges.histogram import Histogram

__all__ = ["Sample"]


class Sample(ABC):
    """Finite numbers in rows, each of which gets a range of its own.

    Zero is on every grid: all ranges hold it, and it never errs.

    Attributes
    ----------
    low, high : float tensors, shape (rows,)
        The smallest number of each row or 0, and the largest or 0.
    """

    low: Tensor
    high: Tensor

    @property
    @abstractmethod
    def half(self) -> int:
        """How many bins its histograms have to either side of zero, a power of two."""

    @abstractmethod
    def error(self, quantizer: Quantizer, bounds: Bounds) -> Tensor:
        """The squared error of quantising each row with its bounds, summed; float64, shape (rows,)."""

    @abstractmethod
    def percentile(self, share: float) -> Bounds:
        """The bounds that leave out `share` percent of each row at either end; 0 to below 50."""

    @abstractmethod
    def spread(self, around_zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, mean absolute deviation and standard deviation of all that is not 0; float64, shape (rows,).

        Parameters
        ----------
        around_zero : bool tensor, shape (rows,)
            Whether deviations are from 0, or from the mean.
        """

    @abstractmethod
    def histogram(self, rows: slice) -> Histogram:
        """The histogram of some rows."""
