"""Two networks side by side: what layers read in the original, and in the one that is being tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_reconstruction import network
from torch import Tensor, nn

from deepcomp.model.input_grids import InputGrid, input_grid
from deepcomp.model.layers import Layer, Layers
from deepcomp.network import Network
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.training.side_by_side import SideBySide
from deepcomp.weights import Raw


class Net(nn.Module):
    """Three layers, one of which reads what a sum reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.third(F.relu(self.second(x) + x))


def prepared(randn: Any) -> tuple[Network, Layers, list[dict[str, Tensor]]]:
    net = network(Net(), randn(20, 6))
    Quantize(bits=3).run(net)
    QuantizeActivations(bits=4).run(net)
    return net, net.layers("test"), list(net.inputs("test", 20, 8))


def observed(net: Network, layers: list[Layer], batches: list[dict[str, Tensor]], formed: bool) -> list[list[Tensor]]:
    """What layers read, batch by batch."""
    module, values = net.interpreter(formed), [layer.reads.value for layer in layers if layer.reads is not None]
    with torch.no_grad():
        runs = [[held for _, held in module.observe(values, **batch)] for batch in batches]
    return [list(held) for held in zip(*runs, strict=True)]


def test_layers_come_with_what_they_read_in_both(randn: Any) -> None:
    net, layers, batches = prepared(randn)
    now = observed(net, list(layers), batches, formed=True)
    bare = net.original()
    then = observed(bare, list(bare.layers("test")), batches, formed=False)
    pair = SideBySide(net, layers, list(layers), batches, sequential=True, inputs=True)
    assert [layer.weight for layer in pair.grids] == ["first.weight", "third.weight"]
    assert list(pair.fixed.values()) == ["the quantiser before it is read by linear and add"]
    for (layer, pairs), before, after in zip(pair.walk(), then, now, strict=True):
        for (x, seen), x_then, x_now in zip(pairs, before, after, strict=True):
            assert torch.equal(x, x_then)
            assert torch.equal(pair.grids[layer](seen) if layer in pair.grids else seen, x_now)


def test_in_parallel_they_come_on_the_grid_of_the_original(randn: Any) -> None:
    net, layers, batches = prepared(randn)
    for inputs in (True, False):
        pair = SideBySide(net, layers, list(layers), batches, sequential=False, inputs=inputs)
        assert len(pair.grids) == 2 * inputs
        for layer, pairs in pair.walk():
            grid = input_grid(layers, layer)
            assert grid is not None
            assert all(torch.equal(seen, x if layer in pair.grids else grid(x)) for x, seen in pairs)


def test_what_has_been_found_is_seen_further_on_and_nowhere_else(randn: Any) -> None:
    net, layers, batches = prepared(randn)
    forms, graph = dict(net.forms), layers.graph
    pair = SideBySide(net, layers, list(layers), batches, sequential=True, inputs=True)
    changed = Raw(randn(6, 6))
    found: dict[str, list[Tensor]] = {}
    for layer, pairs in pair.walk():
        found[layer.weight] = [seen for _, seen in pairs]
        if layer.weight == "first.weight":
            pair.put("first.weight", changed)
            pair.grids[layer] = InputGrid(0.3, 5, 4, False)
    assert net.forms == forms
    assert net.captured is not None
    assert net.captured.graph == graph
    net.store("first.weight", changed)
    net.rewire("test", pair.captured(), {})
    now = observed(net, list(net.layers("test")), batches, formed=True)
    assert all(torch.equal(a, b) for a, b in zip(found["second.weight"], now[1], strict=True))
    assert torch.equal(now[0][0], InputGrid(0.3, 5, 4, False)(batches[0]["x"]))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_network_without_quantisers_is_walked_too(sequential: bool, randn: Any) -> None:
    net = network(Net(), randn(20, 6))
    layers, batches = net.layers("test"), list(net.inputs("test", 20, 8))
    pair = SideBySide(net, layers, list(layers), batches, sequential, inputs=True)
    assert not pair.grids
    assert all(torch.equal(x, seen) for _, pairs in pair.walk() for x, seen in pairs)
