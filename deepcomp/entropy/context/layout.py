"""How the integers of an array lie beside each other, and what is known of the layer before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Before", "Layout"]


class Before(NamedTuple):
    """Which rows hold anything of a tensor that stands so many tensors back: the outputs that are inputs here.

    back : int, at least 1.
    rows : uint8, 0 or 1.
    """

    back: int
    rows: NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """An array in rows, each of planes, each of taps in lines of `width`.

    Rows are outputs. Of a convolution, planes are its inputs and taps those of a kernel; of a matrix, the
    columns are the taps of one plane, a picture's columns in lines as wide as that.
    """

    rows: int
    planes: int
    taps: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], count: int) -> Self:
        """The arrangement that the dimensions of a tensor say, where its elements are what is coded."""
        if len(shape) < 2 or math.prod(shape) != count:
            return cls(1, 1, count, count)
        if len(shape) == 2:
            return cls(shape[0], 1, shape[1], shape[1])
        return cls(shape[0], shape[1], math.prod(shape[2:]), shape[-1])

    def pictures(self) -> Iterator[Self]:
        """The same rows as square pictures in planes."""
        for width in range(2, math.isqrt(self.taps) + 1):
            if self.planes == 1 and self.rows > 1 and self.taps % width**2 == 0:
                yield type(self)(self.rows, self.taps // width**2, width**2, width)

    def top(self, rows: int) -> Self:
        """The first rows."""
        return type(self)(min(rows, self.rows), self.planes, self.taps, self.width)

    @property
    def places(self) -> int:
        """Taps of all planes: symbols in a row."""
        return self.planes * self.taps

    def feeds(self, rows: NDArray[Any]) -> bool:
        """Whether so many rows of a layer before can be what the places take their inputs from, equally many each."""
        return self.rows > 1 and 1 < len(rows) <= self.places and self.places % len(rows) == 0

    def fed(self, before: Before | None) -> NDArray[np.uint8]:
        """For each place 1 if the row that feeds it is dead, 2 if it is live; 0 where that is not known."""
        if before is None:
            return np.zeros(self.places, np.uint8)
        return np.repeat(before.rows + np.uint8(1), self.places // len(before.rows))
