"""Storing tensors as they are, or rounded to a narrower float type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from deepcomp.errors import UsageError
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.weights import Raw
from deepcomp.weights.exact import exact

__all__ = ["Store"]

_AS = {"exact": None, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Store(Step):
    """Choose how tensors are stored by name, whatever earlier steps made of them.

    Unlike the other steps it takes tensors of any dimension, so `layers = "*.bias"` names biases.

    Attributes
    ----------
    dtype : {"exact", "float16", "bfloat16", "float32"}
        `exact` keeps the original to the bit; the others round, and the loaded tensor has its
        original type again. Integer tensors, and floats no wider than this, stay exact.
    vectors : bool
        Only tensors of at most one dimension: biases, normalisation scales and statistics.
    """

    do: ClassVar[str] = "store"

    dtype: str = "exact"
    vectors: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _AS:
            raise UsageError(f"store.dtype = {self.dtype!r}: one of {', '.join(_AS)} expected")

    def run(self, net: Network) -> dict[str, Any]:
        narrow, tensors, weights = _AS[self.dtype], 0, 0
        for name in net.names(self.layers, self.skip):
            tensor = net.tensors[name]
            if name in net.tied or (self.vectors and tensor.ndim > 1):
                continue
            tensors, weights = tensors + 1, weights + tensor.numel()
            if narrow is None or not tensor.is_floating_point() or tensor.element_size() <= narrow.itemsize:
                net.store(name, exact(tensor))
                continue
            rounded = tensor.to(narrow)
            if not torch.equal(torch.isfinite(rounded), torch.isfinite(tensor)):
                raise UsageError(f"store.dtype = {self.dtype}: {name} holds values beyond its range")
            net.store(name, Raw(tensor, narrow))
        return {"tensors": tensors, "weights": weights}
