"""Networks as layers: what has a weight, who reads what, and what lies between two layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.model import sources
from deepcomp.model.capture import capture
from deepcomp.model.chains import chain
from deepcomp.model.graph import Value
from deepcomp.model.layers import Axis, Layer, Layers, Skip
from deepcomp.runtime.interpreter import trace


def layers_of(module: nn.Module, inputs: Any) -> Layers:
    captured, source = capture(module.eval(), inputs), sources.from_module(module)
    tensors = {**source.tensors, **captured.constants}
    return Layers(captured, tensors, trace(captured.graph, captured.names, tensors), source.tied)


def only(module: nn.Module, inputs: Any) -> Layer:
    (layer,) = layers_of(nn.Sequential(module), inputs)
    return layer


def after(*between: Any, last: nn.Module | None = None, image: bool = True) -> Any:
    """What `chain` says of a convolution (or linear layer), something behind it, and another layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1) if image else nn.Linear(3, 4)
            self.parts = nn.ModuleList([part for part in between if isinstance(part, nn.Module)])
            self.last = last or nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for part in between:
                x = part(x)
            return self.last(x)

    layers = layers_of(Net(), torch.zeros((2, 3, 8, 8) if image else (2, 6, 3)))
    try:
        return chain(layers, next(layer for layer in layers if layer.weight == "first.weight"))
    except Skip as skip:
        return str(skip)


# ---------------------------------------------------------------- layers


IMAGE, LINE, BLOCK = torch.zeros(2, 6, 5, 5), torch.zeros(2, 6, 5), torch.zeros(2, 6, 5, 5, 5)


@pytest.mark.parametrize(
    ("module", "inputs", "kind", "axes", "counts"),
    [
        (nn.Linear(6, 4), torch.zeros(2, 6), "linear", (0, 1), (6, 4)),
        (nn.Linear(6, 4, bias=False), torch.zeros(2, 5, 6), "linear", (0, 1), (6, 4)),
        (nn.Conv1d(6, 4, 3), LINE, "conv", (0, 1), (6, 4)),
        (nn.Conv2d(6, 4, 3, padding="same"), IMAGE, "conv", (0, 1), (6, 4)),
        (nn.Conv3d(6, 4, 3, padding="valid", groups=2), BLOCK, "conv", (0, 1), (6, 4)),
        (nn.Conv1d(6, 12, 3, padding="same", groups=6), LINE, "conv", (0, 1), (6, 12)),
        (nn.ConvTranspose1d(6, 4, 3, groups=2), LINE, "conv_transpose", (1, 0), (6, 4)),
        (nn.ConvTranspose2d(6, 9, 3, groups=3), IMAGE, "conv_transpose", (1, 0), (6, 9)),
        (nn.ConvTranspose3d(6, 6, 2, groups=6), BLOCK, "conv_transpose", (1, 0), (6, 6)),
        (nn.Embedding(6, 4), torch.zeros(2, 3, dtype=torch.int64), "embedding", (1, 0), (6, 4)),
    ],
)
def test_every_kind_of_layer(
    module: nn.Module, inputs: Tensor, kind: str, axes: tuple[int, int], counts: tuple[int, int], randn: Any
) -> None:
    layer = only(module, inputs)
    assert (layer.kind, layer.weight, layer.axes) == (kind, "0.weight", axes)
    assert (layer.inputs, layer.outputs) == counts
    assert layer.bias == ("0.bias" if getattr(module, "bias", None) is not None else None)
    assert layer.adds == ("" if kind == "embedding" else "bias")
    assert layer.groups == getattr(module, "groups", 1)
    assert layer.depthwise == (layer.groups == 6 and counts == (6, 6))
    channels = 1 if inputs.ndim > 3 or "onv" in type(module).__name__ else inputs.ndim - 1
    assert layer.reads == (None if kind == "embedding" else Axis(Value(0), channels))
    assert layer.makes is not None
    assert layer.makes.dim == (2 if kind == "embedding" else channels)
    weight = randn(*layer.shape)
    assert torch.equal(layer.unblocked(layer.blocks(weight)), weight)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4), nn.Conv1d(6, 4, 3), nn.Conv1d(6, 4, 3, groups=2), nn.Conv1d(6, 12, 3, groups=6),
        nn.ConvTranspose1d(6, 4, 3), nn.ConvTranspose1d(6, 4, 3, groups=2), nn.ConvTranspose1d(6, 6, 3, groups=6),
    ],
)  # fmt: skip
def test_blocks_hold_each_pair_of_channels_where_it_belongs(module: nn.Module, randn: Any) -> None:
    """Scaling blocks by output and by input is scaling what goes out and what comes in."""
    flat = isinstance(module, nn.Linear)
    x = randn(2, 6) if flat else randn(2, 6, 7)
    layer, state = only(module, x), dict(module.named_parameters())
    into, out = randn(layer.inputs), randn(layer.outputs)
    blocks = layer.blocks(state["weight"].detach()) * layer.by_input(into) * layer.by_output(out)
    assert blocks.shape[:3] == (layer.groups, layer.outputs // layer.groups, layer.inputs // layer.groups)
    wide = (lambda v: v) if flat else (lambda v: v[:, None])
    scaled = torch.func.functional_call(module, {"weight": layer.unblocked(blocks), "bias": torch.zeros_like(out)}, x)
    torch.testing.assert_close(scaled, (module(x * wide(into)) - wide(state["bias"])) * wide(out))


def test_products_written_by_hand_are_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
            self.c, self.d = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.b, x, self.a).mm(self.c).reshape(-1, 1, 3) @ self.d.mT[0]

    found = {layer.weight: layer for layer in layers_of(Net(), torch.zeros(2, 6))}
    assert [(layer.weight, layer.kind, layer.bias, layer.adds) for layer in found.values()] == [
        ("a", "matmul", "b", "self"),
        ("c", "matmul", None, ""),
    ]
    assert (found["a"].inputs, found["a"].outputs, found["a"].axes) == (6, 4, (1, 0))
    with pytest.raises(Skip, match="its matmul takes no bias"):
        found["c"].check_bias()


def test_computed_weights_are_no_layers() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    assert list(layers_of(module, torch.zeros(2, 6))) == []


@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_operations_have_a_layer_for_each_matrix(bias: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, 2, bias=bias, batch_first=True, bidirectional=True, proj_size=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    layers = list(layers_of(Net(), torch.zeros(2, 4, 6)))
    parameters = dict(Net().named_parameters())
    assert [layer.weight for layer in layers] == [name for name in parameters if "weight" in name]
    assert [layer.bias for layer in layers if layer.bias] == [name for name in parameters if "bias" in name]
    reading = [layer for layer in layers if layer.reads is not None]
    assert [layer.weight for layer in reading] == ["lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse"]
    assert reading[0].reads == Axis(Value(0), 2)
    assert all(layer.makes is None and layer.kind == "lstm" for layer in layers)
    for layer in layers:
        assert (layer.outputs, layer.inputs) == tuple(parameters[layer.weight].shape)


# ---------------------------------------------------------------- who reads what


class Crossing(nn.Module):
    """Values and weights in use more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.d.bias = self.c.bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(x)
        b = self.b(F.relu(self.b(a))) + a
        c = self.c(b.reshape(b.size(0), 4))
        return self.d(c), c


def test_readers_are_named() -> None:
    layers = layers_of(Crossing(), torch.zeros(2, 4))
    found = {layer.weight: layer for layer in layers}
    values = {name: layer.makes.value for name, layer in found.items() if layer.makes is not None}
    assert layers.readers(values["a.weight"]) == ["linear", "add"]
    with pytest.raises(Skip, match=r"^its output is read by linear and add$"):
        layers.reader(values["a.weight"])
    with pytest.raises(Skip, match=r"^its output is read by linear and the caller$"):
        layers.reader(values["c.weight"])
    with pytest.raises(Skip, match=r"^its output is read by the caller$"):
        layers.reader(values["d.weight"])
    with pytest.raises(Skip, match=r"^the input x comes before it, not a layer$"):
        layers.maker(Value(0))
    assert layers.maker(values["a.weight"]) is found["a.weight"]
    assert found["c.weight"].reads is not None
    assert layers.graph.nodes[layers.reader(found["c.weight"].reads.value)].op == "linear"


def test_weights_and_biases_in_use_twice_are_found() -> None:
    layers = layers_of(Crossing(), torch.zeros(2, 4))
    found = {layer.weight: layer for layer in layers}
    layers.check_own(found["a.weight"])
    with pytest.raises(Skip, match=r"^its weight is used 2 times$"):
        layers.check_own(found["b.weight"])
    with pytest.raises(Skip, match=r"^its bias is used 2 times$"):
        layers.check_own(found["c.weight"])


def test_asking_for_the_size_of_a_value_is_not_reading_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.fc(y.view(y.size(0) * y.size(2), 4))

    layers = layers_of(Net(), torch.zeros(2, 3, 1, 1))
    assert chain(layers, next(iter(layers))).second.weight == "fc.weight"


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize(
    ("between", "last", "repeat"),
    [
        ([], None, 1),
        ([nn.ReLU(), nn.MaxPool2d(2)], None, 1),
        ([nn.PReLU(4), nn.AvgPool2d(2), nn.ReLU6()], nn.ConvTranspose2d(4, 2, 3), 1),
        ([nn.LeakyReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], nn.Linear(4, 2), 1),
        ([nn.Hardtanh(), nn.Flatten(), nn.Dropout()], nn.Linear(4 * 64, 2), 64),
        ([nn.MaxPool2d(2), lambda x: x.flatten(2).flatten(1)], nn.Linear(4 * 16, 2), 16),
        ([lambda x: x.view(x.size(0), -1)], nn.Linear(4 * 64, 2), 64),
        ([lambda x: x.view(-1, 2, 2, 64).reshape(-1, 256)], "the reshape", None),
        ([lambda x: x.permute(0, 2, 3, 1), nn.ReLU()], nn.Linear(4, 2), 1),
        ([lambda x: x.permute(0, 2, 3, 1).flatten(0, 1).mean(1)], nn.Linear(4, 2), 1),
        ([lambda x: x.mean((2, 3)).clamp(min=0).clamp_max(3.0)], nn.Linear(4, 2), 1),
        ([lambda x: x.mean((-1, -2), keepdim=True).squeeze(-1).squeeze(-1)], nn.Linear(4, 2), 1),
        ([lambda x: F.pad(x, (1, 2, 0, 1))[:, :, 0].unsqueeze(-1)], None, 1),
        ([nn.ReflectionPad2d(1), nn.UpsamplingBilinear2d(scale_factor=2), nn.Upsample(scale_factor=2)], None, 1),
        ([nn.ZeroPad2d(1), nn.ReLU(inplace=True)], nn.Conv2d(4, 8, 3, groups=2), 1),
    ],
)  # fmt: skip
def test_chains_go_through_what_keeps_channels_apart(between: Any, last: Any, repeat: int | None) -> None:
    found = after(*between, last=nn.Linear(256, 2) if isinstance(last, str) else last)
    if repeat is None:
        assert found == f"{last} behind it takes its channels apart or mixes them".removeprefix("the ")
    else:
        assert (found.second.weight, found.repeat) == ("last.weight", repeat)


@pytest.mark.parametrize(
    ("between", "last", "why"),
    [
        ([nn.GELU()], None, "gelu lies behind it"),
        ([nn.BatchNorm2d(4)], None, "batch_norm lies behind it"),
        ([lambda x: x + x.mean()], None, "its output is read by mean and add"),
        ([nn.ReLU(), lambda x: torch.cat([x, x], 1)], nn.Conv2d(8, 2, 1), "the relu behind it is read by cat and cat"),
        ([lambda x: x * 2], None, "mul lies behind it"),
        ([lambda x: 1 - x], None, "rsub lies behind it"),
        ([lambda x: x[:, :3]], nn.Conv2d(3, 2, 1), "slice behind it takes its channels apart or mixes them"),
        ([lambda x: x.transpose(1, 2)], nn.Conv2d(8, 2, 1), "conv2d behind it does not read its channels one by one"),
        ([lambda x: x.mean(1)], nn.Conv1d(8, 2, 1), "mean behind it takes its channels apart or mixes them"),
        ([lambda x: F.pad(x, (0, 0, 0, 0, 2, 2))], nn.Conv2d(8, 2, 1),
         "pad behind it takes its channels apart or mixes them"),
        ([lambda x: F.pad(x, (1, 1), value=2.0)], None, "pad behind it fills in 2.0"),
        ([lambda x: x.permute(0, 2, 3, 1).flatten(1)], nn.Linear(256, 2),
         "flatten behind it takes its channels apart or mixes them"),
        ([nn.Flatten(2), nn.Flatten(0, 1)], nn.Linear(64, 2),
         "flatten behind it takes its channels apart or mixes them"),
    ],
)  # fmt: skip
def test_chains_end_where_channels_are_mixed_or_read_elsewhere(between: Any, last: Any, why: str) -> None:
    assert after(*between, last=last) == why


def test_chains_of_linear_layers_keep_to_the_last_axis() -> None:
    found = after(nn.ReLU(), last=nn.Linear(4, 2), image=False)
    assert (found.second.weight, len(found.between)) == ("last.weight", 1)
    apart = "conv1d behind it does not read its channels one by one"
    assert after(last=nn.Conv1d(6, 2, 1), image=False) == apart  # whose channels are the other axis
    pooled = "max_pool1d behind it takes its channels apart or mixes them"
    assert after(nn.MaxPool1d(2), last=nn.Linear(2, 2), image=False) == pooled


def test_a_layer_behind_that_is_used_elsewhere_ends_a_chain() -> None:
    layers = layers_of(Crossing(), torch.zeros(2, 4))
    found = {layer.weight: layer for layer in layers}
    with pytest.raises(Skip, match=r"^its output is read by linear and add$"):
        chain(layers, found["a.weight"])

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.b(F.relu(self.a(x)))))

    layers = layers_of(Twice(), torch.zeros(2, 4))
    with pytest.raises(Skip, match=r"^b\.weight behind it: its weight is used 2 times$"):
        chain(layers, next(iter(layers)))


def test_recurrent_layers_are_neither_end_of_a_chain() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gru = nn.Linear(6, 6), nn.GRU(6, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(self.a(x))[0]

    layers = layers_of(Net(), torch.zeros(2, 4, 6))
    linear, recurrent, _ = layers
    with pytest.raises(Skip, match=r"^gru behind it does not read its channels one by one$"):
        chain(layers, linear)
    with pytest.raises(Skip, match=r"^gru keeps its products to itself$"):
        chain(layers, recurrent)
