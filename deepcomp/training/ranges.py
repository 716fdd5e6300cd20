"""Scales and zero-points that learn (LSQ: Esser et al. 2020; LSQ+: Bhalgat et al. 2020).

Each learns in a unit of its own, scales by factors and zero-points in shares of the range. So scales stay positive,
and the steps of Adam are as large for wide ranges as for narrow ones. Plain gradient descent is not so forgiving: its
gradients are scaled until it moves scales, to first order, as LSQ has it, which is

    s ← s − η g ∂L/∂s        g = 1/√(N Q)

where N numbers share the scale s and Q levels lie on the longer side of 0; and offsets −s z likewise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepcomp.quantizer import Quantizer

__all__ = ["Range", "Scale", "four_digits"]

_FARTHEST = 3.0  # that the logarithm of a scale gets from where it was
_LEAST = 1e-9  # what the scales of dead ranges count as: the square of less is nothing to divide by


class Scale(nn.Module):
    """Scales that learn and stay positive: s = s₀ eᵃ.

    Parameters
    ----------
    start : float32 tensor
        The s₀, all positive.
    stored : callable
        Rounds scales to what the file can hold, which gradients do not see.

    Attributes
    ----------
    logs : Parameter
        The a, zeros at first.
    """

    def __init__(self, start: Tensor, stored: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.start: Tensor
        self.register_buffer("start", start.detach().clone())
        self.stored = stored
        self.logs = nn.Parameter(torch.zeros_like(start))

    def forward(self, share: Tensor | float | None = None) -> Tensor:
        """The scales as they are stored; differentiable.

        Parameters
        ----------
        share : float tensor or float, optional
            By how much gradient descent is to be slower than ∂L/∂s says; if not given, gradients are plain.
        """
        logs = self.logs if share is None else _scaled(self.logs, share / self.start.clamp(min=_LEAST).square())
        exact = self.start * logs.clamp(-_FARTHEST, _FARTHEST).exp()
        return self.stored(exact.detach()) + (exact - exact.detach())


class Range(nn.Module):
    """Scales and zero-points that learn, z = z₀ + top·u; those of a symmetric quantiser stay in the middle.

    Parameters
    ----------
    scale, zero_point : float32 tensors of one shape
        Where they start.
    quantizer : Quantizer
        What they are for.
    stored : callable
        See `Scale`.

    Attributes
    ----------
    shifts : Parameter
        The u, zeros at first.
    """

    def __init__(
        self, scale: Tensor, zero_point: Tensor, quantizer: Quantizer, stored: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.scale = Scale(scale, stored)
        self.zero_point: Tensor
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.shifts = nn.Parameter(torch.zeros_like(zero_point), requires_grad=not quantizer.symmetric)

    def forward(self, count: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
        """Scales, and zero-points as real numbers; differentiable.

        Parameters
        ----------
        count : tensor or int, optional
            LSQ's N: how many weights, or numbers of an item, share a scale. If not given, gradients are plain.
        """
        top = self.quantizer.top
        if count is None:
            return self.scale(), self.zero_point + top * self.shifts
        share = (count * torch.maximum(self.zero_point, top - self.zero_point)).clamp(min=1).rsqrt()
        unit = (top * self.scale.start).clamp(min=_LEAST)
        return self.scale(share), self.zero_point + top * _scaled(self.shifts, share / unit.square())


def four_digits(scale: Tensor) -> Tensor:
    """Positive numbers as a literal of four decimal digits has them, float32."""
    exact = scale.double()
    unit = 10 ** (exact.log10().floor() - 3)
    return ((exact / unit).round() * unit).float()


def _scaled(parameter: Tensor, factor: Tensor) -> Tensor:
    """The same numbers, with gradients times a factor."""
    still = parameter.detach()
    return still + (parameter - still) * factor
