"""Distilled inputs: batch norms take them for what they have seen."""

from __future__ import annotations

import pytest
import torch
from remembering import cnn, images, remembering
from steps.nets import network
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.graph import Input
from deepcomp.network import Network
from deepcomp.synthesis import Descent, Watched, distil, noise


def start(net: Network, samples: int = 48, seed: int = 0) -> dict[str, Tensor]:
    assert net.captured is not None
    return noise("test", net.captured.graph.inputs, samples, torch.Generator().manual_seed(seed))


@pytest.fixture
def net() -> Network:
    return remembering(cnn(), images())


def test_the_mismatch_falls_by_a_large_factor(net: Network) -> None:
    watched, plain = Watched(net, "test", net.names()), start(net)
    made = distil(watched, plain, 24, Descent("test", 60, 0.1))
    _, before = watched.judge(plain, 24)
    _, after = watched.judge(made, 24)
    assert after < before / 50
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
        name: (x.shape, x.dtype) for name, x in plain.items()
    }


def test_the_same_noise_gives_the_same_inputs(net: Network) -> None:
    watched = Watched(net, "test", net.names())
    one, two, other = (distil(watched, start(net, seed=s), 24, Descent("test", 3, 0.1)) for s in (0, 0, 1))
    for name in one:
        assert torch.equal(one[name], two[name])
        assert not torch.equal(one[name], other[name])


def test_no_iteration_leaves_the_noise(net: Network) -> None:
    made = distil(Watched(net, "test", net.names()), plain := start(net), 10, Descent("test", 0, 0.1))
    assert all(torch.equal(made[name], plain[name]) for name in plain)


def test_several_inputs_learn_together() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(5, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(self.a(x) + self.b(y))  # type: ignore[no-any-return]

    net = network(Sum(), (torch.randn(4, 3), torch.randn(4, 5)))
    watched, plain = Watched(net, "test", net.names()), start(net)
    made = distil(watched, plain, 48, Descent("test", 100, 0.1))
    assert [x.shape for x in made.values()] == [(48, 3), (48, 5)]
    assert watched.judge(made, 48)[1] < watched.judge(plain, 48)[1] / 50


def test_a_loss_that_is_not_finite_is_said(net: Network) -> None:
    with pytest.raises(InputError, match=r"test: the loss is (nan|inf) in iteration \d+, a finite one expected"):
        distil(Watched(net, "test", net.names()), start(net), 48, Descent("test", 9, 1e30))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Input("ids", torch.int64, (None, 7)), "input 'ids' of int64 found, floating-point inputs expected"),
        (Input("mask", torch.bool, (None, 7)), "input 'mask' of bool found"),
        (Input("x", torch.float32, (3, 7)), r"input 'x' of shape \(3, 7\) found, a batch of any size expected"),
    ],
)
def test_inputs_that_cannot_learn_are_refused_by_name(entry: Input, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        noise("test", [Input("fine", torch.float16, (None, 2)), entry], 4, torch.Generator())
