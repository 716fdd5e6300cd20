"""Networks measured on the same test items: by the metric, and by how much noise is on their outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deepcomp.diagnosis.findings import Outcome
from deepcomp.errors import InputError, UsageError, blaming
from deepcomp.model.data import Data, batches, draw
from deepcomp.model.evaluate import Score, call, drop, evaluate, evaluating, numbers

__all__ = ["CHANGE", "Bench", "Run"]

CHANGE = "change of outputs"  # the metric where data has none
_KEPT = 1 << 24  # numbers of outputs that are compared: of logits of a vocabulary those of the first items
_BATCH = 64


@dataclass(frozen=True)
class Run:
    """What a network gave on the test items.

    Attributes
    ----------
    score : Score or None
        None where the data has no metric.
    outputs : list of Tensor
        By batch, the first ones.
    logits : bool
        Whether the metric takes these for logits.
    """

    score: Score | None
    outputs: list[Tensor]
    logits: bool = False

    def beside(self, other: Run) -> Outcome:
        """How it does beside another one, of the same items."""
        change = self.change(other)
        moved = self.change(other, probabilities=True) if self.logits else change
        ratio = -20 * math.log10(moved) if moved else math.inf
        if self.score is None or other.score is None:
            return Outcome(change, change, ratio)
        error = self._error(other) if self.logits and self.score.name == "accuracy" else 0.0
        return Outcome(self.score.value, drop(other.score, self.score), ratio, error)

    def change(self, other: Run, probabilities: bool = False) -> float:
        """‖ŷ − y‖ / ‖y‖ of the outputs, or of the probabilities they stand for."""
        noise = signal = 0.0
        for found, wanted in zip(self.outputs, other.outputs, strict=True):
            if found.shape != wanted.shape:
                raise InputError(f"outputs: shape {tuple(found.shape)} found, {tuple(wanted.shape)} before")
            found, wanted = found.double(), wanted.double()
            if probabilities:
                found, wanted = found.softmax(-1), wanted.softmax(-1)
            finite = wanted.isfinite()  # masked outputs are not
            noise += float((found[finite] - wanted[finite]).square().sum())
            signal += float(wanted[finite].square().sum())
        return math.sqrt(noise / signal) if signal else math.inf if noise else 0.0

    def _error(self, other: Run) -> float:
        """Standard error of the difference of two accuracies: √(decisions that differ) of all, in percent."""
        differ = [a.argmax(-1) != b.argmax(-1) for a, b in zip(self.outputs, other.outputs, strict=True)]
        return 100 * math.sqrt(sum(int(part.sum()) for part in differ)) / sum(part.numel() for part in differ)


class Bench:
    """Some items of a test set, held in memory.

    Parameters
    ----------
    data : Data
        Items of the training set are taken where there is no test set.
    items : int
        How many at most; the same for the same seed.
    seed : int

    Raises
    ------
    UsageError
        If there are to be none.
    InputError
        If an item cannot be read.
    """

    def __init__(self, data: Data, items: int, seed: int) -> None:
        if items < 1:
            raise UsageError(f"items = {items}: 1 or more expected")
        dataset = data.train if data.test is None else data.test
        with blaming("data set"):
            chosen = [dataset[int(place)] for place in draw(dataset, items, seed)]
        self.items = len(chosen)
        self.data = Data(data.train, chosen, data.metric)

    def run(self, module: nn.Module) -> Run:
        """What a network gives.

        Raises
        ------
        InputError
            See `model.evaluate.evaluate`.
        """
        heard = _Heard(module)
        if self.data.metric is not None:
            return Run(evaluate(heard, self.data), heard.outputs, self.data.metric in ("accuracy", "perplexity"))
        assert self.data.test is not None
        with evaluating(heard):
            for inputs, _ in batches(self.data.test, _BATCH):
                call(heard, inputs)
        return Run(None, heard.outputs)

    def tolerance(self, fp32: Run) -> float:
        """The least loss that counts: half a point of accuracy but at least two items, else a hundredth of the metric;
        without one, outputs that move by a tenth.
        """
        if fp32.score is None:
            return 0.1
        if self.data.metric == "accuracy":
            return max(0.5, 200 / self.items)
        return abs(fp32.score.value) / 100


class _Heard(nn.Module):
    """A network whose outputs are kept as they pass by."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.outputs, self._room = module, list[Tensor](), _KEPT

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out = numbers(self.module, call(self.module, kwargs or args))
        if self._room > 0:
            self.outputs.append(out.detach().cpu())
            self._room -= out.numel()
        return out
