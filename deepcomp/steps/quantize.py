"""Uniform quantisation of weights (Nagel et al. 2021, §2.1–2.4 and 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.uses import Use, uses
from deepcomp.network import Network, per_layer
from deepcomp.steps.step import Step
from deepcomp.weights import Grid
from deepcomp.weights.grid import check

__all__ = ["Quantize"]

_PER = ("tensor", "channel", "group", "block")


@dataclass
class Quantize(Step):
    """Put each layer's weights (under a mask: its survivors) on a uniform grid; no data needed.

    Attributes
    ----------
    bits : int or table
        1 to 16; a symmetric grid needs at least 2. A table gives the number by layer pattern, and layers it does
        not name are left as they are.
    ends : int
        Bits of the first and the last layers, which are often small and sensitive; 0: as the others. Of weights
        without operations the first and the last weight count as such.
    symmetric : bool
        Zero-point in the middle (the usual choice for weights), or one a block.
    per : {"tensor", "channel", "group", "block"}
        What shares a scale: everything, a channel along `axis`, `size` neighbouring channels, or
        `size` neighbouring weights within a channel.
    size : int
        Channels a group, or weights a block.
    axis : int, optional
        The channel dimension. If not given, that of the output channels where there are operations that say so (1 of
        a transposed convolution's weight), and 0 elsewhere.
    range : {"min-max", "percentile", "mse", "aciq", "kl", "lsq"}
        How the range of a block is set; what lies outside is clipped. See `weights.ranges`.
    percentile : float
        Percent of weights left outside the range at either end, for `range = "percentile"`.
    power_of_two : bool
        Scales are powers of two.
    """

    do: ClassVar[str] = "quantize"

    bits: int | dict[str, int] = 8
    ends: int = 0
    symmetric: bool = True
    per: str = "channel"
    size: int = 64
    axis: int | None = None
    range: str = "min-max"
    percentile: float = 0.01
    power_of_two: bool = False

    def __post_init__(self) -> None:
        try:
            for bits in (*(self.bits.values() if isinstance(self.bits, dict) else (self.bits,)), self.ends or 8):
                check(bits, self.symmetric, self.range)
        except UsageError as error:
            raise UsageError(f"quantize.{error}") from None
        if self.per not in _PER:
            raise UsageError(f"quantize.per = {self.per!r}: one of {', '.join(_PER)} expected")
        if self.size < 1:
            raise UsageError(f"quantize.size = {self.size}: 1 or more expected")
        if not 0 <= self.percentile < 50:
            raise UsageError(f"quantize.percentile = {self.percentile}: 0 to below 50 expected")

    def run(self, net: Network) -> dict[str, Any]:
        net.require(*self.bits if isinstance(self.bits, dict) else ())
        used = {} if net.captured is None else uses(net.captured, net.tied)
        names = [name for name, _ in net.weights()]
        tensors = weights = 0
        for name, weight in net.weights(self.layers, self.skip):
            here = used.get(name, [])
            end = any(use.first or use.last for use in here) if used else name in (names[0], names[-1])
            bits = self.ends if self.ends and end else per_layer(self.bits, name)
            if bits is None:
                continue
            net.refine(
                name, self._maker(bits, self._axis(name, weight, here), net.offsets.get(name), tuple(weight.shape))
            )
            tensors, weights = tensors + 1, weights + weight.numel()
        return {"tensors": tensors, "weights": weights}

    def _axis(self, name: str, weight: Tensor, used: Sequence[Use]) -> int | None:
        """The axis along which scales differ; None where one is for all."""
        if self.per == "tensor":
            return None
        if self.axis is None:
            return used[0].axis if used else 0
        if not -weight.ndim <= self.axis < weight.ndim:
            raise UsageError(f"quantize.axis = {self.axis}: {name} has {weight.ndim} dimensions")
        return self.axis % weight.ndim

    def _maker(
        self, bits: int, axis: int | None, offset: Tensor | None, shape: tuple[int, ...]
    ) -> Callable[[Tensor, Tensor | None], Grid]:
        """What makes the grid of a weight of that shape; see `Network.refine`."""
        return lambda values, at: Grid.fit(
            values,
            bits,
            symmetric=self.symmetric,
            axis=axis,
            group=self.size if self.per == "group" else 1,
            size=self.size if self.per == "block" else 0,
            range=self.range,
            percentile=self.percentile,
            offset=offset,
            power_of_two=self.power_of_two,
            at=at,
            shape=shape,
        )
