"""Batch norms folded into the layers before them: the same outputs, and what is left in the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import NAMES, every, network, same
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.network import Network
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.weights import Raw
from deepcomp.weights.grid import grid_of


class Written(nn.Module):
    """Modules by name, and a `forward` of one line."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def ops_of(net: Network) -> list[str]:
    assert net.captured is not None
    return [node.op for node in net.captured.graph.nodes]


def outputs(module: nn.Module | None, x: Tensor) -> Any:
    assert module is not None
    with torch.no_grad():
        return module(x)


IMAGE = torch.zeros(2, 3, 6, 6)


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("name", NAMES)
def test_outputs_stay_what_they_are(name: str) -> None:
    module, x = every()[name]
    net = network(module, x)
    before = outputs(module, x)
    said = FoldBN().run(net)
    assert same(outputs(net.module, x), before)
    assert ops_of(net).count("batch_norm") == len(said["skipped"])
    left = {"mixed": {"norm2", "norm3"}, "grouped": {"n3"}}
    assert said["skipped"].keys() == left.get(name, set())


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6), torch.randn(3, 4, 7)),
        (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), torch.randn(3, 4, 7, 7)),
        (nn.Conv3d(4, 4, 2, groups=4), nn.BatchNorm3d(4, affine=False), torch.randn(3, 4, 5, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6), torch.randn(3, 4, 7)),
        (nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6, affine=False), torch.randn(3, 4, 7, 7)),
        (nn.ConvTranspose3d(4, 8, 2, groups=4), nn.BatchNorm3d(8, eps=0.1), torch.randn(3, 4, 5, 5, 5)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), torch.randn(3, 4)),
    ],
)
def test_every_kind_of_layer_takes_one(layer: nn.Module, norm: nn.Module, x: Tensor) -> None:
    module = nn.Sequential(layer, norm)
    net = network(module, x)
    before = outputs(module, x)
    assert FoldBN().run(net) == {"folded": {"0.weight": "the caller"}, "skipped": {}}
    assert len(ops_of(net)) == 1
    assert same(outputs(net.module, x), before)
    assert list(net.tensors) == ["0.weight", "0.bias"]


def test_a_product_written_by_hand_takes_one_where_it_has_a_bias() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
            self.c, self.norm1, self.norm2 = nn.Parameter(torch.randn(4, 4)), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm2(self.norm1(torch.addmm(self.b, x, self.a)).mm(self.c))

    module, x = Net(), torch.randn(5, 3)
    net = network(module, x)
    before = outputs(module, x)
    assert FoldBN().run(net) == {"folded": {"a": "mm"}, "skipped": {"norm2": "its matmul takes no bias"}}
    assert same(outputs(net.module, x), before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_stay_of_their_type(kind: torch.dtype) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).to(kind)
    net = network(module, IMAGE.to(kind))
    FoldBN().run(net)
    assert [tensor.dtype for tensor in net.tensors.values()] == [kind, kind]
    x = torch.randn(2, 3, 6, 6).to(kind)
    assert same(outputs(net.module, x), outputs(module, x), 1e-10 if kind == torch.float64 else 0.03)


def test_arithmetic_is_that_of_float64() -> None:
    """Statistics that would cancel in float32: a mean of 1e4 beside a bias of as much."""
    conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    net = network(nn.Sequential(conv, norm), IMAGE)
    conv.bias.data.uniform_(1e4, 1e4 + 1)
    norm.running_mean.uniform_(1e4, 1e4 + 1)
    FoldBN().run(net)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = norm.bias + (conv.bias.double() - norm.running_mean.double()) * scale
    assert torch.equal(net.tensors["0.bias"], expected.float())


# ---------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    ("run", "norm", "why"),
    [
        (lambda m, x: m.norm(m.a(x) + x), nn.BatchNorm2d(3), {"norm": "add comes before it, not a layer"}),
        (lambda m, x: m.norm(x), nn.BatchNorm2d(3), {"norm": "the input x comes before it, not a layer"}),
        (lambda m, x: m.norm(F.relu(m.a(x))), nn.BatchNorm2d(3), {"norm": "relu comes before it, not a layer"}),
        (lambda m, x: m.norm(m.a(x)) + m.b(x), nn.BatchNorm2d(3), {}),
        (lambda m, x: m.norm(m.a(x)) + m.a(x), nn.BatchNorm2d(3),
         {"norm": "its output is read by batch_norm and add"}),
        (lambda m, x: m.norm(m.a(m.a(x))), nn.BatchNorm2d(3), {"norm": "its weight is used 2 times"}),
        (lambda m, x: (m.norm(m.a(x)), m.a(x)), nn.BatchNorm2d(3),
         {"norm": "its output is read by batch_norm and the caller"}),
        (lambda m, x: m.norm(m.a(x)), nn.BatchNorm2d(3, track_running_stats=False),
         {"norm": "it has no running statistics"}),
        (lambda m, x: m.norm(m.a(x)), nn.BatchNorm2d(3, affine=False, track_running_stats=False),
         {"operation 1": "it has no running statistics"}),
        (lambda m, x: F.batch_norm(m.a(x), m.norm.running_mean * 2, m.norm.running_var), nn.BatchNorm2d(3),
         {"norm": "its scales or statistics are computed"}),
    ],
)  # fmt: skip
def test_places_left_alone_say_why(run: Any, norm: nn.Module, why: dict[str, str]) -> None:
    module = Written(run, a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 3, 3, padding=1), norm=norm)
    net = network(module, IMAGE)
    x = torch.randn(2, 3, 6, 6)
    before, kept = outputs(module, x), net.module
    assert FoldBN().run(net)["skipped"] == why
    after = outputs(net.module, x)
    assert same(after[0], before[0]) if isinstance(after, tuple) else same(after, before)
    assert (net.module is kept) == bool(why)


def test_an_axis_that_is_not_the_channels_is_left_alone_though_sizes_fit() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    net = network(module, torch.zeros(2, 6, 4))
    assert FoldBN().run(net)["skipped"] == {
        "1": "the channels of 0.weight lie along another axis than the one it normalises"
    }


def test_one_batch_norm_may_fold_into_several_layers_and_stays_where_it_cannot() -> None:
    parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3)}
    x = torch.randn(2, 3, 6, 6)
    module = Written(lambda m, x: m.norm(m.b(F.relu(m.norm(m.a(x))))), **parts)
    net = network(module, IMAGE)
    assert FoldBN().run(net) == {"folded": {"a.weight": "relu", "b.weight": "the caller"}, "skipped": {}}
    assert same(outputs(net.module, x), outputs(module, x))
    assert not any(name.startswith("norm") for name in net.tensors)

    module = Written(lambda m, x: m.norm(F.relu(m.norm(m.a(x)))), **parts)
    net = network(module, IMAGE)
    assert FoldBN().run(net)["folded"] == {"a.weight": "relu"}
    assert same(outputs(net.module, x), outputs(module, x))
    assert {"norm.weight", "norm.running_var", "norm.num_batches_tracked"} <= net.tensors.keys()


def test_layers_and_skip_choose() -> None:
    module, x = every()["digits-cnn"]
    net = network(module, x)
    assert FoldBN(layers="conv*", skip="conv1").run(net) == {"folded": {"conv2.weight": "relu"}, "skipped": {}}
    assert ops_of(net).count("batch_norm") == 1


# ---------------------------------------------------------------- weights on grids


@pytest.mark.parametrize("settings", [{}, {"symmetric": False}, {"power_of_two": True}])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "digits-cnn"])
def test_weights_on_grids_keep_their_integers(name: str, masked: bool, settings: dict[str, Any]) -> None:
    module, x = every()[name]
    net = network(module, x)
    if masked:
        Prune(density=0.5).run(net)
    Quantize(bits=3, **settings).run(net)
    before = outputs(net.interpreter(formed=True), x)
    grids = {weight: grid_of(form).offsets().abs() for weight, form in net.forms.items()}
    said = FoldBN().run(net)
    assert said["folded"]
    assert said["skipped"] == {}
    assert same(outputs(net.interpreter(formed=True), x), before, 1e-4)
    for weight, held in grids.items():
        assert torch.equal(grid_of(net.forms[weight]).offsets().abs(), held)
        assert bool((grid_of(net.forms[weight]).scale > 0).all())
    assert "batch_norm" not in ops_of(net)


def test_a_scale_for_several_channels_leaves_the_batch_norm() -> None:
    module, x = every()["digits-cnn"]
    net = network(module, x)
    Quantize(bits=4, per="tensor", layers="conv1").run(net)
    before, form = outputs(net.interpreter(formed=True), x), net.forms["conv1.weight"]
    said = FoldBN().run(net)
    assert said["skipped"] == {"bn1": "the scales of conv1.weight are not one for each output channel"}
    assert net.forms["conv1.weight"] is form
    assert same(outputs(net.interpreter(formed=True), x), before)


def test_a_weight_that_has_a_form_is_refused() -> None:
    module, x = every()["digits-cnn"]
    net = network(module, x)
    net.store("conv2.weight", Raw(net.tensors["conv2.weight"]))
    with pytest.raises(UsageError, match=r"fold-bn: conv2\.weight has a form already"):
        FoldBN().run(net)
    assert net.module is module


def test_weights_alone_are_refused() -> None:
    with pytest.raises(InputError, match="fold-bn: the network's operations expected"):
        FoldBN().run(Network({"a.weight": torch.ones(4, 4)}))


# ---------------------------------------------------------------- what is known afterwards


def test_the_statistics_of_outputs_are_those_of_the_batch_norm() -> None:
    module, x = every()["mobilenet"]
    net = network(module, x)
    FoldBN().run(net)
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert len(net.statistics) == len(norms) == 11
    for (name, found), norm in zip(net.statistics.items(), norms.values(), strict=True):
        assert net.tensors[name].shape[0] == len(found.mean) == len(found.std)
        assert torch.equal(found.mean, norm.bias.double())
        assert torch.equal(found.std, norm.weight.double().abs())
    plain = network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), IMAGE)
    FoldBN().run(plain)
    known = plain.statistics["0.weight"]
    assert (known.mean.tolist(), known.std.tolist()) == ([0.0] * 4, [1.0] * 4)


def test_statistics_describe_the_outputs_of_a_net_whose_running_ones_are_true() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net, x = network(module, IMAGE), torch.randn(500, 3, 6, 6)
    with torch.no_grad():
        inner = module[0](x)
        module[1].running_mean.copy_(inner.mean((0, 2, 3)))
        module[1].running_var.copy_(inner.var((0, 2, 3)))
    FoldBN().run(net)
    assert net.captured is not None
    layer = next(iter(net.layers("test")))
    assert layer.makes is not None
    ((_, seen),) = net.interpreter().observe([layer.makes.value], x)
    known = net.statistics["0.weight"]
    torch.testing.assert_close(seen.mean((0, 2, 3)).double(), known.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.std((0, 2, 3)).double(), known.std, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- files


def test_the_file_runs_and_holds_no_batch_norm(tmp_path: Path) -> None:
    recipe = tmp_path / "fold.toml"
    recipe.write_text('[[step]]\ndo = "fold-bn"\n[[step]]\ndo = "equalize"\n[[step]]\ndo = "quantize"\n')
    module, x = every()["mobilenet"]
    net = network(module, x)
    FoldBN().run(net)
    reports = [
        deepcomp.compress(module, tmp_path / f"{jobs}.dcz", recipe=recipe, example_inputs=x, jobs=jobs)
        for jobs in (1, 2)
    ]
    assert reports[0].sha256 == reports[1].sha256
    loaded = deepcomp.load(tmp_path / "1.dcz")
    assert same(outputs(loaded, x), outputs(module, x), 0.1)
    names = {row["name"] for row in reports[0].tensors}
    assert set(net.tensors) <= names
    assert {name.rpartition(".")[2] for name in names - set(net.tensors)} == {"lower", "upper"}
    assert loaded.state_dict().keys() == net.tensors.keys()
