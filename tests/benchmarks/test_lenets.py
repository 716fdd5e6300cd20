"""What is printed beside the paper's tables is what the files hold, and asked for what the tables say."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp import Data, entropy
from deepcomp.recipe import Recipe

RECIPE = """
[[step]]
do = "prune"
density = {density}
[[step]]
do = "share"
values = 16
[[step]]
do = "finetune"
epochs = 1
"""


@pytest.fixture(scope="session")
def lenets(script):
    return script("lenets")


@pytest.fixture(scope="session")
def runs(script):
    return script("runs")


@pytest.fixture(scope="session")
def figures(script):
    return script("figures")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    items = TensorDataset(torch.rand(64, 1, 28, 28, generator=generator), torch.arange(64) % 10)
    return Data(items, items, "accuracy")


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "lenet-300-100.safetensors"
    save_file(deepcomp.model.zoo.build("lenet-300-100").state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5"])
def test_recipes_ask_for_the_densities_and_bits_of_the_tables(script, name):
    paper = getattr(script("published"), name.replace("-", "_").upper())
    prune, _, share, _ = Recipe.load(f"deep-compression-{name}", data=True).steps
    for layer in paper.layers:
        weight = f"{layer.name.replace('ip', 'fc')}.weight"
        assert deepcomp.network.per_layer(prune.density, weight) == layer.density / 100
        assert deepcomp.network.per_layer(share.values, weight) == 2 ** layer.weight_bits[0]


def test_layers_are_those_of_the_file(lenets, runs, data, weights, tmp_path):
    recipe, out = tmp_path / "recipe.toml", tmp_path / "x.dcz"
    recipe.write_text(RECIPE.format(density=0.1))
    report = runs.run(out, weights, recipe, data)
    dense = deepcomp.load_state_dict(out)
    rows = {tensor["name"]: tensor for tensor in report["tensors"]}
    found = lenets.layers(out, report)
    assert list(found) == ["fc1", "fc2", "fc3"]
    for name, layer in found.items():
        weight = dense[f"{name}.weight"].numpy()
        assert (layer.weights, layer.kept) == (weight.size, np.count_nonzero(weight))
        assert layer.value_width == 4
        assert layer.bytes == rows[f"{name}.weight"]["bytes"]
        packed = lenets._packed(torch.from_numpy(weight), rows[f"{name}.weight"]["parts"])
        streams = [len(entropy.encode(symbols)) for symbols in lenets._symbols(packed)]
        assert streams == [layer.gaps, layer.values]


def test_huffman_alone_takes_the_file_where_nothing_else_was_used(lenets, tmp_path):
    """Sixteen equally frequent values take fixed fields; one value that outweighs all others asks for rANS."""
    random, out = np.random.default_rng(0), tmp_path / "x.dcz"
    even, skewed = random.integers(0, 16, (64, 500)), random.random((64, 500)) < 0.01
    for index, more in ((even, False), (skewed, True)):
        weight = {"weight": torch.from_numpy(index.astype(np.float32) - 0.5)}
        report = deepcomp.compress(weight, out, force=True).to_dict()
        assert (lenets.huffman_only(out, report) > out.stat().st_size) == more


def test_a_run_is_found_again_where_the_same_is_asked(runs, data, weights, tmp_path, monkeypatch):
    recipe, out = tmp_path / "recipe.toml", tmp_path / "x.dcz"
    recipe.write_text(RECIPE.format(density=0.1))
    first = runs.run(out, weights, recipe, data)
    with monkeypatch.context() as patch:
        patch.setattr(deepcomp, "compress", None)
        assert runs.run(out, weights, recipe, data) == first
    recipe.write_text(RECIPE.format(density=0.05))
    second = runs.run(out, weights, recipe, data)
    assert second["output_bytes"] < first["output_bytes"]
    out.write_bytes(b"")
    assert runs.run(out, weights, recipe, data)["sha256"] == second["sha256"]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.8])
def test_factors_are_the_nearest_of_their_rank(figures, share):
    torch.manual_seed(0)
    network = deepcomp.model.zoo.build("lenet-300-100")
    whole = {name: network.get_submodule(name).weight.detach().clone() for name in ("fc1", "fc2")}
    figures.factored(network, share)
    for name, weight in whole.items():
        thin, back = network.get_submodule(name)
        rank = thin.out_features
        assert rank * sum(weight.shape) == pytest.approx(share * weight.numel(), abs=sum(weight.shape) / 2)
        missed = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()
        assert float(torch.dist(back.weight.detach() @ thin.weight.detach(), weight)) == pytest.approx(
            float(missed), rel=1e-3
        )
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert isinstance(network.fc3, nn.Linear)


def test_a_figure_drawn_twice_has_the_same_bytes(figures, tmp_path):
    for name in ("a.svg", "b.svg"):
        figure = figures.Figure()
        curves = {str(n): [(1, n), (2, n)] for n in range(4)}
        figures._lines(figure.subplots(), curves)
        figures._save(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
