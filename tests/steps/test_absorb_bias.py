"""High biases moved to the next layer: exact where outputs stay above what was moved, and no zeros come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import NAMES, every, network, same
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs
from deepcomp.network import Network, Statistics
from deepcomp.steps.absorb_bias import AbsorbBias
from deepcomp.steps.equalize import Equalize
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.weights import Raw


def outputs(module: nn.Module | None, x: Tensor) -> Tensor:
    assert module is not None
    with torch.no_grad():
        return module(x)


def high(module: nn.Module, x: Tensor, by: float = 2.0) -> Network:
    """A network whose first layer gives outputs of `by` and more on `x`, and knows what 3 σ below the mean is."""
    with torch.no_grad():
        axes = [axis for axis in range(module[0](x).ndim) if axis != 1]
        module[0].bias += by - module[0](x).amin(axes)
    net = network(module, x)
    known = torch.full((len(module[0].bias),), by, dtype=torch.float64)
    net.statistics["0.weight"] = Statistics(known + 3, torch.ones_like(known))
    return net


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    "between",
    [
        [nn.ReLU()], [], [nn.LeakyReLU(), nn.MaxPool2d(2, padding=1)], [nn.PReLU(6), nn.AvgPool2d(2)], [nn.ReLU6()],
        [nn.Hardtanh(-1.0, 2.5), nn.ReLU6()], [nn.ReflectionPad2d(1), nn.ReLU6(), nn.Upsample(scale_factor=2)],
        [nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.ReLU()],
    ],
)  # fmt: skip
@pytest.mark.parametrize("last", [nn.Conv2d(6, 4, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 3, groups=2)])
def test_outputs_stay_what_they_are_above_what_is_moved(between: list[nn.Module], last: nn.Module, randn: Any) -> None:
    x = randn(8, 3, 9, 9)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), *between, last)
    net = high(module, x)
    said = AbsorbBias(exact=True).run(net)
    assert said["absorbed"] == {"0.weight": 6}
    assert said["inexact"] == {}
    assert same(outputs(net.module, x), outputs(module, x))
    torch.testing.assert_close(net.tensors["0.bias"], module[0].bias.detach() - 2)


def test_behind_a_flattened_feature_map(randn: Any) -> None:
    x = randn(8, 3, 6, 6)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Flatten(), nn.ReLU6(), nn.Linear(96, 4, bias=False))
    net = high(module, x)
    assert AbsorbBias().run(net)["absorbed"] == {"0.weight": 6}
    assert same(outputs(net.module, x), outputs(module, x))
    assert net.tensors["4.bias"].any()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exact_on_the_data_the_offsets_come_from(name: str) -> None:
    module, x = every()[name]
    net = network(module, x)
    net.data = Data(Pairs(x, torch.zeros(len(x))))
    before = outputs(module, x)
    FoldBN().run(net)
    Equalize().run(net)
    said = AbsorbBias(by="data", exact=True).run(net)
    assert said["inexact"] == {}
    assert same(outputs(net.module, x), before)
    assert bool(said["absorbed"]) == (name in ("lenet-5", "digits-cnn", "mobilenet", "mixed", "grouped"))


def test_what_moves_is_three_deviations_below_the_mean() -> None:
    module = nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 2))
    net = network(module, torch.zeros(2, 1, 4))
    weight = torch.arange(12.0).reshape(2, 3, 2)
    net.tensors = {**net.tensors, "0.bias": torch.tensor([5.0, 6, 7]), "2.weight": weight, "2.bias": torch.zeros(2)}
    net.statistics["0.weight"] = Statistics(torch.tensor([5.0, 2, 7]).double(), torch.tensor([1.0, 1, 2]).double())
    net.statistics["2.weight"] = known = Statistics(torch.zeros(2).double(), torch.ones(2).double())
    said = AbsorbBias().run(net)
    assert said == {
        "absorbed": {"0.weight": 2},
        "inexact": {},
        "skipped": {"2.weight": "its output is read by the caller"},
    }
    assert net.tensors["0.bias"].tolist() == [3, 6, 6]  # 5 - 3 and 7 - 6; 2 - 3 is below zero
    assert net.tensors["2.bias"].tolist() == [2 * (0 + 1) + (4 + 5), 2 * (6 + 7) + (10 + 11)]
    assert net.statistics["0.weight"].mean.tolist() == [3, 2, 6]
    assert net.statistics["0.weight"].std.tolist() == [1, 1, 2]
    assert net.statistics["2.weight"] is known


def test_no_more_moves_than_a_clamp_lets_through(randn: Any) -> None:
    x = randn(8, 3, 6, 6)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 3))
    net = high(module, x, by=7.5)
    AbsorbBias().run(net)
    assert net.tensors["0.upper"].tolist() == torch.zeros(1, 6, 1, 1).tolist()
    assert same(outputs(net.module, x), outputs(module, x))


def test_equalised_bounds_move_too(randn: Any) -> None:
    x = randn(8, 3, 6, 6)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 3))
    net = high(module, x)
    Equalize().run(net)
    AbsorbBias().run(net)
    assert same(outputs(net.module, x), outputs(module, x))
    assert len(set(net.tensors["0.upper_"].flatten().tolist())) == 6


def test_the_least_output_counts_of_all_batches(randn: Any) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].bias.data.fill_(3.0)
    net, x = network(module, torch.zeros(2, 3)), randn(150, 3)
    net.data = Data(Pairs(x, torch.zeros(150)))
    AbsorbBias(by="data", samples=150).run(net)
    least = (x @ module[0].weight.T + module[0].bias).amin(0).clamp_min(0)
    torch.testing.assert_close(net.tensors["0.bias"], (module[0].bias - least).detach())
    assert same(outputs(net.module, x), outputs(module, x))


# ---------------------------------------------------------------- where it is not exact


@pytest.mark.parametrize(
    ("between", "last", "what"),
    [
        ([nn.ReLU()], nn.Conv2d(6, 4, 3, padding=1), "conv2d"),
        ([nn.ReLU()], nn.Conv2d(6, 4, 3, padding="same"), "conv2d"),
        ([nn.ZeroPad2d(1), nn.ReLU()], nn.Conv2d(6, 4, 3), "pad"),
        ([nn.AvgPool2d(3, 1, padding=1)], nn.Conv2d(6, 4, 3), "avg_pool2d"),
    ],
)
def test_zeros_beside_the_image_are_told_of(between: list[nn.Module], last: nn.Module, what: str, randn: Any) -> None:
    x = randn(8, 3, 9, 9)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), *between, last)
    why = f"the {what} behind it pads with zeros, which do not carry what is absorbed"
    net = high(module, x)
    said = AbsorbBias(exact=True).run(net)
    assert (said["absorbed"], said["skipped"]["0.weight"]) == ({}, why)
    assert net.module is module
    said = AbsorbBias().run(net)
    assert (said["absorbed"], said["inexact"]) == ({"0.weight": 6}, {"0.weight": why})
    found, wanted = outputs(net.module, x), outputs(module, x)
    assert not same(found, wanted)
    assert same(found[:, :, 2:-2, 2:-2], wanted[:, :, 2:-2, 2:-2])  # but for the border


def test_a_kernel_of_one_needs_no_padding(randn: Any) -> None:
    x = randn(8, 3, 9, 9)
    net = high(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1, padding="same")), x)
    assert AbsorbBias().run(net)["inexact"] == {}


# ---------------------------------------------------------------- places left alone, errors


@pytest.mark.parametrize(
    ("between", "last", "why"),
    [
        ([nn.ReLU()], nn.ConvTranspose2d(6, 4, 3),
         "the transposed convolution behind it adds more taps in some places than in others"),
        ([nn.AvgPool2d(2, divisor_override=3)], nn.Conv2d(6, 4, 3),
         "the pooling behind it divides by a number of its own"),
        ([nn.Hardtanh(1.0, 5.0)], nn.Conv2d(6, 4, 3), "what lies behind it clamps above zero"),
        ([nn.GELU()], nn.Conv2d(6, 4, 3), "gelu lies behind it"),
    ],
)  # fmt: skip
def test_places_left_alone_say_why(between: list[nn.Module], last: nn.Module, why: str, randn: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), *between, last)
    net = high(module, randn(8, 3, 9, 9))
    said = AbsorbBias().run(net)
    assert (said["absorbed"], said["skipped"]["0.weight"]) == ({}, why)
    assert net.module is module


def test_without_statistics_or_high_channels_nothing_moves() -> None:
    module, x = every()["lenet-5"]
    net = network(module, x)
    unknown = "nothing is known of its outputs (fold-bn records it, data shows it)"
    assert AbsorbBias().run(net)["skipped"]["conv1.weight"] == unknown
    net.statistics["conv1.weight"] = Statistics(torch.zeros(20).double(), torch.ones(20).double())
    assert AbsorbBias().run(net)["skipped"]["conv1.weight"] == "all its channels go down to zero"


def test_a_product_without_a_bias_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x)) @ self.b

    net = network(Net(), torch.zeros(2, 3))
    net.statistics["a.weight"] = Statistics(torch.full((4,), 9.0).double(), torch.ones(4).double())
    assert AbsorbBias().run(net)["skipped"]["a.weight"] == "its matmul takes no bias"


def test_what_cannot_be_is_refused() -> None:
    module, x = every()["lenet-5"]
    net = network(module, x)
    with pytest.raises(UsageError, match="absorb-bias: needs data to calibrate on"):
        AbsorbBias(by="data").run(net)
    net.statistics["conv1.weight"] = Statistics(torch.full((20,), 9.0).double(), torch.ones(20).double())
    net.store("conv1.bias", Raw(net.tensors["conv1.bias"]))
    with pytest.raises(UsageError, match=r"absorb-bias: conv1\.bias has a form already"):
        AbsorbBias().run(net)
    with pytest.raises(InputError, match="absorb-bias: the network's operations expected"):
        AbsorbBias().run(Network({"a.weight": torch.ones(4, 4)}))
    for wrong in ({"by": "bn"}, {"samples": 0}):
        with pytest.raises(UsageError, match=f"absorb-bias.{next(iter(wrong))} = "):
            AbsorbBias(**wrong)
