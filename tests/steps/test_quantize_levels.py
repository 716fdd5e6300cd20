"""Weights on a few levels as a step: from the recipe to the file, and trained on the way."""

import math

import pytest
import torch
from nets import network
from torch import nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp.errors import UsageError
from deepcomp.model.data import Data
from deepcomp.model.evaluate import evaluate
from deepcomp.network import Network
from deepcomp.recipe import Recipe
from deepcomp.steps.finetune import Finetune
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize_levels import QuantizeLevels
from deepcomp.weights import Mask, Scaled


def convolutions():
    parts = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2), nn.ReLU(), nn.Conv2d(6, 5, 1)]
    return network(nn.Sequential(*parts), (torch.randn(2, 3, 8, 8),))


def test_scales_are_of_output_channels_whatever_the_operation():
    net = convolutions()
    QuantizeLevels(levels="binary").run(net)
    counts = {name: len(form.scale) for name, form in net.forms.items()}
    assert counts == {"0.weight": 4, "2.weight": 6, "4.weight": 5}


@pytest.mark.parametrize(("per", "count"), [("tensor", 1), ("channel", 4), ("group", 2), ("block", 4 * 9)])
def test_what_shares_a_scale(per, count):
    net = convolutions()
    said = QuantizeLevels(levels="ternary", sides=2, per=per, size=3, layers="0").run(net)
    assert said == {"tensors": 1, "weights": 108}
    assert net.forms["0.weight"].scale.shape == ((2 if per == "group" else count), 2)


def test_layers_that_are_skipped_stay_as_they_are():
    net = convolutions()
    QuantizeLevels(skip="0, 4").run(net)
    assert set(net.forms) == {"2.weight"}


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"levels": "unary"}, "quantize-levels.levels = 'unary': one of binary, ternary, power-of-two"),
        ({"levels": "power-of-two", "bits": 9}, "quantize-levels.bits = 9: 2 to 5 expected"),
        ({"sides": 3}, "quantize-levels.sides = 3: 1 or 2 expected"),
        ({"per": "row"}, "quantize-levels.per = 'row': one of tensor"),
        ({"size": 0}, "quantize-levels.size = 0: 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, found):
    with pytest.raises(UsageError, match=found):
        QuantizeLevels(**wrong)


def test_under_a_mask_the_survivors_alone_are_on_the_levels(randn):
    net = Network({"a.weight": randn(20, 30)})
    Prune(density=0.3).run(net)
    QuantizeLevels(levels="binary", per="tensor").run(net)
    form = net.forms["a.weight"]
    assert isinstance(form, Mask)
    assert isinstance(form.inner, Scaled)
    kept = form.dense().abs()
    assert int((kept != 0).sum()) == 180
    weight = net.tensors["a.weight"]
    assert torch.allclose(kept[kept != 0], weight[kept != 0].abs().mean())


# --- training -----------------------------------------------------------------------------------


def sums(count, seed=0):
    """Eight numbers, and which of the first three is the largest."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x[:, :3].argmax(1))


@pytest.fixture(scope="module")
def trained():
    """A small network that has learnt it, and its data."""
    torch.manual_seed(0)
    module, data = (
        nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 3)),
        Data(sums(1000), sums(500, 1), "accuracy"),
    )
    net = Network(dict(module.named_parameters()), module=module, data=data)
    Finetune(epochs=20, rate=0.1, batch=50).run(net)
    return net.module, data


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("levels", "sides", "least"), [("binary", 1, 80), ("ternary", 1, 85), ("ternary", 2, 85), ("power-of-two", 1, 90)]
)
def test_finetune_moves_weights_from_level_to_level(trained, levels, sides, least, masked):
    module, data = trained
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    net = Network(dict(module.named_parameters()), module=module, data=data)
    if masked:
        Prune(density=0.7).run(net)
    QuantizeLevels(levels=levels, bits=3, sides=sides).run(net)
    forms = {name: form.inner if masked else form for name, form in net.forms.items()}
    started = {name: (form.taken(), form.scale.detach().clone()) for name, form in forms.items()}
    Finetune(epochs=10, rate=0.05, batch=50, choose="last").run(net)
    assert any((form.taken() != started[name][0]).any() for name, form in forms.items())
    for name, form in forms.items():
        _, scale = started[name]
        assert (form.scale != scale).float().mean() > 0.5  # units that are never active have no gradient
        values = net.forms[name].inner.dense() if masked else net.forms[name].dense()
        assert torch.equal(values, form._scale_of(form.scale, form.taken()).detach() * form.taken())
        if masked:
            assert (net.forms[name].dense() != 0).sum() <= len(form.latent)
    assert evaluate(net.module, data).value > least
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# --- the file -----------------------------------------------------------------------------------

RECIPE = """
[[step]]
do = "prune"
density = {density}

[[step]]
do = "quantize-levels"
levels = "{levels}"
bits = {bits}
per = "tensor"
"""


def compressed(tmp_path, levels, bits=4, density=1.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 10)).eval()
    (tmp_path / "r.toml").write_text(RECIPE.format(levels=levels, bits=bits, density=density))
    deepcomp.compress(net, tmp_path / "x.dcz", recipe=tmp_path / "r.toml", example_inputs=torch.zeros(2, 300))
    return net, tmp_path / "x.dcz"


@pytest.mark.parametrize(("levels", "most"), [("binary", 1.0), ("ternary", math.log2(3))])
def test_a_file_takes_no_more_than_the_bits_of_the_levels(tmp_path, levels, most):
    _, path = compressed(tmp_path, levels)
    (row,) = [row for row in deepcomp.inspect(path)["tensors"] if row["name"] == "0.weight"]
    assert row["form"] == "mask(scaled)" or row["form"] == "scaled"
    weights, parts = 300 * 400, row["parts"]
    assert 8 * parts["q"] <= 1.01 * most * weights
    assert parts["levels"] <= 16
    assert parts["scale"] == 4


@pytest.mark.parametrize("density", [1.0, 0.2])
@pytest.mark.parametrize(
    ("levels", "bits"), [("binary", 1), ("ternary", 1), ("additive-power-of-two", 4), ("lloyd-max", 3)]
)
def test_what_is_loaded_is_what_the_step_made(tmp_path, levels, bits, density):
    net, path = compressed(tmp_path, levels, bits, density)
    deepcomp.verify(path)
    made = Network(dict(net.state_dict()))
    for step in Recipe.load(tmp_path / "r.toml").steps:
        step.run(made)
    state, loaded = deepcomp.load_state_dict(path), deepcomp.load(path)
    for name in ("0.weight", "2.weight"):
        assert torch.equal(state[name], made.forms[name].dense())
        net.load_state_dict({**net.state_dict(), name: state[name]})
    x = torch.randn(5, 300)
    assert torch.allclose(loaded(x), net(x), atol=1e-5)
