"""Which grid a layer's input lies on, and whose it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.model.capture import capture
from deepcomp.model.edit import Edit
from deepcomp.model.input_grids import InputGrid, input_grid, opened, own_quantizer
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.quantizers import DYNAMIC, STATIC, quantizers
from deepcomp.model.sources import from_module
from deepcomp.runtime.interpreter import Interpreter, trace


class Net(nn.Module):
    """Layers behind views, pooling, a concatenation, a value that others read, and one no quantiser is for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pooled, self.joined = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
        self.shared, self.flat, self.last = nn.Conv2d(4, 4, 1), nn.Linear(36, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = F.max_pool2d(a, 2)
        c = self.pooled(b)
        d = self.joined(torch.cat([c, c.relu()], 1))
        e = self.shared(d) + d
        return self.last(self.flat(e.flatten(1)))


GRID = {"scale": 0.5, "zero_point": 3, "bits": 4, "symmetric": False}


def prepared(kinds: dict[str, str] | None = None) -> dict[str, Any]:
    """The network with quantisers behind `makers` of a kind each: layers by name and the graph."""
    module, x = Net().eval(), torch.randn(2, 3, 8, 8)
    captured, source = capture(module, x), from_module(module)
    layers = Layers(captured, source.tensors, trace(captured.graph, captured.names, source.tensors))
    edit, kinds = Edit(captured, source.tensors), kinds or {}
    places = {layer.weight.split(".")[0]: layer.place for layer in layers}
    values = {"x": layers.graph.inputs and next(iter(layers)).reads.value}  # type: ignore[union-attr]
    values |= {name: layers.value(place) for name, place in places.items()}
    values["sum"] = layers.value(next(n for n, node in enumerate(captured.graph.nodes) if node.op == "add.Tensor"))
    for name, op in kinds.items():
        given = GRID if op == STATIC else {"bits": 4, "symmetric": False}
        edit.bypass(values[name], edit.add(op, {"self": values[name], **given}))
    captured = edit.finish()
    layers = Layers(captured, source.tensors, trace(captured.graph, captured.names, source.tensors))
    return {"layers": layers, "module": module, "x": x, "captured": captured, "tensors": source.tensors}


def layer(found: dict[str, Any], name: str) -> Layer:
    return next(one for one in found["layers"] if one.weight == f"{name}.weight")


@pytest.mark.parametrize(
    ("reader", "source", "own"),
    [
        ("stem", "x", True),
        ("pooled", "stem", True),
        ("joined", "pooled", False),
        ("shared", "joined", False),
        ("flat", "sum", True),
        ("last", "flat", True),
    ],
)
def test_the_quantiser_is_found_through_what_leaves_numbers_on_their_grid(reader: str, source: str, own: bool) -> None:
    found = prepared({source: STATIC})
    layers, (place,) = found["layers"], quantizers(found["layers"].graph)
    assert input_grid(layers, layer(found, reader)) == InputGrid(**GRID)
    if own:
        assert own_quantizer(layers, layer(found, reader)) == place
    else:
        with pytest.raises(Skip, match="before"):
            own_quantizer(layers, layer(found, reader))


def test_where_there_is_none_that_is_said() -> None:
    found = prepared({"flat": DYNAMIC, "pooled": STATIC})
    for name in ("stem", "pooled", "shared", "flat", "last"):
        assert input_grid(found["layers"], layer(found, name)) is None
    for name in ("stem", "pooled", "flat", "last"):
        with pytest.raises(Skip, match="no static quantiser stands before this layer alone"):
            own_quantizer(found["layers"], layer(found, name))
    with pytest.raises(Skip, match="the quantiser before it is read by"):
        own_quantizer(prepared({"joined": STATIC})["layers"], layer(found, "shared"))


def test_to_quantise_before_or_behind_what_lies_between_is_the_same() -> None:
    for reader, source in {"pooled": "stem", "joined": "pooled", "flat": "sum"}.items():
        found = prepared({source: STATIC})
        layers, captured, x = found["layers"], found["captured"], found["x"]
        value = layer(found, reader).reads.value  # type: ignore[union-attr]
        grid = input_grid(layers, layer(found, reader))
        assert grid is not None
        held = []
        for graph in (captured.graph, opened(captured.graph, set(quantizers(captured.graph)))):
            network = Interpreter(graph, captured.names, [(n, t, "parameter") for n, t in found["tensors"].items()])
            with torch.no_grad():
                held.append(next(tensor for _, tensor in network.observe([value], x)))
        assert torch.equal(held[0], grid(held[1]))
        assert not torch.equal(held[0], held[1])


def test_a_network_with_all_quantisers_opened_is_the_one_without() -> None:
    found = prepared({"x": STATIC, "joined": STATIC, "flat": DYNAMIC})
    captured = found["captured"]
    graph = opened(captured.graph, set(quantizers(captured.graph)))
    assert len(graph.nodes) == len(captured.graph.nodes)
    network = Interpreter(graph, captured.names, [(n, t, "parameter") for n, t in found["tensors"].items()])
    with torch.no_grad():
        assert torch.equal(network(found["x"]), found["module"](found["x"]))
