"""Filters leave the network: which ones, what is left of it, and what the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model import zoo
from deepcomp.model.capture import capture
from deepcomp.network import Network
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.steps.prune_filters import PruneFilters
from deepcomp.weights import Raw

RECIPE = '[[step]]\ndo = "prune-filters"\ndensity = 0.5\n'


def network(module: nn.Module, inputs: Any) -> Network:
    captured = capture(module.eval(), inputs)
    state = module.state_dict()
    roles = {name: int(name not in dict(module.named_parameters(remove_duplicate=False))) for name in state}
    return Network({**state, **captured.constants}, roles, captured=captured, module=module)


def lenet() -> Network:
    return network(zoo.build("lenet-5"), zoo.example("lenet-5"))


def conv(*filters: int, norms: bool = True) -> nn.Sequential:
    """Convolutions of so many filters, each with a batch norm and an activation."""
    layers: list[nn.Module] = []
    for read, made in zip((3, *filters), filters, strict=False):
        layers += [nn.Conv2d(read, made, 3, padding=1), *([nn.BatchNorm2d(made)] if norms else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters[-1] * 16, 2))


IMAGES = torch.zeros(2, 3, 4, 4)


# ---------------------------------------------------------------- which filters go


def test_each_layer_keeps_its_share_of_filters_with_the_largest_l1_norms() -> None:
    net = lenet()
    before = {name: tensor.clone() for name, tensor in net.tensors.items()}
    PruneFilters(density=0.3).run(net)
    assert {name: tuple(tensor.shape) for name, tensor in net.tensors.items()} == {
        "conv1.weight": (6, 1, 5, 5), "conv1.bias": (6,), "conv2.weight": (15, 6, 5, 5), "conv2.bias": (15,),
        "fc1.weight": (150, 15 * 16), "fc1.bias": (150,), "fc2.weight": (10, 150), "fc2.bias": (10,),
    }  # fmt: skip
    best = before["conv1.weight"].abs().sum((1, 2, 3)).topk(6).indices.sort().values
    assert torch.equal(net.tensors["conv1.weight"], before["conv1.weight"][best])
    assert torch.equal(net.tensors["conv1.bias"], before["conv1.bias"][best])


def test_a_table_says_it_layer_by_layer_and_layers_it_does_not_name_stay() -> None:
    net = lenet()
    PruneFilters(density={"conv1": 0.4, "fc1": 0.128, "fc*": 0.5}).run(net)
    shapes = [tuple(net.tensors[f"{name}.weight"].shape) for name in ("conv1", "conv2", "fc1", "fc2")]
    assert shapes == [(8, 1, 5, 5), (50, 8, 5, 5), (64, 800), (10, 64)]


def test_filters_that_go_together_keep_what_the_table_says_of_the_first_it_names() -> None:
    net = network(zoo.build("resnet20"), zoo.example("resnet20"))
    PruneFilters(density={"layer1.1.conv2": 0.25}).run(net)
    for name in ("conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight"):
        assert len(net.tensors[name]) == 4
    assert len(net.tensors["layer1.1.conv1.weight"]) == 16


def test_a_table_names_layers_there_are_and_no_threshold_for_all() -> None:
    with pytest.raises(UsageError, match="layers 'conv9': no tensor has such a name"):
        PruneFilters(density={"conv9": 0.5}).run(lenet())
    with pytest.raises(UsageError, match="one density expected, a table found"):
        PruneFilters(density={"conv1": 0.5}, per="network")


def test_of_equal_filters_the_first_stay() -> None:
    net = network(conv(4), IMAGES)
    weight = torch.ones(4, 3, 3, 3)
    net.tensors = {**net.tensors, "0.weight": weight, "0.bias": torch.arange(4.0)}
    PruneFilters(density=0.5).run(net)
    assert net.tensors["0.bias"].tolist() == [0, 1]


def test_the_scale_of_the_batch_norm_decides_where_it_ranks() -> None:
    net = network(conv(4), IMAGES)
    net.tensors = {**net.tensors, "1.weight": torch.tensor([0.1, -3.0, 0.2, 2.0]), "1.bias": torch.arange(4.0)}
    PruneFilters(density=0.5, rank="bn-scale").run(net)
    assert net.tensors["1.bias"].tolist() == [1, 3]


def test_one_threshold_for_the_network_takes_the_least_wherever_they_are() -> None:
    net = network(conv(4, 6), IMAGES)
    scales = {"1.weight": torch.tensor([9.0, 8, 7, 6]), "4.weight": torch.tensor([1.0, 7.5, 2, 3, 4, 5])}
    net.tensors = {**net.tensors, **scales}
    said = PruneFilters(density=0.5, rank="bn-scale", per="network").run(net)
    assert net.tensors["1.weight"].tolist() == [9, 8, 7, 6]
    assert net.tensors["4.weight"].tolist() == [7.5]
    assert (said["filters"], said["filters_before"]) == (4 + 1 + 2, 4 + 6 + 2)


def test_layers_of_different_fan_in_are_compared_by_relative_norms() -> None:
    net = network(conv(4, 4, norms=False), IMAGES)
    size = torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1, 1)
    weights = {"0.weight": size.expand(4, 3, 3, 3).clone(), "2.weight": 0.01 * size.expand(4, 4, 3, 3)}
    net.tensors = {**net.tensors, **weights}
    PruneFilters(density=0.5, per="network").run(net)
    assert net.tensors["0.weight"][:, 0, 0, 0].tolist() == [3, 4]
    assert net.tensors["2.weight"].shape == (2, 2, 3, 3)


@pytest.mark.parametrize("per", ["layer", "network"])
def test_a_filter_of_each_layer_stays(per: str) -> None:
    net = lenet()
    PruneFilters(density=0.0, per=per).run(net)
    assert net.tensors["fc1.weight"].shape == (1, 16)
    assert net.module is not None
    assert net.module(zoo.example("lenet-5")[0]).shape == (2, 10)


@pytest.mark.parametrize(
    ("multiple", "kept"), [(1, [6, 15, 150]), (4, [8, 16, 152]), (7, [7, 14, 147]), (32, [20, 32, 160])]
)
def test_filters_kept_are_rounded_to_a_multiple(multiple: int, kept: list[int]) -> None:
    net = lenet()
    PruneFilters(density=0.3, multiple=multiple).run(net)
    assert [net.tensors[name].shape[0] for name in ("conv1.weight", "conv2.weight", "fc1.weight")] == kept


def test_filters_of_a_residual_network_go_together() -> None:
    net = network(zoo.build("resnet20"), zoo.example("resnet20"))
    said = PruneFilters(density=0.5).run(net)
    shapes = {tuple(tensor.shape) for name, tensor in net.tensors.items() if "conv" in name}
    assert shapes == {(8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3)}
    assert said["skipped"] == {"linear.weight": "tied to the network's outputs"}


# ---------------------------------------------------------------- what stays


def test_layers_and_skip_choose_and_the_report_says_why_others_stay() -> None:
    net = lenet()
    said = PruneFilters(density=0.5, layers="conv*, fc2").run(net)
    assert net.tensors["fc1.weight"].shape == (500, 25 * 16)
    assert said["skipped"] == {"fc2.weight": "tied to the network's outputs"}
    assert (said["filters"], said["filters_before"]) == (10 + 25 + 500 + 10, 20 + 50 + 500 + 10)


def test_a_filter_tied_to_one_that_is_skipped_stays() -> None:
    net = network(zoo.build("resnet20"), zoo.example("resnet20"))
    said = PruneFilters(density=0.5, skip="conv1").run(net)
    assert net.tensors["layer1.0.conv2.weight"].shape == (16, 8, 3, 3)
    assert said["skipped"]["layer1.0.conv2.weight"] == "tied to conv1.weight, which is not to be pruned"
    assert net.tensors["layer2.0.conv2.weight"].shape == (24, 16, 3, 3)  # those the second stage adds are free


def test_without_a_batch_norm_its_scale_cannot_rank() -> None:
    net = network(conv(4, norms=False), IMAGES)
    said = PruneFilters(rank="bn-scale").run(net)
    assert said["skipped"]["0.weight"] == "no batch norm scales its filters"
    assert said["filters"] == said["filters_before"]


def test_recurrent_weights_stay_with_reasons() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(x)
            return self.out(y)

    net = network(Recurrent(), torch.zeros(2, 4, 6))
    module, tensors = net.module, dict(net.tensors)
    said = PruneFilters().run(net)
    assert set(said["skipped"]) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "out.weight"}
    assert all(net.tensors[name] is tensor for name, tensor in tensors.items())
    assert net.module is module


# ---------------------------------------------------------------- what is left


def test_the_module_left_is_a_copy_that_runs_and_trains(randn: Any) -> None:
    whole = conv(4, 6)
    net = network(whole, IMAGES)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    PruneFilters(density=0.5).run(net)
    assert isinstance(net.module, Interpreter)
    assert net.module.state_dict().keys() == before.keys()
    x = randn(8, 3, 4, 4)
    torch.testing.assert_close(net.module(x), Interpreter(
        net.captured.graph, net.captured.names, [(n, t, "buffer") for n, t in net.tensors.items()])(x))  # fmt: skip
    net.module.train()(x).square().mean().backward()
    torch.optim.SGD(net.module.parameters(), 0.1).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.c(self.b(self.a(x).relu()).relu()))

    net = network(Tied(), torch.zeros(2, 4))
    net.tied = {"c.weight": "b.weight"}
    PruneFilters(density=0.5).run(net)
    assert net.tensors["c.weight"] is net.tensors["b.weight"]
    assert net.tensors["b.weight"].shape == (4, 4)
    shared = dict(net.module.named_parameters(remove_duplicate=False))
    assert shared["c.weight"] is shared["b.weight"]


def test_a_share_of_one_leaves_the_network_alone() -> None:
    net = lenet()
    module, graph = net.module, net.captured
    said = PruneFilters(density=1.0).run(net)
    assert (net.module, net.captured) == (module, graph)
    assert said["weights"] == said["weights_before"]


def test_it_can_be_repeated() -> None:
    net = lenet()
    for _ in range(2):
        PruneFilters(density=0.5).run(net)
    assert net.tensors["conv2.weight"].shape == (12, 5, 5, 5)


def test_a_weight_that_has_a_form_is_refused() -> None:
    net = lenet()
    net.store("conv2.weight", Raw(net.tensors["conv2.weight"]))
    with pytest.raises(UsageError, match=r"prune-filters: conv2\.weight has a form already"):
        PruneFilters().run(net)
    assert net.tensors["conv1.weight"].shape[0] == 20


def test_weights_alone_are_refused() -> None:
    with pytest.raises(InputError, match="prune-filters: the network's operations expected"):
        PruneFilters().run(Network({"a.weight": torch.ones(4, 4)}))


@pytest.mark.parametrize(
    "wrong", [{"density": 1.1}, {"density": {"fc1": -1}}, {"rank": "l2"}, {"per": "filter"}, {"multiple": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"prune-filters.{next(iter(wrong))} = "):
        PruneFilters(**wrong)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["lenet-300-100", "digits-cnn", "resnet20"])
def test_the_file_runs_and_holds_what_is_left(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "narrow.toml"
    recipe.write_text(RECIPE)
    module, (x,) = zoo.build(name), zoo.example(name)
    net = network(module, x)
    said = PruneFilters(density=0.5).run(net)
    whole = deepcomp.compress(module, tmp_path / "whole.dcz", example_inputs=x)
    first = deepcomp.compress(module, tmp_path / "first.dcz", recipe=recipe, example_inputs=x)
    again = deepcomp.compress(module, tmp_path / "again.dcz", recipe=recipe, example_inputs=x, jobs=2)
    loaded = deepcomp.load(tmp_path / "first.dcz")
    assert net.module is not None
    with torch.no_grad():
        assert torch.equal(loaded(x), net.module(x))
    weights = sum(parameter.numel() for parameter in loaded.parameters())
    assert weights == said["weights"] == first.steps[0]["weights"]
    assert said["weights_before"] == sum(parameter.numel() for parameter in module.parameters())
    assert first.output_bytes < 0.6 * whole.output_bytes
    assert first.sha256 == again.sha256
    assert {row["name"]: row["shape"] for row in first.tensors} == {n: list(t.shape) for n, t in net.tensors.items()}
