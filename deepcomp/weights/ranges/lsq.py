"""LSQ's start: a step of twice the mean magnitude over the root of the number of levels (Esser et al. 2020, §2.1)."""

from __future__ import annotations

import torch

from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges.sample import Sample

__all__ = ["lsq"]


def lsq(sample: Sample, quantizer: Quantizer) -> Bounds:
    """The range of s = 2·mean|x|/√Q, with Q levels on either side of 0, or on the one where all numbers are.

    The mean is of what is not 0. Where s would reach beyond the extremes, as with many bits, they are the range.
    """
    one_sided = ((sample.low == 0) | (sample.high == 0)) & (not quantizer.symmetric)
    _, mean, _ = sample.spread(torch.ones_like(one_sided))
    levels = torch.where(one_sided, quantizer.top, max(quantizer.top // 2, 1))
    reach = 2 * mean * levels.double().sqrt()
    return (-reach).clamp(sample.low, sample.high), reach.clamp(sample.low, sample.high)
