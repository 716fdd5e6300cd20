"""Tuned batch norms: channels have the mean and the spread they should have, and integers stay what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps.nets import NAMES, every, network
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs
from deepcomp.model.patches import columns
from deepcomp.network import Network, Statistics
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.steps.quantize_feedback import QuantizeFeedback
from deepcomp.steps.share import Share
from deepcomp.steps.store import Store
from deepcomp.steps.tune_bn import TuneBN
from deepcomp.weights import Form, Grid, Mask, Raw


def folded(module: nn.Module, x: Tensor) -> Network:
    """A network with its batch norms folded, and these inputs as data."""
    net = network(module, x[:2])
    net.data = Data(Pairs(x, torch.zeros(len(x))))
    FoldBN().run(net)
    return net


def outputs(net: Network) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and spread of each channel that a layer with a bias makes of the data, by its weight."""
    made: dict[str, list[Tensor]] = {}
    layers = {layer.makes.value: layer for layer in net.layers("test") if layer.makes is not None and layer.bias}
    for value, held in net.observe("test", layers, 512, formed=True):
        layer = layers[value]
        made.setdefault(layer.weight, []).append(columns(layer, held).double())
    return {name: (torch.cat(rows).mean(0), torch.cat(rows).std(0, correction=0)) for name, rows in made.items()}


def check_alike(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Insist on equal means, and on equal spreads where a channel has one in both."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    alive = torch.minimum(found[1], wanted[1]) > 1e-4 * wanted[1].max()
    assert float(alive.float().mean()) > 0.3
    torch.testing.assert_close(found[1][alive], wanted[1][alive], rtol=1e-3, atol=1e-4)


def grid(form: Form) -> Grid:
    found = form.inner if isinstance(form, Mask) else form
    assert isinstance(found, Grid)
    return found


def integers(net: Network) -> dict[str, Tensor]:
    return {name: grid(form).integers() for name, form in net.forms.items() if not isinstance(form, Raw)}


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 5),
    )  # fmt: skip


# ---------------------------------------------------------------- the difference


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_like_the_original_network_s(name: str) -> None:
    net = folded(*every()[name])
    Quantize(bits=3).run(net)
    before, said = integers(net), TuneBN().run(net)
    wanted, found = outputs(net.original()), outputs(net)
    for weight in set(said["tuned"]) - set(said["mean_only"]):
        check_alike(found[weight], wanted[weight])
    for weight in said["tuned"]:
        torch.testing.assert_close(found[weight][0], wanted[weight][0], rtol=1e-4, atol=1e-4)
    for weight, q in integers(net).items():
        assert torch.equal(q, before[weight])


def test_originals_stay_and_layers_without_a_bias_get_one(randn: Any) -> None:
    net = folded(nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)), randn(70, 5))
    Quantize(bits=2).run(net)
    before = {name: tensor.clone() for name, tensor in net.tensors.items()}
    said = TuneBN().run(net)
    assert list(net.tensors) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(torch.equal(net.tensors[name], tensor) for name, tensor in before.items())
    assert said["tuned"].keys() == {"0.weight", "2.weight"}
    assert all(moved["scale"] > 0 and moved["bias"] > 0 for moved in said["tuned"].values())


def test_a_network_that_lost_nothing_stays_what_it_is(randn: Any) -> None:
    net = folded(cnn(), randn(70, 3, 8, 8))
    for name, weight in net.weights():
        net.store(name, Grid.fit(weight, 16))
        net.tensors = {**net.tensors, name: net.forms[name].dense()}
    before = {name: form.dense() for name, form in net.forms.items()}
    said = TuneBN().run(net)
    assert max(number for moved in said["tuned"].values() for number in moved.values()) < 1e-5
    for name, weight in before.items():
        torch.testing.assert_close(net.forms[name].dense(), weight, rtol=1e-5, atol=0)


def test_activations_may_be_quantised_already(randn: Any) -> None:
    net = folded(cnn(), randn(70, 3, 8, 8))
    Quantize(bits=4).run(net)
    QuantizeActivations(bits=3).run(net)
    TuneBN().run(net)
    wanted, found = outputs(net.original()), outputs(net)
    for weight in wanted:
        check_alike(found[weight], wanted[weight])


def test_pruned_weights_stay_zero(randn: Any) -> None:
    net = folded(cnn(), randn(70, 3, 8, 8))
    Prune(density=0.5, rounds=1).run(net)
    Quantize(bits=3).run(net)
    pruned = {name: form.dense() == 0 for name, form in net.forms.items()}
    said = TuneBN().run(net)
    assert not said["mean_only"]
    for name, zeros in pruned.items():
        assert not net.forms[name].dense()[zeros].any()
    wanted, found = outputs(net.original()), outputs(net)
    for weight in wanted:
        check_alike(found[weight], wanted[weight])


# ---------------------------------------------------------------- the batch norm's own statistics


def normed(x: Tensor) -> Network:
    """A network that the batch norms' statistics are true of: they were taken on these very inputs."""
    net = folded(cnn(), x)
    Quantize(bits=4).run(net)
    for name, (mean, std) in outputs(net).items():
        net.statistics[name] = Statistics(mean, std)
    return net


@pytest.mark.parametrize("momentum", [None, 0.1, 1.0])
def test_statistics_that_hold_already_change_nothing(randn: Any, momentum: float | None) -> None:
    net = normed(randn(60, 3, 8, 8))
    before = {name: form.dense() for name, form in net.forms.items()}
    biases = {name: tensor.clone() for name, tensor in net.tensors.items() if name.endswith("bias")}
    said = TuneBN(by="batch-norm", momentum=momentum).run(net)
    assert said["tuned"].keys() == {"0.weight", "3.weight", "7.weight"}
    for name, weight in before.items():
        torch.testing.assert_close(net.forms[name].dense(), weight, rtol=1e-5, atol=1e-7)
    for name, bias in biases.items():
        torch.testing.assert_close(net.forms[name].dense(), bias, rtol=0, atol=1e-5)


def test_channels_get_what_the_batch_norm_says(randn: Any) -> None:
    net = folded(cnn(), randn(60, 3, 8, 8))
    known = dict(net.statistics)
    Quantize(bits=4).run(net)
    said = TuneBN(by="batch-norm").run(net)
    assert said["skipped"] == {"7.weight": "no batch norm is known of it"}
    for weight, statistics in known.items():
        torch.testing.assert_close(outputs(net)[weight], (statistics.mean, statistics.std), rtol=1e-4, atol=1e-4)


def test_momentum_is_that_of_batch_normalisation(randn: Any) -> None:
    """Of three batches each replaces a tenth of what is known."""
    x = 3 + randn(3, 64, 4)
    net = folded(nn.Linear(4, 1, bias=False), x.flatten(0, 1))
    net.data = Data(Pairs(x.flatten(0, 1), torch.zeros(192)))
    net.store("weight", Grid.fit(net.tensors["weight"], 8))
    net.statistics["weight"] = Statistics(torch.zeros(1).double(), torch.ones(1).double())
    made = [net.forms["weight"].dense() @ batch["input"].T for batch in net.inputs("test", 192)]
    TuneBN(by="batch-norm", momentum=0.1).run(net)
    mean, second = 0.0, 1.0
    for batch in made:
        mean, second = 0.9 * mean + 0.1 * float(batch.mean()), 0.9 * second + 0.1 * float(batch.square().mean())
    factor = (second - mean**2) ** -0.5
    assert float(net.forms["bias"].dense()) == pytest.approx(-factor * mean, rel=1e-4)


# ---------------------------------------------------------------- scales as the file holds them


def test_rounded_scales_stay_so_and_no_channel_gets_worse(randn: Any) -> None:
    net = folded(cnn(), randn(96, 3, 8, 8))
    Store(dtype="float16", vectors=True).run(net)
    QuantizeFeedback(price=1e-4, samples=96, gradients=16).run(net)
    size = {
        name: len(form.pack().tables["scale"].tobytes()) for name, form in net.forms.items() if isinstance(form, Grid)
    }
    wanted, before = outputs(net.original()), outputs(net)
    TuneBN(layers="0").run(net)
    found = outputs(net)["0.weight"]
    assert all(len(net.forms[name].pack().tables["scale"].tobytes()) == count for name, count in size.items())
    lost = [(std - wanted["0.weight"][1]).abs() for std in (found[1], before["0.weight"][1])]
    assert bool((lost[0] <= lost[1] * (1 + 1e-5)).all())
    form = net.forms["0.bias"]
    assert isinstance(form, Raw)
    assert form.stored == torch.float16
    torch.testing.assert_close(found[0], wanted["0.weight"][0], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- places left alone, errors


def test_a_dead_channel_keeps_its_scale(randn: Any) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    module[0].weight.data[1] = 0
    net = folded(module, randn(64, 5))
    Quantize(bits=3).run(net)
    inner = net.forms["0.weight"].dense()
    inner[2] = 0  # dies of being quantised
    net.store("0.weight", Grid.fit(inner, 3))
    before = grid(net.forms["0.weight"]).scale.clone()
    TuneBN().run(net)
    after = grid(net.forms["0.weight"]).scale
    assert [bool(same) for same in after == before] == [False, True, True, False]
    wanted, found = outputs(net.original()), outputs(net)
    torch.testing.assert_close(found["0.weight"][0], wanted["0.weight"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per", ["tensor", "group", "block"])
def test_scales_of_more_or_less_than_a_channel_stay(randn: Any, per: str) -> None:
    net = folded(cnn(), randn(64, 3, 8, 8))
    Quantize(bits=3, per=per, size=4).run(net)
    before = {name: form.dense() for name, form in net.forms.items()}
    said = TuneBN().run(net)
    assert set(said["mean_only"].values()) == {"its scales are not one for each output channel"}
    assert all(torch.equal(net.forms[name].dense(), weight) for name, weight in before.items())
    wanted, found = outputs(net.original()), outputs(net)
    for weight in wanted:
        torch.testing.assert_close(found[weight][0], wanted[weight][0], rtol=1e-4, atol=1e-4)


class Odd(nn.Module):
    """What takes no bias, or shares one, or a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(11, 6), nn.LSTM(6, 6, batch_first=True)
        self.twice, self.shared = nn.Linear(6, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 11)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.table(x))[0]
        return self.out(self.shared(self.twice(F.relu(self.twice(x)))))


def test_places_left_alone_say_why() -> None:
    net = folded(Odd(), torch.randint(11, (64, 7)))
    Quantize(skip="shared").run(net)
    Share(values=8, layers="shared").run(net)
    said = TuneBN().run(net)
    assert said["skipped"] == {
        "table.weight": "its embedding takes no bias",
        "lstm.weight_ih_l0": "lstm keeps its products to itself",
        "lstm.weight_hh_l0": "lstm keeps its products to itself",
        "twice.weight": "its bias is used 2 times",
    }
    assert said["mean_only"] == {"shared.weight": "it lies on no grid", "table.weight": "its weight is used 2 times"}
    assert said["tuned"].keys() == {"shared.weight", "table.weight"}


def test_the_same_seed_gives_the_same_bits(randn: Any) -> None:
    x, found = randn(80, 3, 8, 8), []
    for _ in range(2):
        torch.manual_seed(3)
        net = folded(cnn(), x)
        Quantize(bits=3).run(net)
        TuneBN(samples=70).run(net)
        found.append({name: form.dense() for name, form in net.forms.items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_what_cannot_be_is_refused(randn: Any) -> None:
    for wrong in ({"by": "bn"}, {"momentum": 0.0}, {"momentum": 1.5}, {"samples": 0}):
        with pytest.raises(UsageError, match=rf"tune-bn\.{next(iter(wrong))} = "):
            TuneBN(**wrong)  # type: ignore[arg-type]
    net = folded(cnn(), randn(4, 3, 8, 8))
    Quantize().run(net)
    net.data = Data(Pairs(torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4)))
    with pytest.raises(InputError, match=r"the outputs of 0\.weight on the calibration data are not all finite"):
        TuneBN().run(net)
    net.data = None
    with pytest.raises(UsageError, match="tune-bn: needs data to calibrate on"):
        TuneBN().run(net)
    with pytest.raises(InputError, match="tune-bn: the network's operations expected"):
        TuneBN().run(Network({"a.weight": torch.ones(4, 4)}))
