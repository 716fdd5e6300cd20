"""What batch norms remember: nothing is missing on what they have seen, and every channel counts alike."""

from __future__ import annotations

import pytest
import torch
from remembering import cnn, images, remembering
from steps.nets import network
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.network import Network
from deepcomp.synthesis import Watched
from deepcomp.synthesis.statistics import split


def watched(net: Network) -> Watched:
    return Watched(net, "test", net.names())


def inputs(net: Network, x: Tensor) -> dict[str, Tensor]:
    assert net.captured is not None
    return {net.captured.graph.inputs[0].name: x}


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (cnn(), images()),
        (nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.BatchNorm1d(7, affine=False)), None),
        (nn.Sequential(nn.Conv1d(6, 4, 1), nn.BatchNorm1d(4, eps=0.3)), torch.randn(9, 6, 5)),
    ],
)
def test_nothing_is_amiss_on_what_batch_norms_have_seen(module: nn.Module, x: Tensor | None) -> None:
    x = torch.randn(20, 6) if x is None else x
    net = remembering(module, x)
    _, far = watched(net)(inputs(net, x))
    assert far < 1e-10
    _, far = watched(net)(inputs(net, 2 * x + 1))
    assert far > 0.1


def test_outputs_are_the_network_s() -> None:
    net = remembering(cnn(), x := images())
    assert net.module is not None
    outputs, _ = watched(net).judge(inputs(net, x), 8)
    torch.testing.assert_close(outputs, net.module(x).detach(), rtol=1e-5, atol=1e-6)


def test_the_mismatch_is_the_distance_of_means_and_spreads_in_units_of_the_spread() -> None:
    net = network(nn.Sequential(nn.BatchNorm1d(2, eps=0)), x := torch.randn(50, 2))
    mean, var = net.tensors["0.running_mean"], net.tensors["0.running_var"]
    wanted = (x.mean(0) - mean).square() / var + (x.std(0) / var.sqrt() - 1).square()
    torch.testing.assert_close(watched(net)(inputs(net, x))[1], wanted.mean())


def test_channels_count_alike_however_large_their_numbers() -> None:
    net = network(nn.Sequential(nn.BatchNorm1d(3, eps=0)), x := torch.randn(50, 3))
    _, before = watched(net)(inputs(net, x))
    scale = torch.tensor([1e-3, 1.0, 1e3])
    net.update("0.running_mean", net.tensors["0.running_mean"] * scale)
    net.update("0.running_var", net.tensors["0.running_var"] * scale.square())
    _, after = watched(net)(inputs(net, x * scale))
    torch.testing.assert_close(after, before)


def test_only_those_chosen_count() -> None:
    net = remembering(cnn(), images())
    assert len(Watched(net, "test", net.names()).norms) == 2
    assert len(Watched(net, "test", net.names("1")).norms) == 1


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3, track_running_stats=False)])
def test_a_network_without_running_statistics_is_refused(module: nn.Module) -> None:
    net = network(nn.Sequential(module), images(4))
    with pytest.raises(UsageError, match=r"test: no batch norm with running statistics found.*before fold-bn"):
        watched(net)


def test_weights_alone_are_refused() -> None:
    with pytest.raises(InputError, match="test: the network's operations expected"):
        Watched(Network({"w": torch.zeros(2, 2)}), "test", ["w"])


def test_no_batch_is_smaller_than_asked_for_where_there_are_as_many() -> None:
    for items in range(2, 40):
        parts = [part["x"] for part in split({"x": torch.arange(items)}, 7)]
        assert torch.equal(torch.cat(parts), torch.arange(items))
        assert min(map(len, parts)) >= min(items, 7)
        assert max(map(len, parts)) < 14
