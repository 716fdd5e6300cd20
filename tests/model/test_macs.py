"""Multiply-accumulates beside those that the modules themselves show."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from steps.nets import NAMES, every, network
from torch import nn
from torch.utils.data import TensorDataset

from deepcomp.model.data import Data
from deepcomp.model.macs import works
from deepcomp.steps.quantize_activations import QuantizeActivations

BATCH = 13  # of the trace
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def shown(module, inputs):
    """Multiply-accumulates of each weight of a layer called as a module, an item of the batch."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    found = Counter()

    def note(part, args, made):
        counted = args[0] if isinstance(part, nn.modules.conv._ConvTransposeNd) else made
        found[names[id(part.weight)]] += counted.numel() * part.weight[0].numel() // len(inputs)

    for part in module.modules():
        if isinstance(part, LAYERS):
            part.register_forward_hook(note)
    module(inputs)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_the_modules(name):
    module, inputs = every()[name]
    found, wanted = works(network(module, inputs).layers("x")), shown(module, inputs)
    assert wanted
    for weight, macs in wanted.items():
        assert found[weight].macs == BATCH * macs, weight


def test_known_networks():
    nets = every()
    for name, macs in (("resnet20", 40_551_040), ("lenet-5", 2_293_000)):
        assert sum(work.macs for work in works(network(*nets[name]).layers("x")).values()) == BATCH * macs


def test_recurrent_matrices_count_each_step_and_tables_nothing():
    found = works(network(*every()["recurrent"]).layers("x"))
    steps = BATCH * 7
    sizes = {"lstm.weight_ih_l0": 20 * 6, "lstm.weight_hh_l1_reverse": 20 * 5, "gru.weight_hh_l0": 18 * 6}
    for weight, size in sizes.items():
        assert found[weight].macs == steps * size
    assert found["table.weight"].macs == steps * 11 * 6  # of the tied layer; looking up is no product


def test_bits_are_those_of_the_quantiser_that_numbers_come_from():
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(16, 10)]
    x = torch.randn(8, 3, 6, 6)
    net = network(nn.Sequential(*parts), (x,))
    before = works(net.layers("x"))
    assert all(work.bits == 32 * work.macs for work in before.values())
    net.data = Data(TensorDataset(x, torch.zeros(8).long()))
    QuantizeActivations(bits={"input": 6, "0": 5, "*": 4}, range="min-max").run(net)
    after = works(net.layers("x"))
    assert {name: work.bits / before[name].macs for name, work in after.items()} == {
        "0.weight": 6,
        "3.weight": 5,
        "5.weight": 4,
    }
