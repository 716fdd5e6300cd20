"""Rate training as a step: files get smaller with the price, on any network, and one walk shares its beginnings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import every, network
from torch import nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate
from deepcomp.network import Network
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.rate_train import RateTrain
from deepcomp.steps.share import Share
from deepcomp.steps.slim import Slim
from deepcomp.training import checkpoints, loop
from deepcomp.weights import Grid, Mask

QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "rate": 0.01, "price": 1e-4}


def prepared(module: nn.Module | None = None, x: torch.Tensor | None = None) -> Network:
    """A network with data to train on: by default 6 numbers, and which of the first three is the largest."""
    torch.manual_seed(0)
    if x is None:
        x = torch.randn(300, 6)
    module = module or nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    net = network(module, x[:4])
    with torch.no_grad():
        outputs = net.module(x)  # type: ignore[misc]
    targets = x[:, :3].argmax(1) if x.ndim == 2 and outputs.shape[1:] == (3,) else torch.rand_like(outputs)
    data = TensorDataset(x, targets)
    net.data = Data(data, data, "accuracy" if targets.ndim == 1 else None)
    net.teacher = net.module
    return net


def trained(net: Network, **settings: Any) -> dict[str, Any]:
    return RateTrain(**{**QUICK, **settings}).run(net)


def bits(net: Network) -> float:
    return sum(form.cost() for form in net.forms.values())


def held(net: Network, name: str) -> Grid:
    form = net.form(name)
    found = form.inner if isinstance(form, Mask) else form
    assert isinstance(found, Grid)
    return found


# ---------------------------------------------------------------- what it makes of weights


def test_a_higher_price_makes_fewer_bits_and_the_network_still_learns() -> None:
    sizes = []
    for price in (0.0, 1e-4, 3e-4):
        net = prepared()
        said = trained(net, price=price, epochs=12)
        sizes.append(bits(net))
        assert said["validation"][-1] > 80
        assert said["density"] == sum(int((form.dense() != 0).sum()) for form in net.forms.values()) / 403
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


def test_every_parameter_gets_a_grid_of_one_learnt_step_and_no_more_bits_than_it_needs() -> None:
    net = prepared()
    said = trained(net)
    assert said["tensors"] == 4
    assert said["prices"] == [1e-4]
    assert said["chosen"] == said["epochs"] == 4
    for name, tensor in net.tensors.items():
        grid = held(net, name)
        assert grid.scale.shape == (1,)
        assert float(grid.scale.detach()) == float(grid.scale.detach().half())
        at_first = 0.1 if tensor.ndim == 1 else 0.5 * float(tensor.std(correction=0))
        assert 0 < abs(math.log(float(grid.scale.detach()) / at_first)) < 3
        assert grid.bits == max(2, int(grid.offsets().abs().max()).bit_length() + 1)
        assert torch.equal(net.module.get_parameter(name), grid.dense())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["mixed", "grouped", "recurrent", "mobilenet", "transformer"])
def test_any_network_trains(kind: str) -> None:
    module, x = every()[kind]
    x = torch.randint(11, (24, 7)) if kind == "recurrent" else torch.randn(24, *x.shape[1:])
    net = prepared(module, x)
    own = dict(net.module.named_parameters())  # type: ignore[union-attr]
    said = trained(net, epochs=2, batch=8, loss="mse")
    assert all(map(math.isfinite, said["loss"]))
    assert set(net.forms) == {name for name, tensor in net.tensors.items() if name in own and tensor.ndim}
    for name, form in net.forms.items():
        assert form.dense().isfinite().all()
        assert torch.equal(Grid.unpack(form.pack(), form.shape, form.dtype).dense(), form.dense()), name


def test_vectors_can_be_left_as_they_are_and_layers_too() -> None:
    net = prepared()
    trained(net, vectors=0.0)
    assert set(net.forms) == {"0.weight", "2.weight"}
    net = prepared()
    trained(net, layers="0")
    assert set(net.forms) == {"0.weight", "0.bias"}


def test_weights_that_are_all_alike_are_no_trouble() -> None:
    net = prepared()
    for name in ("0.weight", "2.weight"):
        net.tensors[name].data.fill_(0.0)
    trained(net)
    assert all(form.dense().isfinite().all() for form in net.forms.values())


# ---------------------------------------------------------------- what came before


def test_a_step_continues_the_one_before_it() -> None:
    net = prepared()
    trained(net)
    scales = {name: held(net, name).scale.clone() for name in net.forms}
    latent = held(net, "0.weight").latent.clone()
    trained(net, epochs=0)
    assert all(torch.equal(held(net, name).scale, scale) for name, scale in scales.items())
    assert torch.equal(held(net, "0.weight").latent, latent)


def test_what_is_masked_stays_zero_and_scales_by_channel_stay_so() -> None:
    net = prepared()
    Prune(density=0.4).run(net)
    Slim(units={"0": 20}).run(net)
    zero = {name: net.form(name).dense() == 0 for name in net.forms}  # type: ignore[union-attr]
    Quantize(bits=8, layers="2").run(net)
    trained(net)
    assert held(net, "2.weight").scale.shape == (3,)
    for name, where in zero.items():
        assert not net.form(name).dense()[where].any()  # type: ignore[union-attr]
    assert isinstance(net.form("0.bias"), Mask)


def test_forms_that_are_no_symmetric_grid_make_way() -> None:
    net = prepared()
    Share(values=4, layers="0").run(net)
    Quantize(bits=4, symmetric=False, layers="2").run(net)
    trained(net)
    assert held(net, "0.weight").symmetric
    assert held(net, "2.weight").scale.shape == (1,)


# ---------------------------------------------------------------- prices, one after the other


@pytest.mark.parametrize(
    ("price", "first", "prices"),
    [
        (1e-6, 0.0, [1e-6]),
        (1e-6, 2e-6, [1e-6]),
        (8e-6, 1e-6, [1e-6, 2e-6, 4e-6, 8e-6]),
        (5e-6, 1e-6, [1e-6, 2e-6, 4e-6, 5e-6]),
        (0.0, 1e-6, [0.0]),
    ],
)
def test_prices_double_until_the_one_that_is_asked_for(price: float, first: float, prices: list[float]) -> None:
    plans = list(RateTrain(price=price, first=first)._plans())
    assert [plan.price for plan in plans] == prices
    assert [(plan.epochs, plan.ramp) for plan in plans] == [(20, 0.4), *[(8, 0.15)] * (len(plans) - 1)]


SETTINGS = {"rate-train.epochs": 2, "rate-train.warm_epochs": 1, "rate-train.first": 1e-5, "rate-train.price": 2e-5}


def compress(out: Path, **more: Any) -> deepcomp.Report:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    settings = {**SETTINGS, **more.pop("settings", {})}
    return deepcomp.compress(module, out, recipe="smallest", data="digits", settings=settings, **more)


def test_a_curve_trains_each_beginning_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[float] = []
    epoch = loop._Run._train_epoch
    monkeypatch.setattr(loop._Run, "_train_epoch", lambda run: (epochs.append(run.plan.price), epoch(run))[1])
    text = (Path(deepcomp.__file__).parent / "recipes" / "smallest.toml").read_text()
    recipe = tmp_path / "smallest.toml"
    text = text.replace("price = 1e-6", "price = 2e-5")
    recipe.write_text(text[: text.index("values = ")] + "values = [1e-5, 2e-5, 3e-5, 4e-5, 8e-5]\n")
    curve = tmp_path / "curve.json"
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    pytest.importorskip("matplotlib")
    settings = {key: value for key, value in SETTINGS.items() if key != "rate-train.price"}
    deepcomp.compress(module, tmp_path / "x.dcz", recipe=str(recipe), data="digits", settings=settings, pareto=curve)
    assert sorted(epochs) == [1e-5, 1e-5, 2e-5, 3e-5, 4e-5, 8e-5]
    assert len(json.loads(curve.read_text())["points"]) == 5
    compress(tmp_path / "alone.dcz")
    assert (tmp_path / "alone.dcz").read_bytes() == (tmp_path / "x.dcz").read_bytes()


def test_a_point_of_a_curve_is_the_file_made_alone(tmp_path: Path) -> None:
    whole = compress(tmp_path / "a.dcz", settings={"rate-train.price": 4e-5})
    again = compress(tmp_path / "b.dcz", settings={"rate-train.price": 4e-5})
    assert whole.sha256 == again.sha256
    assert compress(tmp_path / "c.dcz", seed=1, settings={"rate-train.price": 4e-5}).sha256 != whole.sha256


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["rate-train at 1e-05", "rate-train at 2e-05"])
def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    whole, cut = tmp_path / "whole.dcz", tmp_path / "cut.dcz"
    settings = {"rate-train.augment": "elastic", "rate-train.distill": 0.5, "rate-train.warm_epochs": 2}
    compress(whole, settings=settings)

    def progress(what: str, done: int, total: int) -> None:
        if where in what and done >= total / 2:
            raise Stop

    with pytest.raises(Stop):
        compress(cut, settings=settings, progress=progress)
    compress(cut, settings=settings, resume=True)
    assert cut.read_bytes() == whole.read_bytes()


def test_the_file_runs_as_it_was_judged_and_the_recipe_takes_the_context_coder(tmp_path: Path) -> None:
    report = compress(tmp_path / "x.dcz", settings={"rate-train.epochs": 6})
    assert report.metric is not None
    assert report.output_bytes < 2000
    assert evaluate(deepcomp.load(tmp_path / "x.dcz"), load_data("digits")).value == report.metric["after"]
    with deepcomp.open(tmp_path / "x.dcz") as file:
        assert all(file.entries[name].parts[0].facts["bits"] < 16 for name in file.entries)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"price": math.nan}, "price = nan"),
        ({"first": -1.0}, "first = -1"),
        ({"first": math.nan}, "first = nan"),
        ({"coarse": 0.0}, "coarse = 0"),
        ({"coarse": math.nan}, "coarse = nan"),
        ({"vectors": math.inf}, "vectors = inf"),
        ({"warm_epochs": -1}, "warm_epochs = -1"),
        ({"warm_ramp": 2.0}, "warm_ramp = 2"),
        ({"choose": "best"}, "choose = 'best'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_line(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as found:
        RateTrain(**setting)
    assert "\n" not in str(found.value)


def test_prices_beyond_all_numbers_end_in_a_line() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    for settings in ({"epochs": 2}, {"epochs": 1, "batch": 1000, "ramp": 0.0}):
        net = prepared(module, torch.randn(40, 6))
        with pytest.raises(InputError, match="finite") as found:
            trained(net, price=1e300, loss="mse", **settings)
        assert "\n" not in str(found.value)


def test_data_is_needed() -> None:
    net = prepared()
    net.data = None
    with pytest.raises(UsageError, match="needs data to train on"):
        trained(net)
