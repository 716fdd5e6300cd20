"""Learnt rounding: every weight stays between its neighbours, and no layer is worse than rounded to nearest."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import every, network
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs
from deepcomp.network import Network
from deepcomp.recipe import Recipe
from deepcomp.steps.adaround import AdaRound
from deepcomp.steps.correct_bias import CorrectBias
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.training.reconstruction import Reconstruction
from deepcomp.weights import Codebook, Grid, Mask

QUICK: dict[str, Any] = {"samples": 64, "rows": 512, "batch": 128, "iterations": 150, "rate": 0.05}


def quantized(module: nn.Module, x: Tensor, **settings: Any) -> Network:
    """A network with its batch norms folded, its weights on coarse grids, and data."""
    net = network(module, x[:4])
    net.data = Data(Pairs(x, torch.zeros(len(x))))
    FoldBN().run(net)
    Quantize(**{"bits": 3, **settings}).run(net)
    return net


def grid(net: Network, name: str) -> Grid:
    form = net.forms[name]
    found = form.inner if isinstance(form, Mask) else form
    assert isinstance(found, Grid)
    return found


def correlated(randn: Any, *shape: int) -> Tensor:
    """Inputs that have much in common, as those of trained layers: then nearest is far from the best."""
    return randn(*shape) + 2 * randn(shape[0], *[1] * (len(shape) - 1)) + 1


# ---------------------------------------------------------------- what holds for every layer

LAYERS: dict[str, tuple[list[Any], tuple[int, ...]]] = {  # kinds and settings of layers, and the shape of an input
    "linear": ([(nn.Linear, 6, 5), (nn.ReLU,), (nn.Linear, 5, 3)], (6,)),
    "tokens": ([(nn.Linear, 6, 5), (nn.GELU,), (nn.Linear, 5, 3)], (4, 6)),
    "conv": ([(nn.Conv2d, 3, 4, 3, 1, 1), (nn.ReLU,), (nn.Conv2d, 4, 2, 3, 2)], (3, 7, 7)),
    "grouped": ([(nn.Conv2d, 4, 8, 3, 1, 0, 1, 2), (nn.ReLU6,), (nn.Conv2d, 8, 8, 3, 1, 0, 1, 8)], (4, 7, 7)),
    "transposed": ([(nn.ConvTranspose2d, 4, 4, 3, 2, 0, 1, 2), (nn.ReLU,), (nn.ConvTranspose2d, 4, 3, 2)], (4, 4, 4)),
    "conv1d": ([(nn.Conv1d, 3, 5, 3, 1, "same"), (nn.PReLU, 5), (nn.Conv1d, 5, 4, 2)], (3, 9)),
}


def build(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of such layers, with weights of its own; and the shape of an input."""
    parts, shape = LAYERS[kind]
    return nn.Sequential(*(make(*settings) for make, *settings in parts)), shape


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_weight_goes_to_a_neighbour_and_no_layer_gets_worse(
    kind: str, per: str, masked: bool, randn: Any
) -> None:
    module, shape = build(kind)
    net = network(module, correlated(randn, 4, *shape))
    x = correlated(randn, 64, *shape)
    net.data = Data(Pairs(x, torch.zeros(64)))
    if masked:
        Prune(density=0.6).run(net)
    Quantize(bits=3, per=per).run(net)
    steps = {name: _steps(grid(net, name)) for name in net.forms}
    zeros = {name: form.dense() == 0 for name, form in net.forms.items() if isinstance(form, Mask)}
    scales = {name: grid(net, name).scale.clone() for name in net.forms}
    original = {name: tensor.clone() for name, tensor in net.tensors.items()}
    said = AdaRound(**QUICK).run(net)
    assert said["skipped"] == {}
    assert said["rounded"].keys() == net.forms.keys()
    for name, row in said["rounded"].items():
        q, (low, high) = grid(net, name).integers(), steps[name]
        assert ((q == low) | (q == high)).all()
        assert row["error"] <= row["nearest"]
        assert (row["error"] < row["nearest"]) == (row["moved"] > 0)
        assert torch.equal(grid(net, name).scale, scales[name])
        packed = net.forms[name].pack()
        back = type(net.forms[name]).unpack(packed, net.forms[name].shape, net.forms[name].dtype)
        assert torch.equal(back.dense(), net.forms[name].dense())
    assert all((net.forms[name].dense()[where] == 0).all() for name, where in zeros.items())
    assert sum(row["moved"] > 0 for row in said["rounded"].values()) >= 1
    assert all(torch.equal(net.tensors[name], tensor) for name, tensor in original.items())


def _steps(found: Grid) -> tuple[Tensor, Tensor]:
    scale, zero = found.spread(found.scale.detach()), found.spread(found.zero_point.detach())
    exact, top = found.latent.detach() / scale, found.quantizer.top
    return (exact.floor() + zero).clamp(0, top), (exact.ceil() + zero).clamp(0, top)


@pytest.mark.parametrize("name", ["digits-cnn", "mobilenet"])
def test_whole_networks_get_better(name: str) -> None:
    module, x = every()[name]
    x = torch.cat([x + 0.5 * torch.randn_like(x) for _ in range(8)])
    net = quantized(module, x, bits=4)
    with torch.no_grad():
        wanted = net.interpreter()(x)
        before = net.interpreter(formed=True)(x)
        said = AdaRound(**QUICK).run(net)
        after = net.interpreter(formed=True)(x)
    assert said["skipped"] == {}
    assert float((after - wanted).norm()) < 0.8 * float((before - wanted).norm())


# ---------------------------------------------------------------- against all roundings there are


@pytest.mark.parametrize("seed", range(6))
def test_it_is_near_the_best_of_all_roundings(seed: int, randn: Any) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 2), nn.ReLU())
    x = correlated(randn, 200, 6)
    net = quantized(module, x, per="tensor")
    low, high = _steps(grid(net, "0.weight"))
    layers = net.layers("test")
    examples = Reconstruction(net, layers, list(layers), "test", 200, 1000)
    scale, zero = grid(net, "0.weight").scale, grid(net, "0.weight").zero_point
    free = torch.nonzero((low != high).reshape(-1)).reshape(-1)
    errors = []
    for up in itertools.product((False, True), repeat=len(free)):
        q = low.reshape(-1).clone()
        q[free] = high.reshape(-1)[free].where(torch.tensor(up), q[free])
        errors.append(examples.error(((q.reshape(2, 6) - zero) * scale).detach()))
    said = AdaRound(samples=200, rows=1000, iterations=500, rate=0.05).run(net)["rounded"]["0.weight"]
    best = min(errors)
    assert best * (1 - 1e-5) <= said["error"] <= said["nearest"]
    assert said["error"] <= 1.05 * best


# ---------------------------------------------------------------- the order of things


def test_later_layers_make_up_for_earlier_ones(randn: Any) -> None:
    """The error a layer reports is that with the layers before it as they have become."""
    module, shape = build("linear")
    x = correlated(randn, 64, *shape)
    net = quantized(module, x)
    said = AdaRound(**QUICK).run(net)
    with torch.no_grad():
        made = net.interpreter(formed=True)(x)
        wanted = net.interpreter()(x)
    assert said["rounded"]["2.weight"]["error"] == pytest.approx(
        float((made - wanted).square().sum(1).mean()), rel=1e-4
    )


def test_corrected_biases_are_kept_and_count(randn: Any) -> None:
    module, shape = build("linear")
    x = correlated(randn, 64, *shape)
    net = quantized(module, x)
    CorrectBias().run(net)
    biases = {name: net.forms[name].dense() for name in ("0.bias", "2.bias")}
    said = AdaRound(**QUICK).run(net)
    with torch.no_grad():
        made, wanted = net.interpreter(formed=True)(x), net.interpreter()(x)
    assert said["rounded"]["2.weight"]["error"] == pytest.approx(
        float((made - wanted).square().sum(1).mean()), rel=1e-4
    )
    assert all(torch.equal(net.forms[name].dense(), bias) for name, bias in biases.items())


def test_the_same_seed_gives_the_same_weights(randn: Any) -> None:
    module, shape = build("conv")
    x = correlated(randn, 64, *shape)
    found = []
    for seed in (0, 0, 1):
        net = quantized(module, x)
        net.seed = seed
        AdaRound(**QUICK).run(net)
        found.append(torch.cat([grid(net, name).integers().reshape(-1) for name in net.forms]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_file_holds_what_was_learnt(tmp_path: Path) -> None:
    recipe = tmp_path / "rounded.toml"
    settings = "\n".join(f"{key} = {value}" for key, value in QUICK.items())
    steps = {"fold-bn": "", "quantize": "bits = 3", "adaround": settings, "correct-bias": ""}
    recipe.write_text("\n".join(f'[[step]]\ndo = "{do}"\n{settings}' for do, settings in steps.items()))
    module, x = every()["digits-cnn"]
    net = network(module, x)
    net.data = Data(Pairs(torch.randn(64, *x.shape[1:]), torch.zeros(64)))
    for name in ("a.dcz", "b.dcz"):
        deepcomp.compress(module, tmp_path / name, recipe=recipe, data=net.data)
    assert (tmp_path / "a.dcz").read_bytes() == (tmp_path / "b.dcz").read_bytes()
    for step in Recipe.load(recipe, data=True).steps:
        step.run(net)
    found = deepcomp.load_state_dict(tmp_path / "a.dcz")
    assert all(torch.equal(found[name], form.dense()) for name, form in net.forms.items())


def test_a_layer_that_is_no_better_stays_as_it_was(randn: Any) -> None:
    module, shape = build("linear")
    net = quantized(module, correlated(randn, 64, *shape))
    before = {name: form.dense() for name, form in net.forms.items()}
    latent = {name: grid(net, name).latent.clone() for name in net.forms}
    said = AdaRound(**{**QUICK, "rate": 0.0}).run(net)
    assert all(row["moved"] == 0 and row["error"] == row["nearest"] for row in said["rounded"].values())
    assert all(torch.equal(form.dense(), before[name]) for name, form in net.forms.items())
    assert all(torch.equal(grid(net, name).latent, latent[name]) for name in net.forms)


def test_a_layer_used_twice_is_judged_by_both_uses(randn: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(F.relu(self.a(x)))

    net = quantized(Twice(), correlated(randn, 64, 5))
    row = AdaRound(**QUICK).run(net)["rounded"]["a.weight"]
    assert row["error"] < row["nearest"]


def test_progress_names_the_layers(randn: Any) -> None:
    module, shape = build("linear")
    net = quantized(module, correlated(randn, 64, *shape))
    seen: list[tuple[str, int, int]] = []
    net.progress = lambda *what: seen.append(what)
    AdaRound(**{**QUICK, "iterations": 1}).run(net)
    assert seen == [("adaround 0.weight", 0, 2), ("adaround 2.weight", 1, 2)]


# ---------------------------------------------------------------- places left alone, errors


def test_places_left_alone_say_why() -> None:
    module, x = every()["recurrent"]
    net = quantized(module, x)
    net.tensors = {**net.tensors, "other": torch.randn(3, 3)}
    net.store("gru.weight_hh_l0", Codebook(torch.zeros(1), torch.zeros(18, 6, dtype=torch.uint8)))
    said = AdaRound(**QUICK).run(net)
    assert said["rounded"] == {}
    kept = "lstm keeps its products to itself"
    assert said["skipped"] == {
        "table.weight": "the embedding looks its rows up, of which the nearest are the best",
        **{name: kept for name in net.forms if name.startswith("lstm")},
        "gru.weight_ih_l0": "gru keeps its products to itself",
        "gru.weight_hh_l0": "it lies on no grid",
        "other": "no layer of the network multiplies with it",
    }


def test_only_chosen_layers_are_rounded(randn: Any) -> None:
    module, shape = build("linear")
    net = quantized(module, correlated(randn, 64, *shape), layers="2")
    said = AdaRound(**QUICK).run(net)
    assert (set(said["rounded"]), said["skipped"]) == ({"2.weight"}, {"0.weight": "it lies on no grid"})
    assert AdaRound(**QUICK, skip="2").run(net)["rounded"] == {}


def test_what_cannot_be_is_refused() -> None:
    module, x = every()["digits-cnn"]
    net = quantized(module, x)
    QuantizeActivations().run(net)
    with pytest.raises(UsageError, match="activations are quantised already, weights are rounded before that"):
        AdaRound().run(net)
    net = network(module, x)
    Quantize().run(net)
    with pytest.raises(UsageError, match="adaround: needs data to calibrate on"):
        AdaRound().run(net)
    with pytest.raises(InputError, match="adaround: the network's operations expected"):
        AdaRound().run(Network({"a.weight": torch.ones(4, 4)}))
    for wrong in ({"samples": 0}, {"rows": 0}, {"batch": 0}, {"iterations": 0}, {"rate": -1.0}, {"regularizer": -1.0}):
        with pytest.raises(UsageError, match=f"adaround.{next(iter(wrong))} = "):
            AdaRound(**wrong)  # type: ignore[arg-type]
