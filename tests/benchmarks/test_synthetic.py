"""Synthetic networks have the published shapes, and weights the published statistics."""

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def published(script):
    return script("published")


@pytest.fixture(scope="session")
def synthetic(script):
    return script("synthetic")


def printed(layer):
    """How many weights a table says a layer has."""
    return float(layer.weights[:-1]) * {"K": 1e3, "M": 1e6}[layer.weights[-1]]


@pytest.mark.parametrize(
    ("name", "module", "parameters"), [("ALEXNET", "AlexNet", 60_965_224), ("VGG_16", "VGG16", 138_357_544)]
)
def test_shapes_are_those_of_the_tables(script, published, name, module, parameters):
    paper = getattr(published, name)
    with torch.device("meta"):
        net = getattr(script("shapes"), module)()
        assert net(torch.empty(2, *net.image)).shape == (2, 1000)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert [layer.name for layer in paper.layers] == [name for name, _ in net.named_children()]
    for layer in paper.layers:
        assert net.get_submodule(layer.name).weight.numel() == pytest.approx(printed(layer), rel=0.2)


@pytest.mark.parametrize("name", ["LENET_300_100", "LENET_5", "ALEXNET", "VGG_16"])
@pytest.mark.parametrize("stage", [0, 1])
def test_published_sizes_follow_from_published_bits(published, name, stage):
    """A slip in a cell would show; what sizes have beyond the codebook and the bits of weights kept are fillers."""
    for layer in getattr(published, name).layers:
        entries = layer.density * (layer.weight_bits[stage] + layer.index_bits[stage]) / 32
        codebook = 100 * 2 ** layer.weight_bits[0] / printed(layer)
        assert 0.97 < layer.size[stage] / (entries + codebook) < 1.3


@pytest.mark.parametrize(("width", "bits"), [(8, 6.3), (8, 4.2), (5, 3.6), (5, 4.0)])
def test_values_take_the_published_bits(synthetic, width, bits):
    frequencies = synthetic.value_frequencies(width, bits)
    assert len(frequencies) == 2**width - 1
    entropy = float(-frequencies @ np.log2(frequencies))
    assert entropy <= bits + 1e-3
    assert entropy == pytest.approx(bits, abs=0.06)


def test_rows_are_equal_where_gaps_need_no_spread(synthetic):
    assert synthetic.rows_spread(0.09, 4, 3.7) == 0
    assert synthetic.rows_spread(0.09, 4, 3.2) > synthetic.rows_spread(0.09, 4, 3.5) > 0.1


def test_gaps_and_values_take_the_published_bits_in_hans_layout(synthetic, published, script):
    layer = published.Layer("fc", "", 9, (5, 3.9), (4, 3.3), (0, 0))
    paper = published.Network("", 0, (0, 0), (0, 0), 0, 4, (layer,), layer, ())
    net = nn.ModuleDict({"fc": nn.Linear(1024, 768)})
    tensors = dict(synthetic.weights(net, paper, "published"))
    weight = tensors["fc.weight"].numpy()
    threshold = np.sort(np.abs(weight).reshape(-1))[-round(0.09 * weight.size)]
    kept = np.where(np.abs(weight) >= threshold, weight, np.float32(0))
    assert len(np.unique(kept)) <= 32
    layout = script("han_layout").encode(kept, 4)
    assert len(layout.codes) - layout.fillers == round(0.09 * weight.size)
    assert layout.huffman().gaps / len(layout.gaps) == pytest.approx(3.3, abs=0.03)
    again = dict(synthetic.weights(net, paper, "published"))
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
