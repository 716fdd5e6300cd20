"""What training makes small: a loss of outputs and targets, and distillation from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from deepcomp.errors import InputError, UsageError, blaming
from deepcomp.model.data import METRICS, Data
from deepcomp.model.evaluate import IGNORED
from deepcomp.model.zoo import find

__all__ = ["LOSSES", "Loss", "distillation", "distillation_loss", "loss_function"]

Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over all targets that count; outputs (…, classes), integer targets (…)."""
    _expect_tensor("cross-entropy", targets)
    if targets.is_floating_point() or outputs.shape[:-1] != targets.shape:
        found = f"outputs {tuple(outputs.shape)} and {targets.dtype} targets {tuple(targets.shape)}"
        raise InputError(f"cross-entropy: {found} found, logits [..., classes] and integer targets [...] expected")
    counted = targets[targets != IGNORED]
    if not len(counted):
        return 0 * outputs.sum()  # a mean of none
    if not 0 <= int(counted.min()) <= int(counted.max()) < outputs.shape[-1]:
        found = f"targets from {int(counted.min())} to {int(counted.max())}"
        raise InputError(f"cross-entropy: {found} found, 0 to {outputs.shape[-1] - 1} expected")
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def _expect_tensor(loss: str, targets: Any) -> None:
    if not isinstance(targets, Tensor):
        raise InputError(f"{loss}: targets of {type(targets).__name__} found, a tensor expected")


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    _expect_tensor("mse", targets)
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
        if data.metric in METRICS:
            return _cross_entropy
        raise UsageError("loss = auto: known for the metrics accuracy and perplexity; name a loss for this data")
    return LOSSES.get(name) or _own(name, cast(Loss, find(name)))


def _own(name: str, found: Loss) -> Loss:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with blaming(f"loss {name}"):
            value = found(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"loss {name}: {kind} found, a scalar tensor of floats expected")
        return value.reshape(())

    return loss


def distillation_loss(plan_loss: str, data: Data, temperature: float) -> Loss:
    """What asks for a teacher's outputs: a function `(outputs, those of the teacher) -> scalar`.

    Of classes, by the metric of the data (`accuracy`, `perplexity`) or the loss of the plan (`cross-entropy`), it is
    `distillation`; of anything else the mean square of the difference.
    """
    if data.metric in METRICS or plan_loss == "cross-entropy":
        return partial(_divergence, temperature=temperature)
    return _mse


def _divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if outputs.ndim < 2 or outputs.shape[-1] < 2:  # one class is always certain
        raise InputError(f"distillation: outputs {tuple(outputs.shape)} found, logits [..., classes] expected")
    return distillation(outputs, teacher, temperature)


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence of softened outputs (…, classes), times T² (Hinton et al. 2015, §2)."""
    student = F.log_softmax(outputs.flatten(0, -2) / temperature, -1)
    wanted = F.log_softmax(teacher.flatten(0, -2) / temperature, -1)
    return temperature**2 * F.kl_div(student, wanted, reduction="batchmean", log_target=True)
