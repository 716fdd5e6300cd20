"""Tuned biases: outputs come nearer to the original ones, without labels, and nothing but the chosen tensors moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps.nets import NAMES, every, network
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs
from deepcomp.network import Network
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.steps.quantize_feedback import QuantizeFeedback
from deepcomp.steps.store import Store
from deepcomp.steps.tune_biases import TuneBiases
from deepcomp.weights import Form, Grid, Mask, Raw


class Unlabelled(Pairs):
    """Targets that must not be looked at."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)[0], torch.full((1,), torch.nan)


def folded(module: nn.Module, x: Tensor, metric: str | None = "accuracy") -> Network:
    """A network with its batch norms folded, and these inputs as data, of a metric that says what its outputs are."""
    net = network(module, x[:2])
    test = Pairs(x[:4], torch.zeros(4)) if metric else None
    net.data = Data(Unlabelled(x, torch.zeros(len(x))), test, metric)
    FoldBN().run(net)
    return net


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))


def weights(net: Network) -> dict[str, Tensor]:
    """Every tensor as its form has it."""
    return {
        name: (net.forms[name].dense() if name in net.forms else tensor).clone() for name, tensor in net.tensors.items()
    }


def grid(form: Form) -> Grid:
    found = form.inner if isinstance(form, Mask) else form
    assert isinstance(found, Grid)
    return found


def integers(net: Network) -> dict[str, Tensor]:
    return {name: grid(form).integers() for name, form in net.forms.items() if not isinstance(form, Raw)}


def quantized(metric: str | None = "accuracy", bits: int = 3) -> Network:
    torch.manual_seed(0)
    net = folded(mlp(), torch.randn(200, 12), metric)
    Quantize(bits=bits).run(net)
    return net


@pytest.mark.parametrize("metric", ["accuracy", "perplexity", None])
@pytest.mark.parametrize("settings", [{}, {"norms": True}, {"norms": True, "scales": True}, {"scales": True}])
def test_only_what_is_chosen_moves_and_outputs_come_nearer(metric: str | None, settings: dict[str, bool]) -> None:
    net = quantized(metric)
    before, whole, q = weights(net), {name: tensor.clone() for name, tensor in net.tensors.items()}, integers(net)
    said = TuneBiases(rate=0.01, epochs=6, **settings).run(net)  # type: ignore[arg-type]
    moved = {name for name, tensor in weights(net).items() if not torch.equal(tensor, before[name])}
    biases, norms = {"0.bias", "3.bias", "5.bias"}, {"1.weight", "1.bias"}
    matrices = {"0.weight", "3.weight", "5.weight"}
    wanted = biases | (norms if settings.get("norms") else set()) | (matrices if settings.get("scales") else set())
    assert moved == wanted
    assert said["tensors"] == len(wanted)
    assert said["chosen"] > 0
    assert min(said["divergence"]) < 0.9 * said["divergence"][0]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in net.tensors.items())
    assert all(torch.equal(found, q[name]) for name, found in integers(net).items())


@pytest.mark.parametrize("name", NAMES)
def test_all_networks(name: str) -> None:
    net = folded(*every()[name])
    Quantize(bits=4).run(net)
    before, q = weights(net), integers(net)
    said = TuneBiases(norms=True, scales=True, epochs=1, batch=2).run(net)
    assert said["tensors"] >= len(q)
    assert all(torch.equal(found, q[weight]) for weight, found in integers(net).items())
    for other, tensor in weights(net).items():
        assert tensor.dtype == before[other].dtype
        if net.roles.get(other):
            assert torch.equal(tensor, before[other])


def test_it_is_never_worse_than_before() -> None:
    net = quantized()
    before, forms = weights(net), dict(net.forms)
    said = TuneBiases(norms=True, scales=True, rate=30.0, epochs=2).run(net)
    assert said["chosen"] == 0
    assert said["divergence"][0] <= min(said["divergence"])
    assert net.forms == forms
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(net).items())


def test_what_is_judged_is_what_is_stored() -> None:
    """The divergence said of the chosen state is that of the network made of the packed forms."""
    torch.manual_seed(0)
    net = folded(mlp(), torch.randn(200, 12))
    Store(dtype="float16", vectors=True).run(net)
    QuantizeFeedback(price=1e-5, samples=64, gradients=8).run(net)
    sizes = {name: grid(net.forms[name]).pack().tables["scale"].nbytes for name in integers(net)}
    said = TuneBiases(norms=True, scales=True, rate=0.03, epochs=4, samples=100, held=0.5, batch=10).run(net)
    assert said["chosen"] > 0
    for name, form in net.forms.items():
        packed = form.pack()
        again = type(form).unpack(packed, form.shape, form.dtype)
        assert torch.equal(again.dense(), form.dense())
        if isinstance(form, Raw):
            assert form.stored == torch.float16
        else:
            assert packed.tables["scale"].nbytes == sizes[name]
    (inputs,) = net.inputs("test", 100, 100)
    x = inputs["input"][50:]
    modules = net.original().interpreter(), net.interpreter(formed=True)
    p, q = (module(x).detach().double().log_softmax(1) for module in modules)
    assert float((p.exp() * (p - q)).sum() / 50) == pytest.approx(min(said["divergence"]), rel=1e-5)


def test_nothing_is_learnt_from_a_network_that_lost_nothing() -> None:
    torch.manual_seed(0)
    net = folded(mlp(), torch.randn(50, 12))
    said = TuneBiases(epochs=2).run(net)
    assert said["chosen"] == said["divergence"][0] == 0
    assert not net.forms


def test_activations_may_be_quantised_already() -> None:
    net = quantized(bits=4)
    QuantizeActivations(bits=3).run(net)
    said = TuneBiases(rate=0.01, epochs=4).run(net)
    assert min(said["divergence"]) < said["divergence"][0]


def test_pruned_weights_stay_zero() -> None:
    torch.manual_seed(0)
    net = folded(mlp(), torch.randn(100, 12))
    Prune(density=0.5, rounds=1).run(net)
    Quantize(bits=3).run(net)
    pruned, q = {name: form.dense() == 0 for name, form in net.forms.items()}, integers(net)
    TuneBiases(scales=True, rate=0.01, epochs=2).run(net)
    assert all(isinstance(net.forms[name], Mask) for name in pruned)
    assert all(not net.forms[name].dense()[zeros].any() for name, zeros in pruned.items())
    assert all(torch.equal(found, q[name]) for name, found in integers(net).items())


class Model(nn.Module):
    """A language model with tied weights: outputs are logits of a label for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.mixed, self.out = nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.mixed(self.table(tokens)))))


def test_language_models_with_tied_weights() -> None:
    torch.manual_seed(0)
    net = folded(Model(), torch.randint(11, (60, 7)), "perplexity")
    Quantize(bits=3).run(net)
    said = TuneBiases(norms=True, scales=True, rate=0.01, epochs=4).run(net)
    assert said["tensors"] == 5  # the table once
    assert min(said["divergence"]) < said["divergence"][0]
    state = net.interpreter(formed=True).state_dict()
    assert torch.equal(state["out.weight"], state["table.weight"])


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_the_same_seed_gives_the_same_bits(optimiser: str) -> None:
    found = []
    for _ in range(2):
        net = quantized()
        TuneBiases(norms=True, scales=True, optimiser=optimiser, epochs=2).run(net)
        found.append(weights(net))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_layers_are_chosen_by_name() -> None:
    net = quantized()
    before = weights(net)
    assert TuneBiases(layers="0, 5", skip="5", scales=True, rate=0.01, epochs=3).run(net)["tensors"] == 2
    moved = {name for name, tensor in weights(net).items() if not torch.equal(tensor, before[name])}
    assert moved == {"0.weight", "0.bias"}
    assert TuneBiases(layers="1").run(net) == {"tensors": 0}


def test_what_cannot_be_is_refused() -> None:
    settings = {"samples": 1, "epochs": -1, "batch": 0, "held": 1.0, "rate": 0.0, "optimiser": "lion"}
    for key, value in settings.items():
        with pytest.raises(UsageError, match=rf"tune-biases\.{key} = "):
            TuneBiases(**{key: value})  # type: ignore[arg-type]
    net = quantized()
    net.data = Data(Pairs(torch.full((8, 12), torch.nan), torch.zeros(8)))
    with pytest.raises(InputError, match="a divergence of nan on the inputs held out, a finite one expected"):
        TuneBiases().run(net)
    net.data = Data(Pairs(torch.zeros(1, 12), torch.zeros(1)))
    with pytest.raises(UsageError, match="tune-biases: 1 calibration input found, 2 or more expected"):
        TuneBiases().run(net)
    net.data = None
    with pytest.raises(UsageError, match="tune-biases: needs data to calibrate on"):
        TuneBiases().run(net)
    with pytest.raises(InputError, match="tune-biases: the network's operations expected"):
        TuneBiases().run(Network({"a.weight": torch.ones(4, 4)}))
