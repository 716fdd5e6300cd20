"""Channel splitting: the network computes what it did, and on a grid it has finer steps."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NAMES, every, network, same
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs
from deepcomp.network import Network, Statistics
from deepcomp.quantizer import half_up
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.steps.split_channels import SplitChannels
from deepcomp.weights import Grid, Raw


def outputs(module: nn.Module | None, *inputs: Any) -> Any:
    assert module is not None
    with torch.no_grad():
        return module(*inputs)


def seen(*inputs: Tensor) -> Data:
    x = torch.cat(inputs)
    return Data(Pairs(x, torch.zeros(len(x))))


def undone(net: Network, name: str, tensor: Tensor, axis: int = 1) -> Tensor:
    """A split weight's parts added up again."""
    index = net.tensors[name.rpartition(".")[0] + ".channels"]
    shape = list(tensor.shape)
    shape[axis] = int(index.max()) + 1
    return torch.zeros(shape, dtype=tensor.dtype).index_add(axis, index, tensor)


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["weights", "activations"])
def test_outputs_stay_what_they_are(name: str, what: str) -> None:
    module, x = every()[name]
    net = network(module, x)
    net.data = seen(x)
    before = outputs(module, x)
    for ratio in (0.02, 0.5):
        SplitChannels(ratio=ratio, what=what).run(net)
        assert same(outputs(net.module, x), before, 1e-6)


@pytest.mark.parametrize("ratio", [0.01, 0.02, 0.05, 0.07, 1.0, 2.5])
def test_a_layer_gains_ceil_of_ratio_times_channels(ratio: float) -> None:
    module = nn.Sequential(nn.Linear(100, 7), nn.Linear(7, 3))
    net = network(module, torch.zeros(2, 100))
    said = SplitChannels(ratio=ratio).run(net)
    exact = [math.ceil(round(100 * ratio) * channels / 100) for channels in (100, 7)]
    assert list(said["split"].values()) == exact
    assert [net.tensors[f"{n}.weight"].shape[1] for n in (0, 1)] == [100 + exact[0], 7 + exact[1]]


def test_none_is_the_identity() -> None:
    module, x = every()["mixed"]
    net = network(module, x)
    captured, tensors = net.captured, dict(net.tensors)
    assert SplitChannels(ratio=0.0).run(net) == {"split": {}, "skipped": {}}
    assert SplitChannels(ratio={"conv1": 0.0, "twice": 0.0}).run(net)["split"] == {}
    assert net.captured is captured
    assert net.tensors == tensors
    assert net.module is module


def test_the_largest_channel_is_halved() -> None:
    net = network(nn.Sequential(nn.Linear(3, 2, bias=False)), torch.zeros(2, 3))
    net.tensors = {"0.weight": torch.tensor([[1.0, -8.0, 2.0], [3.0, 0.0, 2.0]])}
    assert SplitChannels(ratio=0.6).run(net)["split"] == {"0.weight": 2}
    assert net.tensors["0.channels"].tolist() == [0, 1, 2, 1, 1]
    assert net.tensors["0.weight"].tolist() == [[1, -2, 2, -4, -2], [3, 0, 2, 0, 0]]
    assert net.offsets["0.weight"].tolist() == [[0, -0.375, 0, 0.25, 0.125]] * 2
    assert net.captured is not None
    assert list(net.captured.constants) == ["0.channels"]
    assert list(net.module.state_dict()) == ["0.weight"]  # type: ignore[union-attr]


def test_each_reader_of_a_value_has_its_own_gather() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 1), nn.Conv1d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return self.c(torch.cat([self.b(x) + x, x], 1)).mean(2)

    module, x = Net(), torch.randn(3, 4, 6)
    net = network(module, x)
    SplitChannels(ratio=0.5).run(net)
    assert net.captured is not None
    assert [node.op for node in net.captured.graph.nodes].count("index_select") == 3
    assert same(outputs(net.module, x), outputs(module, x), 1e-6)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv1d(8, 6, 3, groups=2), (3, 8, 9)),
        (lambda: nn.Conv2d(6, 9, 3, groups=3, padding="same"), (3, 6, 5, 5)),
        (lambda: nn.Conv3d(4, 4, 1, groups=2), (3, 4, 2, 3, 2)),
        (lambda: nn.ConvTranspose1d(8, 6, 3, stride=2, groups=2), (3, 8, 5)),
        (lambda: nn.ConvTranspose2d(4, 2, 3), (3, 4, 5, 5)),
        (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), (3, 4, 2, 3, 2)),
    ],
)
def test_every_group_gains_as_many(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    module, x = nn.Sequential(make()), torch.randn(*shape)
    net = network(module, x)
    layer: Any = module[0]
    each = shape[1] // layer.groups
    said = SplitChannels(ratio=0.3).run(net)
    gained = math.ceil(0.3 * each)
    assert said["split"] == {"0.weight": gained * layer.groups}
    index = net.tensors["0.channels"].reshape(layer.groups, each + gained)
    assert (index // each == torch.arange(layer.groups)[:, None]).all()
    assert net.offsets["0.weight"].shape == net.tensors["0.weight"].shape
    assert same(outputs(net.module, x), outputs(module, x), 1e-6)


def test_products_with_matrices() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4, 3))
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x @ self.a, self.b)

    module, x = Net(), torch.randn(7, 5)
    net = network(module, x)
    assert SplitChannels(ratio=0.4).run(net)["split"] == {"a": 2, "b": 2}
    assert net.tensors["a"].shape == net.offsets["a"].shape == (7, 4)
    assert same(outputs(net.module, x), outputs(module, x), 1e-6)


def test_a_module_called_twice_is_split_alike_in_both_places() -> None:
    module, x = every()["mixed"]
    net = network(module, x)
    said = SplitChannels(ratio=0.1).run(net)
    assert said["split"]["twice.weight"] == 1
    assert said["split"]["last.weight"] == 1  # which is tied.weight too
    assert torch.equal(net.tensors["last.weight"], net.tensors["tied.weight"])
    assert said["skipped"] == {}
    assert same(outputs(net.module, x), outputs(module, x), 1e-6)


# ---------------------------------------------------------------- recurrent layers


class Sequence(nn.Module):
    """A recurrent layer with given states, all of whose results are given out; the batch comes first."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.cells = kind(5, 7, **settings)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        x, h, c = x if self.cells.batch_first else x.transpose(0, 1), h.transpose(0, 1), c.transpose(0, 1)
        lstm = isinstance(self.cells, nn.LSTM)
        out, state = self.cells(x, (h, c) if lstm else h)
        return out, *(state if lstm else (state,)), c

    def inputs(self) -> list[Tensor]:
        count = self.cells.num_layers * (2 if self.cells.bidirectional else 1)
        return [torch.randn(3, *shape).double() for shape in ((4, 5), (count, 7), (count, self.cells.proj_size or 7))]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("more", [{"bidirectional": True}, {"bias": False}, {"batch_first": True}])
def test_hidden_units_are_copied_whole(kind: Any, layers: int, more: dict[str, Any]) -> None:
    module = Sequence(kind, num_layers=layers, **more).double().eval()
    inputs = module.inputs()
    net = network(module, inputs)
    before = outputs(module, *inputs)
    said = SplitChannels(ratio=0.3).run(net)
    assert said["skipped"] == {}
    assert net.tensors["cells.weight_hh_l0"].shape[1] == 7 + 3
    assert net.tensors["cells.weight_ih_l0"].shape[1] == 5 + 2
    assert all(net.offsets[name].shape == net.tensors[name].shape for name in said["split"])
    for found, wanted in zip(outputs(net.module, *inputs), before, strict=True):
        assert found.shape == wanted.shape
        assert same(found, wanted, 1e-12)


def test_units_and_their_copies_stay_equal_on_a_grid() -> None:
    """So what the halves of a weight read is one number, and they act as the weight, rounded."""
    module = Sequence(nn.LSTM, num_layers=2, batch_first=True).eval()
    inputs = [x.float() for x in module.inputs()]
    net = network(module, inputs)
    plain = network(module, inputs)
    SplitChannels(ratio=0.3).run(net)
    for name in ("cells.weight_ih_l0", "cells.weight_hh_l0", "cells.weight_ih_l1", "cells.weight_hh_l1"):
        for one in (net, plain):
            bounds = (torch.tensor([-2.0]), torch.tensor([2.0]))  # of both the same, and nothing is clipped
            grid = Grid.fit(one.tensors[name], 5, axis=None, bounds=bounds, offset=one.offsets.get(name))
            one.store(name, grid)
    found, wanted = (outputs(one.interpreter(formed=True), *inputs) for one in (net, plain))
    assert same(found[0], wanted[0], 1e-6)


def test_hidden_units_can_be_left_alone() -> None:
    module = Sequence(nn.LSTM, num_layers=2, batch_first=True).double().eval()
    inputs = module.inputs()
    net = network(module, inputs)
    said = SplitChannels(ratio=0.3, hidden=False).run(net)
    assert said["split"] == {"cells.weight_ih_l0": 2}
    assert set(said["skipped"].values()) == {"what it reads is no value of the network"}
    assert same(outputs(net.module, *inputs)[0], outputs(module, *inputs)[0], 1e-12)


# ---------------------------------------------------------------- grids


weights = st.lists(st.integers(-48, 48), min_size=12, max_size=12)


@settings(deadline=None, max_examples=30)
@given(sixteenths=weights, runs=st.lists(st.sampled_from([0.3, 0.6, 2.0]), min_size=1, max_size=2), axis=st.booleans())
def test_rounded_halves_add_up_to_the_rounded_weight(sixteenths: list[int], runs: list[float], axis: bool) -> None:
    weight = torch.tensor(sixteenths).reshape(3, 4) / 16
    step = torch.tensor([1.0, 0.5, 0.25]) if axis else torch.ones(1)
    net = network(nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 4))
    net.update("0.weight", weight)
    sources = torch.arange(4)
    for ratio in runs:
        SplitChannels(ratio=ratio).run(net)
    assert net.captured is not None
    for name in net.captured.constants:
        sources = sources[net.tensors[name]]
    bounds = (-127 * step, 127 * step)
    grid = Grid.fit(net.tensors["0.weight"], 8, axis=0 if axis else None, bounds=bounds, offset=net.offsets["0.weight"])
    found = torch.zeros(3, 4).index_add(1, sources, grid.dense())
    spread = step[:, None]
    assert torch.equal(found, half_up(weight / spread) * spread)


def test_the_range_shrinks_and_errors_with_it(randn: Callable[..., Tensor]) -> None:
    module = nn.Sequential(nn.Linear(200, 50))
    weight = randn(50, 200)
    weight[7, 3], weight[8, 150] = 12.0, -9.0
    module[0].weight.data = weight
    errors = {}
    for split, ratio in (("aware", 0.0), ("half", 0.02), ("aware", 0.02)):
        net = network(module, torch.zeros(2, 200))
        SplitChannels(ratio=ratio, split=split).run(net)
        Quantize(bits=5, per="tensor").run(net)
        found = net.forms["0.weight"].dense()
        whole = found if not ratio else undone(net, "0.weight", found)
        errors[split, ratio] = float((whole - weight).square().mean())
    assert errors["aware", 0.02] < errors["half", 0.02] < errors["aware", 0.0]
    assert errors["aware", 0.02] < errors["aware", 0.0] / 4


def test_plain_halves_leave_no_offsets() -> None:
    module, x = every()["mixed"]
    net = network(module, x)
    SplitChannels(split="half").run(net)
    assert net.offsets == {}


# ---------------------------------------------------------------- activations


def test_the_channels_with_the_largest_inputs_are_halved() -> None:
    net = network(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3))
    net.data = seen(torch.tensor([[1.0, 2.0, 3.0], [0.0, -9.0, 4.0]]))
    weight = net.tensors["0.weight"]
    assert SplitChannels(ratio=0.6, what="activations").run(net)["split"] == {"0.weight": 2}
    assert net.tensors["0.channels"].tolist() == [0, 1, 2, 1, 1]
    assert net.tensors["0.shares"].tolist() == [[1, 0.25, 1, 0.5, 0.25]]
    assert torch.equal(net.tensors["0.weight"], weight[:, [0, 1, 2, 1, 1]])
    assert net.offsets == {}


def test_halved_inputs_are_quantised_with_finer_steps() -> None:
    x = torch.tensor([[-1.0, 0.5, 0.5], [1.0, 8.0, -0.5]])
    scales = []
    for ratio in (0.0, 0.3):
        net = network(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3))
        net.data = seen(x)
        SplitChannels(ratio=ratio, what="activations").run(net)
        QuantizeActivations(bits=8, range="min-max").run(net)
        assert net.captured is not None
        nodes = net.captured.graph.nodes
        scales.append(next(node.arguments["scale"] for node in nodes if node.op == "quantize.static"))
    assert scales[0] * 255 == pytest.approx(1 + 8, rel=1e-3)
    assert scales[1] * 255 == pytest.approx(1 + 4, rel=1e-3)


def test_offsets_of_split_weights_go_with_their_copies() -> None:
    module, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
    net = network(module, x)
    net.data = seen(x)
    SplitChannels(ratio=0.5).run(net)
    offsets = net.offsets["0.weight"]
    SplitChannels(ratio=0.5, what="activations").run(net)
    assert torch.equal(net.offsets["0.weight"], offsets[:, net.tensors["0.channels_"]])
    assert same(outputs(net.module, x), outputs(module, x), 1e-6)


def test_inputs_that_something_else_reads_too_are_left_alone() -> None:
    module, x = every()["mixed"]
    net = network(module, x)
    net.data = seen(x)
    said = SplitChannels(what="activations").run(net)
    assert said["skipped"] == {"twice.weight": "what it reads is read by conv2d and add"}


def test_activations_need_data() -> None:
    module, x = every()["lenet-5"]
    with pytest.raises(UsageError, match=r"split-channels: needs data to calibrate on \(--data\)"):
        SplitChannels(what="activations").run(network(module, x))


# ---------------------------------------------------------------- places left alone, errors


def test_places_left_alone_say_why() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise, self.many = nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 8, 1, groups=4)
            self.table, self.decoder = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.decoder.weight = self.table.weight
            self.projected, self.twice = nn.LSTM(8, 8, proj_size=4, batch_first=True), nn.GRU(8, 8, batch_first=True)
            self.both = nn.GRU(8, 8, bidirectional=True, batch_first=True)
            self.turned, self.used = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor, words: Tensor) -> Any:
            x = self.many(self.depthwise(x)).mean(2) @ self.turned.t() + self.used(self.used.weight.sum(0))
            y = self.twice(self.twice(self.table(words))[0])[0]
            return self.decoder(x), self.projected(y)[0], self.both(y)[0]

    net = network(Net(), (torch.randn(2, 4, 7), torch.zeros(2, 5, dtype=torch.int64)))
    said = SplitChannels(skip="*_reverse").run(net)
    group, units = (
        "each of its groups has one input channel",
        "both.weight_hh_l0_reverse beside it is not to be changed",
    )
    assert said == {
        "split": {"projected.weight_ih_l0": 1},
        "skipped": {
            "depthwise.weight": group,
            "many.weight": group,
            "table.weight": "an embedding has no input channels",
            "projected.weight_hh_l0": "its hidden state is projected",
            "projected.weight_hr_l0": "its hidden state is projected",
            "twice.weight_ih_l0": "its weight is used 2 times",
            "twice.weight_hh_l0": "its weight is used 2 times",
            "both.weight_ih_l0": "both.weight_ih_l0_reverse beside it is not to be changed",
            "both.weight_hh_l0": units,
            "turned": "no layer has it for its weight",
            "used.weight": "its weight is used 2 times",
        },
    }


def test_one_weight_used_in_two_ways_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x @ self.weight, self.weight)

    said = SplitChannels().run(network(Net(), torch.zeros(2, 4)))
    assert said == {"split": {}, "skipped": {"weight": "its weight is used in different ways"}}


def test_ratios_by_layer() -> None:
    module, x = every()["lenet-5"]
    net = network(module, x)
    said = SplitChannels(ratio={"conv*": 0.1, "fc1": 0.05}, skip="conv1").run(net)
    assert said == {"split": {"conv2.weight": 2, "fc1.weight": 40}, "skipped": {}}
    with pytest.raises(UsageError, match="layers 'fc9': no tensor has such a name"):
        SplitChannels(ratio={"fc9": 0.1}).run(net)


def test_what_is_known_of_the_outputs_stays_known() -> None:
    module, x = every()["lenet-5"]
    net = network(module, x)
    net.statistics["conv1.weight"] = known = Statistics(torch.zeros(20), torch.ones(20))
    SplitChannels().run(net)
    assert net.statistics == {"conv1.weight": known}


def test_what_cannot_be_is_refused() -> None:
    module, x = every()["lenet-5"]
    net = network(module, x)
    net.store("fc1.weight", Raw(net.tensors["fc1.weight"]))
    with pytest.raises(UsageError, match=r"split-channels: fc1\.weight has a form already"):
        SplitChannels().run(net)
    with pytest.raises(InputError, match="split-channels: the network's operations expected"):
        SplitChannels().run(Network({"a.weight": torch.ones(4, 4)}))
    wrong: list[dict[str, Any]] = [
        {"ratio": -0.1}, {"ratio": math.inf}, {"ratio": math.nan}, {"ratio": {"a": -1.0}}, {"split": "third"},
        {"what": "biases"}, {"samples": 0},
    ]  # fmt: skip
    for refused in wrong:
        with pytest.raises(UsageError, match=rf"split-channels\.{next(iter(refused))} = "):
            SplitChannels(**refused)


# ---------------------------------------------------------------- files

_RECIPE = """
[[step]]
do = "split-channels"
ratio = 0.1
[[step]]
do = "quantize"
bits = 6
per = "tensor"
"""
_ELSEWHERE = """
import sys, torch, deepcomp
x, y = torch.load(sys.argv[2])
found = deepcomp.load(sys.argv[1])(x)
assert torch.equal(found, y), (found - y).abs().max()
"""


def test_the_recipe_splits_with_data_and_without(tmp_path: Path) -> None:
    module, x = every()["digits-cnn"]
    network(module, x)  # gives its batch norms statistics
    bytes_, before = [], outputs(module, x)
    for data in (None, seen(x)):
        report = deepcomp.compress(
            module, tmp_path / "net.dcz", recipe="ocs", data=data, example_inputs=x, settings={"quantize.bits": 8},
            force=True,
        )  # fmt: skip
        assert report.steps[1]["split"] == {"conv1.weight": 1, "conv2.weight": 1, "fc1.weight": 11, "fc2.weight": 2}
        assert same(outputs(deepcomp.load(tmp_path / "net.dcz"), x), before, 0.1)
        bytes_.append(report.output_bytes)
    assert bytes_[1] >= bytes_[0]  # it holds the grids of the activations too


@pytest.mark.parametrize("name", ["mixed", "recurrent"])
def test_the_file_computes_what_the_grids_say_in_another_process(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "split.toml"
    recipe.write_text(_RECIPE)
    module, x = every()[name]
    net = network(module, x)
    SplitChannels(ratio=0.1).run(net)
    Quantize(bits=6, per="tensor").run(net)
    report = deepcomp.compress(module, tmp_path / "net.dcz", recipe=recipe, example_inputs=x)
    assert report.steps[0]["split"]
    torch.save((x, outputs(net.interpreter(formed=True), x)), tmp_path / "seen.pt")
    arguments = [sys.executable, "-c", _ELSEWHERE, str(tmp_path / "net.dcz"), str(tmp_path / "seen.pt")]
    subprocess.run(arguments, check=True)
