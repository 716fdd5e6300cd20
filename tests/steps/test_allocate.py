"""Bits by layer as a step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from steps.nets import network
from torch import nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp.errors import InfeasibleError, UsageError
from deepcomp.model import zoo
from deepcomp.model.data import Data
from deepcomp.steps.allocate import Allocate
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.weights import Grid, Mask

MACS = {"0.weight": 27 * 8 * 16, "2.weight": 72 * 8 * 4, "5.weight": 320}  # of `calibrated`


def data(*shape, items=64):
    x = torch.randn(items, *shape)
    pairs = TensorDataset(x, torch.zeros(items).long())
    return Data(pairs, pairs, "accuracy")


def calibrated():
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)]
    net = network(nn.Sequential(*parts), (torch.randn(2, 3, 6, 6),))
    net.data = data(3, 6, 6)
    return net


def whole(net):
    return 4 * sum(weight.numel() for _, weight in net.weights())


def policies(said):
    """Every way to choose, as the step has seen it."""
    return [dict(zip(said["choices"], found, strict=True)) for found in itertools.product(*said["choices"].values())]


def total(policy, what):
    return math.fsum(choice[what] for choice in policy.values())


def operations(policy, activation=32):
    return sum(choice["bits"] * MACS[name] for name, choice in policy.items()) * activation / (64 * sum(MACS.values()))


def taken(said):
    return next(p for p in policies(said) if {name: choice["bits"] for name, choice in p.items()} == said["bits"])


# ---------------------------------------------------------------- budgets


def test_the_size_is_kept_and_more_of_it_loses_less():
    predicted = []
    for share in (0.1, 0.13, 0.2, 0.3):
        torch.manual_seed(0)
        net = calibrated()
        said = Allocate(share=share, samples=64).run(net)
        assert said["bytes"] == sum(form.size() for form in net.forms.values()) <= share * whole(net)
        assert {name: form.bits for name, form in net.forms.items()} == said["bits"]
        assert said["divergence"] < 3 * said["predicted_divergence"] + 1e-3
        predicted.append(said["predicted_divergence"])
    assert predicted == sorted(predicted, reverse=True)


def test_it_is_the_best_of_all_ways():
    net = calibrated()
    said = Allocate(share=0.12, samples=16).run(net)
    fitting = [total(policy, "loss") for policy in policies(said) if total(policy, "size") <= 0.12 * whole(net)]
    assert len(policies(said)) == 343
    assert total(taken(said), "loss") == pytest.approx(min(fitting))


@pytest.mark.parametrize("activation", [32, 8])
def test_bit_operations_are_kept(activation):
    losses = []
    for bits in (2.5, 4, 6.5):
        torch.manual_seed(0)
        net, share = calibrated(), bits * activation / 64
        if activation == 8:
            QuantizeActivations(bits=8, samples=8, range="min-max").run(net)
        said = Allocate(bops=share, samples=16).run(net)
        assert operations(taken(said), activation) <= share * (1 + 1e-9)
        losses.append(total(taken(said), "loss"))
        fitting = [policy for policy in policies(said) if operations(policy, activation) <= share * (1 + 1e-9)]
        assert losses[-1] == pytest.approx(min(total(policy, "loss") for policy in fitting))
    assert losses == sorted(losses, reverse=True)


def test_the_smallest_that_keeps_a_divergence():
    net = calibrated()
    limit = Allocate(share=0.13, samples=64).run(net)["predicted_divergence"]
    net.forms.clear()
    said = Allocate(divergence=limit * 1.000001, samples=64).run(net)
    assert said["predicted_divergence"] <= limit * 1.000001
    assert said["bytes"] <= 0.13 * whole(net)


RECIPE = """
[[step]]
do = "fold-bn"
[[step]]
do = "allocate"
samples = 8
[dial]
set = "allocate.share"
values = [0.25, 0.2, 0.15, 0.1]
size = "allocate.size"
"""
NETWORKS = {"lenet-300-100": (1, 28, 28), "lenet-5": (1, 28, 28), "resnet20": (3, 32, 32)}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize(("name", "shape"), NETWORKS.items())
def test_files_have_the_size_that_was_predicted(name, shape, recipe, tmp_path):
    given = {"recipe": recipe, "data": data(*shape, items=8)}
    report = deepcomp.compress(zoo.build(name), tmp_path / "x.dcz", **given)
    said = report.steps[-1]
    written = sum(row["bytes"] for row in report.tensors if row["name"] in said["bits"])
    assert said["bytes"] == pytest.approx(written, rel=0.02)
    limit = report.output_bytes - 1234
    report = deepcomp.compress(zoo.build(name), tmp_path / "y.dcz", settings={"allocate.size": limit}, **given)
    assert (tmp_path / "y.dcz").stat().st_size <= limit


def test_a_largest_size_is_handed_over(recipe, tmp_path):
    given = {"recipe": recipe, "data": data(1, 28, 28, items=8)}
    report = deepcomp.compress(zoo.build("lenet-300-100"), tmp_path / "x.dcz", max_size="100kB", **given)
    assert 99_000 < report.output_bytes <= 100_000
    assert [(point["setting"], point["value"]) for point in report.points] == [("allocate.size", 100_000)]
    with pytest.raises(deepcomp.BudgetError, match="at most 9,000 allowed") as caught:
        deepcomp.compress(zoo.build("lenet-300-100"), tmp_path / "y.dcz", max_size="9kB", **given)
    (point,) = caught.value.report.points
    assert point["bytes"] == point["value"] == (tmp_path / "y.dcz").stat().st_size


@pytest.mark.parametrize(
    ("key", "value"), [("share", 0.01), ("divergence", 1e-9), ("bops", 0.5), ("size", 5000), ("size", "5kB")]
)
def test_what_cannot_be_kept_says_what_can(key, value, recipe, tmp_path):
    given = {"recipe": recipe, "data": data(1, 8, 8, items=8)}
    net = zoo.build("digits-cnn")

    def compress(number):
        deepcomp.compress(net, tmp_path / "x.dcz", settings={f"allocate.{key}": number}, **given)

    with pytest.raises(InfeasibleError, match=rf"\.{key} = {value}: .* is the least that can be kept") as caught:
        compress(value)
    nearest = caught.value.nearest
    with pytest.raises(InfeasibleError):
        compress(type(nearest)(0.999 * nearest))
    compress(nearest)


# ---------------------------------------------------------------- choices


def test_choices_may_be_few_and_leave_out_the_base():
    net = calibrated()
    said = Allocate(share=0.2, fewest=4, most=8, apart=4, base=6, samples=16).run(net)
    assert set(said["bits"].values()) <= {4, 8}
    assert all([choice["bits"] for choice in found] == [4, 8] for found in said["choices"].values())


def test_a_loss_is_what_the_network_shows():
    """Of the whole network run again, with one layer changed: nothing is left out where only the rest is run."""
    net = calibrated()
    said = Allocate(share=0.2, samples=64).run(net)
    inputs = net.data.train.tensors[0]
    grids = {name: {b: Grid.fit(w, b, axis=0, range="min-max").dense() for b in (3, 8)} for name, w in net.weights()}
    logits = {}
    for changed in (None, "", *grids):
        module = net.interpreter()
        for name in grids if changed is not None else ():
            module.get_parameter(name).data = grids[name][3 if name == changed else 8]
        with torch.no_grad():
            logits[changed] = module(inputs).double().log_softmax(-1)

    def divergence(changed):
        return float((logits[None].exp() * (logits[None] - logits[changed])).sum() / len(inputs))

    for name in grids:
        (loss,) = (choice["loss"] for choice in said["choices"][name] if choice["bits"] == 3)
        assert loss == pytest.approx(divergence(name) - divergence(""), rel=1e-3, abs=1e-6)


def test_choices_that_are_tuned_lose_less():
    losses = {}
    for tuned in (0, 100):
        torch.manual_seed(0)
        net = calibrated()
        said = Allocate(share=0.12, samples=64, tuned=tuned).run(net)
        assert said["bytes"] == sum(form.size() for form in net.forms.values()) <= 0.12 * whole(net)
        few = [choice["loss"] for found in said["choices"].values() for choice in found if choice["bits"] < 5]
        losses[tuned] = math.fsum(few), said["divergence"]
    assert losses[100][0] < 0.7 * losses[0][0]
    assert losses[100][1] < losses[0][1]


def test_choices_that_cannot_be_tuned_are_rounded():
    net = network(nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(64, 10)), (torch.zeros(2, 4).long(),))
    words = TensorDataset(torch.randint(50, (64, 4)), torch.zeros(64).long())
    net.data = Data(words, words, "accuracy")
    said = Allocate(share=0.12, samples=16, tuned=10).run(net)
    table = Grid.fit(net.tensors["0.weight"], said["bits"]["0.weight"], range="min-max")
    assert torch.equal(net.forms["0.weight"].dense(), table.dense())


@pytest.mark.parametrize("tuned", [0, 10])
def test_survivors_of_a_mask_have_grids(tuned):
    net = calibrated()
    Prune(density=0.5).run(net)
    zeros = {name: form.dense() == 0 for name, form in net.forms.items()}
    Allocate(share=0.2, samples=16, tuned=tuned).run(net)
    for name, form in net.forms.items():
        assert isinstance(form, Mask)
        assert isinstance(form.inner, Grid)
        assert not form.dense()[zeros[name]].any()


def test_a_network_is_left_as_it_is_where_nothing_can_be_kept():
    net = calibrated()
    with pytest.raises(InfeasibleError):
        Allocate(share=0.01, samples=16).run(net)
    with pytest.raises(UsageError, match=r"allocate\.size: no file is written here"):
        Allocate(size=100, samples=16).run(net)
    assert not net.forms


def test_settings_that_make_no_sense():
    with pytest.raises(UsageError, match="allocate: bits = 1: 2 to 16 expected"):
        Allocate(fewest=1)
    with pytest.raises(UsageError, match=r"allocate\.fewest = 6: at most most = 4 expected"):
        Allocate(fewest=6, most=4)
    with pytest.raises(UsageError, match=r"allocate\.apart = 0: 1 or more expected"):
        Allocate(apart=0)
    with pytest.raises(UsageError, match=r"allocate\.tuned = -1: 0 or more expected"):
        Allocate(tuned=-1)
    for key in ("share", "bops"):
        with pytest.raises(UsageError, match=rf"allocate\.{key} = 0: more than 0 expected"):
            Allocate(**{key: 0})
    with pytest.raises(UsageError, match="allocate: size '3 apples'"):
        Allocate(size="3 apples")
    with pytest.raises(UsageError, match=r"allocate\.size and bops: one of the two expected"):
        Allocate(size=3000, bops=0.5)
