"""How far a network's outputs have moved."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["divergence"]

_BLOCK = 1 << 16  # numbers looked at together: they stay in the cache, which is what most of the time hangs on


def divergence(before: Tensor, after: Tensor, labels: bool) -> float:
    """KL(p ‖ p̂) in nats, added up over items and positions.

    Parameters
    ----------
    before, after : float tensors of one shape, (…, classes) if `labels`
        Outputs.
    labels : bool
        Whether they are logits of labels; if not, they are means of Gaussians of variance 1, and the divergence is half
        their squared difference.
    """
    if not labels:
        return float((after.double() - before.double()).square().sum() / 2)
    before, after = before.flatten(0, -2), after.flatten(0, -2)
    rows = max(_BLOCK // before.shape[1], 1)
    blocks = (slice(start, start + rows) for start in range(0, len(before), rows))
    return math.fsum(_of_logits(before[block], after[block]) for block in blocks)


def _of_logits(before: Tensor, after: Tensor) -> float:
    p, q = before.float().log_softmax(-1), after.float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).double().sum())
