"""Batches in step: what values hold, with all that has been changed before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_scratch import mapped
from torch import Tensor, nn

from deepcomp.model.capture import capture
from deepcomp.model.graph import Graph, Value
from deepcomp.model.sources import from_module
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.training.in_step import in_step


class Net(nn.Module):
    """Values that wait long, one that is a list, and whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        left, right = y.chunk(2, 1)
        return self.third(torch.cat([self.second(left).tanh(), right], 1) + y + x.round())


def prepared(randn: Any) -> tuple[Interpreter, Graph, list[Value], list[dict[str, Tensor]]]:
    """A network, the values its layers read, and batches of different sizes."""
    module, x = Net(), randn(10, 6)
    captured, source = capture(module, x[:2]), from_module(module)
    network = Interpreter(captured.graph, captured.names, [(n, t, "parameter") for n, t in source.tensors.items()])
    nodes = captured.graph.nodes
    stops = [node.args[0] for node in nodes if node.op == "linear"]
    assert len(stops) == 3
    return network, captured.graph, stops, [{"x": part} for part in x.split(4)]


def alone(network: Interpreter, stops: list[Value], batches: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    """What the values hold, batch by batch."""
    with torch.no_grad():
        found = [[held for _, held in network.observe(stops, **batch)] for batch in batches]
    return [list(held) for held in zip(*found, strict=True)]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("budget", [1 << 30, 200, 0])
def test_values_are_those_of_each_batch_alone(budget: int, randn: Any) -> None:
    network, graph, stops, batches = prepared(randn)
    wanted = alone(network, stops, batches)
    for found, here in zip(in_step(network, graph, stops, batches, budget), wanted, strict=True):
        assert same(found, here)
        assert not any(held.requires_grad for held in found)


@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_what_comes_behind_sees_what_has_been_changed(budget: int, randn: Any) -> None:
    network, graph, stops, batches = prepared(randn)
    walk = in_step(network, graph, stops, batches, budget)
    next(walk)
    with torch.no_grad():
        network.get_parameter("first.weight").mul_(2)
    assert same(next(walk), alone(network, stops, batches)[1])
    changed = walk.send(torch.zeros_like)
    with torch.no_grad():
        network.get_parameter("second.weight").zero_()
    assert same(changed, alone(network, stops, batches)[2])


def test_stops_come_once_each_in_the_order_of_the_graph(randn: Any) -> None:
    network, graph, stops, batches = prepared(randn)
    wanted = alone(network, stops, batches)
    found = list(map(list, in_step(network, graph, [*reversed(stops), stops[0]], batches)))
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))
    assert list(in_step(network, graph, [], batches)) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_what_is_beyond_the_budget_lies_in_files_while_it_waits(randn: Any) -> None:
    network, graph, stops, batches = prepared(randn)
    before, files = mapped(), []
    for _held in in_step(network, graph, stops, batches, 0):
        files.append(mapped() - before)
    del _held
    assert 1 <= max(files) <= 5
    assert mapped() == before
    assert all(mapped() == before for _ in in_step(network, graph, stops, batches))
