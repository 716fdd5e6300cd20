"""What training makes small: a loss of outputs and targets, and distillation from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data
from deepcomp.model.evaluate import IGNORED
from deepcomp.model.zoo import find

__all__ = ["LOSSES", "distillation", "loss_function"]

Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over all targets that count; outputs (…, classes), integer targets (…)."""
    if targets.is_floating_point() or outputs.shape[:-1] != targets.shape:
        found = f"outputs {tuple(outputs.shape)} and {targets.dtype} targets {tuple(targets.shape)}"
        raise InputError(f"cross-entropy: {found} found, logits [..., classes] and integer targets [...] expected")
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        found = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        raise InputError(f"mse: {found} found, the same shape expected")
    return F.mse_loss(outputs, targets.to(outputs.dtype))


LOSSES: dict[str, Loss | None] = {"auto": None, "cross-entropy": _cross_entropy, "mse": _mse}


def loss_function(name: str, data: Data) -> Loss:
    """The function a plan's `loss` names.

    Raises
    ------
    UsageError
        `auto`, and the metric does not say which.
    """
    if name == "auto":
        if data.metric in ("accuracy", "perplexity"):
            return _cross_entropy
        raise UsageError("loss = auto: known for the metrics accuracy and perplexity; name a loss for this data")
    return LOSSES.get(name) or cast(Loss, find(name))


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence of softened outputs (…, classes), times T² (Hinton et al. 2015, §2)."""
    student = F.log_softmax(outputs.flatten(0, -2) / temperature, -1)
    wanted = F.log_softmax(teacher.flatten(0, -2) / temperature, -1)
    return temperature**2 * F.kl_div(student, wanted, reduction="batchmean", log_target=True)
