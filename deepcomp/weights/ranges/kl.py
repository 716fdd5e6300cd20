"""Entropy calibration: the range that loses the least information (Migacz 2017, TensorRT)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import xlogy

from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges.histogram import Histogram
from deepcomp.weights.ranges.sample import Sample

__all__ = ["kl"]

_EMPTY = 1e-4  # how many numbers a level without any counts as
_CELLS = 1 << 18  # levels of all candidates that are looked at together


def kl(sample: Sample, quantizer: Quantizer) -> Bounds:
    """The range of least Kullback-Leibler divergence KL(P‖Q) on a histogram; of equals the widest.

    Candidates reach equally far to either side of zero, from all bins down to as many as there are
    levels; where there are more levels than bins, the full range stays. P is the histogram within the
    candidate, what lies beyond it added to the first and the last bin. Q is the histogram within the
    candidate, merged into levels of equal width (the last bin too, which some implementations lose),
    each then spread evenly over those of its bins where P is not 0.
    """
    levels, half = quantizer.top + 1, sample.half
    if levels > 2 * half:
        return sample.low, sample.high
    reach = torch.arange(half, (levels - 1) // 2, -1)
    together = max(_CELLS // (len(reach) * levels), 1)
    widest = torch.empty(len(sample.low), dtype=torch.float64)
    for top in range(0, len(widest), together):
        rows = slice(top, top + together)
        histogram = sample.histogram(rows)
        first, last = _windows(histogram, reach, quantizer.symmetric)
        loss = _divergence(histogram.counts.double(), first, last, levels)
        fits = (last - first >= levels) | (reach == half)
        widest[rows] = reach[torch.where(fits, loss, torch.inf).argmin(1)] * histogram.width[:, 0]
    return torch.maximum(sample.low, -widest), torch.minimum(sample.high, widest)


def _windows(histogram: Histogram, reach: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Each candidate's first bin and the one behind its last, shape (rows or 1, candidates).

    A symmetric quantiser spends levels on both sides alike, any other only where there are numbers.
    """

    def bins(end: Tensor) -> Tensor:
        taken = torch.where(end == 0, 0, (end.abs() / histogram.width[:, 0]).long() + 1)
        return reach[None] if symmetric else torch.minimum(reach, taken[:, None])

    return histogram.half - bins(histogram.low), histogram.half + bins(histogram.high)


def _divergence(counts: Tensor, first: Tensor, last: Tensor, levels: int) -> Tensor:
    """KL(P‖Q) of windows of histograms, shape (rows, candidates).

    Q has one height a level, so Σ p·log q needs P level by level alone, and Σ p·log p is the window's but for its
    ends: both are differences of sums over all bins up to one.
    """

    def at(values: Tensor, bins: Tensor) -> Tensor:
        return values.gather(1, bins.flatten(1).expand(len(values), -1)).reshape(-1, *bins.shape[1:])

    def upto(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values.cumsum(1), (1, 0))

    numbers, filled, entropy = upto(counts), upto((counts > 0).double()), upto(xlogy(counts, counts))
    ends = torch.stack([at(counts, first), at(counts, last - 1)], -1)
    beyond = torch.stack([at(numbers, first), numbers[:, -1:] - at(numbers, last)], -1)
    edges = first[..., None] - (first - last)[..., None] * torch.arange(levels + 1) // levels  # rounded up
    q = at(numbers, edges).diff()
    bins = at(filled, edges).diff()
    p = q.clone()
    p[..., [0, -1]] += beyond
    bins[..., [0, -1]] += (ends == 0) & (beyond > 0)
    level = torch.where(q > 0, q / bins, _EMPTY)
    by_p = at(entropy, last) - at(entropy, first) + (xlogy(ends + beyond, ends + beyond) - xlogy(ends, ends)).sum(-1)
    by_q = (p * level.log()).sum(-1)
    total, inside = numbers[:, -1:], at(numbers, last) - at(numbers, first)
    return torch.where(inside > 0, (by_p - by_q) / total - (total / inside).log(), torch.inf)
