"""Corrected biases: outputs have the means they had, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import NAMES, every, network
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs
from deepcomp.network import Network, Statistics
from deepcomp.steps.correct_bias import CorrectBias
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.weights import Raw


def quantized(module: nn.Module, x: Tensor, bits: int = 3, **settings: Any) -> Network:
    """A network with its batch norms folded, its weights on coarse grids, and data."""
    net = network(module, x)
    net.data = Data(Pairs(x, torch.zeros(len(x))))
    FoldBN().run(net)
    Quantize(bits=bits, **settings).run(net)
    return net


def means(net: Network, formed: bool) -> dict[str, Tensor]:
    """The mean of every channel that a layer makes, by the layer's weight and place."""
    layers = {layer.makes.value: layer for layer in net.layers("test") if layer.makes is not None}
    found: dict[str, Tensor] = {}
    for value, y in net.observe("test", layers, 512, formed=formed):
        layer = layers[value]
        assert layer.makes is not None
        other = [dim for dim in range(y.ndim) if dim != layer.makes.dim]
        found[f"{layer.weight}@{layer.place}"] = y.double().mean(other)
    return found


def biases(net: Network) -> dict[str, Tensor]:
    return {name: net.forms[name].dense() for name in net.forms if name.endswith("bias")}


# ---------------------------------------------------------------- from data


@pytest.mark.parametrize("name", NAMES)
def test_every_mean_is_the_original_network_s(name: str) -> None:
    net = quantized(*every()[name])
    before = means(net, formed=True)
    said = CorrectBias().run(net)
    original, found = means(net, formed=False), means(net, formed=True)
    corrected = {f"{layer.weight}@{layer.place}" for layer in net.layers("") if layer.bias in said["corrected"]}
    for layer in corrected:
        torch.testing.assert_close(found[layer], original[layer], rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(before[layer], original[layer], atol=0.01) for layer in corrected)


@pytest.mark.parametrize("name", ["digits-cnn", "mobilenet", "transformer"])
def test_again_changes_nothing(name: str) -> None:
    net = quantized(*every()[name])
    CorrectBias().run(net)
    once = biases(net)
    said = CorrectBias().run(net)
    assert max(said["corrected"].values()) < 1e-4
    for bias, now in biases(net).items():
        torch.testing.assert_close(now, once[bias], rtol=1e-4, atol=1e-5)


def test_the_original_biases_stay_what_they_were() -> None:
    net = quantized(*every()["digits-cnn"])
    before = dict(net.tensors)
    said = CorrectBias().run(net)
    assert set(said["corrected"]) == {"conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias"}
    assert all(torch.equal(net.tensors[name], before[name]) for name in before)
    for bias, by in said["corrected"].items():
        form = net.forms[bias]
        assert isinstance(form, Raw)
        assert float((form.dense() - net.tensors[bias]).abs().max()) == pytest.approx(by, rel=1e-3)


def test_weights_without_a_form_leave_their_biases_alone() -> None:
    module, x = every()["digits-cnn"]
    net = network(module, x)
    net.data = Data(Pairs(x, torch.zeros(len(x))))
    assert CorrectBias().run(net) == {"corrected": {}, "skipped": {}}
    Quantize(layers="conv2,fc1").run(net)
    assert set(CorrectBias(skip="fc1").run(net)["corrected"]) == {"conv2.bias"}
    assert set(net.forms) == {"conv2.weight", "fc1.weight", "conv2.bias"}


def test_a_form_that_changes_nothing_changes_no_bias(randn: Any) -> None:
    x = randn(8, 5)
    net = network(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), x)
    net.data = Data(Pairs(x, torch.zeros(8)))
    for name in ("0.weight", "2.weight"):
        net.store(name, Raw(net.tensors[name]))
    assert CorrectBias().run(net)["corrected"] == {"0.bias": 0.0, "2.bias": 0.0}
    assert torch.equal(net.forms["2.bias"].dense(), net.tensors["2.bias"])


def test_layers_without_a_bias_get_one(randn: Any) -> None:
    x = randn(8, 3, 6, 6)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, 2, bias=False))
    net = quantized(module, x)
    said = CorrectBias().run(net)
    assert set(said["corrected"]) == {"0.bias", "2.bias"}
    assert list(net.tensors) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not net.tensors["0.bias"].any()
    assert net.forms["0.bias"].dense().any()
    with torch.no_grad():
        assert torch.equal(net.interpreter()(x), module(x))


# ---------------------------------------------------------------- from statistics


def test_from_statistics_it_is_the_change_of_the_weights_times_the_mean_input(randn: Any) -> None:
    x = randn(4, 3, 8, 8)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net = quantized(module, x)
    mean, std = randn(6).double(), randn(6).double().abs()
    net.statistics["0.weight"] = Statistics(mean, std)
    said = CorrectBias(by="statistics").run(net)
    assert list(said["corrected"]) == ["2.bias"]
    draws = (mean + std * randn(400_000, 6)).clamp(0, 6).mean(0)
    change = (net.forms["2.weight"].dense() - net.tensors["2.weight"]).double()
    wanted = net.tensors["2.bias"] - (change.sum((2, 3)) @ draws)
    torch.testing.assert_close(net.forms["2.bias"].dense().double(), wanted.detach(), rtol=0, atol=0.01)
    unknown = "nothing is known of the outputs of 2.weight (fold-bn records it)"
    assert said["skipped"] == {"0.weight": "without data nothing is known of the input input", "4.weight": unknown}


def test_zeros_beside_the_image_count(randn: Any) -> None:
    """A channel that is the same everywhere: then the mean of the outputs is known exactly, at the border too."""
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, bias=False))
    module[0].weight.data.zero_()
    x = randn(4, 3, 5, 5)
    net = quantized(module, x, bits=2)
    net.statistics["0.weight"] = Statistics(module[0].bias.detach().double(), torch.zeros(6, dtype=torch.float64))
    CorrectBias(by="statistics").run(net)
    found, wanted = means(net, formed=True), means(net, formed=False)
    torch.testing.assert_close(found["2.weight@2"], wanted["2.weight@2"], rtol=0, atol=1e-6)


def test_statistics_and_data_agree_where_outputs_are_gaussian(randn: Any) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
    x = randn(4096, 64)
    module.train()(x)
    module[1].momentum = None
    module[1].reset_running_stats()
    module(x)
    trained = {name: tensor.clone() for name, tensor in module[1].state_dict().items()}
    shifts = {}
    for by in ("data", "statistics"):
        net = network(module, x[:2])
        module[1].load_state_dict(trained)
        net.data = Data(Pairs(x, torch.zeros(len(x))))
        FoldBN().run(net)
        Quantize(bits=3, layers="3").run(net)
        CorrectBias(by=by, samples=4096).run(net)
        shifts[by] = net.forms["3.bias"].dense() - net.tensors["3.bias"]
    assert float((shifts["data"] - shifts["statistics"]).norm() / shifts["data"].norm()) < 0.1


def test_again_from_statistics_changes_nothing() -> None:
    net = quantized(*every()["mobilenet"])
    said = CorrectBias(by="statistics").run(net)
    once = biases(net)
    assert len(said["corrected"]) > 8  # sums of residuals have means too
    assert set(said["skipped"]) == {"stem.0.weight"}
    assert CorrectBias(by="statistics").run(net) == said
    assert all(torch.equal(now, once[name]) for name, now in biases(net).items())


# ---------------------------------------------------------------- places left alone, errors


class Odd(nn.Module):
    """What takes no bias, or shares one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(11, 6), nn.LSTM(6, 6, batch_first=True)
        self.twice, self.bare = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.product, self.out = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 11)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.table(x))[0]
        x = self.bare(F.relu(self.bare(self.twice(F.relu(self.twice(x))))))
        return self.out(x @ self.product)


def test_places_left_alone_say_why() -> None:
    net = quantized(Odd(), torch.randint(11, (4, 7)))
    said = CorrectBias().run(net)
    assert said["skipped"] == {
        "table.weight": "its embedding takes no bias",
        "lstm.weight_ih_l0": "lstm keeps its products to itself",
        "lstm.weight_hh_l0": "lstm keeps its products to itself",
        "twice.weight": "its bias is used 2 times",
        "bare.weight": "its weight is used 2 times",
        "product": "its matmul takes no bias",
    }
    assert set(said["corrected"]) == {"out.bias"}  # the weight is tied, the bias is its own


def test_what_cannot_be_is_refused() -> None:
    module, x = every()["digits-cnn"]
    net = quantized(module, x)
    QuantizeActivations().run(net)
    with pytest.raises(UsageError, match="activations are quantised already, biases are corrected before that"):
        CorrectBias().run(net)
    net = network(module, x)
    Quantize().run(net)
    with pytest.raises(UsageError, match="correct-bias: needs data to calibrate on"):
        CorrectBias().run(net)
    with pytest.raises(InputError, match="correct-bias: the network's operations expected"):
        CorrectBias().run(Network({"a.weight": torch.ones(4, 4)}))
    for wrong in ({"by": "bn"}, {"samples": 0}):
        with pytest.raises(UsageError, match=f"correct-bias.{next(iter(wrong))} = "):
            CorrectBias(**wrong)  # type: ignore[arg-type]
