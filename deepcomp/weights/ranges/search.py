"""The range of least error: by squared error (Nagel et al. 2021, eq. 11) or any other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges.sample import Sample

__all__ = ["least", "mse"]


def mse(sample: Sample, quantizer: Quantizer, steps: int = 100) -> Bounds:
    """The range with the least squared quantisation error among shrunken min-max ranges, itself among them."""
    return least((sample.low, sample.high), lambda bounds: sample.error(quantizer, bounds), quantizer.symmetric, steps)


def least(full: Bounds, error: Callable[[Bounds], Tensor], symmetric: bool, steps: int = 100) -> Bounds:
    """The best range within the full one, which is a candidate too, so that the error is never above its.

    First both ends shrink together in equal steps down to 0; then, if the quantiser is not symmetric, each
    alone, as distributions with one long tail ask for. Of equals the widest is chosen.

    Parameters
    ----------
    full : pair of float tensors, shape (rows,)
    error : callable
        Gives the error of each row, shape (rows,), for candidate bounds.
    """
    low, high = best = full
    smallest = error(full)

    def sweep(candidate: Callable[[float], Bounds]) -> None:
        nonlocal best, smallest
        for step in range(steps):
            bounds = candidate(1 - step / steps)
            found = error(bounds)
            better = found < smallest
            smallest = torch.where(better, found, smallest)
            best = (torch.where(better, bounds[0], best[0]), torch.where(better, bounds[1], best[1]))

    sweep(lambda share: (low * share, high * share))
    if not symmetric:
        _, end = best
        sweep(lambda share: (low * share, end))
        start, _ = best
        sweep(lambda share: (start, high * share))
    return best
