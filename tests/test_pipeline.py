"""compress and load: what goes in comes out, runs, and is the same whoever makes it."""

import copy
import hashlib
import json
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.nn.functional as F
from independent_decoder import decode
from safetensors.torch import save_file
from torch import nn

import deepcomp
from deepcomp import BudgetError, CaptureError, FormatError, InputError, UsageError
from deepcomp.model import zoo
from deepcomp.weights.dtypes import to_words


class Tied(nn.Module):
    """An embedding that is its own decoder, a buffer outside the state dict, a convolution, and normalisation."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(16.0), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2) + self.shift[:, None]
        return self.out(F.relu(self.norm(self.conv(x))).transpose(1, 2))


@pytest.fixture
def net():
    net = Tied().eval()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net


TOKENS = torch.arange(24).reshape(2, 12)


def same_bits(a, b):
    def described(state):
        words = {name: tensor.contiguous().reshape(-1).view(torch.uint8).tolist() for name, tensor in state.items()}
        return {name: (tensor.dtype, tensor.shape, words[name]) for name, tensor in state.items()}

    return described(a) == described(b)


def test_lossless_module_runs_from_the_file_alone_with_any_batch(net, tmp_path):
    report = deepcomp.compress(net, tmp_path / "x.dcz", example_inputs=TOKENS)
    assert not report.warnings
    back = deepcomp.load(tmp_path / "x.dcz")
    assert not back.training
    for batch in (1, 2, 5):
        tokens = torch.randint(0, 50, (batch, 12))
        assert (back(tokens) - net(tokens)).abs().max() < 1e-5
    assert same_bits(back.state_dict(), net.state_dict())
    assert back.get_parameter("out.weight") is back.get_parameter("embed.weight")


def test_loading_into_the_users_own_class(net, tmp_path):
    deepcomp.compress(net, tmp_path / "x.dcz", example_inputs=TOKENS)
    other = Tied()
    assert deepcomp.load(tmp_path / "x.dcz", into=other) is other
    assert same_bits(other.state_dict(), net.state_dict())
    with pytest.raises(InputError, match="does not fit Linear"):
        deepcomp.load(tmp_path / "x.dcz", into=nn.Linear(2, 2))


def test_a_loaded_module_can_be_trained(net, tmp_path):
    deepcomp.compress(net, tmp_path / "x.dcz", recipe="uniform", example_inputs=TOKENS)
    back = deepcomp.load(tmp_path / "x.dcz")
    before = copy.deepcopy(back.state_dict())
    optimiser = torch.optim.SGD(back.parameters(), 0.1)
    F.cross_entropy(back(TOKENS).reshape(-1, 50), TOKENS.reshape(-1)).backward()
    optimiser.step()
    assert not torch.equal(back.state_dict()["conv.weight"], before["conv.weight"])


def test_the_network_given_is_left_as_it_was(net, tmp_path):
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    net.train()
    deepcomp.compress(net, tmp_path / "x.dcz", recipe="deep-compression", example_inputs=TOKENS)
    assert net.training
    assert same_bits(net.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_alone_without_example_input_and_the_reason_is_given(net, tmp_path):
    with pytest.warns(UserWarning, match="weights alone are stored: no example input was given") as caught:
        report = deepcomp.compress(net, tmp_path / "x.dcz")
    assert [str(warning.message) for warning in caught] == report.warnings
    assert caught[0].filename == __file__
    assert same_bits(deepcomp.load_state_dict(tmp_path / "x.dcz"), net.state_dict())
    with pytest.raises(InputError, match="without a graph"):
        deepcomp.load(tmp_path / "x.dcz")


def test_a_network_that_cannot_be_captured_still_compresses_and_names_the_operation(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.linalg.svdvals(self.fc(x))

    with pytest.warns(UserWarning, match="svd"):
        deepcomp.compress(Odd(), tmp_path / "x.dcz", example_inputs=torch.randn(3, 2, 4))
    assert len(deepcomp.load_state_dict(tmp_path / "x.dcz")) == 2


def test_one_tensor_is_read_without_the_others(net, tmp_path):
    deepcomp.compress(net, tmp_path / "x.dcz", example_inputs=TOKENS)
    with deepcomp.open(tmp_path / "x.dcz") as file:
        assert set(file.keys()) == set(net.state_dict())
        for name in reversed(file.keys()):
            assert torch.equal(file.get_tensor(name), net.state_dict()[name])
        assert file.metadata["recipe"] == "lossless"
        with pytest.raises(KeyError, match="nope"):
            file.get_tensor("nope")


def test_equal_tensors_are_stored_once_but_do_not_share_memory(tmp_path):
    one = torch.randn(100, 100)
    deepcomp.compress({"a": one, "b": one.clone()}, tmp_path / "x.dcz")
    state = deepcomp.load_state_dict(tmp_path / "x.dcz")
    assert torch.equal(state["a"], state["b"])
    assert state["a"].data_ptr() != state["b"].data_ptr()
    assert (tmp_path / "x.dcz").stat().st_size < 1.1 * one.nbytes


@pytest.mark.parametrize("recipe", ["lossless", "uniform", "deep-compression"])
def test_same_bytes_whatever_the_jobs_and_as_often_as_wanted(net, tmp_path, recipe):
    files = []
    for i, jobs in enumerate((1, 2, 2, 1)):
        report = deepcomp.compress(net, tmp_path / f"{i}.dcz", recipe=recipe, example_inputs=TOKENS, jobs=jobs, seed=3)
        files.append((tmp_path / f"{i}.dcz").read_bytes())
        assert report.sha256 == hashlib.sha256(files[-1]).hexdigest()
        assert report.output_bytes == len(files[-1])
    assert len(set(files)) == 1


def test_every_byte_is_accounted_for(net, tmp_path):
    deepcomp.compress(net, tmp_path / "x.dcz", recipe="uniform", example_inputs=TOKENS)
    found = deepcomp.inspect(tmp_path / "x.dcz")
    assert sum(row["bytes"] for row in found["tensors"]) + sum(found["frame"].values()) == found["bytes"]
    for row in found["tensors"]:
        assert sum(row["parts"].values()) == row["bytes"]
    forms = {row["name"]: row["form"] for row in found["tensors"]}
    assert forms["embed.weight"] == "grid8"
    assert forms["out.weight"] == "tied to embed.weight"


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5"])
def test_frame_of_a_small_network_is_small(name, tmp_path):
    deepcomp.compress(zoo.build(name), tmp_path / "x.dcz", recipe="uniform", example_inputs=zoo.example(name))
    assert sum(deepcomp.inspect(tmp_path / "x.dcz")["frame"].values()) <= 350


def test_every_kind_of_input_gives_the_same_weights(net, tmp_path):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors", {"format": "pt", "note": "hello"})
    torch.save(net.state_dict(), tmp_path / "b.pt")
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "c.pth")
    (tmp_path / "shards").mkdir()
    names = list(state)
    for i, part in enumerate((names[:3], names[3:])):
        save_file({name: state[name] for name in part}, tmp_path / "shards" / f"m-{i}.safetensors")
    index = {"weight_map": {name: f"m-{int(name in names[3:])}.safetensors" for name in names}}

    (tmp_path / "shards" / "m.safetensors.index.json").write_text(json.dumps(index))
    deepcomp.compress(net, tmp_path / "d.dcz", example_inputs=TOKENS)
    for source in ("a.safetensors", "b.pt", "c.pth", "shards", "d.dcz"):
        deepcomp.compress(tmp_path / source, tmp_path / "x.dcz", force=True)
        assert same_bits(deepcomp.load_state_dict(tmp_path / "x.dcz"), net.state_dict())
    assert (deepcomp.load(tmp_path / "x.dcz")(TOKENS) - net(TOKENS)).abs().max() < 1e-5  # the operations came along
    with deepcomp.open(tmp_path / "x.dcz") as file:
        assert "source" not in file.metadata
    deepcomp.compress(tmp_path / "a.safetensors", tmp_path / "x.dcz", force=True)
    with deepcomp.open(tmp_path / "x.dcz") as file:
        assert file.metadata["source"] == {"format": "pt", "note": "hello"}


def test_weights_of_a_named_model_become_a_module(tmp_path):
    net = zoo.build("lenet-300-100")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    deepcomp.compress(tmp_path / "w.safetensors", tmp_path / "x.dcz", model="lenet-300-100")
    x = torch.rand(3, 1, 28, 28)
    assert (deepcomp.load(tmp_path / "x.dcz")(x) - net(x)).abs().max() < 1e-5
    with pytest.raises(InputError, match="do not fit lenet-5"):
        deepcomp.compress(tmp_path / "w.safetensors", tmp_path / "y.dcz", model="lenet-5")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_weights_stay_so_and_run(kind, tmp_path):
    net = zoo.build("lenet-300-100").to(kind)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    deepcomp.compress(tmp_path / "w.safetensors", tmp_path / "x.dcz", model="lenet-300-100")
    back = deepcomp.load(tmp_path / "x.dcz")
    x = torch.rand(3, 1, 28, 28).to(kind)
    assert torch.equal(back(x), net(x))


def test_quality_is_measured_on_what_the_file_gives_back(tmp_path):
    net = zoo.build("digits-cnn")
    report = deepcomp.compress(net, tmp_path / "x.dcz", recipe="uniform", data="digits")
    assert report.metric["name"] == "accuracy"
    assert report.metric["drop"] == pytest.approx(report.metric["before"] - report.metric["after"])
    assert deepcomp.load(tmp_path / "x.dcz") is not None  # the data gave the example input


class Brittle(nn.Module):
    """A network whose outputs are NaN unless its weights are all `sound`."""

    def __init__(self, sound=1.0):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        nn.init.ones_(self.fc.weight)
        self.sound = sound

    def forward(self, x):
        return torch.where((self.fc.weight == self.sound).all(), self.fc(x), torch.nan)


def labelled(metric, width=4):
    items = [(torch.ones(width), torch.tensor(i % 4)) for i in range(20)]
    return deepcomp.Data(items, items, metric)


@pytest.fixture
def pruning(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "pruning.toml"
    path.write_text("[[step]]\ndo = 'prune'\ndensity = 0.5\n")
    return path


@pytest.mark.parametrize("metric", ["accuracy", None])
@pytest.mark.parametrize(
    ("net", "width", "words"),
    [(Brittle(sound=0.0), 4, "Brittle: 80 of 80 outputs"), (nn.Linear(4, 4), 5, "Linear does not run on this data")],
)
def test_a_network_that_cannot_be_measured_is_an_error_before_any_work(net, width, words, metric, pruning, tmp_path):
    (tmp_path / "x.dcz").write_bytes(b"precious")
    data, example = labelled(metric, width), torch.ones(2, 4)
    with pytest.raises(InputError, match=words):
        deepcomp.compress(net, tmp_path / "x.dcz", recipe=pruning, data=data, example_inputs=example, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.dcz"]
    assert (tmp_path / "x.dcz").read_bytes() == b"precious"


@pytest.mark.parametrize("metric", ["accuracy", None])
@pytest.mark.parametrize("runnable", [True, False])
def test_a_network_broken_by_compression_is_written_and_said_to_be(metric, runnable, pruning, tmp_path, monkeypatch):
    def capture(*_):
        raise CaptureError("not today")

    if not runnable:
        monkeypatch.setattr("deepcomp.job.capture", capture)
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 (all are compared below)
        report = deepcomp.compress(Brittle(), tmp_path / "x.dcz", recipe=pruning, data=labelled(metric))
    assert [str(warning.message) for warning in caught] == report.warnings
    assert re.search("after compression .* cannot be measured: .* NaN", report.warnings[-1])
    assert (report.metric["after"], report.metric["drop"]) == (None, None)
    assert deepcomp.inspect(tmp_path / "x.dcz")["runnable"] == runnable


@pytest.mark.parametrize("seed", [-1, 1 << 64, 10**23])
def test_a_seed_beyond_64_bits_is_refused(seed, tmp_path):
    with pytest.raises(UsageError, match=f"seed = {seed}"):
        deepcomp.compress({"w": torch.ones(3)}, tmp_path / "x.dcz", seed=seed)
    deepcomp.compress({"w": torch.randn(30, 30)}, tmp_path / "x.dcz", recipe="deep-compression", seed=(1 << 64) - 1)


def test_data_without_a_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--model"):
        deepcomp.compress({"w": torch.randn(3, 3)}, tmp_path / "x.dcz", data="digits")
    assert not list(tmp_path.iterdir())


def test_largest_size_finds_the_mildest_setting_that_fits(tmp_path):
    weights = {"w": torch.randn(300, 300)}
    sizes = {}
    for bits in (8, 7, 6, 5, 4, 3, 2):
        path = tmp_path / f"{bits}.dcz"
        sizes[bits] = deepcomp.compress(weights, path, recipe="uniform", settings={"quantize.bits": bits}).output_bytes
    report = deepcomp.compress(weights, tmp_path / "x.dcz", recipe="uniform", max_size=sizes[5] + 10)
    assert report.output_bytes == sizes[5] == (tmp_path / "x.dcz").stat().st_size
    assert (tmp_path / "x.dcz").read_bytes() == (tmp_path / "5.dcz").read_bytes()
    assert len(report.points) <= 3
    with pytest.raises(BudgetError, match="at most 1,000 allowed") as caught:
        deepcomp.compress(weights, tmp_path / "y.dcz", recipe="uniform", max_size=1000)
    assert caught.value.report.output_bytes == sizes[2] == (tmp_path / "y.dcz").stat().st_size
    with pytest.raises(InputError, match="exists already"):
        deepcomp.compress(weights, tmp_path / "y.dcz", recipe="uniform", max_size=1000)


def test_largest_drop_finds_the_strongest_setting_that_keeps_it(tmp_path):
    net, data = zoo.build("digits-cnn"), "digits"
    report = deepcomp.compress(net, tmp_path / "x.dcz", recipe="uniform", max_drop=100.0, data=data)
    assert report.points[-1]["value"] == 2
    assert report.output_bytes == min(point["bytes"] for point in report.points)
    with pytest.raises(BudgetError, match=r"a drop of .* at most 0 allowed"):
        deepcomp.compress(net, tmp_path / "y.dcz", recipe="uniform", max_drop=0, data=closeness(net))
    with pytest.raises(UsageError, match="max_drop"):
        deepcomp.compress(net, tmp_path / "z.dcz", recipe="uniform", max_drop=1.0)


def closeness(net, scale=1, validation=None):
    """Data whose metric is how close outputs are to those of `net`: every loss shows."""
    x = scale * torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        test = torch.utils.data.TensorDataset(x, net(x))

    def metric(outputs, targets):
        return -(outputs - targets).abs().max()

    metric.higher_is_better = True
    return deepcomp.Data(test, test, metric, validation)


def test_a_drop_is_judged_on_the_validation_set_and_reported_on_the_test_set(tmp_path):
    net, drops = zoo.build("digits-cnn"), {}
    for scale in (1, 3):
        given = {"data": closeness(net, scale), "pareto": tmp_path / f"{scale}.json"}
        curve = deepcomp.compress(net, tmp_path / f"{scale}.dcz", recipe="uniform", **given).points
        drops[scale] = {point["value"]: point["drop"] for point in curve}
    given = {"recipe": "uniform", "data": closeness(net, 1, validation=closeness(net, 3).test)}
    report = deepcomp.compress(net, tmp_path / "x.dcz", max_drop=1.001 * drops[3][6], **given)
    (chosen,) = (point for point in report.points if point["bytes"] == report.output_bytes)
    assert chosen["value"] == 6
    assert report.metric["drop"] == chosen["drop"] == pytest.approx(drops[1][6])
    assert report.metric["validation"]["drop"] == chosen["validation"]["drop"] == pytest.approx(drops[3][6])
    with pytest.raises(BudgetError, match="a drop of"):
        deepcomp.compress(net, tmp_path / "y.dcz", max_drop=drops[1][8], **given)
    assert "validation" not in deepcomp.compress(net, tmp_path / "z.dcz", **given).metric


def test_the_original_is_measured_once(tmp_path, monkeypatch):
    evaluate, measured = deepcomp.pipeline.evaluate, []

    def noted(module, data):
        measured.append(evaluate(module, data))
        return measured[-1]

    monkeypatch.setattr(deepcomp.pipeline, "evaluate", noted)
    net = zoo.build("digits-cnn")
    report = deepcomp.compress(net, tmp_path / "x.dcz", recipe="uniform", data="digits", max_drop=50.0)
    assert len(measured) == 1 + len(report.points)


def test_both_budgets_are_met_or_it_is_said(tmp_path):
    net = zoo.build("digits-cnn")
    data = closeness(net)
    free = deepcomp.compress(net, tmp_path / "0.dcz", recipe="uniform", data=data, pareto=tmp_path / "c.json")
    size, drop = sorted((point["bytes"], point["drop"]) for point in free.points)[2]
    both = {"recipe": "uniform", "data": data, "max_size": size}
    assert deepcomp.compress(net, tmp_path / "1.dcz", **both, max_drop=1.01 * drop).output_bytes == size
    with pytest.raises(BudgetError, match=r"a drop of .* is the least that fits the size") as caught:
        deepcomp.compress(net, tmp_path / "2.dcz", **both, max_drop=0.99 * drop)
    assert caught.value.report.output_bytes == size == (tmp_path / "2.dcz").stat().st_size


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"max_size": 0}, "max_size = 0"),
        ({"max_size": -5}, "max_size = -5"),
        ({"max_size": "3 apples"}, "'3 apples'"),
        ({"max_size": 2.5}, r"max_size = 2\.5"),
        ({"max_drop": -0.5}, r"max_drop = -0\.5"),
        ({"max_drop": float("nan")}, "max_drop = nan"),
        ({"max_drop": float("inf")}, "max_drop = inf"),
        ({"max_drop": "much"}, "max_drop = 'much'"),
    ],
    ids=str,
)
def test_budgets_that_are_none_are_refused(budget, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        deepcomp.compress({"w": torch.ones(3)}, tmp_path / "x.dcz", recipe="uniform", data="digits", **budget)


def test_a_size_may_be_written_as_on_the_command_line(tmp_path):
    report = deepcomp.compress({"w": torch.randn(50, 50)}, tmp_path / "x.dcz", recipe="uniform", max_size="1.5kB")
    assert report.output_bytes <= 1500
    assert report.points


@pytest.mark.parametrize(
    ("pareto", "words"),
    [
        ("c.svg", r"c\.svg: .* another name expected"),
        ("x.dcz", r"x\.dcz: .* another name expected"),
        ("./x.dcz", "another name expected"),
        ("in.safetensors", "another name expected"),
        ("in.json", r"in\.svg: .*exists already"),
        ("there.json", r"there\.json: exists already"),
        ("none/c.json", "none"),
        (".", "folder"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_curve_replaces_nothing_unasked_and_never_what_is_read(pareto, words, force, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.randn(20, 20)}, "in.safetensors")
    files = {"in.safetensors": (tmp_path / "in.safetensors").read_bytes(), "in.svg": b"svg", "there.json": b"json"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    if force and "exists" in words:
        deepcomp.compress("in.safetensors", "x.dcz", recipe="uniform", pareto=pareto, force=True)
        return
    with pytest.raises((InputError, UsageError), match=words):
        deepcomp.compress("in.safetensors", "x.dcz", recipe="uniform", pareto=pareto, force=force)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_the_input_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(3)}, "in.safetensors")
    before = (tmp_path / "in.safetensors").read_bytes()
    with pytest.raises(UsageError, match="another name expected"):
        deepcomp.compress("in.safetensors", "./in.safetensors", force=True)
    assert (tmp_path / "in.safetensors").read_bytes() == before


def test_a_curve_without_matplotlib_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "deepcomp.report.plot", raising=False)
    with pytest.raises(UsageError, match="matplotlib, which is not installed"):
        deepcomp.compress({"w": torch.ones(3)}, tmp_path / "x.dcz", recipe="uniform", pareto=tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def test_a_budget_ends_where_a_link_leads(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/x.dcz")
    deepcomp.compress({"w": torch.randn(50, 50)}, tmp_path / "link", recipe="uniform", max_size=2000)
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["x.dcz"]


def test_curve_is_written_and_drawn(tmp_path):
    weights = {"w": torch.randn(50, 50)}
    report = deepcomp.compress(weights, tmp_path / "x.dcz", recipe="uniform", pareto=tmp_path / "c.json")
    curve = json.loads((tmp_path / "c.json").read_text())
    assert [point["value"] for point in curve["points"]] == [8, 7, 6, 5, 4, 3, 2]
    assert [point["bytes"] for point in curve["points"]] == sorted((p["bytes"] for p in curve["points"]), reverse=True)
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    assert report.output_bytes == curve["points"][0]["bytes"]  # the recipe's own setting


@pytest.mark.parametrize("recipe", ["deep-compression", "uniform"])
def test_weights_of_which_nothing_is_left_survive_the_file(recipe, tmp_path):
    weights = {"zero": torch.zeros(8, 6), "half": torch.zeros(4, 4).half(), "tiny": torch.randn(1, 2)}
    settings = {"prune.density": 0.2} if recipe == "deep-compression" else {}
    deepcomp.compress(weights, tmp_path / "x.dcz", recipe=recipe, settings=settings)
    state = deepcomp.load_state_dict(tmp_path / "x.dcz")
    assert not state["zero"].any()
    read = {tensor.name: tensor for tensor in decode((tmp_path / "x.dcz").read_bytes()).tensors}
    assert {name: read[name].data for name in read} == {name: to_words(state[name]).tobytes() for name in weights}


def test_more_than_max_bytes_is_refused_before_it_unfolds(tmp_path):
    deepcomp.compress({"w": torch.zeros(1000, 1000)}, tmp_path / "x.dcz")
    assert (tmp_path / "x.dcz").stat().st_size < 300
    with pytest.raises(FormatError, match="at most 100000 allowed"):
        deepcomp.load_state_dict(tmp_path / "x.dcz", max_bytes=100_000)
    assert deepcomp.load_state_dict(tmp_path / "x.dcz")["w"].shape == (1000, 1000)


def test_verify_measures_the_error_of_each_tensor(tmp_path):
    weights = {"w": torch.randn(40, 40), "b": torch.randn(40)}
    deepcomp.compress(weights, tmp_path / "x.dcz", recipe="uniform", settings={"quantize.bits": 6})
    rows = {row["name"]: row for row in deepcomp.verify(tmp_path / "x.dcz", against=weights)["tensors"]}
    assert rows["b"]["identical"]
    error = deepcomp.load_state_dict(tmp_path / "x.dcz")["w"] - weights["w"]
    assert rows["w"]["largest"] == pytest.approx(error.abs().max().item())
    assert rows["w"]["rms"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    for other in ({"w": weights["w"]}, {**weights, "b": torch.randn(41)}, {**weights, "b": weights["b"].double()}):
        with pytest.raises(FormatError):
            deepcomp.verify(tmp_path / "x.dcz", against=other)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"w": [1, 2]}, "a tensor under a text name"),
        ({3: torch.zeros(2)}, "a tensor under a text name"),
        ({"w": torch.zeros(3, 3).to_sparse()}, "w: .*dense"),
        ({"w": torch.zeros(3, 3, device="meta")}, "w: .*meta"),
        (3, "int found"),
    ],
    ids=str,
)
def test_what_cannot_be_compressed_is_named(wrong, words, tmp_path):
    with pytest.raises((InputError, UsageError), match=words):
        deepcomp.compress(wrong, tmp_path / "x.dcz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros([1] * 33), "w: 33 dimensions found, at most 32 expected"),
        (torch.zeros(0, 2**61), "w: "),
    ],
    ids=["33 dimensions", "a size beyond all bounds"],
)
def test_what_no_reader_takes_is_not_written(tensor, words, tmp_path):
    (tmp_path / "x.dcz").write_bytes(b"precious")
    with pytest.raises(InputError, match=words):
        deepcomp.compress({"v": torch.ones(3), "w": tensor}, tmp_path / "x.dcz", force=True)
    assert (tmp_path / "x.dcz").read_bytes() == b"precious"
    deepcomp.compress({"w": torch.zeros([1] * 32), "v": torch.zeros(0, 2**60)}, tmp_path / "x.dcz", force=True)
    assert deepcomp.load_state_dict(tmp_path / "x.dcz")["v"].shape == (0, 2**60)


def test_metadata_that_no_reader_takes_is_not_written(tmp_path):
    (tmp_path / "x.dcz").write_bytes(b"precious")
    save_file({"w": torch.ones(3)}, tmp_path / "x.safetensors", {"note": "é" * 2**19})
    with pytest.raises(InputError, match=r"metadata of 1048[0-9]+ bytes found, at most 1048576 expected"):
        deepcomp.compress(tmp_path / "x.safetensors", tmp_path / "x.dcz", force=True)
    assert (tmp_path / "x.dcz").read_bytes() == b"precious"


def test_views_and_strides_come_back_as_values(tmp_path):
    base = torch.randn(20, 30)
    weights = {"t": base.t(), "strided": base[::2, 1::3], "expanded": base[0].expand(7, 30)}
    weights["conj"] = torch.randn(4, dtype=torch.complex64).conj()
    deepcomp.compress(weights, tmp_path / "x.dcz")
    state = deepcomp.load_state_dict(tmp_path / "x.dcz")
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    old = {"w": torch.randn(60, 60)}
    deepcomp.compress(old, tmp_path / "x.dcz")
    code = f"""
        import torch, deepcomp
        print("ready", flush=True)
        for i in range(10**6):
            weights = {{f"w{{i}}_{{j}}": torch.randn(200, 300) for j in range(6)}}
            deepcomp.compress(weights, {str(tmp_path / "x.dcz")!r}, force=True)
    """
    for delay in (0.02, 0.05, 0.11, 0.17, 0.3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert deepcomp.verify(tmp_path / "x.dcz")["tensors"]


def test_nan_in_a_lossless_file_is_kept_and_in_a_lossy_one_refused(tmp_path):
    weights = {"w": torch.full((5, 5), float("nan"))}
    deepcomp.compress(weights, tmp_path / "x.dcz")
    assert same_bits(deepcomp.load_state_dict(tmp_path / "x.dcz"), weights)
    for recipe in ("uniform", "deep-compression"):
        with pytest.raises(InputError, match="w: 25 of 25"):
            deepcomp.compress(weights, tmp_path / "y.dcz", recipe=recipe)
    assert not (tmp_path / "y.dcz").exists()


def test_a_step_that_needs_operations_says_why_there_are_none(tmp_path):
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 3)

        def forward(self, x):
            return self.a(x) if float(x.sum()) > 0 else self.a(-x)

    with pytest.raises(InputError, match=r"fold-bn: the network's operations expected \(.*data-dependent"):
        deepcomp.compress(Deciding(), tmp_path / "x.dcz", recipe="ptq", example_inputs=torch.randn(2, 8))
