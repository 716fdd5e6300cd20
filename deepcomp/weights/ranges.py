"""Range setting: the interval of weights that a uniform grid covers.

Nagel et al. 2021, §3.1. Each function takes the blocks of a weight as rows and gives a lower and an
upper bound per row; entries that are NaN fill up short blocks and count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["min_max", "mse", "percentile"]

Bounds = tuple[Tensor, Tensor]


def min_max(rows: Tensor) -> Bounds:
    """The smallest and the largest weight of each row."""
    inf = float("inf")
    if not rows.isnan().any():
        return rows.amin(1), rows.amax(1)
    return rows.nan_to_num(inf, inf, -inf).amin(1), rows.nan_to_num(-inf, inf, -inf).amax(1)


def percentile(rows: Tensor, share: float) -> Bounds:
    """The range that leaves out `share` percent of each row's weights at either end.

    Parameters
    ----------
    share : float
        Percent, 0 (min-max) to below 50.
    """
    ordered = rows.sort(1).values  # NaN sorts behind everything
    count = (~rows.isnan()).sum(1, keepdim=True)
    low = (count - 1) * share / 100

    def at(place: Tensor) -> Tensor:
        below = place.floor().long()
        above = torch.minimum(below + 1, count - 1)
        return torch.lerp(ordered.gather(1, below), ordered.gather(1, above), (place - below).to(ordered.dtype))[:, 0]

    return at(low), at(count - 1 - low)


def mse(rows: Tensor, error: Callable[[Bounds], Tensor], steps: int = 100) -> Bounds:
    """The range with the least squared quantisation error, among shrunken min-max ranges.

    Both ends shrink together from the full range in `steps` equal steps; the full range is one of
    the candidates, so the error is never above min-max's.

    Parameters
    ----------
    error : callable
        Gives the squared error of each row, shape (blocks,), for candidate bounds.
    """
    low, high = min_max(rows)
    best = (low, high)
    least = error(best)
    for step in range(1, steps):
        candidate = (low * (1 - step / steps), high * (1 - step / steps))
        found = error(candidate)
        better = found < least
        least = torch.where(better, found, least)
        best = (torch.where(better, candidate[0], best[0]), torch.where(better, candidate[1], best[1]))
    return best
