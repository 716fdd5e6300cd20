"""Quantisation of weights as a step."""

import pytest
import torch
from steps.nets import network
from torch import nn

from deepcomp.errors import UsageError
from deepcomp.network import Network
from deepcomp.quantizer import Quantizer, half_up
from deepcomp.steps.quantize import Quantize


def convolutions():
    parts = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2), nn.ReLU(), nn.Conv2d(6, 5, 1)]
    return network(nn.Sequential(*parts), (torch.randn(2, 3, 8, 8),))


def bits(net):
    return {name: form.bits for name, form in net.forms.items()}


def test_scales_are_of_output_channels():
    net = convolutions()
    Quantize().run(net)
    assert {name: len(form.scale) for name, form in net.forms.items()} == {"0.weight": 4, "2.weight": 6, "4.weight": 5}
    net = convolutions()
    Quantize(axis=0).run(net)
    assert len(net.forms["2.weight"].scale) == 4


def test_first_and_last_layers_have_bits_of_their_own():
    net = convolutions()
    Quantize(bits=4, ends=8).run(net)
    assert bits(net) == {"0.weight": 8, "2.weight": 4, "4.weight": 8}
    weights = Network({f"{name}.weight": torch.randn(3, 3) for name in "abc"})
    Quantize(bits=4, ends=6).run(weights)
    assert bits(weights) == {"a.weight": 6, "b.weight": 4, "c.weight": 6}


def test_bits_by_layer():
    net = convolutions()
    Quantize(bits={"2": 3, "4": 5}).run(net)
    assert bits(net) == {"2.weight": 3, "4.weight": 5}
    with pytest.raises(UsageError, match="layers 'fc': no tensor has such a name"):
        Quantize(bits={"fc": 3}).run(net)
    with pytest.raises(UsageError, match="bits = 40: 2 to 16 expected"):
        Quantize(bits={"2": 40})
    with pytest.raises(UsageError, match="bits = 40: 2 to 16 expected"):
        Quantize(ends=40)


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_offsets_are_added_before_rounding(per):
    weight = torch.randn(6, 5)
    net = Network({"a": weight}, offsets={"a": torch.tensor([[0.0, 0.25, -0.25, 0, 0]])})
    Quantize(bits=4, per=per).run(net)
    form = net.forms["a"]
    quantizer = Quantizer(4, True, rounding=half_up)
    low, high = (weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)) if per == "channel" else weight.aminmax()
    scale, zero = quantizer.parameters(low, high)
    wanted = quantizer.integers(weight + net.offsets["a"] * scale, scale, zero)
    assert torch.equal(form.integers(), wanted)
    net.update("a", weight)
    assert not net.offsets
