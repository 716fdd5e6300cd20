"""A network whose outputs another one is to learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepcomp.model.data import Inputs
from deepcomp.model.evaluate import call
from deepcomp.training.scratch import BUDGET

__all__ = ["Teacher"]


class Teacher:
    """What a network says of some batches: computed when first asked for and kept, or computed each time.

    Parameters
    ----------
    module : nn.Module
        In eval mode; not changed meanwhile.
    batches : sequence of inputs
    budget : int
        Bytes of outputs that are kept.
    """

    def __init__(self, module: nn.Module, batches: Sequence[Inputs], budget: int = BUDGET) -> None:
        self._module, self._batches, self._room = module, batches, budget
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def __getitem__(self, place: int) -> Tensor:
        """The leading output for a batch by its place; see `evaluate.call`."""
        if place in self._kept:
            return self._kept[place]
        outputs = call(self._module, self._batches[place])
        if outputs.nbytes <= self._room:
            self._room -= outputs.nbytes
            self._kept[place] = outputs
        return outputs
