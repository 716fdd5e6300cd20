"""The integer runtime against the simulation: at most one step apart behind every operation that has a rule."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quantized import Make, both, integer, on_grids, per_channel, with_quantizers
from steps.nets import MobileNet, network, transformer
from torch import Tensor, nn

from deepcomp.errors import DeepcompError, InputError
from deepcomp.model import zoo
from deepcomp.model.graph import Graph, Input, Node, Stored, Value
from deepcomp.model.layers import Layer
from deepcomp.runtime import products
from deepcomp.runtime.agreement import differences, drift
from deepcomp.runtime.integer import Integer
from deepcomp.weights import Form, Grid, Mask, Raw, Rows

IMAGES, MAPS, MATRIX, VOLUMES = (5, 4, 9, 8), (5, 4, 10), (6, 12), (3, 2, 5, 6, 4)


class Lambda(nn.Module):
    """A function, and the layers it uses."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.parts)


def conv(*settings: Any, **more: Any) -> nn.Module:
    return nn.Conv2d(4, 8, *settings, **more)


def then(function: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> nn.Module:
    """A convolution of large numbers, and a function of what it makes."""
    layer = layer or conv(3, padding=1)
    layer.weight.data *= 12
    return Lambda(lambda x, a: function(a(x)), a=layer)


def pair(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> nn.Module:
    """A function of x, of a convolution of it, and of another one of far larger numbers."""
    small, large = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    large.weight.data *= 20
    return Lambda(lambda x, a, b: function(x, a(x), b(x)), a=small, b=large)


# A module, the shape of its input, and the operations that have quantisers behind them, as the input has.
CASES: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "linear": (nn.Linear(12, 7), MATRIX, "linear"),
    "linear without a bias": (nn.Linear(12, 7, bias=False), MATRIX, "linear"),
    "linear of more dimensions": (nn.Linear(8, 7), IMAGES, "linear"),
    "linear, relu, linear": (nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)), MATRIX, "relu linear"),
    "matmul": (Lambda(lambda x, a: x @ a.weight, a=nn.Linear(5, 12)), MATRIX, "matmul"),
    "mm": (Lambda(lambda x, a: torch.mm(x, a.weight), a=nn.Linear(5, 12)), MATRIX, "mm"),
    "addmm": (Lambda(lambda x, a: torch.addmm(a.bias, x, a.weight), a=nn.Linear(12, 12)), MATRIX, "addmm"),
    "conv": (conv(3), IMAGES, "conv2d"),
    "pointwise": (conv(1), IMAGES, "conv2d"),
    "strides and padding": (conv((3, 5), stride=(2, 3), padding=(1, 2)), IMAGES, "conv2d"),
    "dilation": (conv(3, dilation=(2, 1), padding=2), IMAGES, "conv2d"),
    "padding by name": (conv((2, 3), padding="same"), IMAGES, "conv2d.padding"),
    "groups": (conv(3, groups=2), IMAGES, "conv2d"),
    "depthwise": (conv(3, groups=4, padding=1), IMAGES, "conv2d"),
    "one dimension": (nn.Conv1d(4, 6, 3, 2, 1), MAPS, "conv1d"),
    "three dimensions": (nn.Conv3d(2, 3, 3, padding=1), VOLUMES, "conv3d"),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), IMAGES, "conv_transpose2d.input"),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, (2, 3), (1, 2), 0, 0, 2), IMAGES, "conv_transpose2d.input"),
    "transposed, dilation": (nn.ConvTranspose2d(4, 6, 2, 3, dilation=2), IMAGES, "conv_transpose2d.input"),
    "transposed, cut off": (nn.ConvTranspose2d(4, 6, 2, 2, padding=3), IMAGES, "conv_transpose2d.input"),
    "transposed, one dimension": (nn.ConvTranspose1d(4, 6, 4, 3), MAPS, "conv_transpose1d"),
    "transposed, three dimensions": (nn.ConvTranspose3d(2, 3, 2, 2), VOLUMES, "conv_transpose3d.input"),
    "relu": (then(F.relu), IMAGES, "relu"),
    "relu6": (then(F.relu6), IMAGES, "conv2d relu6"),
    "relu6 of sums": (then(F.relu6), IMAGES, "relu6"),
    "hardtanh": (then(lambda x: F.hardtanh(x, -3.1, 2)), IMAGES, "conv2d hardtanh"),
    "clamps": (then(lambda x: x.clamp(-1.1, 5.2).clamp_max(4.7)), IMAGES, "clamp_max"),
    "a sum": (pair(lambda x, a, b: F.relu(F.relu(a) + b)), IMAGES, "conv2d relu"),
    "a sum of sums": (pair(lambda x, a, b: a + (b + x)), IMAGES, "add.Tensor"),
    "a sum that spreads": (pair(lambda x, a, b: a + b[:, :, :1, :1]), IMAGES, "conv2d add.Tensor"),
    "a difference": (pair(lambda x, a, b: a - b), IMAGES, "conv2d sub.Tensor"),
    "joined": (pair(lambda x, a, b: torch.cat([a, x, b], 1)), IMAGES, "conv2d cat"),
    "joined sums": (pair(lambda x, a, b: torch.cat([a, b])), IMAGES, "cat"),
    "joined on one grid": (then(lambda x: torch.cat([x, x.relu()], 1)), IMAGES, "conv2d cat"),
    "stacked": (pair(lambda x, a, b: torch.stack([a, b], 1)), IMAGES, "conv2d stack"),
    "largest": (then(lambda x: F.max_pool2d(x, 3, 2, 1)), IMAGES, "conv2d max_pool2d"),
    "largest of many": (then(lambda x: F.max_pool2d(x, 2)), (2, 4, 24, 22), "conv2d"),
    "largest, three dimensions": (then(lambda x: F.max_pool3d(x, 2), nn.Conv3d(2, 3, 1)), VOLUMES, "conv3d max_pool3d"),
    "largest of sums": (then(lambda x: F.max_pool2d(x, 2)), IMAGES, "max_pool2d"),
    "largest, one dimension": (then(lambda x: F.max_pool1d(x, 3, 2), nn.Conv1d(4, 6, 3)), MAPS, "max_pool1d"),
    "average": (then(lambda x: F.avg_pool2d(x, 3, 2)), IMAGES, "conv2d avg_pool2d"),
    "average with its padding": (then(lambda x: F.avg_pool2d(x, 3, 2, 1)), IMAGES, "conv2d avg_pool2d"),
    "average without its padding": (
        then(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)), IMAGES, "conv2d avg_pool2d",
    ),
    "average, one dimension": (then(lambda x: F.avg_pool1d(x, 2), nn.Conv1d(4, 6, 3)), MAPS, "conv1d avg_pool1d"),
    "average of all": (then(lambda x: F.adaptive_avg_pool2d(x, 1)), IMAGES, "conv2d adaptive_avg_pool2d"),
    "mean": (then(lambda x: x.mean((2, 3))), IMAGES, "conv2d mean.dim"),
    "mean, kept": (then(lambda x: x.mean(-1, keepdim=True)), IMAGES, "conv2d mean.dim"),
    "padding": (then(lambda x: F.pad(x, (1, 2, 0, -1))), IMAGES, "conv2d constant_pad_nd pad"),
    "reflection": (then(lambda x: F.pad(x, (1, 2, 0, 1), "reflect")), IMAGES, "conv2d reflection_pad2d pad"),
    "nearest": (then(lambda x: F.interpolate(x, scale_factor=2)), IMAGES, "conv2d upsample_nearest2d.vec"),
    "views": (then(lambda x: x.flatten(2).transpose(1, 2)[:, 1::2].unsqueeze(1)), IMAGES, "conv2d unsqueeze"),
    "views of sums": (then(lambda x: x.flatten(1)[:, ::3]), IMAGES, "slice.Tensor"),
    "parts": (then(lambda x: torch.cat([p.relu() for p in x.chunk(2, 1)])), IMAGES, "conv2d cat"),
    "shuffled": (then(lambda x: F.channel_shuffle(F.pixel_shuffle(x, 2), 2)), IMAGES, "conv2d channel_shuffle"),
    "chosen": (then(lambda x: x[:, torch.tensor([0, 0, 5])]), IMAGES, "conv2d index.Tensor"),
}  # fmt: skip


def agree(simulated: Any, integers: Integer, *inputs: Tensor) -> None:
    """At most one step apart behind every quantiser, and next to nothing at the outputs."""
    found = differences(simulated, integers, *inputs)
    assert len(found) == len(integers.quantizers)
    assert max(row.largest for row in found) <= 1
    assert max(row.share for row in found) <= 0.05


@pytest.mark.parametrize("case", CASES)
def test_every_rule_agrees_with_the_simulation_to_a_step(case: str, randn: Any) -> None:
    module, shape, places = CASES[case]
    x = randn(*shape)
    simulated, integers = both(module, x, places.split())
    assert integers.float_operations == []
    assert len(integers.quantizers) > 1
    agree(simulated, integers, x)
    agree(simulated, integers, 3 * randn(*shape))
    assert integers(x).dtype == torch.float32
    assert integers(x).shape == simulated(x).shape


def tensorwise(weight: Tensor, layer: Layer) -> Form:
    return Grid.fit(weight, 8, axis=None)


def masked(weight: Tensor, layer: Layer) -> Form:
    at = torch.nonzero(weight.reshape(-1).abs() > weight.abs().median()).reshape(-1)
    inner = Grid.fit(weight.reshape(-1)[at], 8, axis=layer.axes[0], at=at, shape=tuple(weight.shape), symmetric=False)
    return Mask(at, inner, tuple(weight.shape))


def repeated(weight: Tensor, layer: Layer) -> Form:
    return Rows(torch.arange(len(weight)) % 2, Grid.fit(weight[:2], 8, axis=0))


FORMS: dict[str, Make] = {
    "per channel": per_channel(),
    "per tensor": tensorwise,
    "asymmetric": per_channel(symmetric=False),
    "4 bits": per_channel(4),
    "2 bits": per_channel(2),
    "asymmetric, 3 bits": per_channel(3, symmetric=False),
    "12 bits": per_channel(12),
    "powers of two": per_channel(power_of_two=True),
    "groups of channels": per_channel(group=3),
    "masked": masked,
}
GRIDS = {
    "8 bits": (8, False),
    "symmetric": (8, True),
    "4 bits": (4, False),
    "3 bits, symmetric": (3, True),
    "12 bits": (12, False),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
def test_grids_of_all_kinds_agree(form: str, grid: str, randn: Any) -> None:
    bits, symmetric = GRIDS[grid]
    for layer in (nn.Linear(12, 7), conv(3, padding=1, groups=2), nn.ConvTranspose2d(4, 6, 3, 2, groups=2)):
        shape = MATRIX if isinstance(layer, nn.Linear) else IMAGES
        layer.weight.data[0] += 0.3
        x = randn(*shape) + 0.5
        module = nn.Sequential(layer, nn.ReLU())
        simulated, integers = both(module, x, ["relu"], FORMS[form], bits=bits, symmetric=symmetric)
        assert integers.float_operations == []
        agree(simulated, integers, x)


def test_repeated_rows_agree(randn: Any) -> None:
    x = randn(*MATRIX)
    agree(*both(nn.Linear(12, 7), x, ["linear"], repeated), x)


@pytest.mark.parametrize("case", ["linear", "conv", "depthwise", "transposed, groups"])
def test_without_the_kernel_of_the_processor_everything_is_the_same(case: str, randn: Any, monkeypatch: Any) -> None:
    module, shape, places = CASES[case]
    x = randn(*shape)
    _, fast = both(copy.deepcopy(module), x, places.split())
    monkeypatch.setattr(products, "has_kernel", lambda: False)
    _, slow = both(module, x, places.split())
    assert torch.equal(fast(x), slow(x))


def test_a_batch_of_any_size_gives_the_same_numbers(randn: Any) -> None:
    x = randn(*IMAGES)
    _, integers = both(then(lambda y: F.relu(F.avg_pool2d(y, 2))), x, ["conv2d", "relu"])
    assert torch.equal(torch.cat([integers(one[None]) for one in x]), integers(x))
    assert integers(x[:0]).shape == (0, 8, 4, 4)


def test_rounding_biases_costs_less_than_half_a_step_of_the_finest_quantiser(randn: Any) -> None:
    x = randn(*MATRIX)
    layer = nn.Linear(12, 7)
    layer.weight.data *= 1e-2  # so that the sums' own steps are coarser than those of the quantiser behind them
    simulated, integers = both(layer, x, ["linear"], per_channel(2), bits=3)
    agree(simulated, integers, x)
    net = network(layer, x)
    with_quantizers(net, x, [], bits=3)
    with_quantizers(net, x, ["linear"], bits=16)
    on_grids(net, per_channel(2))
    simulated, integers = net.interpreter(formed=True), integer(net)
    assert max(row.largest for row in differences(simulated, integers, x)) <= 1


def test_channels_whose_weights_are_zero_give_their_bias(randn: Any) -> None:
    x, layer = randn(*MATRIX), nn.Linear(12, 4)
    layer.weight.data[:2] = 0  # their scale is 1e-30
    layer.weight.data[2] *= 1e-9  # and of this one the bias takes 45 bits at its own
    layer.bias.data = torch.tensor([3.0, 0.0, -2.5, 1.0])
    simulated, integers = both(layer, x, ["linear"])
    agree(simulated, integers, x)
    plain = network(layer, x)
    with_quantizers(plain, x, [])
    on_grids(plain)
    out = integer(plain)(x)
    assert torch.allclose(out[:, :3], layer.bias[:3].expand(6, 3), atol=1e-6)


def folded(module: nn.Module, x: Tensor) -> Any:
    from deepcomp.steps.fold_bn import FoldBN

    net = network(module, x)
    FoldBN().run(net)
    return net


@pytest.mark.parametrize("name", ["resnet20", "mobilenet"])
@pytest.mark.parametrize("make", [per_channel(), per_channel(4), tensorwise], ids=["8 bits", "4 bits", "per tensor"])
def test_whole_networks_run_in_integers_alone(name: str, make: Make, randn: Any) -> None:
    module, x = (
        (zoo.build("resnet20"), randn(4, 3, 32, 32)) if name == "resnet20" else (MobileNet(), randn(8, 3, 16, 16))
    )
    net = folded(module, x)
    places = (
        "conv2d add.Tensor relu hardtanh mean.dim adaptive_avg_pool2d linear"
        if name == "mobilenet"
        else "relu mean.dim linear"
    )
    with_quantizers(net, x, places.split())
    on_grids(net, make)
    simulated, integers = net.interpreter(formed=True), integer(net)
    assert integers.float_operations == []
    agree(simulated, integers, x)
    assert drift(simulated, integers, x) < 0.1


# ---------------------------------------------------------------- what runs in floating point


def test_what_has_no_rule_runs_in_floating_point_and_is_listed(randn: Any) -> None:
    module = then(lambda x: F.leaky_relu(x, 0.1).softmax(1), conv(3))
    x = randn(*IMAGES)
    simulated, integers = both(module, x, ["conv2d", "softmax.int"])
    assert integers.float_operations == [
        "leaky_relu of conv2d parts.a.weight: there is no rule for it",
        "softmax of leaky_relu of conv2d parts.a.weight: there is no rule for it",
    ]
    agree(simulated, integers, x)


def test_a_transformer_runs_its_matrices_in_integers(randn: Any) -> None:
    x = randn(4, 5, 8)
    simulated, integers = both(
        transformer().eval(), x, ["linear", "layer_norm", "relu", "scaled_dot_product_attention"]
    )
    agree(simulated, integers, x)
    assert not any("linear" in entry.partition(":")[0].partition(" ")[0] for entry in integers.float_operations)
    assert any(entry.startswith("layer_norm") for entry in integers.float_operations)


DENSE = nn.Linear(12, 12)
REASONS: dict[str, tuple[nn.Module, tuple[int, ...], str, str]] = {
    "its input": (nn.Sequential(DENSE, nn.Tanh(), nn.Linear(12, 3)), MATRIX, "", "what it reads is not quantised"),
    "sums": (nn.Sequential(DENSE, nn.Linear(12, 3)), MATRIX, "", "there is no quantiser before it"),
    "a computed weight": (Lambda(lambda x, a: x @ a(x).T, a=DENSE), MATRIX, "linear", "its weight is computed"),
    "windows": (then(lambda x: F.avg_pool2d(x, 2, ceil_mode=True)), IMAGES, "conv2d", "it rounds the number"),
    "parts": (then(lambda x: F.adaptive_avg_pool2d(x, 2)), IMAGES, "conv2d", "its windows may differ in size"),
    "bounds": (then(lambda x: x.clamp(0.5, 20)), IMAGES, "conv2d", "0 lies beyond its bounds"),
    "padding": (then(lambda x: F.pad(x, (1, 1), value=2.0)), IMAGES, "conv2d", "it pads with 2.0"),
    "a scaled sum": (pair(lambda x, a, b: torch.add(a, b, alpha=2)), IMAGES, "conv2d", "its second operand is scaled"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_why_an_operation_runs_in_floating_point_is_said(reason: str, randn: Any) -> None:
    module, shape, places, said = REASONS[reason]
    x = randn(*shape)
    simulated, integers = both(module, x, places.split())
    assert any(said in entry for entry in integers.float_operations)
    agree(simulated, integers, x)
    assert drift(simulated, integers, x) < 0.1


def blocks(weight: Tensor, layer: Layer) -> Form:
    return Grid.fit(weight, 8, axis=0, size=4)


def raw(weight: Tensor, layer: Layer) -> Form:
    return Raw(weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (blocks, "nothing to run in integers: linear weight: its weight has several scales in an output channel"),
        (raw, "nothing to run in integers: linear weight: its weight is stored as raw, not on a grid"),
    ],
)
def test_a_network_without_integers_is_refused(make: Make, said: str, randn: Any) -> None:
    with pytest.raises(InputError, match=said):
        both(nn.Linear(12, 7), randn(*MATRIX), ["linear"], make)


def test_a_network_without_quantisers_or_layers_is_refused(randn: Any) -> None:
    net = network(nn.Linear(12, 7), randn(*MATRIX))
    on_grids(net)
    with pytest.raises(InputError, match="nothing to run in integers: linear weight: what it reads is not quantised"):
        integer(net)
    with pytest.raises(InputError, match="nothing to run in integers: there are no layers"):
        both(nn.ReLU(), randn(*MATRIX), ["relu"])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_refused(kind: torch.dtype, randn: Any) -> None:
    module = nn.Linear(12, 7).to(kind)
    net = network(module, randn(*MATRIX).to(kind))
    on_grids(net)
    with pytest.raises(InputError, match="networks of float32 run in integers, and no others"):
        integer(net)


def test_sums_that_may_leave_32_bits_are_not_made(randn: Any) -> None:
    x = randn(2, 600)
    simulated, integers = both(
        nn.Sequential(nn.Linear(600, 4), nn.ReLU(), nn.Linear(4, 3)), x, ["relu", "linear"], per_channel(8), bits=16
    )
    assert integers.float_operations == ["linear 0.weight: its sums may leave 32 bits"]
    agree(simulated, integers, x)


# ---------------------------------------------------------------- a module like others


def test_it_is_copied_and_pickled_and_keeps_its_names(randn: Any) -> None:
    module, shape, places = CASES["average without its padding"]
    x = randn(*shape)
    simulated, integers = both(module, x, places.split())
    assert not integers.training
    assert integers.state_dict().keys() == simulated.state_dict().keys()
    for twin in (copy.deepcopy(integers), pickle.loads(pickle.dumps(integers))):
        assert torch.equal(twin(x), integers(x))
        assert twin.float_operations == integers.float_operations


def test_outputs_may_be_integers_inside_and_are_numbers_outside(randn: Any) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 6)

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.fc(x)
            return {"y": y, "parts": y.chunk(2, 1), "x": x}

    x = randn(*MATRIX)
    net = network(Several(), x)
    with_quantizers(net, x, ["linear"])
    on_grids(net)
    found, wanted = integer(net)(x), net.interpreter(formed=True)(x)
    assert torch.equal(found.x, wanted.x)
    assert torch.allclose(torch.cat(list(found.parts), 1), found.y)
    assert (found.y - wanted.y).abs().max() <= 1.01 * integer(net).levels[integer(net).quantizers[1]].scale


def test_a_value_that_is_observed_is_made_of_integers_and_can_be_replaced(randn: Any) -> None:
    x = randn(*MATRIX)
    _, integers = both(nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)), x, ["relu", "linear"])
    first, *_, last = integers.quantizers
    run = integers.observe([first, last], x)
    assert next(run)[1].dtype == torch.int8
    value, found = run.send(integers.levels[first].encode(torch.zeros_like(x)))
    assert value == last
    ((_, zero),) = integers.observe([last], torch.zeros_like(x))
    assert torch.equal(found, zero)
    assert not torch.equal(next(integers.observe([last], x))[1], zero)


# ---------------------------------------------------------------- hostile graphs and grids


X = Input("x", torch.float32, (None, 4))
QUANTIZE = Node("quantize.static", (Value(0), 0.1, 128, 8))
LINEAR = Node("linear", (Value(1), Stored(0), Stored(1)))
W, B = torch.linspace(-1, 1, 8).reshape(2, 4), torch.tensor([0.5, -20.0])


def made(*nodes: Node, form: Form | None = None, bias: Tensor = B) -> Integer:
    graph = Graph((X,), nodes, Value(len(nodes)))
    tensors: Any = [("w", W.clone(), "parameter"), ("b", bias, "parameter")]
    forms = {"w": form or Grid.fit(W, 8), "b": Raw(B)}
    return Integer(graph, ["w", "b"], tensors, forms.__getitem__)


def test_what_the_attacks_are_made_from_is_no_attack(randn: Any) -> None:
    x = randn(3, 4)
    assert torch.allclose(made(QUANTIZE, LINEAR)(x), F.linear(x, W, B), atol=0.2)


@pytest.mark.parametrize(
    "arguments",
    [
        (-1.0, 128, 8), (0.0, 128, 8), (float("nan"), 0, 8), (float("inf"), 0, 8), (1e-300, 128, 8), (1e300, 128, 8),
        (0.1, -1, 8), (0.1, 256, 8), (0.1, 1 << 60, 8), (0.1, 0, 0), (0.1, 0, 17), (0.1, 0, 1 << 40), (1, 0, 8),
        (0.1, 0.5, 8), (0.1, 0, 8, 1), ("0.1", 0, 8), (Value(0), 0, 8), (0.1, Stored(0), 8), (None, None, None),
    ],
)  # fmt: skip
def test_a_quantiser_that_is_none_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match=r"operation 0 of the network, quantize\.static"):
        made(Node("quantize.static", (Value(0), *arguments)), LINEAR)


@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, 1e-45, 3e38, -3e38])
@pytest.mark.parametrize("step", [1e-37, 0.1, 3e38])
def test_any_scales_of_weights_and_activations_give_some_numbers(scale: float, step: float, randn: Any) -> None:
    grid = Grid.fit(W, 8)
    grid.scale.data = torch.tensor([scale, 0.01])
    network = made(
        Node("quantize.static", (Value(0), step, 128, 8)),
        LINEAR,
        Node("quantize.static", (Value(2), 0.1, 0, 4)),
        form=grid,
    )
    assert network(randn(3, 4)).shape == (3, 2)


@pytest.mark.parametrize("bias", [torch.tensor([float("nan"), 0]), torch.tensor([1.0]), torch.ones(2, 2)])
def test_a_bias_that_is_none_is_left_to_floating_point(bias: Tensor) -> None:
    with pytest.raises(InputError, match="its bias is not 2 finite numbers"):
        made(QUANTIZE, LINEAR, bias=bias)


@pytest.mark.parametrize(
    "node",
    [
        Node("conv2d", (Value(1), Stored(0), None, (1, 1), (0, 0), (1, 1), 0)),
        Node("conv2d", (Value(1), Stored(0), None, 1, "what", Value(0), -3)),
        Node("conv2d", (Value(1), Stored(0), None, (0, -1))),
        Node("mean.dim", (Value(1), (9, -9))),
        Node("mean.dim", (Value(1), "x")),
        Node("avg_pool2d", (Value(1), (0, 0))),
        Node("avg_pool2d", (Value(1), (-1, 1 << 40), (1, 1), (1 << 40, 1))),
        Node("adaptive_avg_pool2d", (Value(1), None)),
        Node("cat", ((Value(1), None),)),
        Node("cat", ((), 3)),
        Node("stack", ((Value(1), 5), "x")),
        Node("add.Tensor", (Value(1), Value(1)), {"alpha": "2"}),
        Node("clamp", (Value(1), "a", Value(1))),
        Node("clamp", (Value(1), float("nan"), float("nan"))),
        Node("hardtanh", (Value(1), 3, -3)),
        Node("pad", (Value(1), (1,), "constant", 0)),
        Node("constant_pad_nd", (Value(1), (1 << 40, 1 << 40))),
        Node("pad", (Value(1), Value(1), 5)),
        Node("to.dtype", (Value(1), torch.int8)),
        Node("to.dtype", (Value(1), None)),
        Node("getitem", (Value(1), 0)),
        Node("reshape", (Value(1), (1 << 40, -1))),
        Node("expand", (Value(1), (1 << 30, 1 << 30))),
        Node("index_select", (Value(1), 0, Value(1))),
        Node("max_pool2d", (Value(1), (0, 0))),
        Node("matmul", (Stored(0), Value(1))),
        Node("linear", (Stored(0), Value(1))),
        Node("addmm", (Value(1), Value(1), Stored(0)), {"alpha": 0.5}),
        Node("quantize.static", (Stored(0), 0.1, 0, 8)),
        Node("quantize.static", (7, 0.1, 0, 8)),
        Node("sym_size.int", (Value(1), "x")),
    ],
    ids=lambda node: node.op,
)
def test_calls_that_no_operation_takes_end_in_no_error_but_ours(node: Node, randn: Any) -> None:
    with contextlib.suppress(DeepcompError):
        made(QUANTIZE, node, Node("linear", (Value(1), Stored(0), Stored(1))))(randn(3, 4))
