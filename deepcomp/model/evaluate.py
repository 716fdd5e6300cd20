"""How good a network is: its metric on a test set, or how far its outputs moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError, blaming
from deepcomp.model.data import Data, Inputs, MapStyle, batches, draw

__all__ = ["IGNORED", "Score", "call", "drop", "evaluate", "evaluating", "leading", "numbers", "output_change"]

IGNORED = -100  # a target that does not count, as in torch's cross_entropy
_ITEMS, _POSITIONS = 64, 2048  # at most so many of either a batch: logits of a vocabulary are large


@dataclass(frozen=True)
class Score:
    """A measured quality: accuracy in percent, perplexity, or a metric of the user's own."""

    name: str
    value: float
    higher_is_better: bool


def drop(before: Score, after: Score) -> float:
    """How much worse `after` is than `before`, in the metric's own unit; negative where it is better."""
    return before.value - after.value if before.higher_is_better else after.value - before.value


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, flag by flag: `module.eval()` may be overridden to do more."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def call(module: nn.Module, inputs: Inputs) -> Tensor:
    """The leading output of `module`, called with `inputs`.

    Inputs go to the device of the module's first floating-point parameter, floats of them also to
    its type. A tuple of inputs becomes positional arguments, a dict keyword arguments. Of several
    outputs the one named `logits` counts (as in Hugging Face's output classes), else the first.

    Raises
    ------
    InputError
        The module cannot be called with these inputs, or there is no tensor among the outputs.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), None)

    def fit(value: Tensor) -> Tensor:
        if like is None:
            return value
        return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)

    name = getattr(module, "_dcz_called", type(module).__name__)  # of one that stands for another
    with blaming(f"{name} does not run on this data"):
        if isinstance(inputs, Tensor):
            output = module(fit(inputs))
        elif isinstance(inputs, Mapping):
            output = module(**{name: fit(value) for name, value in inputs.items()})
        else:
            output = module(*(fit(value) for value in inputs))
    return leading(output, name)


def leading(output: Any, name: str) -> Tensor:
    """The output of a network that counts; see `call`.

    Raises
    ------
    InputError
        There is no tensor among the outputs of the network called `name`.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise InputError(f"{name}: a {type(output).__name__} without a tensor came out of the network")


def numbers(module: nn.Module, outputs: Tensor) -> Tensor:
    """The outputs of a network as they are, unless there is NaN among them, which would be neither better nor worse.

    Parameters
    ----------
    module : torch.nn.Module
    outputs : Tensor
        What `call` gave, of any shape.

    Raises
    ------
    InputError
        An output is NaN; the first tensor of the network with NaN is named too.
    """
    if bad := int(outputs.isnan().sum()):
        counts = ((name, int(tensor.isnan().sum()), tensor.numel()) for name, tensor in module.state_dict().items())
        where = next((f"; so are {found} of {size} values of {name}" for name, found, size in counts if found), "")
        raise InputError(f"{type(module).__name__}: {bad} of {outputs.numel()} outputs of a batch are NaN{where}")
    return outputs


def _numbers(module: nn.Module, inputs: Inputs) -> Tensor:
    return numbers(module, call(module, inputs).cpu())


def _batch_size(dataset: MapStyle) -> int:
    with blaming("data set: item 0"):
        target = dataset[0][1]
    positions = target.numel() if isinstance(target, Tensor) else 1
    return max(1, min(_ITEMS, _POSITIONS // max(1, positions)))


def _outputs(module: nn.Module, dataset: MapStyle) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, targets in batches(dataset, _batch_size(dataset)):
        if not isinstance(targets, Tensor):
            raise InputError(f"data set: targets of {type(targets).__name__} found, a tensor expected")
        yield _numbers(module, inputs), targets


def _accuracy(module: nn.Module, dataset: MapStyle) -> float:
    right = total = 0
    for outputs, targets in _outputs(module, dataset):
        _check_logits("accuracy", outputs, targets)
        counted = targets != IGNORED
        right += int(((outputs.argmax(-1) == targets) & counted).sum())
        total += int(counted.sum())
    return 100 * right / _positive("accuracy", total)


def _perplexity(module: nn.Module, dataset: MapStyle) -> float:
    """exp of the mean cross-entropy (nats) over all tokens that count."""
    entropy, total = 0.0, 0
    for outputs, targets in _outputs(module, dataset):
        _check_logits("perplexity", outputs, targets)
        logits, tokens = outputs.reshape(-1, outputs.shape[-1]).float(), targets.reshape(-1)
        tokens = tokens[counted := tokens != IGNORED]
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[-1]:
            found = f"{int(tokens.min())} to {int(tokens.max())}"
            raise InputError(f"perplexity: targets from {found} found, 0 to {logits.shape[-1] - 1} expected")
        entropy += float(F.cross_entropy(logits[counted], tokens, reduction="none").double().sum())
        total += len(tokens)
    mean = entropy / _positive("perplexity", total)
    return math.exp(mean) if mean < 700 else math.inf


def _check_logits(metric: str, outputs: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() or outputs.dim() == 0 or outputs.shape[:-1] != targets.shape:
        raise InputError(
            f"{metric}: outputs {tuple(outputs.shape)} and {targets.dtype} targets {tuple(targets.shape)} found, "
            "expected logits [..., classes] and integer targets [...]"
        )


def _positive(metric: str, total: int) -> int:
    if total == 0:
        raise InputError(f"{metric}: no target of the test set counts, all are {IGNORED}")
    return total


def evaluate(module: nn.Module, data: Data) -> Score:
    """The metric of `data` on its test set.

    The module is put in eval mode and back again, and no gradient is taken. Targets equal to
    `IGNORED` do not count. A metric of the user's own is called once with all outputs and all
    targets, each joined along the batch.

    Raises
    ------
    UsageError
        `data` has no metric (see `output_change`).
    InputError
        Outputs are NaN, or do not match the targets; the module, an item or the metric raises something.
    """
    if data.metric is None or data.test is None:
        raise UsageError("data: no metric to evaluate; give Data a test set and a metric")
    with evaluating(module):
        if data.metric == "accuracy":
            return Score("accuracy", _accuracy(module, data.test), higher_is_better=True)
        if data.metric == "perplexity":
            return Score("perplexity", _perplexity(module, data.test), higher_is_better=False)
        metric = cast(Any, data.metric)
        name = getattr(metric, "__name__", type(metric).__name__)
        found = list(_outputs(module, data.test))
        with blaming(f"metric {name}"):
            outputs, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
            value = float(metric(outputs, targets))
    if math.isnan(value):
        raise InputError(f"metric: {name} returned NaN, a number was expected")
    return Score(name, value, metric.higher_is_better)


def output_change(before: nn.Module, after: nn.Module, data: Data, count: int = 512, seed: int = 0) -> float:
    """How far the outputs moved, ‖after − before‖ / ‖before‖ over all together: quality where there is no metric.

    Both networks see the same `count` inputs, drawn from the test set, or from the training set
    where there is none. Outputs of `before` that are infinite (masked logits) are left out.

    Raises
    ------
    InputError
        Outputs are NaN, or have another shape than before.
    """
    dataset = data.train if data.test is None else data.test
    moved = norm = 0.0
    with evaluating(before, after):
        for inputs, _ in batches(dataset, _batch_size(dataset), draw(dataset, count, seed)):
            old, new = _numbers(before, inputs), _numbers(after, inputs)
            if old.shape != new.shape:
                raise InputError(f"outputs: shape {tuple(new.shape)} found, {tuple(old.shape)} before")
            finite = old.isfinite()
            moved += float((new[finite].double() - old[finite].double()).square().sum())
            norm += float(old[finite].double().square().sum())
    return math.sqrt(moved / norm) if norm else math.inf if moved else 0.0
