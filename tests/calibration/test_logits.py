"""Logits: the range that keeps their softmax."""

import pytest
import torch

from deepcomp.calibration import cross_entropy
from deepcomp.errors import InputError
from deepcomp.quantizer import Quantizer
from deepcomp.weights.ranges import Values, range_of


def logits(seed=0):
    """A few large ones a row, and many that hardly matter."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(200, 50, generator=generator) - 12 * torch.rand(200, 50, generator=generator).square()
    v[:, 0] += 6
    return v


def entropy(v, bounds, quantizer):
    quantized = quantizer.simulate(v, *quantizer.parameters(*bounds))
    return -(v.softmax(1) * quantized.log_softmax(1)).sum(1).mean().item()


@pytest.mark.parametrize(
    "quantizer", [Quantizer(3), Quantizer(4), Quantizer(4, symmetric=True)], ids=lambda q: f"{q.bits}-{q.symmetric}"
)
def test_cross_entropy_is_least_of_all_ranges_shrunk_and_less_than_that_of_mse(quantizer):
    v = logits()
    found = entropy(v, cross_entropy(v, quantizer), quantizer)
    for step in range(0, 100, 3):
        share = 1 - step / 100
        assert found <= entropy(v, (v.min()[None] * share, v.max()[None] * share), quantizer) + 1e-6
    assert found < entropy(v, range_of(Values(v.reshape(1, -1)), quantizer, "mse"), quantizer)
    assert found >= entropy(v, (v.min()[None], v.max()[None]), Quantizer(16)) - 1e-6


def test_the_order_of_the_samples_changes_nothing():
    v = logits()
    shuffled = v[torch.randperm(len(v), generator=torch.Generator().manual_seed(1))]
    for a, b in zip(cross_entropy(v, Quantizer(4)), cross_entropy(shuffled, Quantizer(4)), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(cross_entropy(v, Quantizer(4)), cross_entropy(v.reshape(20, 10, 50), Quantizer(4)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("v", [torch.tensor([[0.0, float("inf")]]), torch.zeros(0, 3)])
def test_logits_that_are_none_or_not_finite_are_refused_by_name(v):
    with pytest.raises(InputError, match="head"):
        cross_entropy(v, Quantizer(8), "head")
