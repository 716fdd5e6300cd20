"""The range of logits: what matters is the softmax they are for (Nagel et al. 2021, eq. 12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepcomp.errors import InputError
from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges import least

__all__ = ["cross_entropy"]


def cross_entropy(logits: Tensor, quantizer: Quantizer, name: str = "logits", steps: int = 100) -> Bounds:
    """The range with the least cross-entropy H(softmax(v), softmax(v̂)) among shrunken min-max ranges.

    Parameters
    ----------
    logits : float tensor, shape (…, classes)
        Logits v of the calibration data; their order does not matter.
    quantizer : Quantizer
    name : str
        What they are, for messages.
    steps : int
        How many ranges are tried for each end.

    Returns
    -------
    low, high : float tensors, shape (1,)

    Raises
    ------
    InputError
        If there are none, or one is not finite.
    """
    v = logits.detach().cpu().float().reshape(-1, logits.shape[-1])
    if not v.numel() or not v.isfinite().all():
        raise InputError(f"{name}: {int((~v.isfinite()).sum())} of {v.numel()} logits not finite, finite ones expected")
    p = v.softmax(1)

    def error(bounds: Bounds) -> Tensor:
        quantized = quantizer.simulate(v, *quantizer.parameters(*bounds))
        entropies = -(p * quantized.log_softmax(1)).sum(1)
        total = math.fsum(entropies.tolist())  # exact, so that the order of the samples does not matter
        return torch.tensor([total], dtype=torch.float64)

    return least((v.amin().reshape(1), v.amax().reshape(1)), error, quantizer.symmetric, steps)
