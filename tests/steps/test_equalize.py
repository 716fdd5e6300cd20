"""Cross-layer equalisation: the network computes what it did, and both sides of a channel have one range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NAMES, MobileNet, every, network, same
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.network import Network
from deepcomp.steps.equalize import Equalize
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.weights import Raw


def outputs(module: nn.Module | None, x: Tensor) -> Tensor:
    assert module is not None
    with torch.no_grad():
        return module(x)


def rows(weight: Tensor) -> Tensor:
    return weight.flatten(1).abs().amax(1)


def columns(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1).flatten(1).abs().amax(1)


def spread(module: nn.Module) -> nn.Module:
    """The network with channels of very different ranges."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            shape = (-1, *[1] * (part.weight.ndim - 1))
            part.weight.data *= torch.logspace(-2, 2, len(part.weight)).reshape(shape)
    return module


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("name", NAMES)
def test_outputs_stay_what_they_are(name: str) -> None:
    module, x = every()[name]
    net = network(module, x)
    before = outputs(module, x)
    for _ in range(2):
        FoldBN().run(net)
        Equalize().run(net)
        assert same(outputs(net.module, x), before)


@pytest.mark.parametrize(
    "between",
    [
        nn.ReLU6(), nn.Hardtanh(-0.3, 0.7), nn.LeakyReLU(), nn.PReLU(6), nn.Identity(),
        nn.Sequential(nn.ReLU6(), nn.MaxPool2d(2), nn.Hardtanh(-1, 0.5)),
        nn.Sequential(nn.AvgPool2d(2, padding=1), nn.ReLU6(), nn.ZeroPad2d(1)),
    ],
)  # fmt: skip
def test_activations_and_pooling_between_two_convolutions(between: nn.Module, randn: Any) -> None:
    module = spread(nn.Sequential(nn.Conv2d(3, 6, 3), between, nn.Conv2d(6, 4, 3, padding=1)))
    x = randn(4, 3, 9, 9)
    net = network(module, x)
    assert Equalize().run(net)["equalized"] == {"0.weight": "2.weight"}
    assert same(outputs(net.module, x), outputs(module, x))
    torch.testing.assert_close(rows(net.tensors["0.weight"]), columns(net.tensors["2.weight"]))


@pytest.mark.parametrize("clamp", [nn.ReLU6(), nn.Hardtanh(-0.1, 0.2)])
def test_bounds_behind_a_flattened_feature_map(clamp: nn.Module, randn: Any) -> None:
    module = spread(nn.Sequential(nn.Conv2d(3, 6, 3), clamp, nn.Flatten(), clamp, nn.Linear(6 * 16, 4)))
    x = randn(4, 3, 6, 6)
    net = network(module, x)
    for _ in range(2):  # the second time the bounds are those of each channel
        Equalize(tolerance=0).run(net)
        assert same(outputs(net.module, x), outputs(module, x))
    assert net.captured is not None
    shapes = {name: tuple(tensor.shape) for name, tensor in net.captured.constants.items()}
    assert sorted(shapes.values()) == [(1, 6, 1, 1), (1, 6, 1, 1), (1, 96), (1, 96)]
    wide = net.tensors["4.weight"].reshape(4, 6, 16).abs().amax((0, 2))
    torch.testing.assert_close(rows(net.tensors["0.weight"]), wide)


def test_bounds_are_the_cap_over_the_scale() -> None:
    net = network(nn.Sequential(nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 1)), torch.zeros(2, 2))
    first, second = torch.tensor([[4.0, 1.0], [0.5, 1.0]]), torch.tensor([[1.0, -4.0]])
    net.tensors = {**net.tensors, "0.weight": first, "2.weight": second, "0.bias": torch.tensor([3.0, 5.0])}
    Equalize().run(net)
    assert net.tensors["0.weight"].tolist() == [[2.0, 0.5], [1.0, 2.0]]  # s = √(4/1) and √(1/4)
    assert net.tensors["2.weight"].tolist() == [[2.0, -2.0]]
    assert net.tensors["0.bias"].tolist() == [1.5, 10.0]
    assert net.tensors["0.lower"].tolist() == [[0.0, 0.0]]
    assert net.tensors["0.upper"].tolist() == [[3.0, 12.0]]
    assert list(net.tensors) == ["0.weight", "0.bias", "0.lower", "0.upper", "2.weight", "2.bias"]


# ---------------------------------------------------------------- ranges


@settings(deadline=None, max_examples=25)
@given(
    groups=st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3)]),
    transposed=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
def test_both_ranges_become_their_geometric_mean(
    groups: tuple[int, int], transposed: tuple[bool, bool], seed: int
) -> None:
    torch.manual_seed(seed)
    kinds = [nn.ConvTranspose1d if flag else nn.Conv1d for flag in transposed]
    module = nn.Sequential(kinds[0](4, 6, 3, groups=groups[0]), nn.ReLU(), kinds[1](6, 9, 3, groups=groups[1]))
    for part in (module[0], module[2]):
        part.weight.data *= torch.randn(part.weight.shape) ** 3
    x = torch.randn(3, 4, 9)
    net = network(module, x)
    first, second = net.layers("test")
    before = _ranges(net, first, second)
    assert Equalize().run(net)["sweeps"] == 2  # the second finds nothing left to do
    after = _ranges(net, first, second)
    for found in after:
        torch.testing.assert_close(found, (before[0] * before[1]).sqrt(), rtol=1e-5, atol=0)
    assert same(outputs(net.module, x), outputs(module, x))


def _ranges(net: Network, first: Any, second: Any) -> list[Tensor]:
    """Largest magnitudes of what makes and of what reads each channel."""
    found = []
    for layer, whole in ((first, "conv"), (second, "conv_transpose")):
        weight = net.tensors[layer.weight]
        parts = [rows(weight)] if layer.kind == whole else [columns(part) for part in weight.chunk(layer.groups)]
        found.append(torch.cat(parts))
    return found


def test_a_depthwise_layer_and_both_beside_it_get_one_range() -> None:
    module = spread(
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
            nn.ReLU6(), nn.Conv2d(6, 4, 1),
        )
    )  # fmt: skip
    x = torch.randn(4, 3, 9, 9)
    net = network(module, x)
    before = [rows(net.tensors[f"{n}.weight"]) for n in (0, 2, 4)] + [columns(net.tensors["6.weight"])]
    said = Equalize().run(net)
    assert said["sweeps"] == 2
    after = [rows(net.tensors[f"{n}.weight"]) for n in (0, 2, 4)] + [columns(net.tensors["6.weight"])]
    mean = torch.stack(before).log().mean(0).exp()
    for found in after:
        torch.testing.assert_close(found, mean)
    assert same(outputs(net.module, x), outputs(module, x))


def test_a_triple_is_that_of_the_closed_form() -> None:
    """t = ∛(r0 r1 r2); W0 by r0/t, W1 by r0/t over t/r2, W2 by t/r2."""
    module = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1, groups=2), nn.Conv1d(2, 1, 1))
    net = network(module, torch.zeros(2, 1, 4))
    given = {"0.weight": [8.0, 1.0], "1.weight": [1.0, 1.0], "2.weight": [1.0, 27.0]}
    net.tensors |= {name: torch.tensor(v).reshape(net.tensors[name].shape) for name, v in given.items()}
    net.tensors |= {"0.bias": torch.tensor([8.0, 3.0]), "1.bias": torch.tensor([8.0, 3.0])}
    Equalize().run(net)
    expected = {"0.weight": [2, 3], "1.weight": [2, 3], "2.weight": [2, 3], "0.bias": [2, 9], "1.bias": [4, 27]}
    for name, values in expected.items():
        torch.testing.assert_close(net.tensors[name].flatten(), torch.tensor(values).float())


def test_sweeps_go_on_until_no_scale_changes() -> None:
    module = spread(nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(8, 8), nn.ReLU()))))
    x = torch.randn(4, 8)
    net = network(module, x)
    said = Equalize(tolerance=1e-3).run(net)
    assert 2 < said["sweeps"] <= 20
    for first, second in zip((0, 2, 4), (2, 4, 6), strict=True):
        left, right = rows(net.tensors[f"{first}.weight"]), columns(net.tensors[f"{second}.weight"])
        torch.testing.assert_close(left, right, rtol=5e-3, atol=0)
    assert same(outputs(net.module, x), outputs(module, x))
    once = network(module, x)
    assert Equalize(sweeps=1).run(once)["sweeps"] == 1
    assert Equalize().run(net)["sweeps"] == 1


def test_channels_that_nothing_makes_or_reads_are_left_alone() -> None:
    net = network(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(2, 2))
    first, second = torch.rand(4, 2) + 0.1, torch.rand(3, 4) + 0.1
    first[1], second[:, 2], first[3] = 0, 0, 1e-12
    net.tensors = {**net.tensors, "0.weight": first.clone(), "2.weight": second.clone()}
    bias = net.tensors["0.bias"].clone()
    Equalize().run(net)
    for channel in (1, 2, 3):
        assert torch.equal(net.tensors["0.weight"][channel], first[channel])
        assert torch.equal(net.tensors["2.weight"][:, channel], second[:, channel])
        assert net.tensors["0.bias"][channel] == bias[channel]
    torch.testing.assert_close(net.tensors["0.weight"][0].max(), net.tensors["2.weight"][:, 0].max())
    assert all(torch.isfinite(tensor).all() for tensor in net.tensors.values())


def test_it_evens_out_the_ranges_of_a_depthwise_network() -> None:
    module, x = MobileNet(), torch.randn(4, 3, 16, 16)
    net = network(module, x)
    FoldBN().run(net)

    def worst() -> float:
        """How much larger the largest channel of a depthwise convolution is than the median one."""
        found = [rows(t) for name, t in net.tensors.items() if name.endswith("3.weight")]
        return max(float(ranges.max() / ranges.median()) for ranges in found)

    before = worst()
    Equalize().run(net)
    assert worst() < before


# ---------------------------------------------------------------- statistics, places left alone, errors


def test_statistics_are_rescaled_with_the_outputs(randn: Any) -> None:
    module, x = every()["mobilenet"]
    net = network(module, x)
    FoldBN().run(net)
    before, known = net.interpreter(), dict(net.statistics)
    values = {layer.weight: layer.makes.value for layer in net.layers("test") if layer.makes is not None}
    Equalize().run(net)
    assert net.module is not None
    assert net.statistics.keys() == known.keys()
    for name, value in values.items():
        if name not in known:
            continue
        scale = known[name].std / net.statistics[name].std
        torch.testing.assert_close(net.statistics[name].mean * scale, known[name].mean)
        ((_, old),), ((_, new),) = before.observe([value], x), net.interpreter().observe([value], x)
        assert same(new * scale.float().reshape(-1, 1, 1), old)


def test_places_left_alone_say_why() -> None:
    module, x = every()["mixed"]
    net = network(module, x)
    FoldBN().run(net)
    said = Equalize().run(net)
    assert said["equalized"] == {"kernel": "hidden.weight", "hidden.weight": "after.weight"}
    assert said["skipped"] == {
        "conv1.weight": "the relu behind it is read by conv2d and add",
        "twice.weight": "its weight is used 2 times",
        "joined.weight": "silu lies behind it",
        "after.weight": "last.weight behind it: its weight is used 2 times",
        "last.weight": "its weight is used 2 times",
    }


def test_batch_norms_are_to_be_folded_first() -> None:
    module, x = every()["digits-cnn"]
    net = network(module, x)
    assert Equalize().run(net)["skipped"]["conv1.weight"] == "batch_norm lies behind it"


def test_layers_and_skip_choose_both_ends() -> None:
    net = network(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.zeros(2, 4))
    said = Equalize(skip="2").run(net)
    assert said["equalized"] == {"0.weight": "1.weight"}
    assert said["skipped"] == {
        "1.weight": "2.weight behind it is not to be changed",
        "3.weight": "its output is read by the caller",
    }


def test_bounds_that_are_computed_or_lie_elsewhere_are_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.cap = nn.Parameter(torch.rand(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.clamp(self.a(x), max=self.cap))
            return self.c(torch.clamp(x, max=2 * self.cap))

    net = network(Net(), torch.zeros(2, 3, 5, 5))
    assert Equalize().run(net)["skipped"] == {
        "a.weight": "the clamp behind it has bounds along other axes",
        "b.weight": "the clamp behind it has computed bounds",
        "c.weight": "its output is read by the caller",
    }


def test_what_cannot_be_is_refused() -> None:
    module, x = every()["lenet-5"]
    net = network(module, x)
    net.store("fc1.weight", Raw(net.tensors["fc1.weight"]))
    with pytest.raises(UsageError, match=r"equalize: fc1\.weight has a form already"):
        Equalize().run(net)
    with pytest.raises(InputError, match="equalize: the network's operations expected"):
        Equalize().run(Network({"a.weight": torch.ones(4, 4)}))
    for wrong in ({"sweeps": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}):
        with pytest.raises(UsageError, match=f"equalize.{next(iter(wrong))} = "):
            Equalize(**wrong)


def test_the_file_computes_what_the_network_did(tmp_path: Path) -> None:
    recipe = tmp_path / "equalize.toml"
    recipe.write_text('[[step]]\ndo = "fold-bn"\n[[step]]\ndo = "equalize"\nsweeps = 3\n')
    module, x = every()["mobilenet"]
    network(module, x)
    report = deepcomp.compress(module, tmp_path / "net.dcz", recipe=recipe, example_inputs=x)
    assert report.steps[1]["sweeps"] == 2
    loaded = deepcomp.load(tmp_path / "net.dcz")
    assert same(outputs(loaded, x), outputs(module, x))
    again = deepcomp.compress(tmp_path / "net.dcz", tmp_path / "again.dcz", recipe=recipe)
    assert again.steps[1]["equalized"] == report.steps[1]["equalized"]
    assert same(outputs(deepcomp.load(tmp_path / "again.dcz"), x), outputs(module, x))
