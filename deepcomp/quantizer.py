"""Uniform quantisation: numbers on 2^b evenly spaced levels (Nagel et al. 2021, §2 and eq. 4–9, 37–38).

    q = clamp(round(x / s) + z, 0, top)        x̂ = s·(q − z)

s is the scale and z the zero-point, so zero is always exact. Stored weights, observed activations,
training and the runtimes all quantise by these lines, which is why they lie on the ground floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcomp.errors import UsageError

__all__ = ["SMALLEST_SCALE", "Bounds", "Quantizer", "Rounding", "half_even", "half_up", "stochastic"]

Bounds = tuple[Tensor, Tensor]
Rounding = Callable[[Tensor], Tensor]

SMALLEST_SCALE = 1e-30  # of constant or dead ranges: never 0, and far from fp32's subnormals
MOST_BITS = 16  # in float32, x / s then still tells a 256th of a step


def half_even(x: Tensor) -> Tensor:
    """The nearest whole number, ties to the even one: torch's rule, and IEEE 754's."""
    return x.round()


def half_up(x: Tensor) -> Tensor:
    """The nearest whole number, ties upwards: the rule of integer kernels, and of channel splitting."""
    return (x * 2).floor().div(2).ceil()  # floor(x + ½) would round the sum first


def stochastic(generator: torch.Generator | None = None) -> Rounding:
    """Rounding up with a probability of the fraction, so that x̂ is x on average inside the range."""

    def rounding(x: Tensor) -> Tensor:
        below = x.floor()
        return below + (torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) < x - below)

    return rounding


@dataclass(frozen=True)
class Quantizer:
    """The levels of a uniform quantiser and how numbers get there; scale and zero-point are arguments.

    Integers run from 0 to `top`. A symmetric quantiser has its zero-point fixed in the middle and leaves
    the lowest integer out, so that it reaches equally far both ways. The unsigned symmetric one of
    ReLU outputs is the asymmetric one for a range that starts at 0: its zero-point is then 0.

    Scales and zero-points are float32 tensors, zero-points whole numbers. They have one entry for each range and
    must broadcast against the numbers to quantise.

    Attributes
    ----------
    bits : int
        1 to 16; a symmetric quantiser of 1 bit has no level but 0.
    symmetric : bool
        Whether the zero-point is fixed in the middle.
    power_of_two : bool
        Whether scales are rounded up to powers of two.
    rounding : callable
        `half_even`, `half_up` or `stochastic(generator)`; of x only, zero-points go to the nearest integer.

    Raises
    ------
    UsageError
        If there are fewer or more bits.
    """

    bits: int
    symmetric: bool = False
    power_of_two: bool = False
    rounding: Rounding = half_even

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST_BITS:
            raise UsageError(f"bits = {self.bits}: 1 to {MOST_BITS} expected")

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - (2 if self.symmetric else 1)

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero-points for ranges, which are first made to hold 0 (eq. 7–9).

        Every number of a range is within half a step of a level.

        Parameters
        ----------
        low, high : float tensors of one shape
            Finite numbers.

        Returns
        -------
        scale, zero_point : float32 tensors of that shape
        """
        low, high = low.double().clamp(max=0), high.double().clamp(min=0)  # in float32 high − low may overflow
        span = 2 * torch.maximum(-low, high) if self.symmetric else high - low
        scale = (span / max(self.top, 1)).float().clamp(min=SMALLEST_SCALE)
        if self.power_of_two:
            mantissa = torch.frexp(scale).mantissa  # from ½ to 1; pow and exp2 may be off by a bit
            scale = torch.where(mantissa == 0.5, scale, scale / mantissa)
        return scale, torch.full_like(scale, self.top // 2) if self.symmetric else self.whole(-low / scale)

    def whole(self, zero_point: Tensor) -> Tensor:
        """Zero-points as the integers they act as; training moves them as real numbers."""
        return zero_point.detach().round().clamp(0, self.top).float()

    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The integers q, as whole float numbers; without gradients."""
        return (self.rounding(_wide(x).detach() / scale.detach()) + self.whole(zero_point)).clamp(0, self.top)

    def simulate(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The numbers x̂ in the type of `x`, with gradients for all three arguments.

        Rounding counts as the identity (the straight-through estimator, eq. 37), so with n = −z and p = top − z,
        for x whose integer is within 0 … top, and for x clipped below and above it:

        ==========  ===============  ==========
        gradient    inside           clipped
        ==========  ===============  ==========
        ∂x̂/∂x       1                0
        ∂x̂/∂s       round(x/s) − x/s n or p
        ∂x̂/∂z       0                −s
        ==========  ===============  ==========
        """
        out: Tensor = _Simulate.apply(_wide(x), scale, zero_point, self)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)

    def dynamic(self, x: Tensor, per: str = "tensor") -> Tensor:
        """Simulated quantisation with the range of `x` itself, of which no gradient is taken.

        Parameters
        ----------
        x : float tensor of any shape
        per : {"tensor", "token"}
            One range for all of `x`, over the whole batch; or one for each vector along the last dimension.

        Raises
        ------
        UsageError
            If `per` is neither.
        """
        if per not in ("tensor", "token"):
            raise UsageError(f"per = {per!r}: tensor or token expected")
        if x.numel() == 0:
            return x
        token = per == "token" and x.dim() > 0
        low, high = x.detach().aminmax(dim=-1, keepdim=True) if token else x.detach().aminmax()
        return self.simulate(x, *self.parameters(low, high))


def _wide(x: Tensor) -> Tensor:
    """Halves have too few bits to hold the integers: they are quantised as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Simulate(torch.autograd.Function):
    """x̂ = s·(q − z); written out because gradients through x/s would be 0·∞ in dead ranges."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quantizer: Quantizer) -> Tensor:
        z = quantizer.whole(zero_point)
        steps = x / scale
        rounded = quantizer.rounding(steps)
        levels = (rounded + z).clamp_(0, quantizer.top).sub_(z)
        if any(ctx.needs_input_grad):
            clipped = rounded != levels
            by_scale = torch.sub(levels, steps.masked_fill_(clipped, 0), out=steps)
            ctx.save_for_backward(clipped, by_scale, scale)
        return levels.mul_(scale)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        clipped, by_scale, scale = ctx.saved_tensors
        inside, wanted = slope.masked_fill(clipped, 0), ctx.needs_input_grad
        return (
            inside if wanted[0] else None,
            (slope * by_scale).sum_to_size(scale.shape) if wanted[1] else None,
            ((inside - slope) * scale).sum_to_size(scale.shape) if wanted[2] else None,
            None,
        )
