"""The graph as data and as bytes."""

from __future__ import annotations

import math
import struct
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.errors import CaptureError, FormatError
from deepcomp.model import ops
from deepcomp.model.graph import Graph, Input, Node, Stored, Value, misfit
from deepcomp.weights.dtypes import DTYPES

X = Input("x", torch.float32, (None, 784))


def chain(*calls: Node, outputs: object = None) -> Graph:
    return Graph((X,), calls, Value(len(calls)) if outputs is None else outputs)  # type: ignore[arg-type]


LENET_300_100 = chain(
    Node("linear", (Value(0), Stored(0), Stored(1))),
    Node("relu", (Value(1),)),
    Node("linear", (Value(2), Stored(2), Stored(3))),
    Node("relu", (Value(3),)),
    Node("linear", (Value(4), Stored(4), Stored(5))),
)


# ---------------------------------------------------------------- the list of operations


def test_every_operation_of_the_list_exists_and_writes_nothing() -> None:
    for name in ops.NAMES.values():
        schema = getattr(ops.find(name).call, "_schema", None)
        assert schema is None or not schema.is_mutable, name


def test_operations_that_can_be_random_are_refused_when_they_would_be() -> None:
    random = {
        name
        for name in ops.NAMES.values()
        if torch.Tag.nondeterministic_seeded in getattr(ops.find(name).call, "tags", ())
    }
    assert random == {"lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input", "scaled_dot_product_attention"}
    qkv = (Value(0), Value(0), Value(0), None)
    ops.find("scaled_dot_product_attention").bind((*qkv, 0.0), {})
    for flag in (0.1, Value(0)):
        with pytest.raises(ValueError, match="as in training"):
            ops.find("scaled_dot_product_attention").bind((*qkv, flag), {})
    layers = (Value(0), Value(0), (), True, 1, 0.0)
    for name in random - {"scaled_dot_product_attention"}:
        ops.find(name).bind((*layers, False, False, False), {})
        for flag in (True, Value(0)):
            with pytest.raises(ValueError, match="as in training"):
                ops.find(name).bind((*layers, flag, False, False), {})


def test_batch_norm_may_use_the_statistics_of_a_batch_but_not_store_them() -> None:
    norm = ops.find("batch_norm")
    norm.bind((Value(0), None, None, None, None, True, 0.1, 1e-5, True), {})
    norm.bind((Value(0), None, None, Stored(0), Stored(1), False, 0.1, 1e-5, True), {})
    with pytest.raises(ValueError, match="as in training"):
        norm.bind((Value(0), None, None, Stored(0), Stored(1), True, 0.1, 1e-5, True), {})


def test_every_call_of_every_operation_can_be_written() -> None:
    placement = {"device", "implicit", "layout", "memory_format", "pin_memory"}
    for name in ops.NAMES.values():
        parameters = ops.find(name).parameters
        assert {p.name for p in parameters if p.keyword_only} <= set(ops.KEYWORDS.values()) | placement, name
        assert sum(not p.keyword_only for p in parameters) < 16, name


def test_numbers_of_operations_and_keywords_stay() -> None:
    some = {0: "getitem", 10: "linear", 31: "scaled_dot_product_attention", 57: "lstm.input", 99: "clamp"}
    assert some.items() <= ops.NAMES.items()
    assert {128: "conv3d", 160: "instance_norm", 324: "fill.Tensor", 460: "count_nonzero.dim_IntList"}.items() <= (
        ops.NAMES.items()
    )
    assert len(ops.CODES) == len(ops.NAMES) >= 344
    assert list(ops.KEYWORDS.items())[:3] == [(0, "dtype"), (1, "scale"), (2, "alpha")]


def test_dtypes_have_the_numbers_they_have_elsewhere_in_a_file() -> None:
    assert all(DTYPES[code].torch == dtype for code, dtype in ops.DTYPES.items())


def test_sizes_take_nothing_but_integers_and_stay_within_64_bits() -> None:
    multiply = ops.find("int.mul").call
    assert multiply(6, 7) == 42
    for left, right in (("a", 9), ([0], 9), (torch.ones(2), 9), (1.5, 2)):
        with pytest.raises(TypeError):
            multiply(left, right)
    with pytest.raises(OverflowError):
        multiply(1 << 40, 1 << 40)


# ---------------------------------------------------------------- bytes


def test_the_bytes_are_those_of_the_specification() -> None:
    graph = Graph(
        (Input("x", torch.float32, (None, 3)), Input("m", torch.int64, ())),
        (
            Node("linear", (Value(0), Stored(0), Stored(1))),
            Node("mul.Tensor", (Value(2), 0.5)),
            Node("sum.dim_IntList", (Value(3), (-1,), True), {"dtype": torch.float16}),
            Node("cat", ((Value(2), Stored(0)), -300)),
        ),
        {"y": (Value(4), [Value(0)]), "n": None},
    )
    expected = (
        "02  01 78 00 02 00 04  01 6d 07 00"  # inputs
        "04  0a 03 08 01 01"  # value 2: linear(one but last, expected tensor, expected tensor)
        "    15 02 00 17 0a"  # value 3: mul(last, 5 x 10^-1)
        "    60 13 00 0b 0a 14 00 0d"  # value 4: sum(last, [-1], true, keyword 0 = dtype 1)
        "    14 02 13 10 19 ba25"  # value 5: cat([3 back, 2 before the expected tensor], -300)
        "2c 02  01 79 13 08 24 01 28  01 6e 04"  # outputs
    )
    assert graph.to_bytes().hex() == expected.replace(" ", "")
    assert Graph.from_bytes(graph.to_bytes(), 2) == graph


def test_lenet_takes_less_than_40_bytes() -> None:
    assert len(LENET_300_100.to_bytes()) <= 40


sizes = st.none() | st.integers(0, 1 << 40)
dtypes = st.sampled_from(list(ops.DTYPES.values()))
names = st.sampled_from(["x", "mask", "input_ids", "état"])
references = st.builds(Value, st.just(0)) | st.builds(Stored, st.integers(0, 999))
atoms = (
    references
    | st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.integers(-70, 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
)
arguments = st.recursive(atoms, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8).filter(
    lambda value: depth(value) <= 4
)
structures = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
).filter(lambda value: depth(value) <= 4)


def depth(value: object) -> int:
    items = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(depth, items), default=0) if isinstance(items, list | tuple) else 0


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    inputs = tuple(
        Input(name, draw(dtypes), tuple(draw(st.lists(sizes, max_size=4))))
        for name in draw(st.lists(names, unique=True, min_size=1, max_size=3))
    )
    nodes: list[Node] = []
    for _ in range(draw(st.integers(0, 6))):
        last = Value(len(inputs) + len(nodes) - 1)
        nodes.append(
            draw(
                st.just(Node("relu", (last,)))
                | arguments.map(lambda found, last=last: Node("add.Tensor", (last, found), {"alpha": found}))
                | arguments.map(lambda found: Node("cat", (found,)))
                | dtypes.map(lambda dtype, last=last: Node("to.dtype", (last, dtype)))
            )
        )
    return Graph(inputs, tuple(nodes), draw(structures))


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_a_graph_comes_back_from_its_bytes(graph: Graph) -> None:
    again = Graph.from_bytes(graph.to_bytes(), 1000)
    assert repr(again) == repr(graph)  # tells 1, 1.0 and True apart


@given(st.floats())
def test_every_number_comes_back_bit_for_bit(value: float) -> None:
    graph = chain(Node("mul.Tensor", (Value(0), value)))
    back = Graph.from_bytes(graph.to_bytes(), 0).nodes[0].args[1]
    assert isinstance(back, float)
    assert struct.pack("<d", back) == struct.pack("<d", value) or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize(
    ("value", "size"), [(0.0, 2), (0.5, 2), (1e-05, 2), (6.0, 2), (0.1, 2), (-0.0, 9), (math.pi, 9), (math.inf, 9)]
)
def test_numbers_take_the_shorter_spelling(value: float, size: int) -> None:
    without = len(chain(Node("relu", (Value(0),))).to_bytes())
    assert len(chain(Node("mul.Tensor", (Value(0), value))).to_bytes()) - without == size


# ---------------------------------------------------------------- hostile bytes


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_gives_another_graph_or_a_format_error(place: int, byte: int) -> None:
    data = bytearray(chain(Node("to.dtype", (Value(0), torch.float16)), *LENET_300_100.nodes[1:]).to_bytes())
    data[place % len(data)] = byte
    with suppress(FormatError):
        Graph.from_bytes(data, 6)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 9))
def test_any_bytes_give_a_graph_or_a_format_error(data: bytes, tensors: int) -> None:
    with suppress(FormatError):
        Graph.from_bytes(b"\x01\x01x\x00\x01\x00\x03" + data, tensors)


def test_every_truncation_and_every_byte_too_many_is_an_error() -> None:
    data = LENET_300_100.to_bytes()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            Graph.from_bytes(data[:end], 6)
    with pytest.raises(FormatError, match="left over"):
        Graph.from_bytes(data + b"\0", 6)


def node(body: str) -> bytes:
    """A graph of one input and one node."""
    return bytes.fromhex(f"01 0178 00 01 00  01 {body} 00")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (node("7f 00"), "unknown operation 127"),
        (node("ff7f 00"), "unknown operation"),
        (node("0d 00"), "needs an argument self"),
        (node("0d 02 00 00"), "takes 1 arguments, 2 found"),
        (node("0d 01 08"), "a value 2 places back, 1 there"),
        (node("0d 01 91"), "a number"),
        (node("0d 01 29"), "tensor -3, 5 in the file"),
        (node("0d 01 51"), "tensor 5, 5 in the file"),
        (node("0d 11 00 00 04"), "takes no keyword dtype"),
        (node("0e 22 00 00 02 12 02 12"), "the keyword alpha twice"),
        (node("0e 12 00 00 7f 12"), "unknown keyword 127"),
        (node("26 02 00 fd07"), "unknown dtype 127"),
        (node("26 02 00 0a"), "takes no such dtype"),  # an integer for a dtype crashes PyTorch
        (node("26 02 00 00"), "takes no such dtype"),
        (node("26 05 00 0d 0c 0c 0a"), "takes no such memory_format"),
        (node("28 02 00 0d"), "takes no such split_size"),
        (node("14 01 1b 0b 0b 0b 0b 00"), "more than 4 deep"),
        (node("14 01 fbffffff0f"), "items, 1 bytes left"),
        (node("14 01 2400"), "value 4 of kind 4"),
        (node("15 02 00 16"), "2 bytes expected, 1 left"),
        (node("15 02 00 0e ff"), "not UTF-8"),
        (node("15 02 00 8610"), "at most 255"),
        (node("15 02 00 c76400"), "times ten to"),
        (bytes.fromhex("01 0178 63 01 00 00 00"), "unknown dtype 99"),
        (bytes.fromhex("01 0131 00 01 00 00 00"), "as the name of an input"),
        (bytes.fromhex("02 0178 00 00 0178 00 00 00 00"), "two inputs of one name"),
        (bytes.fromhex("01 0178 00 11"), "at most 16"),
        (bytes.fromhex("ffffffff7f"), "at most 5 expected"),
        (bytes.fromhex("01 0178 00 00 00 2c 02 0179 00 0179 00"), "a name twice"),
        (bytes(1 << 21), "at most 1048576"),
    ],
)
def test_hostile_bytes_are_refused_by_name(data: bytes, found: str) -> None:
    with pytest.raises(FormatError, match=found):
        Graph.from_bytes(data, 5)


def test_a_node_cannot_refer_to_itself_or_further() -> None:
    for value in (1, 2):
        with pytest.raises(ValueError, match="varint"):
            chain(Node("relu", (Value(value),)), outputs=Value(0)).to_bytes()


def test_errors_name_the_offset_in_the_file() -> None:
    with pytest.raises(FormatError, match="at byte 1008"):
        Graph.from_bytes(node("7f 00"), 0, offset=1000)


def test_what_does_not_fit_is_a_capture_error() -> None:
    for argument in (1 << 63, "x" * 256, 1j, torch.complex64, (((((),),),),)):
        with pytest.raises(CaptureError):
            chain(Node("add.Tensor", (Value(0), argument))).to_bytes()  # type: ignore[arg-type]


# ---------------------------------------------------------------- data


def test_arguments_have_their_defaults_filled_in() -> None:
    call = Node("conv2d", (Value(0), Stored(0)), {})
    assert call.arguments == {
        "input": Value(0), "weight": Stored(0), "bias": None, "stride": (1, 1), "padding": (0, 0),
        "dilation": (1, 1), "groups": 1,
    }  # fmt: skip


def test_the_shortest_spelling_keeps_what_is_not_the_default() -> None:
    convolution = ops.find("conv2d")
    bound = convolution.bind((Value(0), Stored(0), None, (1, 1), (1, 1), (1, 1), 1), {})
    assert convolution.shorten(bound) == ((Value(0), Stored(0), None, (1, 1), (1, 1)), {})
    bound = convolution.bind((Value(0), Stored(0)), {"groups": 1, "stride": (1, 1)})
    assert convolution.shorten(bound) == ((Value(0), Stored(0)), {})
    addition = ops.find("add.Tensor")
    assert addition.shorten({"self": Value(0), "other": 1, "alpha": 1.0}) == ((Value(0), 1), {"alpha": 1.0})


def test_replacing_a_value_drops_what_only_it_needed() -> None:
    graph = chain(
        Node("conv2d", (Value(0), Stored(0))),
        Node("zeros", ((3,),)),
        Node("batch_norm", (Value(1), Stored(1), Value(2), Stored(2), Stored(3), False, 0.1, 1e-5, True)),
        Node("clamp", (Value(3), 0)),
        Node("relu", (Value(4),)),
        outputs={"y": [Value(5)], "z": Value(3)},
    )
    folded = graph.replace({Value(3): Value(1), Value(4): Value(3)})
    assert folded.nodes == (Node("conv2d", (Value(0), Stored(0))), Node("relu", (Value(1),)))
    assert folded.outputs == {"y": [Value(2)], "z": Value(1)}
    assert graph.stored() == [0, 1, 2, 3]
    assert folded.stored() == [0]


@pytest.mark.parametrize("name", ["fc1.weight", "layers.0.0.bias", "_blocks.3.se-ratio.w", "p", "Straße.weight"])
def test_names_that_networks_have_fit(name: str) -> None:
    assert misfit(name) is None


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", "a.", "../x", "a/b", "a\\b", "a\0b", "forward", "__class__", "a.__dict__.b", "training", "half",
     "a.state_dict", "_parameters", "_dcz", "x" * 100_000, ".".join("x" * 65)],
)  # fmt: skip
def test_names_that_would_overwrite_or_escape_do_not(name: str) -> None:
    assert misfit(name)
