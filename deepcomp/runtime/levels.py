"""What integers stand for: x = scale·(n − zero)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deepcomp.quantizer import SMALLEST_SCALE, Quantizer
from deepcomp.runtime.fixed_point import SHORT, Multiplier

__all__ = ["WIDEST", "Levels", "Rescale", "common", "single"]

WIDEST = (1 << 16) - 1  # the largest |n − zero| of a quantiser
_FINE = 1 << 30  # steps from 0 to the largest number on common levels


@dataclass(frozen=True, eq=False)
class Levels:
    """How the numbers of a value are written as integers n.

    Attributes
    ----------
    scale : float64 tensor, shape () or (channels,)
    zero : int
        The integer that stands for 0.
    low, high : int
        Between which all integers lie, whatever the input: so sums are known to fit 32 bits.
    axis : int
        Where the channels of `scale` lie, counted from the last dimension, which is -1.
    """

    scale: Tensor
    zero: int
    low: int
    high: int
    axis: int = -1

    @classmethod
    def of_quantizer(cls, scale: float, zero_point: int, bits: int, symmetric: bool) -> Self:
        """Those of `quantize.static`, moved by 128 where that makes eight bits fit an int8."""
        top = Quantizer(bits, symmetric).top
        shift = 128 if 127 < top <= 255 else 0
        return cls(torch.tensor(scale, dtype=torch.float32).double(), zero_point - shift, -shift, top - shift)

    @property
    def dtype(self) -> torch.dtype:
        """int8 if all fit, int32 if not."""
        return torch.int8 if self.low >= -128 and self.high <= 127 else torch.int32

    @property
    def wide(self) -> int:
        """The largest |n − zero|."""
        return max(self.high - self.zero, self.zero - self.low)

    @property
    def reach(self) -> float:
        """The largest |x|."""
        return float(self.scale.max()) * self.wide

    def by_channel(self, numbers: Tensor) -> Tensor:
        """A number for each channel, or one for all, made to broadcast against the integers."""
        return numbers.reshape(-1, *[1] * (-1 - self.axis)) if numbers.ndim else numbers

    def encode(self, x: Tensor | float) -> Tensor:
        """The integers nearest to numbers, of type `dtype`."""
        steps = (x / self.by_channel(self.scale)).round() + self.zero
        return steps.clamp(self.low, self.high).to(self.dtype)

    def decode(self, numbers: Tensor) -> Tensor:
        """The numbers x in float32; those of a quantiser to the bit as `Quantizer.simulate` has them."""
        return ((numbers.double() - self.zero) * self.by_channel(self.scale)).float()


class Rescale:
    """Integers taken to other levels by fixed-point multiplication; what lies beyond them is clipped.

    Parameters
    ----------
    before, after : Levels
        `after` has one scale, or one for each channel of `before`.
    """

    def __init__(self, before: Levels, after: Levels) -> None:
        factor = before.by_channel(before.scale / after.scale)
        largest = max(before.wide, -before.low, before.high, abs(after.zero))
        self.factor = Multiplier.of(factor, short=largest <= SHORT and float(factor.max()) <= 1 << 22)
        self.offset = self.factor.offset(before.zero, after.zero)
        self.low, self.high, self.dtype = after.low, after.high, after.dtype

    def __call__(self, numbers: Tensor) -> Tensor:
        return self.factor.apply(numbers, self.offset).clamp_(self.low, self.high).to(self.dtype)


def common(levels: Sequence[Levels], terms: int = 1) -> Levels:
    """Levels of one scale for several values, so fine that hardly anything is lost on the way to them.

    Parameters
    ----------
    levels : sequence of Levels
    terms : int
        How many of the integers may be added up within 32 bits.
    """
    largest = max(SMALLEST_SCALE, *(entry.reach for entry in levels))
    most = _FINE // terms + 1
    return Levels(torch.tensor(largest * terms / _FINE, dtype=torch.float64), 0, -most, most)


def single(levels: Levels) -> tuple[list[Rescale], Levels]:
    """What brings integers to one scale, where they have several, and the levels they are on then."""
    if not levels.scale.ndim:
        return [], levels
    joint = common([levels])
    return [Rescale(levels, joint)], joint
