"""Quantisers as operations: they do what the format says, run anywhere in a graph, and can be left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcomp.errors import InputError
from deepcomp.model import ops
from deepcomp.model.graph import Graph, Input, Node, Stored, Value
from deepcomp.model.quantizers import DYNAMIC, STATIC, bypassed, quantizers
from deepcomp.runtime.interpreter import Interpreter

X = Input("x", torch.float32, (None, 3))
GRAPH = Graph(
    (X,),
    (
        Node(STATIC, (Value(0), 0.02353, 128, 8)),
        Node("linear", (Value(1), Stored(0))),
        Node(DYNAMIC, (Value(2), 4, "token", True)),
        Node(STATIC, (Value(3), 1.5, 7, 4, True)),
    ),
    {"y": Value(4), "z": Value(2)},
)

numbers = st.floats(-1e4, 1e4, width=32)
arrays = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4).map(torch.tensor)
bits = st.integers(1, 16)


def run(op: str, *args: Any) -> Tensor:
    found: Tensor = ops.find(op).call(*args)
    return found


def rounded(x: Tensor, s: Any, z: Any, top: int) -> Any:
    """x̂ as docs/format.md says, in numpy."""
    wide: Any = x.numpy() if x.dtype == torch.float64 else x.float().numpy()
    s, z = np.asarray(s, np.float32).astype(wide.dtype), np.asarray(z, wide.dtype)
    q = np.clip(np.rint(wide / s) + z, 0, top)
    return torch.from_numpy(np.asarray((q - z) * s)).to(x.dtype)


def spread(x: Any, top: int, symmetric: bool) -> tuple[Any, Any]:
    """Scale and zero-point of a dynamic quantiser, likewise."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    width = 2 * max(-low, high) if symmetric else high - low
    s = max(np.float32(width / max(top, 1)), np.float32(1e-30))
    return s, top // 2 if symmetric else min(max(np.rint(-low / float(s)), 0), top)


@given(x=arrays, scale=st.floats(1e-6, 1e3), bits=bits, symmetric=st.booleans(), share=st.floats(0, 1))
def test_a_static_one_rounds_as_the_format_says(
    x: Tensor, scale: float, bits: int, symmetric: bool, share: float
) -> None:
    top = (1 << bits) - (2 if symmetric else 1)
    zero_point = round(share * top)
    for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        given = x.to(kind)
        found = run(STATIC, given, scale, zero_point, bits, symmetric)
        assert found.dtype == kind
        assert torch.equal(found, rounded(given, scale, zero_point, top))


@given(x=arrays, bits=bits, symmetric=st.booleans())
def test_a_dynamic_one_rounds_as_the_format_says(x: Tensor, bits: int, symmetric: bool) -> None:
    top = (1 << bits) - (2 if symmetric else 1)
    for kind in (torch.float32, torch.float64):
        given = x.to(kind)
        whole = rounded(given, *spread(given, top, symmetric), top)
        assert torch.equal(run(DYNAMIC, given, bits, "tensor", symmetric), whole)
        rows = [rounded(row, *spread(row, top, symmetric), top) for row in given]
        assert torch.equal(run(DYNAMIC, given, bits, "token", symmetric), torch.stack(rows))


def test_edges() -> None:
    inf, nan = math.inf, math.nan
    found = run(STATIC, torch.tensor([inf, -inf, nan, 0.5, 1.5, -0.0]), 1.0, 2, 2)
    assert found.nan_to_num(9).tolist() == [1, -2, 9, 0, 1, 0]  # ties to even; clipped above 1 and below -2
    assert run(DYNAMIC, torch.tensor([1.0, nan]), 8).isnan().all()
    assert run(DYNAMIC, torch.zeros(0, 3), 8).shape == (0, 3)
    assert run(DYNAMIC, torch.tensor(3.0), 8, "token").item() == 3.0


def test_the_bytes_are_those_of_the_specification() -> None:
    found = GRAPH.to_bytes()
    assert found.hex(" ") == (
        "01 01 78 00 02 00 04 04 d0 03 04 00 57 e2 24 82 10 82 01 0a 02 00 01 d1 03 04 00 42 2e 74 6f 6b 65 6e 14 "
        "d0 03 05 00 17 1e 72 42 14 2c 02 01 79 00 01 7a 10"
    )
    assert Graph.from_bytes(found, 1) == GRAPH


def module(graph: Graph) -> Interpreter:
    return Interpreter(graph, ["w"], [("w", torch.eye(3), "parameter")])


def test_they_run_and_can_be_left_out() -> None:
    x = torch.randn(5, 3)
    assert quantizers(GRAPH) == [0, 2, 3]
    plain = bypassed(GRAPH, quantizers(GRAPH))
    assert plain == Graph((X,), (Node("linear", (Value(0), Stored(0))),), {"y": Value(1), "z": Value(1)})
    assert torch.equal(module(plain)(x)["y"], x)
    inner = run(STATIC, x, 0.02353, 128, 8)
    assert torch.equal(module(GRAPH)(x)["z"], inner)
    assert torch.equal(module(GRAPH)(x)["y"], run(STATIC, run(DYNAMIC, inner, 4, "token", True), 1.5, 7, 4, True))
    alone = bypassed(GRAPH, [2, 3])
    assert torch.equal(module(alone)(x)["y"], inner)


def test_a_long_row_of_them_is_left_out_in_a_moment() -> None:
    row = Graph((X,), tuple([Node(STATIC, (Value(place), 1.0, 0, 8)) for place in range(50_000)]), Value(50_000))
    assert bypassed(row, quantizers(row)) == Graph((X,), (), Value(0))


def test_gradients_go_through_them() -> None:
    x = torch.tensor([[-9.0, 0.3, 9.0]], requires_grad=True)
    module(GRAPH)(x)["z"].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    "node",
    [
        Node(STATIC, (Value(0), 0.0, 0, 8)),
        Node(STATIC, (Value(0), math.inf, 0, 8)),
        Node(STATIC, (Value(0), 1, 0, 8)),
        Node(STATIC, (Value(0), 1.0, 256, 8)),
        Node(STATIC, (Value(0), 1.0, -1, 8)),
        Node(STATIC, (Value(0), 1.0, 0, 17)),
        Node(STATIC, (Value(0), 1.0, 0, 0)),
        Node(STATIC, (Value(0), 1.0, True, 8)),
        Node(STATIC, (1.5, 1.0, 0, 8)),
        Node(DYNAMIC, (Value(0), 8, "batch")),
        Node(DYNAMIC, (Value(0), 8.0)),
        Node(DYNAMIC, (Value(0), 99999)),
        Node(DYNAMIC, ((Value(0),), 8)),
    ],
)
def test_one_that_makes_no_sense_is_an_error_of_one_line(node: Node) -> None:
    graph = Graph.from_bytes(Graph((X,), (node,), Value(1)).to_bytes(), 1)
    with pytest.raises(InputError, match="operation 0 of the network, quantize"):
        module(graph)(torch.zeros(2, 3))
    module(bypassed(graph, quantizers(graph)))(torch.zeros(2, 3))  # what is left out does not matter
