"""Weights on a few levels: binary, ternary, powers of two and their sums, or levels fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.uses import uses
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.weights import Scaled
from deepcomp.weights.level_sets import check

__all__ = ["QuantizeLevels"]

_PER = ("tensor", "channel", "group", "block")


@dataclass
class QuantizeLevels(Step):
    """Let each weight (under a mask: each survivor) be one of few levels, times a scale; no data needed.

    Of so few levels little is left before the network has been trained with them: `finetune`, behind this step, moves
    weights from level to level and learns the scales. First and last layers are often left out (`skip`).

    Attributes
    ----------
    levels : {"binary", "ternary", "power-of-two", "additive-power-of-two", "lloyd-max"}
        See `weights.level_sets`. Those of `lloyd-max` are one set a layer, fitted to its weights over their mean
        magnitude in each block; values that are fitted to the weights as they are, and trained, are what `share` finds.
    bits : int
        2 to 5 of powers of two, 2 to 8 of additive ones, 1 to 8 of `lloyd-max`; binary and ternary levels have no
        choice. What a weight takes in the file is the entropy of its levels.
    sides : {1, 2}
        Scales a block: 2 for one of positive levels and one of negative ones (Zhu et al. 2017).
    per : {"tensor", "channel", "group", "block"}
        What shares a scale: everything, an output channel, `size` neighbouring channels, or `size` neighbouring
        weights within a channel.
    size : int
        Channels a group, or weights a block.
    """

    do: ClassVar[str] = "quantize-levels"

    levels: str = "ternary"
    bits: int = 4
    sides: int = 1
    per: str = "channel"
    size: int = 64

    def __post_init__(self) -> None:
        try:
            check(self.levels, self.bits)
        except UsageError as error:
            raise UsageError(f"quantize-levels.{error}") from None
        if self.sides not in (1, 2):
            raise UsageError(f"quantize-levels.sides = {self.sides}: 1 or 2 expected")
        if self.per not in _PER:
            raise UsageError(f"quantize-levels.per = {self.per!r}: one of {', '.join(_PER)} expected")
        if self.size < 1:
            raise UsageError(f"quantize-levels.size = {self.size}: 1 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        used = {} if net.captured is None else uses(net.captured, net.tied)
        tensors = weights = 0
        for name, weight in net.weights(self.layers, self.skip):
            net.refine(name, self._maker(used[name][0].axis if name in used else 0, tuple(weight.shape)))
            tensors, weights = tensors + 1, weights + weight.numel()
        return {"tensors": tensors, "weights": weights}

    def _maker(self, axis: int, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor | None], Scaled]:
        """What makes the form of a weight of that shape; see `Network.refine`."""
        return lambda values, at: Scaled.fit(
            values,
            self.levels,
            self.bits,
            sides=self.sides,
            axis=None if self.per == "tensor" else axis,
            group=self.size if self.per == "group" else 1,
            size=self.size if self.per == "block" else 0,
            at=at,
            shape=shape,
        )
