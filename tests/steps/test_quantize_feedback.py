"""Quantisation with error feedback as a step."""

from __future__ import annotations

import pytest
import torch
from steps.nets import NAMES, every, network
from torch import nn
from torch.utils.data import TensorDataset

from deepcomp.errors import UsageError
from deepcomp.model.data import Data
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_feedback import QuantizeFeedback
from deepcomp.steps.store import Store
from deepcomp.weights import Grid, Mask, Raw


def calibrated(module, x, items=96):
    net = network(module, (x,))
    more = torch.randn(items, *x.shape[1:]) if x.is_floating_point() else torch.randint(11, (items, *x.shape[1:]))
    net.data = Data(TensorDataset(more, torch.zeros(items)))
    return net, more


def mlp():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 8))


def change(net, x):
    before, after = net.interpreter(), net.interpreter(formed=True)
    for name, tensor in net.teacher.state_dict().items():
        before.get_parameter(name).data.copy_(tensor)
    return float((before(x) - after(x)).square().mean().detach())


@pytest.mark.parametrize("name", NAMES)
def test_all_networks(name):
    module, x = every()[name]
    net, _ = calibrated(module, x, 8)
    said = QuantizeFeedback(price=1e-6, samples=8, gradients=8, rows=512).run(net)
    chosen = [weight for weight, _ in net.weights()]
    assert said["tensors"] == len(chosen)
    assert all(isinstance(net.forms[weight], Grid) for weight in chosen)
    assert all(isinstance(form, Raw) for other, form in net.forms.items() if other not in chosen)
    assert all(bool(net.forms[weight].dense().isfinite().all()) for weight in chosen)
    net.interpreter(formed=True)(x)


def test_the_same_seed_gives_the_same_integers():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        net, _ = calibrated(mlp(), torch.randn(2, 20))
        QuantizeFeedback(price=1e-6).run(net)
        found.append([form.dense() for form in net.forms.values()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_grids_keep_their_scales_and_lose_less():
    torch.manual_seed(0)
    net, x = calibrated(mlp(), torch.randn(2, 20))
    net.teacher = net.module
    Quantize(bits=3).run(net)
    nearest, scales = change(net, x), {name: form.scale.clone() for name, form in net.forms.items()}
    QuantizeFeedback(samples=96).run(net)
    assert all(
        torch.equal(net.forms[name].scale, scale) and net.forms[name].bits == 3 for name, scale in scales.items()
    )
    assert change(net, x) < 0.6 * nearest


def test_a_higher_price_gives_fewer_bits_and_more_change():
    costs, changes = [], []
    for price in (1e-7, 1e-5):
        torch.manual_seed(1)
        net, x = calibrated(mlp(), torch.randn(2, 20))
        net.teacher = net.module
        QuantizeFeedback(price=price).run(net)
        costs.append(sum(form.cost() for form in net.forms.values()))
        changes.append(change(net, x))
    assert costs[0] > costs[1]
    assert changes[0] < changes[1]


def test_layers_behind_make_up_for_those_before():
    found = []
    for sequential in (True, False):
        torch.manual_seed(2)
        net, x = calibrated(mlp(), torch.randn(2, 20), 256)
        net.teacher = net.module
        Quantize(bits=3).run(net)
        QuantizeFeedback(sequential=sequential).run(net)
        found.append(change(net, x))
    assert found[0] < found[1]


@pytest.mark.parametrize("grid", [False, True])
def test_pruned_weights_stay_zero(grid):
    net, _ = calibrated(mlp(), torch.randn(2, 20))
    Prune(density=0.3, rounds=1).run(net)
    pruned = {name: form.dense() == 0 for name, form in net.forms.items()}
    if grid:
        Quantize(bits=4).run(net)
    QuantizeFeedback(price=1e-7).run(net)
    for name in pruned:
        form = net.forms[name]
        assert isinstance(form, Mask)
        assert isinstance(form.inner, Grid)
        assert not form.dense()[pruned[name]].any()
        assert form.dense().any()


def test_biases_follow_in_the_type_they_are_stored_in_and_layers_not_named_stay():
    net, x = calibrated(mlp(), torch.randn(2, 20))
    Store(dtype="float16", layers="0.bias").run(net)
    before = {name: tensor.clone() for name, tensor in net.tensors.items()}
    QuantizeFeedback(price=1e-5, layers="0, 4").run(net)
    assert net.forms.keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.tensors.items())
    assert not torch.equal(net.forms["0.bias"].dense(), before["0.bias"].half().float())
    assert [net.forms[f"{layer}.bias"].stored for layer in "04"] == [torch.float16, torch.float32]
    made = [net.interpreter(formed=formed)(x).mean(0) for formed in (False, True)]
    torch.testing.assert_close(*made, atol=0.01, rtol=0)


def test_settings_that_make_no_sense():
    with pytest.raises(UsageError, match=r"quantize-feedback\.price = 0: more than 0 expected"):
        QuantizeFeedback(price=0)
    with pytest.raises(UsageError, match=r"quantize-feedback\.rows = 0: 1 or more expected"):
        QuantizeFeedback(rows=0)
    with pytest.raises(UsageError, match=r"quantize-feedback\.thrift = -1: 0 or more expected"):
        QuantizeFeedback(thrift=-1)
    net, _ = calibrated(mlp(), torch.randn(2, 20))
    net.data = None
    with pytest.raises(UsageError, match="quantize-feedback: needs data"):
        QuantizeFeedback().run(net)
