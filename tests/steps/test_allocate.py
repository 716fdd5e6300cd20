"""Bits by layer as a step."""

from __future__ import annotations

import pytest
import torch
from steps.nets import network
from torch import nn
from torch.utils.data import TensorDataset

from deepcomp.errors import UsageError
from deepcomp.model.data import Data
from deepcomp.steps.allocate import Allocate
from deepcomp.steps.prune import Prune
from deepcomp.weights import Grid, Mask


def calibrated():
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)]
    net = network(nn.Sequential(*parts), (torch.randn(2, 3, 6, 6),))
    x = torch.randn(64, 3, 6, 6)
    net.data = Data(TensorDataset(x, torch.zeros(64).long()), TensorDataset(x, torch.zeros(64).long()), "accuracy")
    return net


def whole(net):
    return 4 * sum(weight.numel() for _, weight in net.weights())


def test_the_size_is_kept_and_more_of_it_loses_less():
    moved = []
    for share in (0.1, 0.13, 0.2, 0.3):
        torch.manual_seed(0)
        net = calibrated()
        said = Allocate(share=share, samples=64).run(net)
        size = sum(form.cost() for form in net.forms.values()) / 8
        assert size <= share * whole(net)
        assert said["bytes"] == pytest.approx(size, abs=1)
        assert {name: form.bits for name, form in net.forms.items()} == said["bits"]
        moved.append(said["divergence"])
    assert [entry["predicted"] for entry in moved] == sorted([entry["predicted"] for entry in moved], reverse=True)
    assert all(entry["measured"] < 3 * entry["predicted"] + 1e-3 for entry in moved)


def test_the_smallest_that_keeps_a_divergence():
    net = calibrated()
    limit = Allocate(share=0.13, samples=64).run(net)["divergence"]["predicted"]
    net.forms.clear()
    said = Allocate(divergence=limit * 1.000001, samples=64).run(net)
    assert said["divergence"]["predicted"] <= limit * 1.000001
    assert said["bytes"] <= 0.13 * whole(net)


def test_choices_may_be_few_and_leave_out_the_base():
    net = calibrated()
    said = Allocate(share=0.2, fewest=3, most=5, apart=2, base=6, samples=16).run(net)
    assert set(said["bits"].values()) <= {3, 5}


def test_survivors_of_a_mask_have_grids():
    net = calibrated()
    Prune(density=0.5).run(net)
    zeros = {name: form.dense() == 0 for name, form in net.forms.items()}
    Allocate(share=0.2, samples=16).run(net)
    for name, form in net.forms.items():
        assert isinstance(form, Mask)
        assert isinstance(form.inner, Grid)
        assert not form.dense()[zeros[name]].any()


def test_budgets_that_cannot_be_kept_say_which_can():
    net = calibrated()
    with pytest.raises(UsageError, match=r"allocate\.share = 0\.01: 0\.\d+ is the least"):
        Allocate(share=0.01, samples=16).run(net)
    with pytest.raises(UsageError, match=r"allocate\.divergence = 0\.0: .* is the least"):
        Allocate(divergence=0.0, samples=16).run(net)
    assert not net.forms


def test_settings_that_make_no_sense():
    with pytest.raises(UsageError, match="allocate: bits = 1: 2 to 16 expected"):
        Allocate(fewest=1)
    with pytest.raises(UsageError, match=r"allocate\.fewest = 6: at most most = 4 expected"):
        Allocate(fewest=6, most=4)
    with pytest.raises(UsageError, match=r"allocate\.apart = 0: 1 or more expected"):
        Allocate(apart=0)
    with pytest.raises(UsageError, match=r"allocate\.share = 0: more than 0 expected"):
        Allocate(share=0)
