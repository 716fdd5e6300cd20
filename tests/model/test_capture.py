"""Networks of many kinds, captured and run from their graphs alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcomp.errors import CaptureError
from deepcomp.model.capture import Captured, capture
from deepcomp.model.graph import Graph, Node, Value
from deepcomp.runtime.interpreter import Interpreter

BATCHES = (1, 3, 7)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(functional.relu(self.fc1(x)))
        return self.fc3(functional.relu(self.fc2(x)))


class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.stride, self.added = stride, out - width

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            side = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        x = functional.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class MobileNet(nn.Module):
    """Depthwise convolutions, in-place activations, a residual that adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish(inplace=True),
            nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y += self.block(y)
        return self.classifier(functional.adaptive_avg_pool2d(y, 1).flatten(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding="same")
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(16, 2, 1)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.leaky_relu(self.instance(self.down(x)), 0.1)
        b = functional.silu(self.group(self.middle(functional.max_pool2d(a, 2))))
        c = functional.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(torch.cat([self.up(b), a, functional.interpolate(c, size=a.shape[2:])], 1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], batch_first: bool, both: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.rnn = kind(12, 16, 2, batch_first=batch_first, bidirectional=both, dropout=0.1)
        self.out = nn.Linear(16 * (1 + both), 50)
        self.turn = not batch_first

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y = self.embed(x)
        y, state = self.rnn(y.transpose(0, 1) if self.turn else y)
        return self.out(y.transpose(0, 1) if self.turn else y), state


class GPT(nn.Module):
    """One causal layer with tied embeddings, its attention computed both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(60, 32), nn.Embedding(16, 32)
        self.norm, self.qkv, self.mix = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.head = nn.Linear(32, 60, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.tokens(ids) + self.places(torch.arange(length, device=ids.device))
        q, k, v = (t.view(batch, length, 4, 8).transpose(1, 2) for t in self.qkv(self.norm(x)).split(32, 2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(8)
        y = y + scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf")).softmax(-1) @ v
        x = x + self.mix(y.transpose(1, 2).contiguous().view(batch, length, 32))
        return self.head(x + self.down(functional.gelu(self.up(x))))


class Writer(nn.Module):
    """Writes into slices and through views, and makes tensors as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.relu(self.conv(x))
        z = torch.empty_like(y)
        z[:] = y
        z[:, 0] = 1.0
        z[:, :, 0].mul_(2)
        z[z > 1.5] = 0
        z[:, 1] = torch.arange(8.0)
        z.view(z.shape[0], -1)[:, :3] += torch.tensor([1.0, 2.0, 3.0])
        return {"z": z, "list": [y.clone(), (z.mean(1),)], "nothing": None, "number": 3}


class TwoInputs(nn.Module):
    """One module called twice, two inputs and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.join = nn.Linear(4, 4), nn.Bilinear(4, 3, 5)

    def forward(self, first: Tensor, second: Tensor, factor: float = 2.0) -> dict[str, Tensor]:
        return {"a": self.shared(self.shared(first)) * factor, "b": self.join(first, second)}


class Parametrized(nn.Module):
    """Weight and spectral norm, gradients off for a part, a tensor of the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, *x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.weight(torch.cat(x, 1))
        return torch.zeros(y.shape[0], 4) + self.spectral(y) * self.scale[None]


def images(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape),)


def tokens(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 50, (batch, 7)),)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "mlp": (MLP, images(784)),
    "lenet-5": (LeNet5, images(1, 28, 28)),
    "resnet-20": (ResNet20, images(3, 32, 32)),
    "mobilenet": (MobileNet, images(3, 16, 16)),
    "u-net": (UNet, images(1, 16, 16)),
    "lstm": (lambda: Recurrent(nn.LSTM, True, False), tokens),
    "lstm, time first, both ways": (lambda: Recurrent(nn.LSTM, False, True), tokens),
    "gru, both ways": (lambda: Recurrent(nn.GRU, True, True), tokens),
    "rnn, time first": (lambda: Recurrent(nn.RNN, False, False), tokens),
    "lstm with projection": (lambda: nn.LSTM(5, 8, proj_size=3, batch_first=True), images(7, 5)),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 9, batch_first=True), 2), images(9, 8)),
    "gpt": (GPT, tokens),
    "writer": (Writer, images(3, 8, 8)),
    "two inputs": (TwoInputs, lambda batch: (torch.randn(batch, 4), torch.randn(batch, 3))),
    "two inputs by name": (TwoInputs, lambda batch: {"second": torch.randn(batch, 3), "first": torch.randn(batch, 4)}),
    "parametrized": (Parametrized, lambda batch: (torch.randn(batch, 2), torch.randn(batch, 4))),
}  # fmt: skip


def interpreter(module: nn.Module, captured: Captured) -> Interpreter:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    tensors: list[Any] = [
        (name, tensor, "parameter" if name in parameters else "buffer")
        for name, tensor in module.state_dict(keep_vars=True).items()
    ]
    tensors += [(name, tensor, "constant") for name, tensor in captured.constants.items()]
    graph = Graph.from_bytes(captured.graph.to_bytes(), len(captured.names))
    assert graph == captured.graph
    return Interpreter(graph, captured.names, tensors)


def call(module: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def check(module: nn.Module, make: Callable[[int], Any]) -> Captured:
    captured = capture(module.eval(), make(1))
    again = interpreter(module, captured)
    assert again.state_dict().keys() == module.state_dict().keys()
    for batch in BATCHES:
        inputs = make(batch)
        assert_same(call(again, inputs), call(module, inputs))
    return captured


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_networks_at_any_batch_size(name: str) -> None:
    make_network, make_inputs = NETWORKS[name]
    check(make_network(), make_inputs)


def test_graphs_are_small() -> None:
    sizes = {
        name: len(capture(NETWORKS[name][0]().eval(), NETWORKS[name][1](2)).graph.to_bytes())
        for name in ("mlp", "lenet-5", "resnet-20")
    }
    assert sizes["mlp"] <= 40
    assert sizes["lenet-5"] <= 100
    assert sizes["resnet-20"] <= 1200


# ---------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def test_bert_by_name_of_its_inputs(transformers: Any) -> None:
    module = transformers.BertModel(transformers.BertConfig(vocab_size=99, **SMALL))

    def make(batch: int) -> dict[str, Tensor]:
        mask = torch.ones(batch, 9, dtype=torch.long)
        mask[0, 6:] = 0
        return {"attention_mask": mask, "input_ids": torch.randint(0, 99, (batch, 9))}

    captured = check(module, make)
    assert {entry.name for entry in captured.graph.inputs} == {"input_ids", "attention_mask"}
    assert call(interpreter(module, captured), make(2)).pooler_output.shape == (2, 32)


def test_vit(transformers: Any) -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
    captured = check(transformers.ViTForImageClassification(config), images(3, 32, 32))
    assert isinstance(captured.graph.outputs, dict)


def test_llama_that_turns_gradients_and_autocast_off_inside(transformers: Any) -> None:
    config = transformers.LlamaConfig(vocab_size=99, num_key_value_heads=1, use_cache=False, **SMALL)
    check(transformers.LlamaForCausalLM(config), tokens)


# ---------------------------------------------------------------- what the graph looks like


def ops_of(captured: Captured) -> list[str]:
    return [node.op for node in captured.graph.nodes]


def test_high_level_operations_survive() -> None:
    captured = capture(ResNet20().eval(), torch.randn(2, 3, 32, 32))
    assert set(ops_of(captured)) == {
        "conv2d", "batch_norm", "relu", "add.Tensor", "slice.Tensor", "pad", "avg_pool2d", "sym_size.int", "reshape",
        "linear",
    }  # fmt: skip
    assert len(captured.graph.nodes) == 76
    assert captured.names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert captured.graph.nodes[2].arguments["eps"] == 1e-5


def test_in_place_networks_keep_batch_norm_and_lose_dropout() -> None:
    found = ops_of(capture(MobileNet().eval(), torch.randn(2, 3, 16, 16)))
    assert found.count("batch_norm") == found.count("conv2d") == 4
    assert not {"clone", "dropout", "getitem", "slice.Tensor"} & set(found)


def test_nothing_is_computed_twice_or_for_nobody() -> None:
    class Wasteful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.exp()
            return (x[:, :] + 1) * (x + 1) + (x + 1.0) + x.float().contiguous().clone().detach()

    found = capture(Wasteful(), torch.randn(2, 4)).graph.nodes
    assert found == (
        Node("add.Tensor", (Value(0), 1)),
        Node("mul.Tensor", (Value(1), Value(1))),
        Node("add.Tensor", (Value(0), 1.0)),
        Node("add.Tensor", (Value(2), Value(3))),
        Node("add.Tensor", (Value(4), Value(0))),
    )


def test_inputs_are_noted_with_the_batch_free() -> None:
    inputs = capture(TwoInputs(), (torch.randn(1, 4), torch.randn(1, 3))).graph.inputs
    assert [(entry.name, entry.shape) for entry in inputs] == [("first", (None, 4)), ("second", (None, 3))]


def test_an_input_without_a_batch_keeps_its_shape() -> None:
    class Mask(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x + mask

    inputs = capture(Mask(), (torch.randn(1, 5, 5), torch.randn(5, 5))).graph.inputs
    assert [entry.shape for entry in inputs] == [(None, 5, 5), (5, 5)]


def test_an_input_may_be_written_to() -> None:
    check(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), images(4))


def test_tied_weights_are_one_tensor() -> None:
    captured = capture(GPT(), torch.randint(0, 60, (2, 7)))
    assert len({"tokens.weight", "head.weight"} & set(captured.names)) == 1


def test_constants_are_what_is_not_in_the_state_dict() -> None:
    module = Writer()
    module.register_buffer("lifted_tensor_0", torch.ones(1))  # the name the tracer would give
    captured = capture(module, torch.randn(2, 3, 8, 8))
    assert captured.constants
    assert not captured.constants.keys() & module.state_dict().keys()
    assert set(captured.names) <= captured.constants.keys() | module.state_dict().keys()
    assert set(capture(GPT(), torch.randint(0, 60, (2, 7))).constants) == {"mask"}


# ---------------------------------------------------------------- what capture leaves alone


def test_the_module_is_left_as_it_was() -> None:
    module = Recurrent(nn.LSTM, True, True)
    module.embed.eval()
    inputs = tokens(3)
    module(*inputs)[0].sum().backward()
    flags = [part.training for part in module.modules()]
    before = {name: (id(p), p.detach().clone(), p.grad) for name, p in module.named_parameters()}
    flat = list(map(id, module.rnn._flat_weights))
    random = torch.get_rng_state()
    fused = torch.backends.mha.get_fastpath_enabled()
    capture(module, inputs)
    assert [part.training for part in module.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert list(map(id, module.rnn._flat_weights)) == flat
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.is_grad_enabled()
    for name, parameter in module.named_parameters():
        identity, value, gradient = before[name]
        assert id(parameter) == identity
        assert parameter.grad is gradient
        assert torch.equal(parameter, value)


def test_nothing_is_printed_or_warned(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    capture(Recurrent(nn.LSTM, True, True), tokens(1))
    with pytest.raises(CaptureError):
        capture(Branch(), torch.randn(2, 4))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# ---------------------------------------------------------------- what cannot be captured


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Unrolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[i] for i in range(x.shape[0])])


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x)


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return {0: x}


class Path(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"a/b": nn.Parameter(torch.ones(4))})

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights["a/b"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branch(), "Branch cannot be traced: Could not guard on data-dependent expression"),
        (Unrolled(), "the batch size of input 'x' is fixed by the network"),
        (nn.Sequential(nn.Linear(4, 4), Noise()), r"^aten.rand_like.default is not on the list of .* \(used in 1\)$"),
        (Counter(), "Counter writes to calls when it is called"),
        (Statistics(), "batch_norm as in training"),
        (Dropped(), "^aten.dropout.default is not on the list of operations$"),
        (Casting(), "wrap_with_autocast is not on the list of operations"),
        (Foreign(), "an output is a dict; a tensor, tuple, list or mapping expected"),
        (Path(), "'weights.a/b' is a tensor's name with a slash"),
    ],
)  # fmt: skip
def test_what_cannot_be_captured_is_said_in_one_line(module: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as error:
        capture(module, torch.randn(2, 4))
    assert "\n" not in str(error.value)
    assert module.training


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([1, 2], "cannot be called with them: too many positional arguments"),
        ({"y": torch.ones(2, 4)}, "cannot be called with them: missing a required argument: 'input'"),
        (([torch.ones(2, 4)],), "example input 'input': list found, a tensor expected"),
        (torch.ones(0, 4), r"example input 'input': a tensor of shape \(0, 4\) has no elements"),
        (torch.tensor(1.0), "no tensor with a batch dimension"),
        (torch.ones(2, 5), "Linear cannot be traced: "),
    ],
)
def test_wrong_example_inputs_are_said_in_one_line(inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as error:
        capture(nn.Linear(4, 4), inputs)
    assert "\n" not in str(error.value)
