"""Multiplication by a real number in integers: M ≈ m·2^-n (Jacob et al. 2018, §2.2).

M·x becomes a product, a sum and a shift. What is rounded goes to the nearest whole number, ties upwards:
⌊m·x·2^-n + ½⌋. The mantissa m has 31 bits, so its product with an int32 fits an int64; where x has no more than nine
bits, 22 do, and all fits an int32, which takes a fraction of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["MOST", "SHORT", "Multiplier"]

MOST = (1 << 31) - 1  # the largest int32
SHORT = 1 << 8  # the largest number of nine bits
_LONG_BITS, _SHORT_BITS = (31, 45), (22, 21)  # of the mantissa, and the most to shift: m·x + z·2^n must fit


@dataclass(frozen=True, eq=False)
class Multiplier:
    """Factors as integers, each of them `mantissa`·2^-`shift`.

    Attributes
    ----------
    mantissa : int64 or int32 tensor
    shift : tensor of that shape and type
    """

    mantissa: Tensor
    shift: Tensor

    @classmethod
    def of(cls, factor: Tensor, short: bool = False) -> Self:
        """The nearest such numbers.

        They are off by at most 2^-31 of the factor, or by 2^-46 if that is more; with `short`, 2^-22 of both.

        Parameters
        ----------
        factor : float64 tensor
            Not negative. Factors above 2^31 count as 2^31, which takes all but 0 beyond an int32; with `short` none
            may be above 2^22.
        short : bool
            Whether `apply` will see numbers and zero-points of at most `SHORT` only.
        """
        bits, most = _SHORT_BITS if short else _LONG_BITS
        kind = torch.int32 if short else torch.int64
        factor = factor.clamp(max=1 << bits)
        shift = (bits - torch.frexp(factor).exponent).clamp(0, most)
        return cls((factor * torch.exp2(shift.double())).round().to(kind), shift.to(kind))

    def offset(self, before: int, after: int) -> Tensor:
        """What `apply` adds to round, and to take numbers counted from `before` to numbers counted from `after`.

        Parameters
        ----------
        before, after : int
            Zero-points, of at most 17 bits.
        """
        one = torch.bitwise_left_shift(torch.ones_like(self.shift), self.shift)
        return (one >> 1) + after * one - before * self.mantissa

    def apply(self, numbers: Tensor, offset: Tensor) -> Tensor:
        """⌊(m·x + offset)·2^-n⌋ for int8 or int32 numbers that the factors broadcast against."""
        out = numbers.to(self.mantissa.dtype, copy=True)
        out *= self.mantissa
        out += offset
        out >>= self.shift
        return out
