"""Training with quantisers in place: what is learnt is what the file holds, in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steps.nets import MobileNet, network
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp.errors import UsageError
from deepcomp.model import zoo
from deepcomp.model.data import Data
from deepcomp.model.quantizers import quantizers
from deepcomp.network import Network
from deepcomp.runtime.agreement import differences
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.steps.quantize_levels import QuantizeLevels
from deepcomp.steps.store import Store
from deepcomp.training import Plan, checkpoints, train
from deepcomp.training.trainee import Trainee
from deepcomp.weights import Grid, Mask, Raw

QUICK = Plan(epochs=2, batch=16, rate=0.01, choose="last")


class Small(nn.Module):
    """Two convolutions with batch norms, a sum and a linear layer, for 6×6 images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_a(self.a(x)))
        x = torch.relu(self.norm_b(self.b(x)) + x)
        return self.out(x.mean((2, 3)))


def images(count: int = 96) -> TensorDataset:
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.mean((2, 3)).abs().mul(20).sum(1).long().clamp(max=2))


def prepared(*steps: Any, module: nn.Module | None = None) -> Network:
    torch.manual_seed(1)
    data = Data(images(), images(32), "accuracy")
    net = network(module or Small(), data.train[:4][0])
    net.data, net.teacher = data, net.module
    for step in steps:
        step.run(net)
    return net


def quantized(bits: int = 4, **settings: Any) -> Network:
    return prepared(Quantize(bits=bits, **settings), QuantizeActivations(bits=bits, samples=64))


def literals(net: Network) -> list[tuple[float, int]]:
    """Scales and zero-points of the activations."""
    assert net.captured is not None
    nodes = [net.captured.graph.nodes[place] for place in quantizers(net.captured.graph)]
    return [(node.arguments["scale"], node.arguments["zero_point"]) for node in nodes]


def outputs(net: Network) -> Tensor:
    assert net.data is not None
    with torch.no_grad():
        found: Tensor = net.interpreter(formed=True)(net.data.train[:32][0])
    return found


# ---------------------------------------------------------------- what learns


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("settings", [{}, {"per": "tensor", "symmetric": False}], ids=["symmetric", "asymmetric"])
def test_weights_scales_and_activations_learn_and_the_network_has_what_was_judged(
    optimiser: str, settings: dict[str, Any]
) -> None:
    net = quantized(**settings)
    before, scales = literals(net), {name: form.scale.clone() for name, form in net.forms.items()}
    trainee = Trainee(net)
    trainee.eval()
    assert torch.equal(trainee(net.data.train[:32][0]).detach(), outputs(net))
    train(net, Plan(epochs=2, batch=16, rate=0.003, optimiser=optimiser, choose="last"))
    after = literals(net)
    assert sum(old != new for old, new in zip(before, after, strict=True)) >= 3
    assert all(scale == float(f"{scale:.4g}") > 0 for scale, _ in after)
    for name, form in net.forms.items():
        assert not torch.equal(form.scale, scales[name])
        assert bool((form.scale > 0).all())
        assert torch.equal(form.zero_point, form.zero_point.round())
        assert torch.equal(net.module.get_parameter(name), form.dense())
    with torch.no_grad():
        assert torch.equal(net.module(net.data.train[:32][0]), outputs(net))


def test_the_chosen_epoch_is_the_one_whose_quality_was_measured() -> None:
    net = quantized(2)
    said = train(net, Plan(epochs=4, batch=16, rate=0.02))
    items, targets = net.data.train[len(net.data.train) - 9 :]
    with torch.no_grad():
        right = (net.interpreter(formed=True)(items).argmax(1) == targets).float().mean()
    assert said["chosen"]
    assert 100 * float(right) == pytest.approx(said["validation"][said["chosen"] - 1], abs=1e-4)


def test_no_rate_for_scales_leaves_every_range_as_it_is() -> None:
    net = quantized()
    before, scales = literals(net), {name: form.scale.clone() for name, form in net.forms.items()}
    train(net, Plan(epochs=1, batch=16, scales=0.0, choose="last"))
    assert literals(net) == before
    assert all(torch.equal(form.scale, scales[name]) for name, form in net.forms.items())


def test_what_is_frozen_late_stays() -> None:
    net = quantized()
    mean, before = net.tensors["norm_a.running_mean"].clone(), literals(net)
    train(net, Plan(epochs=1, batch=16, frozen=1.0, choose="last"))
    assert torch.equal(net.tensors["norm_a.running_mean"], mean)
    assert literals(net) == before
    train(net, Plan(epochs=2, batch=16, frozen=0.5, choose="last"))
    assert not torch.equal(net.tensors["norm_a.running_mean"], mean)
    assert literals(net) != before


def test_what_an_operation_joins_stays_on_one_grid() -> None:
    class Joined(Small):
        def forward(self, x: Tensor) -> Tensor:
            parts = [torch.relu(self.norm_a(self.a(x))), self.norm_b(self.a(x)).flatten(2).unflatten(2, (6, 6))]
            return self.out(self.b(torch.cat(parts, 1)[:, 3:9]).mean((2, 3)))

    net = prepared(QuantizeActivations(bits=4, samples=64), module=Joined())
    before = literals(net)
    train(net, Plan(epochs=2, batch=16, rate=0.003, optimiser="adam", choose="last"))
    after = literals(net)
    assert before[2] == before[3] != after[2] == after[3]
    assert len(set(after)) == len(after) - 1


@pytest.mark.parametrize("levels", ["grid", "ternary"])
def test_what_is_pruned_stays_zero_and_scales_learn(levels: str) -> None:
    values = Quantize(bits=3) if levels == "grid" else QuantizeLevels(levels="ternary")
    net = prepared(Prune(density=0.4), values, QuantizeActivations(bits=4, samples=64))
    positions = {name: form.positions.clone() for name, form in net.forms.items()}
    scales = {name: form.inner.scale.clone() for name, form in net.forms.items()}
    train(net, Plan(epochs=2, batch=16, rate=0.02, decay=1e-3, choose="last"))
    for name, form in net.forms.items():
        assert isinstance(form, Mask)
        pruned = torch.ones(form.dense().numel(), dtype=torch.bool).index_fill(0, positions[name], False)
        assert torch.equal(form.positions, positions[name])
        assert not form.dense().reshape(-1)[pruned].any()
        assert not torch.equal(form.inner.scale, scales[name])
        assert torch.equal(net.module.get_parameter(name), form.dense())


def test_weights_are_drawn_to_their_grid_without_being_rounded() -> None:
    def away(net: Network) -> float:
        grids = [form for form in net.forms.values() if isinstance(form, Grid)]
        return sum(float((form.latent - form.dense()).detach().square().sum()) for form in grids)

    kinds = {}
    for penalty in (0.0, 5.0):
        net = quantized()
        train(net, Plan(epochs=6, batch=16, rate=0.02, rounding="none", penalty=penalty, choose="last"))
        kinds[penalty] = away(net)
    assert kinds[5.0] < 0.05 * kinds[0.0]
    with pytest.raises(UsageError, match="no weight lies on a grid"):
        train(prepared(), Plan(epochs=1, penalty=1.0))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"rounding": "up"}, "nearest, stochastic, none"),
        ({"shape": "cosine"}, "distance, sine"),
        ({"scales": -1.0}, "scales = -1"),
        ({"frozen": 2.0}, "frozen = 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Plan(**setting)


# ---------------------------------------------------------------- batch norms that stay


@pytest.mark.parametrize("make", [Small, lambda: MobileNet()], ids=["small", "depthwise"])
def test_batch_norms_kept_in_training_merge_into_scales(make: Callable[[], nn.Module]) -> None:
    module = make()
    if isinstance(module, MobileNet):
        module.stem[0] = nn.Conv2d(2, 8, 3, 1, 1, bias=False)
    net = prepared(Quantize(bits=4), QuantizeActivations(bits=8, samples=64), module=module)
    train(net, QUICK)
    assert any(bool((net.tensors[name] < 0).any()) for name in net.tensors if "norm" in name or ".1.weight" in name)
    before = outputs(net)
    integers = {name: form.offsets().abs() for name, form in net.forms.items() if isinstance(form, Grid)}
    said = FoldBN().run(net)
    assert said["folded"]
    assert not said["skipped"]
    assert all(torch.equal(net.forms[name].offsets().abs(), held) for name, held in integers.items())  # type: ignore[operator]
    assert float((outputs(net) - before).abs().max() / before.abs().max()) < 1e-4


def test_statistics_that_are_stored_in_halves_are_learnt_and_stored_in_halves() -> None:
    net = prepared(Store(dtype="float16", vectors=True), Quantize(bits=4))
    before = {name: net.forms[f"norm_a.{name}"].dense() for name in ("running_mean", "num_batches_tracked")}
    train(net, QUICK)
    mean, count = net.forms["norm_a.running_mean"], net.forms["norm_a.num_batches_tracked"]
    assert isinstance(mean, Raw)
    assert mean.stored == torch.float16
    assert not torch.equal(mean.dense(), before["running_mean"])
    assert int(count.dense()) - int(before["num_batches_tracked"]) == 12
    assert net.module is not None
    for name, form in net.forms.items():
        assert torch.equal(net.module.state_dict()[name], form.dense())


# ---------------------------------------------------------------- files


SETTINGS = {"quantize-activations.samples": 64, "finetune.epochs": 2}


def compress(out: Path, **more: Any) -> deepcomp.Report:
    torch.manual_seed(0)
    settings = SETTINGS | more.pop("settings", {})
    return deepcomp.compress(zoo.build("digits-cnn"), out, recipe="qat", data="digits", settings=settings, **more)


def test_the_file_of_the_recipe_runs_alike_simulated_and_in_integers(tmp_path: Path) -> None:
    out = tmp_path / "x.dcz"
    report = compress(out, settings={"finetune.distill": 0.5})
    assert report.metric is not None
    x = torch.rand(40, 1, 8, 8)
    integers = deepcomp.load(out, runtime="integer")
    apart = [found.largest for found in differences(deepcomp.load(out), integers, x)]
    assert max(apart) <= 1


def test_the_recipe_merges_batch_norms_that_trained_along(tmp_path: Path) -> None:
    out, data = tmp_path / "x.dcz", Data(images(), images(32), "accuracy")
    torch.manual_seed(0)
    deepcomp.compress(Small(), out, recipe="qat", data=data, settings=SETTINGS, example_inputs=data.train[:4][0])
    with deepcomp.open(out) as file:
        assert not any("norm" in name for name in list(file.keys()))
    integers = deepcomp.load(out, runtime="integer")
    assert not integers.float_operations
    assert max(found.largest for found in differences(deepcomp.load(out), integers, data.train[:32][0])) <= 1


class Stop(Exception):
    pass


def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    whole, cut = tmp_path / "whole.dcz", tmp_path / "cut.dcz"
    settings = {"finetune.rounding": "stochastic", "finetune.optimiser": "adam", "finetune.rate": 0.001}
    compress(whole, settings=settings)

    def progress(what: str, done: int, total: int) -> None:
        if "finetune: loss" in what and done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        compress(cut, settings=settings, progress=progress)
    compress(cut, settings=settings, resume=True)
    assert cut.read_bytes() == whole.read_bytes()
