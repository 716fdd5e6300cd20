"""Graphs run as modules: names, inputs, gradients, devices, and what a hostile graph cannot do."""

from __future__ import annotations

import contextlib
import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepcomp.errors import DeepcompError, FormatError, InputError
from deepcomp.model.graph import Graph, Input, Node, Stored, Value
from deepcomp.runtime.interpreter import Interpreter, Outputs, trace

X = Input("x", torch.float32, (None, 4))
WEIGHT, BIAS = torch.arange(8.0).view(2, 4) / 8, torch.tensor([0.5, -20.0])
LAYER = Graph((X,), (Node("linear", (Value(0), Stored(0), Stored(1))), Node("relu", (Value(1),))), Value(2))
NAMES = ["fc.weight", "fc.bias"]


def layer(**options: Any) -> Interpreter:
    tensors: list[Any] = [("fc.weight", WEIGHT.clone(), "parameter"), ("fc.bias", BIAS.clone(), "parameter")]
    return Interpreter(LAYER, NAMES, tensors, **options)


def expected(x: Tensor) -> Tensor:
    return torch.relu(x @ WEIGHT.T + BIAS)


def single(*nodes: Node, inputs: Any = (X,), tensors: tuple[Tensor, ...] = (), **options: Any) -> Interpreter:
    """A network that returns its last value."""
    names = [f"p.{number}" for number in range(len(tensors))]
    graph = Graph(inputs, nodes, Value(len(inputs) + len(nodes) - 1))
    return Interpreter(graph, names, [(n, t, "parameter") for n, t in zip(names, tensors, strict=True)], **options)


# ---------------------------------------------------------------- a module like the original


def test_it_computes_in_eval_mode(randn: Any) -> None:
    network, x = layer(), randn(3, 4)
    assert not network.training
    assert torch.equal(network(x), expected(x))
    assert torch.equal(network(x=x), expected(x))


def test_the_state_dict_has_the_original_names_without_constants() -> None:
    tensors: list[Any] = [
        ("a.weight", torch.ones(2), "parameter"),
        ("a.b.0.count", torch.tensor(3), "buffer"),
        ("a.whole", torch.ones(2, dtype=torch.int8), "parameter"),
        ("table", torch.ones(2), "constant"),
        ("top", torch.ones(2, dtype=torch.bfloat16), "parameter"),
    ]
    network = Interpreter(Graph((X,), (), Value(0)), [], tensors)
    assert network.state_dict().keys() == {"a.weight", "a.b.0.count", "a.whole", "top"}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"a.weight", "top"}
    assert {name for name, _ in network.named_buffers()} == {"a.b.0.count", "table"}


@pytest.mark.parametrize("role", ["parameter", "buffer", "constant"])
@pytest.mark.parametrize("name", ["observe", "observe.weight", "levels.0.w", "float_operations"])
def test_names_that_our_own_methods_have_are_names_like_others(name: str, role: Any, randn: Any) -> None:
    graph = Graph((X,), (Node("linear", (Value(0), Stored(0))),), Value(1))
    network, x = Interpreter(graph, [name], [(name, WEIGHT.clone(), role)]), randn(3, 4)
    assert torch.equal(network(x), x @ WEIGHT.T)
    assert list(network.state_dict()) == ([] if role == "constant" else [name])
    assert torch.equal(next(network.observe([Value(1)], x))[1], network(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_tied_tensors_are_one_parameter() -> None:
    weight = torch.ones(2)
    network = Interpreter(Graph((X,), (), Value(0)), [], [("a.w", weight, "parameter"), ("b.w", weight, "parameter")])
    both = dict(network.named_parameters(remove_duplicate=False))
    assert both["a.w"] is both["b.w"]
    assert len(list(network.parameters())) == 1


def test_gradients_reach_parameters_and_inputs(randn: Any) -> None:
    network, x = layer(), randn(3, 4).requires_grad_()
    before = network(x).square().mean()
    before.backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert network(x).square().mean() < before


def test_it_can_be_copied_pickled_loaded_and_cast(randn: Any) -> None:
    network, x = layer(), randn(3, 4)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), expected(x))
        twin.load_state_dict({"fc.weight": torch.zeros(2, 4), "fc.bias": torch.ones(2)})
        assert torch.equal(twin(x), torch.ones(3, 2))
    assert torch.equal(network(x), expected(x))
    assert network.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer()(x).dtype == torch.bfloat16


def test_a_parametrization_is_run_through(randn: Any) -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    network, x = layer(), randn(3, 4)
    parametrize.register_parametrization(network.get_submodule("fc"), "weight", Double())
    torch.testing.assert_close(network(x), torch.relu(2 * x @ WEIGHT.T + BIAS))


def test_tensors_made_from_numbers_go_where_the_network_is() -> None:
    made, scaled = Node("full", ((4,), 2.0)), Node("mul.Tensor", (Value(0), Value(1)))
    network = single(made, scaled, Node("add.Tensor", (Value(2), Stored(0))), tensors=(torch.ones(4),)).to("meta")
    assert network(torch.ones(3, 4, device="meta")).device.type == "meta"


@pytest.mark.parametrize("strict", [True, False])
def test_it_can_be_exported_and_traced_in_turn(strict: bool, randn: Any) -> None:
    x = randn(3, 4)
    program = torch.export.export(layer(), (x,), dynamic_shapes=(({0: torch.export.Dim.AUTO},),), strict=strict)
    assert torch.equal(program.module()(x), expected(x))
    assert torch.func.vmap(layer())(x[:, None]).shape == (3, 1, 2)


def test_outputs_keep_their_nesting_and_can_be_named() -> None:
    outputs = {"y": Value(1), "rest": (Value(0), [{"deep": Value(1)}], None, 7), "items": Stored(0)}
    graph = Graph((X,), (Node("relu", (Value(0),)),), outputs)
    network = Interpreter(graph, ["w"], [("w", torch.ones(1), "parameter")])
    found = network(torch.ones(2, 4))
    assert isinstance(found, Outputs)
    assert found.y is found["y"]
    assert found.rest[1][0].deep is found.y
    assert found.rest[2:] == (None, 7)
    assert next(iter(found.items()))[0] == "y"
    with pytest.raises(AttributeError, match="no output 'z', there are: y, rest, items"):
        _ = found.z
    assert copy.deepcopy(found).y.shape == pickle.loads(pickle.dumps(found)).y.shape == (2, 4)


def test_values_are_freed_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    network = single(*(Node("exp", (Value(index),)) for index in range(20)))
    alive: list[int] = []

    class Watched(Tensor):
        count = 0

        def __del__(self) -> None:
            Watched.count -= 1

    def watch(x: Tensor) -> Tensor:
        Watched.count += 1
        alive.append(Watched.count)
        return torch.ones(1).as_subclass(Watched)

    network._dcz.operations[:] = [replace(operation, call=watch) for operation in network._dcz.operations]
    network(torch.ones(1, 4))
    assert max(alive) == 2  # an operand and a result


# ---------------------------------------------------------------- train mode


IMAGES = Input("x", torch.float32, (None, 3, 4, 4))
PARTS, BUFFERS = ("weight", "bias", "running_mean", "running_var"), (Stored(2), Stored(3))


def normalized(statistics: Any = BUFFERS) -> tuple[Interpreter, nn.Module]:
    """One batch norm as a graph and as PyTorch's module, with the same random weights."""
    layer = nn.BatchNorm2d(3, momentum=0.2)
    for name in PARTS:
        getattr(layer, name).data.uniform_(0.5, 2)
    call = Node("batch_norm", (Value(0), Stored(0), Stored(1), *statistics, False, 0.2, 1e-5, True))
    names = [f"norm.{name}" for name in PARTS]
    roles = ("parameter", "parameter", "buffer", "buffer")
    tensors: Any = [(n, getattr(layer, n[5:]).data.clone(), r) for n, r in zip(names, roles, strict=True)]
    return Interpreter(Graph((IMAGES,), (call,), Value(1)), names, tensors), nn.ModuleDict({"norm": layer})


def same_state(network: Interpreter, module: nn.Module) -> bool:
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    return all(torch.allclose(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_batch_norm_learns_in_train_mode_as_the_module_does(randn: Any) -> None:
    network, module = normalized()
    for batch in (2, 5):
        x = randn(batch, 3, 4, 4)
        torch.testing.assert_close(network.train()(x), module.train()["norm"](x))
        assert same_state(network, module)
        torch.testing.assert_close(network.eval()(x), module.eval()["norm"](x))
        assert same_state(network, module)


def test_batch_norm_learns_in_copies_too(randn: Any) -> None:
    network, module = normalized()
    twin = copy.deepcopy(network).train()
    twin(randn(4, 3, 4, 4))
    assert same_state(network, module)
    assert not same_state(twin, module)


def test_gradients_go_through_the_statistics_of_the_batch(randn: Any) -> None:
    network, module = normalized()
    x, weight = randn(4, 3, 4, 4).requires_grad_(), randn(4, 3, 4, 4)
    (mine,) = torch.autograd.grad((network.train()(x) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((module.train()["norm"](x) * weight).sum(), x)
    torch.testing.assert_close(mine, theirs)


def test_a_part_in_eval_mode_keeps_its_statistics_while_the_rest_trains(randn: Any) -> None:
    network, module = normalized()
    network.train().get_submodule("norm").eval()
    x = randn(4, 3, 4, 4)
    torch.testing.assert_close(network(x), module.eval()["norm"](x))
    assert same_state(network, module)


def test_one_value_a_channel_has_no_statistics(randn: Any) -> None:
    call = Node("batch_norm", (Value(0), None, None, Stored(0), Stored(1), False, 0.1, 1e-5, True))
    tensors: Any = [("mean", torch.zeros(4), "buffer"), ("var", torch.ones(4), "buffer")]
    network = Interpreter(Graph((X,), (call,), Value(1)), ["mean", "var"], tensors)
    with pytest.raises(InputError, match=r"batch_norm: Expected more than 1 value per channel"):
        network.train()(randn(1, 4))
    assert torch.isfinite(network.eval()(randn(1, 4))).all()


@pytest.mark.parametrize("statistics", [(Value(0), Stored(3)), (Stored(0), Stored(3)), (Stored(2), Stored(1))])
def test_nothing_but_buffers_is_written_to(statistics: Any, randn: Any) -> None:
    """A hostile file may name an input, a parameter or a result as statistics."""
    network, module = normalized(statistics)
    x = randn(4, 3, 4, 4)
    before = x.clone()
    with contextlib.suppress(InputError):
        network.train()(x)
    assert torch.equal(x, before)
    assert same_state(network, module)


# ---------------------------------------------------------------- traces


def test_a_trace_tells_the_shape_of_every_value() -> None:
    nodes = (Node("chunk", (Value(0), 2, 1)), Node("getitem", (Value(1), 0)), Node("sym_size.int", (Value(2), 0)),
             Node("zeros", ((Value(3), 3),)), Node("linear", (Value(2), Stored(0))))  # fmt: skip
    x, parts, first, size, made, last = trace(Graph((X,), nodes, ()), ["w"], {"w": torch.ones(5, 2)})
    assert x.shape == (size, 4)
    assert [part.shape for part in parts] == [(size, 2)] * 2
    assert (first.shape, made.shape, last.shape) == ((size, 2), (size, 3), (size, 5))
    assert all(entry.is_meta for entry in (x, *parts, first, made, last))


def test_a_trace_names_the_operation_that_fails() -> None:
    graph = Graph((X,), (Node("linear", (Value(0), Stored(0))),), Value(1))
    with pytest.raises(InputError, match="operation 0 of the network, linear: "):
        trace(graph, ["w"], {"w": torch.ones(3, 5)})
    with pytest.raises(InputError, match="elements, at most"):
        trace(Graph((X,), (Node("zeros", ((1 << 40,),)),), ()), [], {})


# ---------------------------------------------------------------- looking inside


def ladder(steps: int) -> Interpreter:
    """exp(x), exp(exp(x)), … and, from the first of them, a branch that fails."""
    nodes = [Node("mul.Scalar", (Value(index), 0.5)) for index in range(steps)]
    return single(*nodes, Node("mm", (Value(1), Value(1))))


def test_values_are_shown_in_the_order_they_are_computed_and_as_they_are(randn: Any) -> None:
    network, x = layer(), randn(3, 4)
    seen = list(network.observe([Value(2), Value(0), Value(1)], x))
    assert [value for value, _ in seen] == [Value(0), Value(1), Value(2)]
    assert torch.equal(seen[0][1], x)
    assert torch.equal(seen[1][1], x @ WEIGHT.T + BIAS)
    assert torch.equal(seen[2][1], network(x))
    assert torch.equal(next(network.observe([Value(2)], x=x))[1], network(x))
    assert list(network.observe([], x)) == []


def test_what_is_sent_back_takes_the_place_of_what_was_shown(randn: Any) -> None:
    network, x = layer(), randn(3, 4)
    values = network.observe([Value(0), Value(1), Value(2)], x)
    next(values)
    assert torch.equal(values.send(torch.zeros(3, 4))[1], BIAS.expand(3, 2))
    assert torch.equal(values.send(-torch.ones(3, 2))[1], torch.zeros(3, 2))
    assert list(values) == []


def test_nothing_runs_that_no_value_shown_needs(randn: Any) -> None:
    network, x = ladder(4), randn(3, 4)
    with pytest.raises(InputError, match="mm"):
        network(x)
    assert len(list(network.observe([Value(2), Value(4)], x))) == 2
    values = network.observe([Value(1), Value(5)], x)
    assert torch.equal(next(values)[1], 0.5 * x)  # whoever stops here has not run the rest
    with pytest.raises(InputError, match="mm"):
        next(values)


def test_values_shown_are_not_held() -> None:
    network, alive = ladder(20), []

    class Watched(Tensor):
        count = 0

        def __del__(self) -> None:
            Watched.count -= 1

    def watch(x: Tensor, factor: float) -> Tensor:
        Watched.count += 1
        alive.append(Watched.count)
        return torch.ones(1).as_subclass(Watched)

    network._dcz.operations[:] = [replace(operation, call=watch) for operation in network._dcz.operations]
    for _, value in network.observe(map(Value, range(1, 21)), torch.ones(1, 4)):
        del value
    assert len(alive) == 20
    assert max(alive) == 2  # an operand and a result


def test_the_rest_runs_as_often_as_one_likes_with_the_parameters_of_the_moment(randn: Any) -> None:
    network, x = layer(), randn(3, 4)
    whole, found = network(x), []
    for place, rest in network.forks([1, 0], x):
        found.append(place)
        assert torch.equal(rest(), whole)
        network.get_parameter("fc.bias").data += 1
        assert torch.equal(rest(), network(x) if place == 0 else whole)
        network.get_parameter("fc.bias").data -= 1
        assert torch.equal(rest(), rest())
    assert found == [0, 1]
    assert torch.equal(network(x), whole)


def test_what_comes_before_a_fork_runs_once() -> None:
    ran: list[int] = []

    def noted(x: Tensor, number: int) -> Tensor:
        ran.append(number)
        return x

    network = single(*(Node("mul.Scalar", (Value(index), index)) for index in range(4)))
    network._dcz.operations[:] = [replace(operation, call=noted) for operation in network._dcz.operations]
    for _, rest in network.forks([2], torch.ones(1, 4)):
        assert ran == [0, 1]
        rest(), rest()
        assert ran == [0, 1, 2, 3, 2, 3]


def test_gradients_reach_what_is_shown(randn: Any) -> None:
    network, x = layer(), randn(3, 4)
    ((_, seen),) = network.observe([Value(1)], x)
    (gradient,) = torch.autograd.grad(seen.sum(), [network.get_parameter("fc.bias")])
    assert gradient.tolist() == [3, 3]


def test_values_shown_are_limited_in_size_too() -> None:
    network = single(Node("repeat", (Value(0), (1, 8))), Node("relu", (Value(1),)), max_elements=64)
    assert next(network.observe([Value(2)], torch.ones(2, 4)))[1].shape == (2, 32)
    for _ in range(2):
        with pytest.raises(InputError, match="96 elements"):
            list(network.observe([Value(1)], torch.ones(3, 4)))
        with pytest.raises(InputError, match="96 elements"):
            network(torch.ones(3, 4))


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"0 inputs by position, none by name found; x: float32\[\*, 4\] expected"),
        ((torch.ones(1, 4),) * 2, {}, "2 inputs by position"),
        ((torch.ones(1, 4),), {"x": torch.ones(1, 4)}, "1 inputs by position, x by name"),
        ((), {"y": torch.ones(1, 4)}, "0 inputs by position, y by name"),
        ((torch.ones(1, 5),), {}, r"input 'x': shape \(1, 5\) found, x: float32\[\*, 4\] expected"),
        ((torch.ones(4),), {}, r"input 'x': shape \(4,\) found"),
        (([1.0],), {}, "input 'x': list found, a tensor expected"),
    ],
)
def test_wrong_inputs_are_said_in_one_line(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer()(*args, **kwargs)


def test_an_error_names_the_operation() -> None:
    with pytest.raises(InputError, match=r"^operation 1 of the network, mm: [^\n]*$"):
        single(Node("relu", (Value(0),)), Node("mm", (Value(1), Value(1))))(torch.ones(3, 4))


# ---------------------------------------------------------------- hostile files


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "../../etc/passwd", "a/b", "forward", "__class__", "a.__dict__", "_modules", "_dcz",
             "training", "a.half.b", "x" * 100_000, "a\0", "x." * 5000 + "x"]
)  # fmt: skip
@pytest.mark.parametrize("role", ["parameter", "buffer", "constant"])
def test_hostile_names_are_refused_and_nothing_is_overwritten(name: str, role: Any) -> None:
    with pytest.raises(DeepcompError) as error:
        Interpreter(LAYER, NAMES, [(name, torch.ones(1), role)])
    assert len(str(error.value)) < 500
    assert torch.equal(layer()(torch.ones(1, 4)), expected(torch.ones(1, 4)))


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a.b"), ("a.b", "a"), ("a.b", "a.b")])
def test_names_that_collide_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(FormatError):
        Interpreter(Graph((X,), (), Value(0)), [], [(name, torch.ones(1), "buffer") for name in names])


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(FormatError, match=r"no tensor named 'fc.bias'"):
        Interpreter(LAYER, NAMES, [("fc.weight", WEIGHT, "parameter")])


HUGE = 1 << 40


@pytest.mark.parametrize(
    "nodes",
    [
        (Node("zeros", ((HUGE,),)),),
        (Node("zeros", ((HUGE, HUGE),)),),
        (Node("full", ((HUGE,), 1)),),
        (Node("arange", (HUGE,)),),
        (Node("linspace", (0, 1, HUGE)),),
        (Node("eye", (1 << 20,)),),
        (Node("expand", (Value(0), (HUGE, -1, -1))),),
        (Node("repeat", (Value(0), (HUGE, 1))),),
        (Node("tile", (Value(0), (HUGE, 1))),),
        (Node("repeat_interleave.self_int", (Value(0), HUGE)),),
        (Node("pad", (Value(0), (HUGE, 0))),),
        (Node("constant_pad_nd", (Value(0), (0, HUGE), 0)),),
        (Node("new_zeros", (Value(0), (HUGE,))),),
        (Node("unsqueeze", (Value(0), 0)), Node("upsample_nearest1d.vec", (Value(1), (HUGE,), None))),
        (Node("unsqueeze", (Value(0), 0)), Node("adaptive_avg_pool1d", (Value(1), (HUGE,)))),
        (Node("to.dtype", (Value(0), torch.int64)), Node("one_hot", (Value(1), HUGE))),
        tuple(Node("cat", ((Value(index), Value(index)),)) for index in range(40)),
        (Node("repeat", (Value(0), (1 << 10, 1))), Node("reshape", (Value(1), (-1,))), Node("outer", (Value(2),) * 2)),
    ],
    ids=lambda nodes: nodes[-1].op,
)  # fmt: skip
def test_no_result_grows_beyond_the_limit(nodes: tuple[Node, ...]) -> None:
    network = single(*nodes, max_elements=1 << 22)
    with pytest.raises(InputError, match=f"operation .* of the network, {nodes[-1].op}: "):
        network(torch.ones(2, 4))


def test_results_up_to_the_limit_are_made() -> None:
    assert single(Node("zeros", ((64,),)), max_elements=64)(torch.ones(1, 4)).shape == (64,)
    with pytest.raises(InputError, match="a result of 65 elements, at most 64 allowed"):
        single(Node("zeros", ((65,),)), max_elements=64)(torch.ones(1, 4))


def test_a_larger_batch_is_checked_anew() -> None:
    network = single(Node("repeat", (Value(0), (1, 8))), max_elements=64)
    assert network(torch.ones(2, 4)).shape == (2, 32)
    with pytest.raises(InputError, match="96 elements"):
        network(torch.ones(3, 4))


def test_a_mask_may_index() -> None:
    nodes = (Node("gt.Scalar", (Value(0), 0)), Node("index.Tensor", (Value(0), (Value(1),))))
    assert single(*nodes)(torch.tensor([[1.0, -1.0, 2.0, 0.0]])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "node", [Node("int.mul", ("ab", 1 << 40)), Node("int.mul", ((1, 2), 1 << 40)), Node("getitem", (Value(0), 0)),
             Node("int.mul", (1 << 50, 1 << 50)), Node("int.floordiv", (1, 0)), Node("mul.Tensor", (Value(0), "x"))]
)  # fmt: skip
def test_arithmetic_on_anything_but_sizes_is_an_error(node: Node) -> None:
    with pytest.raises(InputError):
        single(node)(torch.ones(1, 4))


STATE, SEQUENCE = torch.zeros(1, 2, 4), Input("x", torch.float32, (5, None, 8))


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [
        ([(16, 2), (16, 4), (16,), (16,)], None),  # these four would read past the end of a weight
        ([(16, 8), (16, 4), (16,), (16,)], torch.float16),
        ([(4, 8), (4, 4), (4,), (4,)], None),
        ([(16, 8), (16, 1), (16,), (16,)], None),
        ([(16, 8), (16, 4), (16,)], None),
        ([], None),
    ],
)
def test_recurrent_weights_of_other_shapes_never_reach_the_kernel(shapes: list[Any], dtype: torch.dtype | None) -> None:
    tensors = [torch.ones(shape) for shape in shapes]
    if dtype is not None:
        tensors[2] = tensors[2].to(dtype)
    weights = tuple(map(Stored, range(2, 2 + len(tensors))))
    call = Node("lstm.input", (Value(0), (Stored(0), Stored(1)), weights, True, 1, 0.0, False, False, False))
    network = single(call, inputs=(SEQUENCE,), tensors=(STATE, STATE.clone(), *tensors))
    with pytest.raises(InputError, match=r"operation 0 of the network, lstm.input: .*expected"):
        network(torch.ones(5, 2, 8))
