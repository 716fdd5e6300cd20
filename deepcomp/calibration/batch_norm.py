"""The range of an activation without data: from the normalisation before it (Nagel et al. 2021, §3.1)."""

from __future__ import annotations

import math

from torch import Tensor

from deepcomp.quantizer import Bounds

__all__ = ["batch_norm_range"]


def batch_norm_range(
    weight: Tensor, bias: Tensor, *, floor: float = -math.inf, cap: float = math.inf, alpha: float = 6.0
) -> Bounds:
    """From the smallest β − α·|γ| of all channels to the largest β + α·|γ|, cut off where the activation is.

    Parameters
    ----------
    weight, bias : float tensors, shape (channels,)
        γ and β: standard deviation (but for the sign) and mean of each normalised channel.
    floor, cap : float
        The least and the greatest output of the activation behind: 0 and ∞ for ReLU, 0 and 6 for ReLU6.
    alpha : float
        How many standard deviations the range reaches.

    Returns
    -------
    low, high : float tensors, shape ()
    """
    reach = alpha * weight.detach().abs()
    low, high = (bias.detach() - reach).min(), (bias.detach() + reach).max()
    return low.clamp(floor, cap), high.clamp(floor, cap)
