"""The comparison itself: a mistake is found where it is made, and nowhere behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantized import both
from torch import nn

from deepcomp.runtime.agreement import differences, drift


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_layer_that_is_wrong_is_the_one_that_differs(wrong: int, randn: Any) -> None:
    layers = [part for _ in range(3) for part in (nn.Linear(8, 8), nn.ReLU())]
    x = randn(6, 8)
    simulated, integers = both(nn.Sequential(*layers), x, ["relu"])
    right = drift(simulated, integers, x)
    offsets = [call.offset for call in integers._dcz.own.values() if hasattr(call, "offset")]
    offsets[wrong] += 4000
    found = differences(simulated, integers, x)
    assert [row.name for row in found] == ["input input", *(f"relu of linear {place}.weight" for place in (0, 2, 4))]
    assert [row.largest > 1 for row in found] == [place == wrong + 1 for place in range(4)]
    assert found[wrong + 1].share > 0.2
    assert drift(simulated, integers, x) > max(10 * right, 0.01)


def test_networks_that_agree_in_every_integer_differ_in_none(randn: Any) -> None:
    x = randn(6, 8)
    simulated, integers = both(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), x, [])
    assert [(row.largest, row.share) for row in differences(simulated, integers, x)] == [(0, 0)]
    assert drift(simulated, integers, x) < 1e-4
    assert drift(simulated, integers, torch.zeros(1, 8)) < 1e-4
