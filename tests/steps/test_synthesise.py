"""Synthetic inputs in a recipe: nothing real is read, and the network stays what it is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from steps.nets import network
from synthesis.remembering import cnn, images, remembering
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data
from deepcomp.network import Network
from deepcomp.recipe import Recipe
from deepcomp.steps import STEPS
from deepcomp.steps.finetune import Finetune
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.synthesise import Synthesise
from deepcomp.training import Checkpoints

FAST = {"samples": 24, "batch": 12, "iterations": 4}
WAYS = ("inputs", "generator")
ROOT = Path(__file__).parents[2]


class Forbidden:
    """Items that may be counted, and read once: `Data` looks at the first."""

    def __init__(self) -> None:
        self.looked = False

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        assert not self.looked, "a real item is read"
        self.looked = True
        return torch.zeros(3, 10, 9), torch.tensor(0)


@pytest.fixture
def net() -> Network:
    found = remembering(cnn(), images())
    found.teacher = found.module
    return found


def made(net: Network) -> Tensor:
    assert net.data is not None
    return torch.stack([item[0] for item in net.data.train])  # type: ignore[attr-defined]


SMALL = {f"synthesise.{key}": value for key, value in FAST.items()}


def settings(by: str = "inputs") -> dict[str, Any]:
    return {**SMALL, "synthesise.by": by, "adaround.iterations": 20}


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize("by", WAYS)
def test_the_network_stays_as_it_is_to_the_bit(net: Network, by: str) -> None:
    assert net.module is not None
    module, captured, before = net.module, net.captured, {n: t.clone() for n, t in net.module.state_dict().items()}
    Synthesise(by=by, **FAST).run(net)
    assert (net.module, net.captured, net.forms) == (module, captured, {})
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(net.tensors[name], before[name])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("by", WAYS)
def test_the_same_seed_gives_the_same_inputs(net: Network, by: str) -> None:
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(found))
        net.seed = seed
        Synthesise(by=by, **FAST).run(net)
        found.append(made(net))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("by", WAYS)
def test_the_report_says_what_was_read(net: Network, by: str) -> None:
    said = Synthesise(by=by, **FAST).run(net)
    assert (said["real_inputs"], said["data"], said["batch_norms"], said["classes"]) == (0, "none given", 2, 5)
    assert said["mismatch"] < said["mismatch_of_noise"]
    assert ("cross_entropy_after" in said) == (by == "generator")
    net.data = Data(Forbidden())
    assert "no step from here on reads any of it" in Synthesise(by=by, **FAST).run(net)["data"]


def test_targets_are_what_the_network_says(net: Network) -> None:
    assert net.module is not None
    for classifier in (True, False):
        Synthesise(classifier=classifier, **FAST).run(net)
        assert net.data is not None
        outputs, targets = net.module(made(net)).detach(), torch.stack([item[1] for item in net.data.train])  # type: ignore[attr-defined]
        torch.testing.assert_close(targets, outputs.argmax(1) if classifier else outputs)
        assert net.data.metric == ("accuracy" if classifier else None)


@pytest.mark.parametrize("by", WAYS)
def test_training_learns_from_synthetic_inputs(net: Network, by: str) -> None:
    net.data = Data(Forbidden())
    Synthesise(by=by, **FAST).run(net)
    FoldBN().run(net)
    Quantize(bits=3).run(net)
    assert len(Finetune(epochs=2, batch=8, distill=1).run(net)["loss"]) == 2


def test_inputs_of_several_names_are_dicts() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(self.a(x) + y)  # type: ignore[no-any-return]

    net = network(Sum(), (torch.randn(4, 3), torch.randn(4, 4)))
    Synthesise(**FAST).run(net)
    (batch,) = net.inputs("test", 24)
    assert {name: tensor.shape for name, tensor in batch.items()} == {"x": (24, 3), "y": (24, 4)}


def test_batch_norms_must_be_there(net: Network) -> None:
    FoldBN().run(net)
    with pytest.raises(UsageError, match=r"synthesise: no batch norm .* before fold-bn"):
        Synthesise(**FAST).run(net)


def test_weights_must_be_what_they_were_trained_to_be(net: Network) -> None:
    Quantize(bits=3).run(net)
    with pytest.raises(UsageError, match=r"0\.weight has a form already"):
        Synthesise(**FAST).run(net)


def test_whole_numbers_are_refused() -> None:
    net = network(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.BatchNorm1d(12)), torch.zeros(2, 3).long())
    with pytest.raises(UsageError, match=r"input 'input' of int64 found, floating-point inputs expected"):
        Synthesise(**FAST).run(net)


@pytest.mark.parametrize(
    ("key", "value"), [("by", "magic"), ("samples", 1), ("batch", 1), ("iterations", -1), ("rate", 0.0)]
)
def test_settings_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"synthesise.{key} = "):
        Synthesise(**{key: value})


def test_a_device_that_is_not_there_is_refused(net: Network) -> None:
    with pytest.raises(UsageError, match=r"synthesise\.device = 'nowhere'"):
        Synthesise(device="nowhere", **FAST).run(net)


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize("by", WAYS)
def test_no_data_is_needed(tmp_path: Path, by: str) -> None:
    net = remembering(cnn(), images())
    assert net.module is not None
    out = tmp_path / "x.dcz"
    report = deepcomp.compress(net.module, out, recipe="zero-shot", example_inputs=images(2), settings=settings(by=by))
    assert report.metric is None
    assert (report.steps[0]["do"], report.steps[0]["real_inputs"]) == ("synthesise", 0)
    assert "sites" in report.steps[-1]
    assert deepcomp.load(out)(images(3)).shape == (3, 5)


def test_nothing_of_the_data_given_is_read_but_to_measure(tmp_path: Path) -> None:
    net = remembering(cnn(), x := images())
    assert net.module is not None
    data = Data(Forbidden(), list(zip(x, net.module(x).argmax(1), strict=True)), "accuracy")
    chosen = {"recipe": "zero-shot", "example_inputs": x[:2], "settings": settings()}
    with_data = deepcomp.compress(net.module, tmp_path / "a.dcz", data=data, **chosen)  # type: ignore[arg-type]
    assert with_data.metric is not None
    assert with_data.metric["before"] == 100
    without = deepcomp.compress(net.module, tmp_path / "b.dcz", **chosen)  # type: ignore[arg-type]
    assert with_data.sha256 == without.sha256


def test_a_budget_makes_the_inputs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, runs = remembering(cnn(), images()), []
    make = Synthesise._make
    monkeypatch.setattr(Synthesise, "_make", lambda *given: runs.append(0) or make(*given))  # type: ignore[func-returns-value]
    recipe = tmp_path / "x.toml"
    recipe.write_text(
        "[[step]]\ndo = 'synthesise'\n[[step]]\ndo = 'fold-bn'\n[[step]]\ndo = 'quantize'\n"
        "[dial]\nset = 'quantize.bits'\nvalues = [8, 4]"
    )
    assert net.module is not None
    report = deepcomp.compress(
        net.module, tmp_path / "x.dcz", recipe=recipe, example_inputs=images(2), settings=SMALL,
        pareto=tmp_path / "curve.json",
    )  # fmt: skip
    assert len(report.points) > 1
    assert len(runs) == 1


def test_behind_it_there_is_data() -> None:
    data, none = "[[step]]\ndo = 'finetune'\nwhen = 'data'\n", "[[step]]\ndo = 'prune'\nwhen = 'no-data'\n"
    assert [step.do for step in Recipe.parse(none + "[[step]]\ndo = 'synthesise'\n" + data + none, "x").steps] == [
        "prune", "synthesise", "finetune"
    ]  # fmt: skip
    otherwise = "[[step]]\ndo = 'synthesise'\nwhen = 'no-data'\n"
    for given in (True, False):
        assert Recipe.parse(otherwise + data, "x", data=given).steps[-1].do == "finetune"
    assert [name for name, step in STEPS.items() if step.gives_data] == ["synthesise"]


def test_digits_keep_their_accuracy(tmp_path: Path) -> None:
    report = deepcomp.compress(
        ROOT / "checkpoints/digits-cnn.safetensors", tmp_path / "x.dcz", recipe="zero-shot", model="digits-cnn",
        data="digits", settings={"synthesise.samples": 64, "synthesise.iterations": 20, "adaround.iterations": 50},
    )  # fmt: skip
    assert report.metric is not None
    assert report.metric["drop"] <= 1


def test_an_input_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"synthesise: the network's operations expected \(no example input was given"):
        deepcomp.compress(cnn(), tmp_path / "x.dcz", recipe="zero-shot")


def test_training_on_other_inputs_is_another_run(net: Network, tmp_path: Path) -> None:
    """What was trained on some inputs is not taken up again for others, though weights are the same at first."""

    def trained(iterations: int, **kept: Any) -> Tensor:
        fresh = replace(net, **kept)
        Synthesise(samples=24, batch=12, iterations=iterations).run(fresh)
        Finetune(epochs=1, rate=0.01, distill=1.0, choose="last", validation=2).run(fresh)
        return torch.cat([fresh.tensors[name].flatten() for name, _ in fresh.weights()])

    checkpoints = Checkpoints(tmp_path)
    trained(0, checkpoints=checkpoints)
    assert torch.equal(trained(4, checkpoints=checkpoints), trained(4))


@pytest.mark.parametrize(
    ("statistic", "value"), [("running_mean", math.nan), ("running_var", -1.0), ("running_var", math.inf)]
)
def test_statistics_that_are_no_numbers_are_named(net: Network, statistic: str, value: float) -> None:
    name = next(name for name in net.tensors if name.endswith(statistic))
    net.tensors[name][1] = value
    mean = name.replace("running_var", "running_mean")
    with pytest.raises(InputError, match=f"{mean}: 1 of .* channels without a finite mean and spread"):
        Synthesise(**FAST).run(net)
