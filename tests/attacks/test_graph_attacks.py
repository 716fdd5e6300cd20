"""Hostile networks in whole files: refused when they are loaded, or when they are run with the operation named."""

from __future__ import annotations

import pytest
import torch
from build import (
    FALSE,
    GRAPH,
    I64,
    NONE,
    TRUE,
    Record,
    back,
    element_type,
    entrance,
    file,
    graph,
    integer,
    items,
    node,
    stored,
    string,
    tensor,
    varint,
    words,
)
from independent_decoder import decode

import deepcomp
from deepcomp.errors import InputError

W = tensor("w", (2,), words(1, 2))
RELU = node(13, back())
INT_MUL, CONV, BATCH_NORM, ADD, CAT, TO_DTYPE, ARANGE, ZEROS, FULL, MM, REPEAT = (
    4,
    11,
    12,
    14,
    20,
    38,
    60,
    61,
    63,
    79,
    83,
)


def load(data: bytes, tmp_path) -> torch.nn.Module:
    (tmp_path / "x.dcz").write_bytes(data)
    return deepcomp.load(tmp_path / "x.dcz")


def test_what_the_attacks_are_made_from_is_no_attack(tmp_path):
    network = load(file(W, graph(RELU, node(ADD, back(), stored()), tensors=(0,))), tmp_path)
    assert network(torch.tensor([[-1.0, 1.0]])).tolist() == [[1, 3]]


GRAPHS = {
    "no bytes": (Record(GRAPH, "", b""), "1 bytes expected, 0 left"),
    "2^40 inputs": (Record(GRAPH, "", varint(0) + varint(1 << 40)), "1099511627776 found, at most 6"),
    "2^40 nodes": (graph(RELU, count=1 << 40), "1099511627776 found, at most"),
    "a million nodes": (graph(*[RELU] * 1_000_000), "3000011 bytes, at most 1048576 expected"),
    "a node too few": (graph(RELU, count=2), "1 bytes expected, 0 left"),
    "something behind the outputs": (graph(RELU, outputs=back() + b"\0"), "1 bytes left over"),
    "a value from the future": (graph(node(13, back(3))), "a value 3 places back, 1 there"),
    "a value 2^60 places back": (graph(node(13, back(1 << 60))), "places back, 1 there"),
    "an output that is not there": (graph(RELU, outputs=back(3)), "a value 3 places back, 2 there"),
    "a value without inputs": (graph(RELU, inputs=()), "a value 1 places back, 0 there"),
    "unknown operation": (graph(node(134, back())), "unknown operation 134"),
    "operation of 2^60": (graph(node(1 << 60, back())), "unknown operation 1152921504606846976"),
    "unknown keyword": (graph(node(13, back(), keywords=((200, back()),))), "unknown keyword 200"),
    "a keyword twice": (graph(node(ADD, back(), back(), keywords=((2, integer(1)),) * 2)), "the keyword alpha twice"),
    "unknown type": (graph(node(TO_DTYPE, back(), element_type(99))), "unknown dtype 99"),
    "lists five deep": (graph(node(CAT, items(items(items(items(items(back()))))))), "lists more than 4 deep"),
    "lists a million deep": (graph(node(CAT, b"\x0b" * 1_000_000)), "lists more than 4 deep"),
    "a list of 2^40": (graph(node(CAT, items(back(), count=1 << 40))), "1099511627776 items, 1 bytes left|items"),
    "a mapping as an argument": (graph(node(13, varint(8 * 5 + 4) + varint(0))), "value 5 of kind 4"),
    "a text of a megabyte": (graph(node(13, string("x" * 1_000_000))), "a text of 1000000 bytes, at most 255"),
    "a text that is not UTF-8": (graph(node(13, string(b"\xff"))), "a text that is not UTF-8"),
    "a number beyond all": (graph(node(13, varint(8 * (2 * 401 + 1) + 7) + varint(2))), "times ten to the 401"),
    "a tensor beyond the list": (graph(node(13, stored(1)), tensors=(0,)), "tensor 1, 1 in the file"),
    "tensor -1": (graph(node(13, stored(-1)), tensors=(0,)), "tensor -1, 1 in the file"),
    "tensor 2^60": (graph(node(13, stored(1 << 59)), tensors=(0,)), "tensor 576460752303423488, 1 in the file"),
    "a tensor that the file lacks": (graph(RELU, tensors=(1,)), "tensor 1 found, one of 1 expected"),
    "a tensor before the first": (graph(RELU, tensors=(-1,)), "tensor -1 found, one of 1 expected"),
    "a tensor 2^62 behind": (graph(RELU, tensors=(1 << 62,)), "tensor 4611686018427387904 found"),
    "input of 17 dimensions": (graph(RELU, inputs=(entrance(shape=(1,) * 17),)), "17 found, at most 16"),
    "input of 2^60 elements": (graph(RELU, inputs=(entrance(shape=(1 << 60,)),)), "1152921504606846977 found, at most"),
    "input of no type": (graph(RELU, inputs=(entrance(dtype=18),)), "unknown dtype 18"),
    "input without a name": (graph(RELU, inputs=(entrance(""),)), "'' as the name of an input"),
    "input that is code": (graph(RELU, inputs=(entrance("x=1: exit()"),)), r"'x=1: exit\(\)' as the name"),
    "input of a long name": (graph(RELU, inputs=(entrance("x" * 256),)), "256 found, at most 255"),
    "inputs of one name": (graph(RELU, inputs=(entrance(), entrance())), "two inputs of one name"),
}


# What is wrong with these only a reader finds that knows the operations.
CALLS = {
    "no arguments": (graph(node(13)), "relu needs an argument self"),
    "too many arguments": (graph(node(13, back(), back())), "relu takes 1 arguments, 2 found"),
    "keyword of another operation": (graph(node(13, back(), keywords=((0, NONE),))), "relu takes no keyword dtype"),
    "a number for a type": (graph(node(TO_DTYPE, back(), integer(99))), "to.dtype takes no such dtype"),
    "batch norm that trains": (
        graph(node(BATCH_NORM, back(), *[stored()] * 4, TRUE, integer(0), integer(0), FALSE), tensors=(0, -1, -1, -1)),
        "batch_norm as in training: it would be random or write",
    ),
}


@pytest.mark.parametrize(("record", "found"), (GRAPHS | CALLS).values(), ids=GRAPHS | CALLS)
def test_graph(record, found, refused):
    refused(file(W, record), rf"graph: .*({found}).*( at byte \d+)?$", deepcomp.load, deepcomp.verify)


@pytest.mark.parametrize("record", [record for record, _ in GRAPHS.values()], ids=GRAPHS)
def test_graph_with_the_independent_decoder(record):
    with pytest.raises(ValueError):  # noqa: PT011
        decode(file(W, record))


HUGE = 10**12
RUNS = {
    "zeros of 10^12 elements": (node(ZEROS, items(integer(HUGE))), "zeros: a result of 1000000000000 elements"),
    "zeros of 10^24 elements": (
        node(ZEROS, items(integer(HUGE), integer(HUGE))),
        f"zeros: a result of {10**24} elements",
    ),
    "numbers to 10^12": (node(ARANGE, integer(HUGE)), "arange: a result of 1000000000001 elements"),
    "negative sizes": (node(ZEROS, items(integer(-1))), "zeros: "),
    "a number often": (node(FULL, items(integer(HUGE)), integer(7)), "full: a result of"),
    "the input often": (node(REPEAT, back(), items(integer(HUGE), integer(HUGE))), "repeat: a result of"),
    "wrong type": (node(MM, back(), stored()), "mm: "),
    "wrong shape": (node(CONV, back(), stored()), "conv2d: "),
    "a text for a tensor": (node(ADD, back(), string("x")), "add.Tensor: "),
    "a list for a number": (node(INT_MUL, items(integer(1)), integer(1 << 50)), "int.mul: integers expected"),
    "a product beyond 64 bits": (node(INT_MUL, integer(1 << 50), integer(1 << 50)), "int.mul: a size beyond 64 bits"),
    "nothing for a tensor": (node(13, NONE), "relu: "),
    "false for a tensor": (node(13, FALSE), "relu: "),
}


@pytest.mark.parametrize(("call", "found"), RUNS.values(), ids=RUNS)
def test_what_cannot_run_names_the_operation(call, found, tmp_path, bounded):
    whole = tensor("i", (2,), words(1, 2, kind="q"), dtype=I64)
    network = load(file(whole, graph(call, tensors=(0,) if stored() in call else ())), tmp_path)
    with bounded(), pytest.raises(InputError, match=f"operation 0 of the network, {found}"):
        network(torch.ones(1, 2))


def test_results_that_grow_step_by_step_are_refused(tmp_path, bounded):
    network = load(file(graph(*[node(CAT, items(back(), back()))] * 60)), tmp_path)
    network._dcz.max_elements = 1 << 20
    with bounded(), pytest.raises(InputError, match="operation 19 of the network, cat: a result of 2097152 elements"):
        network(torch.ones(1, 2))


def test_weights_alone_do_not_run(tmp_path):
    with pytest.raises(InputError, match="holds weights without a graph"):
        load(file(W), tmp_path)


def test_a_constant_is_no_weight_and_a_graph_may_use_it(tmp_path):
    network = load(
        file(tensor("c", (2,), words(1, 2), role=2), graph(node(ADD, back(), stored()), tensors=(0,))), tmp_path
    )
    assert network(torch.zeros(1, 2)).tolist() == [[1, 2]]
    assert not network.state_dict()
    assert not deepcomp.load_state_dict(tmp_path / "x.dcz")
