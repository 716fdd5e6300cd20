"""Quantisers are switched one by one: what is off is not there at all, what is on is as the recipe left it."""

import pytest
import torch
from patients import cnn, labelled, mlp, steps, through, written

from deepcomp.diagnosis.switches import Board
from deepcomp.model.quantizers import quantizers


@pytest.fixture
def board(tmp_path):
    net = cnn()
    rows = [{"do": "fold-bn"}, {"do": "quantize", "bits": 3}, {"do": "correct-bias", "samples": 64}, *steps()[1:]]
    return Board(through(net, labelled(net, (3, 8, 8)), written(tmp_path, rows)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_with_nothing_on_the_network_is_the_original(board):
    wanted = cnn()(X)
    assert torch.allclose(board.module([])(X), wanted, atol=1e-5)
    assert not quantizers(board.bare.captured.graph)


def test_with_everything_on_the_network_is_what_the_recipe_made(board):
    everything = [*board.weights, *board.activations]
    assert torch.equal(board.module(everything)(X), board.net.interpreter(formed=True)(X))


def test_one_weight_comes_with_the_bias_corrected_for_it(board):
    (switch,) = [switch for switch in board.weights if switch.name == "stem.weight"]
    assert len(switch.forms) == 2
    module = board.module([switch])
    for name in board.net.tensors:
        form = board.net.forms[name].dense() if name in switch.forms else board.net.tensors[name]
        assert torch.equal(module.state_dict()[name], form)


def test_one_activation_is_quantised_where_its_name_says(board):
    original = board.module([])
    for switch in board.activations:
        module = board.module([switch])
        graph = module._dcz.graph
        (place,) = quantizers(graph)
        wanted = board.net.captured.graph.nodes[switch.place]
        assert graph.nodes[place].arguments["scale"] == wanted.arguments["scale"]
        with torch.no_grad():
            held = dict(original.observe([switch.source], x=X))
            seen = dict(module.observe([graph.nodes[place].args[0]], x=X))
        assert torch.equal(*held.values(), *seen.values())


def test_places_have_the_names_that_the_step_reports(tmp_path):
    net = cnn()
    rows = written(tmp_path, steps())
    found = Board(through(net, labelled(net, (3, 8, 8)), rows))
    assert [switch.name for switch in found.activations] == ["x", "stem", "deep", "deep/add", "deep/mean", "last"]


def test_forms_that_change_nothing_are_no_quantisers(tmp_path):
    net = mlp()
    rows = written(tmp_path, [{"do": "store", "dtype": "exact"}, {"do": "quantize", "bits": 4, "layers": "2"}])
    found = Board(through(net, labelled(net), rows))
    assert [switch.name for switch in found.weights] == ["2.weight"]
    assert found.weights[0].bits == 4
