"""Captured networks changed node by node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepcomp.model.capture import Captured
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Graph, Input, Node, Stored, Value
from deepcomp.model.layers import Layer
from deepcomp.runtime.interpreter import Interpreter

X = Input("x", torch.float32, (None, 3))


@pytest.fixture
def tensors(randn: Any) -> dict[str, Tensor]:
    return {"a.weight": randn(4, 3), "a.bias": randn(4), "b.weight": randn(2, 4), "mask": randn(2)}


@pytest.fixture
def captured(tensors: dict[str, Tensor]) -> Captured:
    """mask · (relu(x A + a) B)."""
    nodes = (
        Node("linear", (Value(0), Stored(0), Stored(1))),
        Node("relu", (Value(1),)),
        Node("linear", (Value(2), Stored(2))),
        Node("mul.Tensor", (Value(3), Stored(3))),
    )
    return Captured(Graph((X,), nodes, {"y": Value(4)}), list(tensors), {"mask": tensors["mask"]})


def run(captured: Captured, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    return Interpreter(captured.graph, captured.names, [(n, t, "buffer") for n, t in tensors.items()])(x)["y"]


def layer(place: int, name: str, shape: tuple[int, ...], bias: str | None) -> Layer:
    return Layer(place, "linear", f"{name}.weight", bias, shape, adds="bias")


def test_without_changes_it_is_what_it_was(captured: Captured, tensors: dict[str, Tensor]) -> None:
    edit = Edit(captured, tensors)
    assert edit.finish() == captured
    assert edit.changed == {}


def test_weights_and_biases_change_in_their_own_type(
    captured: Captured, tensors: dict[str, Tensor], randn: Any
) -> None:
    half = {name: tensor.half() for name, tensor in tensors.items()}
    edit, a = Edit(captured, half), layer(0, "a", (4, 3), "a.bias")
    for _ in range(2):
        edit.set_blocks(a, 2 * edit.blocks(a))
        edit.set_bias(a, 2 * edit.bias(a))
    assert edit.finish().graph == captured.graph
    assert edit.bias(a).dtype == edit.blocks(a).dtype == torch.float64
    assert torch.equal(edit.changed["a.weight"], 4 * half["a.weight"])
    assert torch.equal(edit.changed["a.bias"], 4 * half["a.bias"])
    assert edit.changed["a.bias"].dtype == torch.float16
    assert torch.equal(half["a.bias"], tensors["a.bias"].half())


def test_a_missing_bias_is_made(captured: Captured, tensors: dict[str, Tensor], randn: Any) -> None:
    edit, b, x = Edit(captured, tensors), layer(2, "b", (2, 4), None), randn(5, 3)
    assert edit.bias(b).tolist() == [0, 0]
    edit.set_bias(b, torch.tensor([1.0, 2.0]))
    edit.set_bias(b, 2 * edit.bias(b))
    changed = edit.finish()
    assert changed.names == ["a.weight", "a.bias", "b.weight", "b.bias", "mask"]
    assert changed.constants.keys() == {"mask"}
    before = run(captured, tensors, x)
    shift = torch.tensor([2.0, 4.0]) * tensors["mask"]
    torch.testing.assert_close(run(changed, {**tensors, **edit.changed}, x), before + shift)


def test_names_are_not_given_twice(captured: Captured, tensors: dict[str, Tensor]) -> None:
    edit = Edit(captured, tensors)
    assert edit.beside("a.weight", "bias") == "a.bias_"
    edit.constant("a.bias_", torch.zeros(1))
    assert edit.beside("a.weight", "bias") == "a.bias__"
    assert edit.beside("mask", "index") == "index"


def test_a_new_operation_runs_when_its_operands_are_there(
    captured: Captured, tensors: dict[str, Tensor], randn: Any
) -> None:
    """As a gather before its consumer, of a value that others read too."""
    edit, x = Edit(captured, tensors), randn(5, 3)
    order = edit.constant("b.order", torch.tensor([3, 2, 1, 0]))
    gathered = edit.add("index_select", {"self": Value(2), "dim": 1, "index": order})
    twice = edit.add("mul.Scalar", {"self": gathered, "other": 2})
    edit.change(2, input=twice)
    changed = edit.finish()
    assert [node.op for node in changed.graph.nodes] == [
        "linear", "relu", "index_select", "mul.Scalar", "linear", "mul.Tensor"
    ]  # fmt: skip
    assert changed.constants.keys() == {"b.order", "mask"}
    hidden = torch.relu(x @ tensors["a.weight"].T + tensors["a.bias"])
    expected = 2 * hidden.flip(1) @ tensors["b.weight"].T * tensors["mask"]
    torch.testing.assert_close(run(changed, {**tensors, **edit.changed}, x), expected)
    Graph.from_bytes(changed.graph.to_bytes(), len(changed.names))  # no node reads a later one


def test_what_is_bypassed_and_nothing_else_needs_is_gone(captured: Captured, tensors: dict[str, Tensor]) -> None:
    edit = Edit(captured, tensors)
    edit.bypass(Value(4), Value(3))
    edit.bypass(Value(3), Value(1))
    changed = edit.finish()
    assert changed.names == ["a.weight", "a.bias"]
    assert changed.constants == {}
    assert changed.graph == Graph((X,), captured.graph.nodes[:1], {"y": Value(1)})


def test_one_operation_may_stand_for_another(captured: Captured, tensors: dict[str, Tensor], randn: Any) -> None:
    edit, x = Edit(captured, tensors), randn(5, 3)
    edit.replace(1, "hardtanh", {"self": Value(1), "min_val": -1.0, "max_val": 1})
    assert edit.finish().graph.nodes[1] == Node("hardtanh", (Value(1), -1.0))  # 1 is the default
    hidden = (x @ tensors["a.weight"].T + tensors["a.bias"]).clamp(-1, 1)
    found = run(edit.finish(), tensors, x)
    torch.testing.assert_close(found, hidden @ tensors["b.weight"].T * tensors["mask"])


def test_what_is_put_behind_a_value_reads_it_and_all_others_read_that(
    captured: Captured, tensors: dict[str, Tensor], randn: Any
) -> None:
    """As a quantiser; of an input, of a value and of the output, which one of a row is."""
    edit, x = Edit(captured, tensors), randn(5, 3)
    for value in (Value(0), Value(2), Value(4)):
        edit.bypass(value, edit.add("mul.Scalar", {"self": value, "other": 2}))
    changed = edit.finish()
    assert [node.op for node in changed.graph.nodes] == [
        "mul.Scalar", "linear", "relu", "mul.Scalar", "linear", "mul.Tensor", "mul.Scalar"
    ]  # fmt: skip
    hidden = 2 * torch.relu(2 * x @ tensors["a.weight"].T + tensors["a.bias"])
    torch.testing.assert_close(run(changed, tensors, x), 2 * hidden @ tensors["b.weight"].T * tensors["mask"])
