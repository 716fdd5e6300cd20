"""AdaQuant: layers make what they made before, or stay as they were; what is judged is what the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import every, network
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs, draw
from deepcomp.model.quantizers import quantizers
from deepcomp.network import Network
from deepcomp.recipe import Recipe
from deepcomp.steps.adaquant import AdaQuant
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.weights import Codebook, Grid, Mask, Raw

QUICK: dict[str, Any] = {"samples": 256, "rows": 2048, "batch": 128, "iterations": 80, "weights": 0.02}
QUICK |= {"ranges": 0.005, "inputs": 0.005, "biases": 0.02}


def quantized(module: nn.Module, x: Tensor, activations: int = 4, **settings: Any) -> Network:
    """A network with its batch norms folded, its weights and activations on coarse grids, and data."""
    net = network(module, x[:4])
    net.data = Data(Pairs(x, torch.zeros(len(x))))
    FoldBN().run(net)
    Quantize(**{"bits": 3, **settings}).run(net)
    if activations:
        QuantizeActivations(bits=activations).run(net)
    return net


def grid(net: Network, name: str) -> Grid:
    form = net.forms[name]
    found = form.inner if isinstance(form, Mask) else form
    assert isinstance(found, Grid)
    return found


def literals(net: Network) -> list[tuple[float, int]]:
    """Scales and zero-points of the quantisers, in the order they run."""
    assert net.captured is not None
    nodes = [net.captured.graph.nodes[place].arguments for place in quantizers(net.captured.graph)]
    return [(given["scale"], given["zero_point"]) for given in nodes]


def held_out(net: Network, step: AdaQuant) -> Tensor:
    """The inputs that a step judges by."""
    assert net.data is not None
    items = draw(net.data.train, step.samples, net.seed)
    return net.data.train[items[-round(step.held_out * len(items)) :]][0]


def squared(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).detach().square().sum(-1).mean())


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


# ---------------------------------------------------------------- what holds for every layer

LAYERS: dict[str, tuple[list[Any], tuple[int, ...]]] = {  # kinds and settings of layers, and the shape of an input
    "linear": ([(nn.Linear, 6, 5), (nn.ReLU,), (nn.Linear, 5, 3)], (6,)),
    "tokens": ([(nn.Linear, 6, 5), (nn.GELU,), (nn.Linear, 5, 3)], (4, 6)),
    "conv": ([(nn.Conv2d, 3, 4, 3, 1, 1), (nn.ReLU,), (nn.MaxPool2d, 2), (nn.Conv2d, 4, 2, 3, 2)], (3, 7, 7)),
    "grouped": ([(nn.Conv2d, 4, 8, 3, 1, 0, 1, 2), (nn.ReLU6,), (nn.Conv2d, 8, 8, 3, 1, 0, 1, 8)], (4, 7, 7)),
    "transposed": ([(nn.ConvTranspose2d, 4, 4, 3, 2, 0, 1, 2), (nn.ReLU,), (nn.ConvTranspose2d, 4, 3, 2)], (4, 4, 4)),
    "conv1d": ([(nn.Conv1d, 3, 5, 3, 1, "same"), (nn.PReLU, 5), (nn.Conv1d, 5, 4, 2)], (3, 9)),
}
GRIDS: dict[str, dict[str, Any]] = {  # other than a scale a channel
    "tensor": {"per": "tensor", "symmetric": False},
    "group": {"per": "group", "size": 2, "symmetric": False},
    "block": {"per": "block", "size": 3},
}


@pytest.mark.parametrize(
    ("kind", "per", "masked"),
    [
        *((kind, "channel", masked) for kind in LAYERS for masked in (False, True)),
        *((kind, per, masked) for kind in ("tokens", "grouped") for per in GRIDS for masked in (False, True)),
    ],
)
def test_no_layer_gets_worse_and_what_is_stored_is_what_was_judged(
    kind: str, per: str, masked: bool, randn: Any
) -> None:
    parts, shape = LAYERS[kind]
    x = randn(128, *shape) + 1
    net = network(nn.Sequential(*(make(*settings) for make, *settings in parts)), x[:4])
    net.data = Data(Pairs(x, torch.zeros(128)))
    if masked:
        Prune(density=0.6).run(net)
    Quantize(bits=3, **GRIDS.get(per, {})).run(net)
    QuantizeActivations(bits=4).run(net)
    zeros = {name: form.dense() == 0 for name, form in net.forms.items() if isinstance(form, Mask)}
    blocks = {name: (grid(net, name).blocks, grid(net, name).bits) for name in net.forms}
    original, before = {name: tensor.clone() for name, tensor in net.tensors.items()}, literals(net)
    step = AdaQuant(**QUICK)
    said = step.run(net)
    assert (said["skipped"], said["fixed_inputs"]) == ({}, {})
    assert said["tuned"].keys() == blocks.keys()
    for row in said["tuned"].values():
        assert row["error"] <= row["before"]
        assert row["reverted"] == (row["error"] == row["before"])
    assert sum(not row["reverted"] for row in said["tuned"].values()) >= 1
    for form in net.forms.values():
        back = type(form).unpack(form.pack(), form.shape, form.dtype)
        assert torch.equal(back.dense(), form.dense())
    assert all((grid(net, name).blocks, grid(net, name).bits) == kept for name, kept in blocks.items())
    assert all((net.forms[name].dense()[where] == 0).all() for name, where in zeros.items())
    assert all(torch.equal(net.tensors[name], tensor) for name, tensor in original.items())
    assert all(scale == float(f"{scale:.4g}") for scale, _ in literals(net))
    assert [a != b for a, b in zip(literals(net), before, strict=True)] == [
        *(not row["reverted"] for row in said["tuned"].values()),
        False,  # no layer reads the quantiser of the output
    ]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("activations", [0, 4])
def test_errors_are_those_of_the_stored_network_on_inputs_held_out(
    activations: int, sequential: bool, randn: Any
) -> None:
    module = mlp()
    net = quantized(module, randn(256, 6) + 1, activations)
    step = AdaQuant(**QUICK | {"rows": 4096}, sequential=sequential)
    first, x = net.forms["2.weight"], held_out(net, step)
    biases = module[2].bias.detach()
    before = literals(net)
    said = step.run(net)["tuned"]["2.weight"]
    assert not said["reverted"]

    def on(numbers: tuple[float, int], values: Tensor) -> Tensor:
        scale, zero = numbers
        return ((values / scale).round() + zero).clamp(0, 15).sub(zero) * scale

    with torch.no_grad():
        wanted = module(x)
        hidden = F.relu(module[0](x))
        if sequential:
            read = on(literals(net)[0], x) if activations else x
            hidden = F.relu(F.linear(read, net.forms["0.weight"].dense(), net.forms["0.bias"].dense()))
        then, now = (
            on(where[1], hidden) if activations else hidden for where in (before or [()] * 2, literals(net) or [()] * 2)
        )
        assert said["before"] == pytest.approx(squared(F.linear(then, first.dense(), biases), wanted), rel=1e-4)
        made = F.linear(now, net.forms["2.weight"].dense(), net.forms["2.bias"].dense())
    assert said["error"] == pytest.approx(squared(made, wanted), rel=1e-4)


def test_whole_networks_get_better_and_more_so_in_sequence() -> None:
    module, x = every()["digits-cnn"]
    x = torch.cat([x + 0.5 * torch.randn_like(x) for _ in range(64)])
    moved = []
    for step in (None, AdaQuant(**QUICK, sequential=False), AdaQuant(**QUICK)):
        torch.manual_seed(1)
        net = quantized(module, x, bits=4)
        if step:
            assert step.run(net)["skipped"] == {}
        with torch.no_grad():
            wanted = net.original().interpreter()(x)
            moved.append(float((net.interpreter(formed=True)(x) - wanted).norm()))
    assert moved[2] < moved[1] < moved[0]


# ---------------------------------------------------------------- what is learnt


def test_weights_go_as_far_as_they_must(randn: Any) -> None:
    """The layer before gives half of what it gave: its reader's weights have to double."""
    x = randn(256, 6).abs()
    net = quantized(nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), x, 0, bits=4)
    net.forms["2.weight"] = Grid.fit(net.tensors["2.weight"].detach(), 5, range="min-max")
    grid(net, "2.weight").scale.data *= 2
    net.store("0.weight", Raw(net.tensors["0.weight"].detach() / 2))
    before = grid(net, "2.weight").integers()
    AdaQuant(**QUICK | {"iterations": 400, "weights": 0.1, "ranges": 0.0}).run(net)
    assert (grid(net, "2.weight").integers() - before).abs().max() >= 2


def test_a_layer_without_errors_has_neither_loss_nor_gradient_and_stays(randn: Any) -> None:
    module, x = mlp(), randn(256, 6)
    for name in ("0", "2"):
        layer = module.get_submodule(name)
        layer.weight.data = Grid.fit(layer.weight.detach(), 3).dense()
    net = quantized(module, x, 0)
    forms, said = dict(net.forms), AdaQuant(**QUICK).run(net)
    assert all(row == {"before": 0, "error": 0, "reverted": True} for row in said["tuned"].values())
    assert net.forms == forms


def test_what_gets_worse_stays_altogether_as_it_was(randn: Any) -> None:
    net = quantized(mlp(), randn(256, 6))
    forms, before = dict(net.forms), literals(net)
    said = AdaQuant(**QUICK | dict.fromkeys(("weights", "ranges", "inputs", "biases"), 1.0)).run(net)
    assert all(row["reverted"] and row["error"] == row["before"] for row in said["tuned"].values())
    assert net.forms == forms
    assert literals(net) == before


@pytest.mark.parametrize("part", ["weights", "ranges", "inputs", "biases"])
def test_a_rate_of_zero_leaves_a_part_as_it_is(part: str, randn: Any) -> None:
    net = quantized(mlp(), randn(256, 6), per="tensor")
    latent, scale = grid(net, "2.weight").latent.clone(), grid(net, "2.weight").scale.clone()
    before = literals(net)
    AdaQuant(**QUICK | {part: 0.0}).run(net)
    changed = {
        "weights": not torch.equal(grid(net, "2.weight").latent, latent),
        "ranges": not torch.equal(grid(net, "2.weight").scale, scale),
        "inputs": literals(net) != before,
        "biases": "2.bias" in net.forms,
    }
    assert changed == {name: name != part for name in changed}


def test_zero_points_learn_too(randn: Any) -> None:
    net = quantized(mlp(), randn(256, 6), bits=4, symmetric=False, per="tensor")
    before = grid(net, "2.weight").zero_point.clone()
    net.tensors = {**net.tensors, "2.weight": net.tensors["2.weight"].detach() + 0.2}
    AdaQuant(**QUICK | {"ranges": 0.02, "weights": 0.1}).run(net)
    found = grid(net, "2.weight").zero_point
    assert not torch.equal(found, before)
    assert torch.equal(found, found.round())


def test_scales_that_take_a_byte_go_on_taking_one(randn: Any) -> None:
    net = quantized(mlp(), randn(256, 6), power_of_two=True, per="tensor")
    AdaQuant(**QUICK | {"ranges": 0.05}).run(net)
    assert all(net.forms[f"{n}.weight"].pack().tables["scale"].dtype == "int8" for n in (0, 2))


def test_biases_stay_in_the_type_they_are_stored_in(randn: Any) -> None:
    net = quantized(mlp(), randn(256, 6))
    net.store("0.bias", Raw(net.tensors["0.bias"], torch.float16))
    AdaQuant(**QUICK).run(net)
    form = net.forms["0.bias"]
    assert isinstance(form, Raw)
    assert (form.stored, form.dtype) == (torch.float16, torch.float32)
    assert not torch.equal(form.dense(), net.tensors["0.bias"].half().float())
    assert torch.equal(form.dense(), form.dense().half().float())


# ---------------------------------------------------------------- who reads what


class Residual(nn.Module):
    """A block whose input is read twice, by a layer and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(self.inner(x) + x))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_range_that_others_read_stays(sequential: bool, randn: Any) -> None:
    net = quantized(Residual(), randn(256, 6))
    before = literals(net)
    said = AdaQuant(**QUICK, sequential=sequential).run(net)
    assert said["fixed_inputs"] == {"inner.weight": "the quantiser before it is read by linear and add"}
    assert not any(row["reverted"] for row in said["tuned"].values())
    changed = [a != b for a, b in zip(literals(net), before, strict=True)]
    assert changed == [True, False, False, True, False]  # input, first, inner, the sum, last


def test_dynamic_quantisers_stay_and_count(randn: Any) -> None:
    net = quantized(mlp(), randn(256, 6), 0)
    QuantizeActivations(bits=4, dynamic="token").run(net)
    step = AdaQuant(**QUICK)
    said = step.run(net)
    reason = "no static quantiser stands before this layer alone"
    assert said["fixed_inputs"] == {"0.weight": reason, "2.weight": reason}
    with torch.no_grad():
        x = held_out(net, step)
        made, wanted = net.interpreter(formed=True), net.original().interpreter()
        value = next(layer.makes.value for layer in net.layers("") if layer.weight == "2.weight" and layer.makes)
        ((_, last),) = made.observe([value], x)
    assert said["tuned"]["2.weight"]["error"] == pytest.approx(squared(last, wanted(x)), rel=1e-4)


class Shared(nn.Module):
    """A layer that is called twice, and two others with one weight and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(F.relu(self.twice(F.relu(self.twice(x)))))))


@pytest.mark.parametrize("sequential", [False, True])
def test_all_uses_of_a_weight_count(sequential: bool, randn: Any) -> None:
    module = Shared()
    net = quantized(module, randn(256, 6))
    before, step = literals(net), AdaQuant(**QUICK | {"iterations": 40, "rows": 4096}, sequential=sequential)
    said = step.run(net)
    assert said["tuned"].keys() == {"twice.weight", "one.weight"}
    assert not any(row["reverted"] for row in said["tuned"].values())
    assert {name for name in net.forms if name.endswith("bias")} == {"twice.bias", "one.bias", "two.bias"}
    changed = [a != b for a, b in zip(literals(net), before, strict=True)]
    assert sum(changed[:4]) >= 3
    assert not changed[4]
    if sequential:  # about the error of the stored network: its second use was seen behind the first as that was
        x, then, now = held_out(net, step), net.original(), net
        makes = [[layer.makes.value for layer in one.layers("") if layer.weight == "one.weight"] for one in (then, now)]
        with torch.no_grad():
            wanted = [made for _, made in then.interpreter().observe(makes[0], x)]
            found = [made for _, made in now.interpreter(formed=True).observe(makes[1], x)]
        errors = squared(F.relu(found[0]), F.relu(wanted[0])), squared(found[1], wanted[1])
        assert said["tuned"]["one.weight"]["error"] == pytest.approx(sum(errors) / 2, rel=0.1)


# ---------------------------------------------------------------- files


class Small(nn.Module):
    """A network of convolutions with a residual, pooling and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.b, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        return self.out(F.max_pool2d(x, 2).flatten(1))


def test_a_file_gives_back_what_was_learnt(tmp_path: Path, randn: Any) -> None:
    recipe = tmp_path / "tuned.toml"
    settings = "\n".join(f"{key} = {value}" for key, value in QUICK.items())
    steps = {"fold-bn": "", "quantize": "bits = 4", "quantize-activations": "bits = 8", "adaquant": settings}
    recipe.write_text("\n".join(f'[[step]]\ndo = "{do}"\n{settings}' for do, settings in steps.items()))
    module, x = Small(), randn(64, 1, 8, 8)
    net = network(module, x)
    net.data = Data(Pairs(x, torch.zeros(64)))
    for name in ("a.dcz", "b.dcz"):
        deepcomp.compress(module, tmp_path / name, recipe=recipe, data=net.data)
    assert (tmp_path / "a.dcz").read_bytes() == (tmp_path / "b.dcz").read_bytes()
    for step in Recipe.load(recipe, data=True).steps:
        said = step.run(net)
    assert not any(row["reverted"] for row in said["tuned"].values())
    with torch.no_grad():
        wanted = net.interpreter(formed=True)(x)
        assert torch.equal(deepcomp.load(tmp_path / "a.dcz")(x), wanted)
        whole = deepcomp.load(tmp_path / "a.dcz", runtime="integer")(x)
    assert float((whole - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_the_same_seed_gives_the_same_network(randn: Any) -> None:
    x, found = randn(256, 6), []
    module = mlp()
    for seed in (0, 0, 1):
        net = quantized(module, x)
        net.seed = seed
        AdaQuant(**QUICK).run(net)
        found.append((torch.cat([form.dense().reshape(-1) for form in net.forms.values()]).tolist(), literals(net)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_progress_names_the_layers(randn: Any) -> None:
    net = quantized(mlp(), randn(64, 6))
    seen: list[tuple[str, int, int]] = []
    net.progress = lambda *what: seen.append(what)
    AdaQuant(**QUICK | {"iterations": 1}).run(net)
    assert seen == [("adaquant 0.weight", 0, 2), ("adaquant 2.weight", 1, 2)]


# ---------------------------------------------------------------- places left alone, errors


def test_places_left_alone_say_why() -> None:
    module, x = every()["recurrent"]
    net = quantized(module, x, 0)
    net.tensors = {**net.tensors, "other": torch.randn(3, 3)}
    net.store("gru.weight_hh_l0", Codebook(torch.zeros(1), torch.zeros(18, 6, dtype=torch.uint8)))
    said = AdaQuant(**QUICK).run(net)
    assert said["tuned"] == {}
    kept = "keeps its products to itself"
    assert said["skipped"] == {
        "table.weight": "the embedding looks its rows up, of which the nearest are the best",
        **{
            name: f"{name.split('.')[0]} {kept}"
            for name in net.tensors
            if name.startswith(("lstm.weight", "gru.weight"))
        },
        "other": "no layer of the network multiplies with it",
    }


def test_only_chosen_layers_are_tuned(randn: Any) -> None:
    net = quantized(mlp(), randn(64, 6), layers="2")
    before = literals(net)
    said = AdaQuant(**QUICK).run(net)
    assert (set(said["tuned"]), said["skipped"]) == ({"2.weight"}, {"0.weight": "it lies on no grid"})
    assert literals(net)[0] == before[0]
    assert AdaQuant(**QUICK, skip="2").run(net)["tuned"] == {}


def test_what_cannot_be_is_refused(randn: Any) -> None:
    net = quantized(mlp(), randn(64, 6))
    net.data = Data(Pairs(randn(1, 6), torch.zeros(1)))
    with pytest.raises(InputError, match="adaquant: 1 calibration input found, 2 or more expected: some are held out"):
        AdaQuant().run(net)
    net.data = None
    with pytest.raises(UsageError, match="adaquant: needs data to calibrate on"):
        AdaQuant().run(net)
    with pytest.raises(InputError, match="adaquant: the network's operations expected"):
        AdaQuant().run(Network({"a.weight": torch.ones(4, 4)}))
    counts = dict.fromkeys(("samples", "rows", "batch", "iterations"), 0)
    rates = dict.fromkeys(("weights", "ranges", "inputs", "biases"), 2.0)
    for key, value in {**counts, **rates, "held_out": 1.0}.items():
        with pytest.raises(UsageError, match=f"adaquant.{key} = "):
            AdaQuant(**{key: value})  # type: ignore[arg-type]
