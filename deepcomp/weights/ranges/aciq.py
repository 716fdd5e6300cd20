"""ACIQ: the range of least expected error, were the numbers Gaussian or Laplacian (Banner et al. 2019, §3)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges.sample import Sample

__all__ = ["aciq", "gauss", "laplace"]


def aciq(sample: Sample, quantizer: Quantizer) -> Bounds:
    """The better, by squared error on the sample, of the ranges for the two distributions fitted to it.

    They are centred on the mean; on 0 for a symmetric quantiser, which clips around it, and for numbers
    of one sign, as behind a ReLU. Those get all levels on one side, as if there were one bit more.
    """
    one_sided = torch.zeros_like(sample.low, dtype=torch.bool)
    if not quantizer.symmetric:
        one_sided = (sample.low == 0) | (sample.high == 0)
    centre, mean, deviation = sample.spread(one_sided | quantizer.symmetric)

    def bounds(unit: Tensor, clip: Callable[[int], float]) -> Bounds:
        reach = unit * torch.where(one_sided, clip(quantizer.bits + 1), clip(quantizer.bits))
        return (centre - reach).clamp(sample.low, sample.high), (centre + reach).clamp(sample.low, sample.high)

    first, second = bounds(mean, laplace), bounds(deviation, gauss)
    better = sample.error(quantizer, first) <= sample.error(quantizer, second)
    return torch.where(better, first[0], second[0]), torch.where(better, first[1], second[1])


def laplace(bits: int) -> float:
    """Where to clip a Laplace distribution of mean absolute deviation 1 for 2^bits levels."""
    return _balance(lambda clip: math.exp(-clip), bits)


def gauss(bits: int) -> float:
    """Where to clip a Gauss distribution of standard deviation 1 for 2^bits levels."""

    def excess(clip: float) -> float:
        density = math.exp(-clip * clip / 2) / math.sqrt(2 * math.pi)
        return 2 * density - clip * math.erfc(clip / math.sqrt(2))

    return _balance(excess, bits)


def _balance(excess: Callable[[float], float], bits: int) -> float:
    """The clip c of least expected error: the root of E max(|x| − c, 0) = c / (3·4^bits).

    Numbers beyond c err by |x| − c; all others by a twelfth of the squared step 2c / 2^bits. At the
    minimum of both together the derivatives cancel.
    """
    below, above = 0.0, 64.0
    while below < (middle := (below + above) / 2) < above:
        if excess(middle) > middle / (3 * 4**bits):
            below = middle
        else:
            above = middle
    return below
