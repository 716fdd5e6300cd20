"""A teacher's outputs: the same whether they are kept or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepcomp.training.teacher import Teacher


class Counted(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_outputs_are_kept_as_far_as_there_is_room(randn: Any) -> None:
    batches = [randn(4, 3), randn(4, 3), randn(2, 3)]
    for budget, calls in ((1 << 20, 3), (4 * (8 + 4), 4), (8, 6)):
        module = Counted(3, 2)
        teacher = Teacher(module, batches, budget)
        for _ in range(2):
            for place, batch in enumerate(batches):
                found = teacher[place]
                assert not found.requires_grad
                assert torch.equal(found, nn.functional.linear(batch, module.weight, module.bias))
        assert module.calls == calls
