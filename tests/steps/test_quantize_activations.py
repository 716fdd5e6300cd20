"""Activations quantised: where, on which grids, and what a file gives back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import NAMES, every, network, same
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import deepcomp
from deepcomp.container import Writer
from deepcomp.errors import InputError, UsageError
from deepcomp.model import zoo
from deepcomp.model.capture import capture
from deepcomp.model.data import Data, example_inputs
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate
from deepcomp.model.quantizers import DYNAMIC, STATIC
from deepcomp.network import Network
from deepcomp.opening import open_network
from deepcomp.quantizer import Quantizer
from deepcomp.serializer import write
from deepcomp.steps.equalize import Equalize
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations

DO = "quantize-activations"


class Causal(nn.Module):
    """A small language model: tied embedding, positions, causal attention of torch's and one written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        x = self.layer(self.table(words) + self.places(torch.arange(6)), mask, is_causal=True)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        return self.out(x + (scores + mask).softmax(-1) @ self.v(x))


class Wide(nn.Module):
    """Branches joined as in SqueezeNet, average pooling, a cap, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.one, self.three = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.join, self.out = nn.Conv2d(9, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        y = self.join(torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1))
        return self.out(F.avg_pool2d(x + y, 4).mean((2, 3)))


def subjects() -> dict[str, tuple[nn.Module, Tensor]]:
    return every() | {
        "causal": (Causal(), torch.randint(11, (4, 6))),
        "wide": (Wide(), torch.randn(4, 3, 8, 8)),
    }


def prepared(name: str, count: int = 24) -> tuple[Network, Tensor]:
    """A network with data, and the data's inputs."""
    module, x = subjects()[name]
    net = network(module, x)
    more = torch.randint(11, (count, *x.shape[1:])) if not x.is_floating_point() else torch.randn(count, *x.shape[1:])
    net.data = Data(TensorDataset(more, torch.zeros(count)))
    return net, more


def outputs(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(x)
    return found


def stored(net: Network, path: Path) -> Path:
    with Writer(path, force=True) as writer:
        for _ in write(net, writer, {}):
            pass
    return path


def graph_of(net: Network) -> Any:
    assert net.captured is not None
    return net.captured.graph


# ---------------------------------------------------------------- what a network computes


ALL = (*NAMES, "causal", "wide")


@pytest.mark.parametrize("name", ALL)
def test_with_sixteen_bits_outputs_stay_nearly_what_they_are(name: str) -> None:
    net, x = prepared(name)
    before = outputs(net.module, x)
    said = QuantizeActivations(bits=16, range="min-max").run(net)
    assert same(outputs(net.module, x), before, 1e-3)
    assert said["sites"]
    assert not torch.equal(outputs(net.module, x), before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dynamic", ["", "tensor"])
def test_a_file_gives_back_what_was_stored(name: str, dynamic: str, tmp_path: Path) -> None:
    net, x = prepared(name)
    Quantize(bits=6).run(net)
    plain = stored(net, tmp_path / "plain.dcz")
    QuantizeActivations(range="min-max", dynamic=dynamic).run(net)
    path = stored(net, tmp_path / "x.dcz")
    simulated = outputs(deepcomp.load(path), x)
    assert torch.equal(simulated, outputs(net.interpreter(formed=True), x))
    weights_alone = outputs(deepcomp.load(plain), x)
    assert torch.equal(outputs(deepcomp.load(path, runtime="float"), x), weights_alone)
    assert not torch.equal(simulated, weights_alone)
    assert same(simulated, weights_alone, 0.3)


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    net, x = prepared("wide")
    QuantizeActivations().run(net)
    path = stored(net, tmp_path / "x.dcz")
    torch.save(x, tmp_path / "x.pt")
    code = """if True:
        import sys, torch, deepcomp
        y = deepcomp.load(sys.argv[1])(torch.load(sys.argv[2], weights_only=True))
        print(*y.detach().view(torch.int32).flatten().tolist())
    """
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "x.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == outputs(net.module, x).view(torch.int32).flatten().tolist()


def test_runtimes_are_named_and_belong_to_what_a_file_runs(tmp_path: Path) -> None:
    net, _ = prepared("wide")
    QuantizeActivations(range="min-max").run(net)
    path = stored(net, tmp_path / "x.dcz")
    with pytest.raises(UsageError, match="runtime = 'int8': one of float, simulated, integer expected"):
        deepcomp.load(path, runtime="int8")
    with pytest.raises(UsageError, match="runtime = 'float': into=Wide brings operations of its own"):
        deepcomp.load(path, runtime="float", into=Wide())
    deepcomp.load(path, into=Wide())


# ---------------------------------------------------------------- static grids


def grids(net: Network, **settings: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = QuantizeActivations(**settings).run(net)["sites"]
    return found


@pytest.mark.parametrize(("name", "method"), [("wide", "mse"), ("causal", "percentile")])
def test_grids_do_not_depend_on_the_order_of_the_data(name: str, method: str) -> None:
    found = []
    for seed in range(3):
        torch.manual_seed(0)
        net, x = prepared(name, 150)
        order = torch.randperm(150, generator=torch.Generator().manual_seed(seed))
        net.data, net.seed = Data(TensorDataset(x[order], torch.zeros(150))), seed
        QuantizeActivations(bits=4, range=method).run(net)
        found.append(graph_of(net).to_bytes())
    assert found[0] == found[1] == found[2]


def test_a_grid_holds_what_is_seen_and_scales_are_short_numbers() -> None:
    net, x = prepared("wide")
    values = outputs_of_sums(net, x)
    said = grids(net, range="min-max", bits=5)
    row = said["join/add"]
    assert row["low"] <= values.min() + row["scale"] / 2
    assert row["high"] >= values.max() - row["scale"] / 2
    assert row["high"] - row["low"] == pytest.approx(float(values.max() - values.min()), rel=1e-3)
    assert row["high"] - row["low"] == pytest.approx(31 * row["scale"])
    for row in said.values():
        assert float(f"{row['scale']:.4g}") == row["scale"]
        assert row["low"] <= 0 <= row["high"]
        assert row["bits"] == 5
    nodes = [node for node in graph_of(net).nodes if node.op == STATIC]
    assert {(n.args[1], n.args[2], n.args[3]) for n in nodes} == {
        (r["scale"], r["zero_point"], 5) for r in said.values()
    }


def outputs_of_sums(net: Network, x: Tensor) -> Tensor:
    first = len(graph_of(net).inputs)
    (place,) = [place for place, node in enumerate(graph_of(net).nodes) if node.op == "add.Tensor"]
    module = net.interpreter()
    with torch.no_grad():
        ((_, values),) = module.observe([type(graph_of(net).outputs)(first + place)], x)
    assert isinstance(values, Tensor)
    return values


def test_parts_of_a_concatenation_and_averages_share_grids() -> None:
    said = grids(prepared("wide")[0])
    assert said["one"] == said["three"]
    assert said["join/add"] == said["join/avg_pool2d"] == said["join/mean"]
    assert said["one"] != said["join/add"]
    assert list(said) == ["x", "stem", "one", "three", "join", "join/add", "join/avg_pool2d", "join/mean", "out"]


def test_a_shared_grid_covers_what_all_parts_hold() -> None:
    net, x = prepared("wide")
    assert net.module is not None
    for name in ("one", "three"):
        net.module.get_parameter(f"{name}.bias").data += {"one": 1.0, "three": 30.0}[name]
    net = network(net.module, x)
    net.data = Data(TensorDataset(x, torch.zeros(len(x))))
    assert grids(net, range="min-max")["one"]["high"] > 29


def test_a_range_method_is_that_of_the_observer() -> None:
    highs = {}
    for method in ("min-max", "percentile", "mse", "aciq", "kl"):
        net, _ = prepared("wide")
        highs[method] = grids(net, range=method, bits=3, percentile=5.0)["join/add"]["high"]
    assert max(highs, key=highs.__getitem__) == "min-max"
    assert len(set(highs.values())) == 5


def test_weights_count_as_their_forms_have_them() -> None:
    """Of weights on a grid of two bits, ranges are not those of the original ones."""
    net, _ = prepared("wide")
    Quantize(bits=2).run(net)
    coarse = grids(net, range="min-max")
    assert coarse["x"] == grids(prepared("wide")[0], range="min-max")["x"]
    assert coarse["stem"] != grids(prepared("wide")[0], range="min-max")["stem"]


def test_symmetric_grids_have_zero_in_the_middle() -> None:
    net, x = prepared("wide")
    said = grids(net, symmetric=True, bits=4, range="min-max")
    assert all(row["zero_point"] == 7 and row["low"] == -row["high"] for row in said.values())
    assert all(node.args[4] is True for node in graph_of(net).nodes if node.op == STATIC)
    assert same(outputs(net.module, x), outputs(prepared("wide")[0].module, x), 1.0)


def test_logits_have_a_range_of_their_own_where_the_metric_says_they_are_logits() -> None:
    def high(metric: str | None, **settings: Any) -> float:
        torch.manual_seed(0)
        net, x = prepared("wide", 60)
        pairs = TensorDataset(x * 5, torch.zeros(60, dtype=torch.int64))
        net.data = Data(pairs, pairs if metric else None, metric)
        found: float = grids(net, bits=3, **settings)["out"]["high"]
        return found

    assert high("accuracy") != high(None)
    assert high("accuracy", logits="mse") == high(None)
    assert high("accuracy", logits="min-max") == high(None, range="min-max")


def test_bits_by_name_and_of_ends() -> None:
    net, _ = prepared("wide")
    said = QuantizeActivations(bits={"join*": 4, "stem": 6, "x": 5}, ends=8, range="min-max").run(net)
    assert {name: row["bits"] for name, row in said["sites"].items()} == {
        "x": 8, "stem": 6, "join": 4, "join/add": 4, "join/avg_pool2d": 4, "join/mean": 4, "out": 8
    }  # fmt: skip
    assert said["skipped"] == dict.fromkeys(("one", "three"), "it was not chosen")


def test_places_are_chosen_by_name() -> None:
    net, _ = prepared("wide")
    said = QuantizeActivations(layers="join, join/*, out", skip="*/add", range="min-max").run(net)
    assert list(said["sites"]) == ["join", "join/avg_pool2d", "join/mean", "out"]
    assert said["sites"]["join/avg_pool2d"] == said["sites"]["join/mean"]  # without what they would have shared
    assert set(said["skipped"]) == {"x", "stem", "one", "three", "join/add"}
    assert [node.op for node in graph_of(net).nodes].count(STATIC) == 4


def test_what_a_user_might_miss_is_explained() -> None:
    said = QuantizeActivations(range="min-max").run(prepared("causal")[0])
    assert said["skipped"] == {"k/add": "what it puts in may be a mask, which no grid is to stretch to"}
    assert QuantizeActivations(range="min-max").run(prepared("recurrent")[0])["skipped"] == {
        "out": "its table is quantised, which makes what it looks up so"
    }


# ---------------------------------------------------------------- without data


def test_without_data_ranges_follow_from_the_statistics() -> None:
    net, x = prepared("wide")
    FoldBN().run(net)
    net.data = None
    before = outputs(net.module, x)
    said = QuantizeActivations(range="batch-norm", alpha=3.0, bits=12).run(net)
    found = net.statistics["stem.weight"]
    top = float((found.mean + 3 * found.std).max().clamp(0, 6))
    assert said["sites"]["stem"]["high"] == pytest.approx(top, rel=1e-3)
    assert said["sites"]["stem"]["low"] == 0
    assert list(said["sites"]) == ["stem"]
    assert said["skipped"]["join/add"] == said["skipped"]["x"] == "nothing is known of it without data"
    assert same(outputs(net.module, x), before, 0.5)


def test_statistics_go_through_sums_averages_and_caps_of_each_channel() -> None:
    net, _ = prepared("mobilenet")
    FoldBN().run(net)
    Equalize().run(net)
    net.data = None
    said = QuantizeActivations(range="batch-norm").run(net)
    assert set(said["skipped"]) == {"x", "classifier.1"}
    sites = said["sites"]
    tops = {name: found.mean + 6 * found.std for name, found in net.statistics.items()}
    caps = net.tensors["blocks.0.0.upper"].double().reshape(-1)
    highest = torch.minimum(tops["blocks.0.0.weight"], caps).max()
    assert sites["blocks.0.0"]["high"] == pytest.approx(float(highest), rel=1e-3)
    added = (tops["blocks.0.6.weight"] + tops["stem.0.weight"].clamp(0, 6)).max()
    assert sites["blocks.0.6/add"]["high"] == pytest.approx(float(added), rel=0.02)
    assert sites["head.0/adaptive_avg_pool2d"] == sites["head.0"]


# ---------------------------------------------------------------- dynamic


@pytest.mark.parametrize("per", ["tensor", "token"])
def test_dynamic_quantisers_take_the_range_of_each_batch(per: str) -> None:
    net, x = prepared("wide")
    net.data = None
    layer = network(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.zeros(2, 8))
    said = QuantizeActivations(bits=4, dynamic=per).run(layer)
    assert said["sites"] == {name: {"bits": 4, "per": per} for name in ("input", "0")}

    def rounded(x: Tensor) -> Tensor:
        low, high = x.aminmax(dim=-1, keepdim=True) if per == "token" else x.aminmax()
        return Quantizer(4).simulate(x, *Quantizer(4).parameters(low, high))

    for _ in range(3):
        x = torch.randn(5, 8) * 3
        weight, bias = layer.tensors["0.weight"], layer.tensors["0.bias"]
        expected = rounded(F.relu(F.linear(rounded(x), weight, bias)))
        assert torch.equal(outputs(layer.module, x), expected.detach())


def test_dynamic_quantisers_need_no_data_and_stand_where_static_ones_do() -> None:
    for name in ("wide", "causal"):
        net, _ = prepared(name)
        static = QuantizeActivations(range="min-max").run(net)["sites"]
        other, _ = prepared(name)
        other.data = None
        assert list(QuantizeActivations(dynamic="token").run(other)["sites"]) == list(static)
        places = [[p for p, n in enumerate(graph_of(one).nodes) if n.op in (STATIC, DYNAMIC)] for one in (net, other)]
        assert places[0] == places[1]


# ---------------------------------------------------------------- bytes


def test_the_bytes_of_a_network_with_quantisers_stay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module.load_state_dict(
        {name: torch.arange(t.numel()).reshape(t.shape) / 7 for name, t in module.state_dict().items()}
    )
    net = network(module, torch.zeros(2, 3))
    net.data = Data(TensorDataset(torch.arange(30.0).reshape(10, 3) / 9, torch.zeros(10)))
    QuantizeActivations(range="min-max", bits={"0": 4, "*": 8}).run(net)
    assert [n.args[1:] for n in graph_of(net).nodes if n.op == STATIC] == [
        (0.01264, 0, 8), (0.9196, 0, 4), (0.1056, 0, 8)
    ]  # fmt: skip
    assert graph_of(net).to_bytes().hex(" ") == (
        "01 05 69 6e 70 75 74 00 02 00 04 06 d0 03 04 00 57 e0 13 02 82 01 0a 03 00 01 01 0d 01 00 d0 03 04 00 47 d8 "
        "8f 01 02 42 0a 03 00 01 01 d0 03 04 00 47 c0 10 02 82 01 00"
    )


# ---------------------------------------------------------------- errors


def test_what_cannot_be_done_is_one_line() -> None:
    net, _ = prepared("wide")
    net.data = None
    with pytest.raises(UsageError, match=f"^{DO}: needs data to calibrate on"):
        QuantizeActivations().run(net)
    net, _ = prepared("wide")
    QuantizeActivations(dynamic="tensor").run(net)
    with pytest.raises(UsageError, match=f"^{DO}: the network has quantisers of activations already$"):
        QuantizeActivations(dynamic="tensor").run(net)
    net, _ = prepared("wide")
    with pytest.raises(UsageError, match="'conv7' names no place for a quantiser; such are x, stem, one"):
        QuantizeActivations(bits={"conv7": 3}).run(net)
    with pytest.raises(InputError, match=f"^{DO}: the network's operations expected"):
        QuantizeActivations().run(replace(net, captured=None))


def test_numbers_that_are_none_are_an_error_that_names_the_place() -> None:
    net, x = prepared("wide")
    x[3, 1, 2, 2] = torch.nan
    net.data = Data(TensorDataset(x, torch.zeros(len(x))))
    with pytest.raises(InputError, match=r"^x: nan .* activations not finite"):
        QuantizeActivations().run(net)
    QuantizeActivations(skip="*").run(net)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 1}, "bits = 1: 2 to 16"),
        ({"bits": {"*": 17}}, "bits = 17: 2 to 16"),
        ({"ends": 40}, "bits = 40"),
        ({"range": "nope"}, "range = 'nope': one of 'min-max', .*'batch-norm' expected"),
        ({"logits": "batch-norm"}, "logits = 'batch-norm'"),
        ({"dynamic": "row"}, "dynamic = 'row': one of '', 'tensor', 'token' expected"),
        ({"percentile": 50.0}, "percentile = 50.0"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"samples": 0}, "samples = 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"{DO}.{words}"):
        QuantizeActivations(**settings)


# ---------------------------------------------------------------- through the front door


def test_from_a_recipe_to_the_command(tmp_path: Path, capsys: Any) -> None:
    from deepcomp.cli import main

    recipe = tmp_path / "w8a8.toml"
    recipe.write_text(f"[[step]]\ndo = 'fold-bn'\n[[step]]\ndo = 'quantize'\n[[step]]\ndo = '{DO}'\nsamples = 60\n")
    torch.manual_seed(1)
    report = deepcomp.compress(zoo.build("digits-cnn"), tmp_path / "x.dcz", recipe=recipe, data="digits")
    assert list(report.steps[-1]["sites"]) == ["x", "conv1", "conv2", "fc1", "fc2"]
    assert report.metric is not None
    assert abs(report.metric["drop"]) < 3
    values = {}
    for runtime in ("simulated", "float", None):
        extra = [] if runtime is None else ["--runtime", runtime]
        assert main(["evaluate", str(tmp_path / "x.dcz"), "--data", "digits", "--json", *extra]) == 0
        values[runtime] = json.loads(capsys.readouterr().out)["value"]
    assert values["simulated"] == values[None] == report.metric["after"]
    assert main(["evaluate", str(tmp_path / "x.dcz"), "--data", "digits", "--runtime", "fast"]) == 2
    assert "one of float, simulated, integer expected" in capsys.readouterr().err


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_at_eight_bits(data_dir: Path) -> None:
    data = load_data("cifar10", str(data_dir))
    assert data.test is not None
    data = replace(data, test=Subset(data.test, range(1000)))
    net, _ = open_network(data_dir / "resnet20-cifar10.safetensors", "resnet20")
    assert net.module is not None
    net.captured, net.data = capture(net.module, example_inputs(data)), data
    before = evaluate(net.module, data).value
    for step in (FoldBN(), Quantize(range="mse"), QuantizeActivations()):
        step.run(net)
    assert abs(before - evaluate(net.interpreter(formed=True), data).value) < 1
