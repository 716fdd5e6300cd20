"""Which parameters train, and in what precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepcomp.errors import UsageError
from deepcomp.model.capture import capture
from deepcomp.model.data import Data
from deepcomp.opening import open_network
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.quantize import Quantize
from deepcomp.training import Plan, train
from deepcomp.training.loop import _Run

QUICK = Plan(epochs=1, batch=32, rate=0.05, choose="last")


def moved(net, before):
    """The parameters that are no longer what they were."""
    now = {name: net.forms[name].dense() if name in net.forms else tensor for name, tensor in net.tensors.items()}
    return {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}


def opened(module, data):
    net, _ = open_network(module.eval())
    net.data, net.captured = data, capture(net.module, torch.randn(2, 8).to(next(module.parameters()).dtype))
    return net


def values(net):
    return {
        name: net.forms[name].dense().clone() if name in net.forms else t.clone() for name, t in net.tensors.items()
    }


def test_a_training_does_not_bind_those_behind_it(make_net):
    net = make_net(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    for layers, expected in {"0": {"0.weight", "0.bias"}, "2": {"2.weight", "2.bias"}, "*": set(net.tensors)}.items():
        before = values(net)
        train(net, QUICK, layers=layers)
        assert moved(net, before) == expected


def test_tied_tensors_train_by_their_first_name(make_net):
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    module[1].weight = module[0].weight
    for layers, expected in {"0": {"0.weight", "0.bias", "1.weight"}, "1": {"1.bias"}}.items():
        net = make_net(module)
        before = values(net)
        train(net, QUICK, layers=layers)
        assert moved(net, before) == expected


@pytest.mark.parametrize("steps", [(), (Quantize(bits=8),), (FoldBN(),), (FoldBN(), Quantize(bits=8))])
def test_what_a_module_has_frozen_stays(data, steps):
    module = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    module[0].requires_grad_(False)
    net = opened(module, data)
    for step in steps:
        step.run(net)
    before = values(net)
    train(net, QUICK)
    assert moved(net, before) == {"2.weight", "2.bias"}


def test_a_network_all_frozen_is_an_error(data):
    module = nn.Linear(8, 3).requires_grad_(False)
    net = opened(module, data)
    with pytest.raises(UsageError, match="no parameter to train"):
        train(net, QUICK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_learn_in_steps_too_small_for_them(dtype):
    module = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)
    inputs = torch.randn(64, 8)
    items = [(x, (x[0] > 0).long()) for x in inputs]
    net = opened(module, Data(items, items, "accuracy"))
    before = values(net)
    said = train(net, Plan(epochs=30, batch=16, optimiser="adam", rate=1e-3, choose="last"))
    assert moved(net, before) == set(before)
    assert (net.tensors["1.weight"] - 1).abs().max() > 0.01
    assert {tensor.dtype for tensor in net.tensors.values()} == {dtype}
    assert said["loss"][-1] < 0.97 * said["loss"][0]
    with torch.inference_mode():
        for name, tensor in net.module.state_dict().items():
            assert torch.equal(tensor, net.tensors[name])


class Kinds(nn.Module):
    """A complex parameter, one of eight bits, and a layer."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 3)  # first: inputs come in its type
        self.turn = nn.Parameter(torch.polar(torch.ones(8), torch.zeros(8)))
        self.held = nn.ParameterList([torch.ones(8).to(torch.float8_e4m3fn)])

    def forward(self, x):
        return self.out((x * self.turn).real * self.held[0].float())


def test_complex_parameters_train_and_floats_of_a_byte_stay(make_net):
    net = make_net(Kinds())
    before = values(net)
    train(net, QUICK)
    assert moved(net, before) == {"turn", "out.weight", "out.bias"}


def test_where_a_run_trains_is_part_of_what_it_is(make_net):
    net = make_net(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)))
    runs = [_Run(make_net(net.module), QUICK, "training", layers, "") for layers in ("0", "1", "*")]
    assert len({run._identity() for run in runs}) == 3
