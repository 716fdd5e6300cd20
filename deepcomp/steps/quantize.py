"""Uniform quantisation of weights (Nagel et al. 2021, §2.1–2.4 and 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.network import Network
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
    bits : int
        1 to 16; a symmetric grid needs at least 2.
    symmetric : bool
        Zero-point in the middle (the usual choice for weights), or one a block.
    per : {"tensor", "channel", "group", "block"}
        What shares a scale: everything, a channel along `axis`, `size` neighbouring channels, or
        `size` neighbouring weights within a channel.
    size : int
        Channels a group, or weights a block.
    axis : int
        The channel dimension: 0 for linear, convolution and embedding weights.
    range : {"min-max", "percentile", "mse", "aciq", "kl"}
        How the range of a block is set; what lies outside is clipped. See `weights.ranges`.
    percentile : float
        Percent of weights left outside the range at either end, for `range = "percentile"`.
    power_of_two : bool
        Scales are powers of two.
    """

    do: ClassVar[str] = "quantize"

    bits: int = 8
    symmetric: bool = True
    per: str = "channel"
    size: int = 64
    axis: int = 0
    range: str = "min-max"
    percentile: float = 0.01
    power_of_two: bool = False

    def __post_init__(self) -> None:
        try:
            check(self.bits, self.symmetric, self.range)
        except UsageError as error:
            raise UsageError(f"quantize.{error}") from None
        if self.per not in _PER:
            raise UsageError(f"quantize.per = {self.per!r}: one of {', '.join(_PER)} expected")
        if self.size < 1:
            raise UsageError(f"quantize.size = {self.size}: 1 or more expected")
        if not 0 <= self.percentile < 50:
            raise UsageError(f"quantize.percentile = {self.percentile}: 0 to below 50 expected")

    def run(self, net: Network) -> dict[str, Any]:
        tensors = weights = 0
        for name, weight in net.weights(self.layers, self.skip):
            if not -weight.ndim <= self.axis < weight.ndim:
                raise UsageError(f"quantize.axis = {self.axis}: {name} has {weight.ndim} dimensions")
            shape, axis = tuple(weight.shape), self.axis % weight.ndim

            def fit(values: Tensor, at: Tensor | None) -> Grid:
                return Grid.fit(
                    values,
                    self.bits,
                    symmetric=self.symmetric,
                    axis=None if self.per == "tensor" else axis,  # noqa: B023 (called at once)
                    group=self.size if self.per == "group" else 1,
                    size=self.size if self.per == "block" else 0,
                    range=self.range,
                    percentile=self.percentile,
                    power_of_two=self.power_of_two,
                    at=at,
                    shape=shape,  # noqa: B023
                )

            net.refine(name, fit)
            tensors, weights = tensors + 1, weights + weight.numel()
        return {"tensors": tensors, "weights": weights}
