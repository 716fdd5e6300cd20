"""Weight sharing by k-means (Han et al. 2016, §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.network import Network, per_layer
from deepcomp.steps.step import Step
from deepcomp.weights import Codebook
from deepcomp.weights.clustering import MOST_OPTIMAL, STARTS

__all__ = ["Share"]


@dataclass
class Share(Step):
    """Let the weights of each layer (under a mask: its survivors) share a few values.

    Attributes
    ----------
    values : int or table
        Shared values a layer, 2 to 65,536; fewer where a layer has fewer distinct weights. A table
        gives the number by layer pattern, and layers it does not name are left as they are.
    start : {"optimal", "linear", "density", "forgy"}
        `optimal` finds the best values outright, up to 1,024 of them, by dynamic programming on a
        histogram; the others are the starts of Lloyd's iteration in the paper.
    """

    do: ClassVar[str] = "share"

    values: int | dict[str, int] = 32
    start: str = "optimal"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise UsageError(f"share.start = {self.start!r}: one of {', '.join(STARTS)} expected")
        for values in self.values.values() if isinstance(self.values, dict) else (self.values,):
            if not 2 <= values <= 1 << 16:
                raise UsageError(f"share.values = {values}: 2 to 65536 expected")
            if self.start == "optimal" and values > MOST_OPTIMAL:
                raise UsageError(f"share.values = {values}: at most {MOST_OPTIMAL} expected where start = optimal")

    def run(self, net: Network) -> dict[str, Any]:
        tensors = weights = 0
        net.require(*self.values if isinstance(self.values, dict) else ())
        for name, weight in net.weights(self.layers, self.skip):
            count = per_layer(self.values, name)
            if count is None:
                continue

            def cluster(values: Tensor, at: Tensor | None) -> Codebook:
                return Codebook.cluster(values, count, self.start, net.seed)  # noqa: B023 (called at once)

            net.refine(name, cluster)
            tensors, weights = tensors + 1, weights + weight.numel()
        return {"tensors": tensors, "weights": weights}
