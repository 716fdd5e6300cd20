"""How far a network's outputs have moved."""

from __future__ import annotations

from torch import Tensor

__all__ = ["divergence"]


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
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())
