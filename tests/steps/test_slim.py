"""Slim starts: the strongest channels of a layer are left, whatever the operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import Grouped, network
from torch import nn

from deepcomp.errors import UsageError
from deepcomp.steps.prune import Prune
from deepcomp.steps.slim import Slim
from deepcomp.steps.store import Store
from deepcomp.weights import Mask


def small() -> Any:
    parts = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, groups=2), nn.Flatten(), nn.Linear(8 * 49, 5)]
    return network(nn.Sequential(*parts), (torch.randn(2, 3, 8, 8),))


def test_the_channels_with_the_most_energy_are_left_and_give_what_they_gave() -> None:
    net = small()
    said = Slim(units={"0": 2, "2": 3}).run(net)
    assert said == {"alive": {"0.weight": 2, "2.weight": 3}}
    assert set(net.forms) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    first, second = net.form("0.weight").dense(), net.form("2.weight").dense()
    energy = net.tensors["0.weight"].square().sum((1, 2, 3))
    alive = first.flatten(1).any(1)
    assert set(energy.topk(2).indices.tolist()) == set(torch.nonzero(alive).flatten().tolist())
    assert torch.equal(first[alive], net.tensors["0.weight"][alive])
    assert torch.equal(net.form("0.bias").dense() != 0, alive)
    own = net.tensors["2.weight"].reshape(2, 3, 4, 2, 2).square().sum((1, 3, 4)).reshape(-1)
    left = second.reshape(2, 3, 4, 2, 2).transpose(1, 2).reshape(8, -1).any(1)
    assert set(own.topk(3).indices.tolist()) == set(torch.nonzero(left).flatten().tolist())
    assert torch.equal(net.form("2.bias").dense() != 0, left)


def test_a_masked_channel_is_zero_and_the_others_are_as_they_were() -> None:
    net = small()
    x = torch.randn(2, 3, 8, 8)
    before = net.module[0](x)
    Slim(units=4, layers="0").run(net)
    after = net.interpreter(formed=True).get_parameter("0.weight")
    found = torch.nn.functional.conv2d(x, after, net.form("0.bias").dense())
    dead = ~after.flatten(1).any(1)
    assert int(dead.sum()) == 2
    assert not found[:, dead].any()
    torch.testing.assert_close(found[:, ~dead], before[:, ~dead])


def test_what_is_masked_already_stays_and_biases_that_are_zero_may_learn() -> None:
    net = small()
    net.tensors["0.bias"].data.zero_()
    Store(dtype="float16", vectors=True).run(net)
    Prune(density=0.5).run(net)
    before = net.form("0.weight").dense() != 0
    Slim(units={"0": 3}).run(net)
    after = net.form("0.weight")
    assert isinstance(after, Mask)
    assert not (after.dense() != 0)[~before].any()
    assert net.form("0.bias").positions.numel() == 3


def test_layers_with_fewer_channels_and_others_are_left_alone() -> None:
    net = network(Grouped(), (torch.randn(4, 4, 7, 7),))
    said = Slim(units=6, skip="c1").run(net)
    assert said == {"alive": {"c2.weight": 6}}
    with pytest.raises(UsageError, match=r"slim.units = 0: 1 or more"):
        Slim(units={"c1": 0})
    with pytest.raises(UsageError, match="no tensor has such a name"):
        Slim(units={"nope": 3}).run(net)


def test_a_number_spares_the_outputs_and_a_table_may_name_them() -> None:
    net = small()
    assert set(Slim(units=2).run(net)["alive"]) == {"0.weight", "2.weight"}
    net = small()
    assert set(Slim(units={"4": 2}).run(net)["alive"]) == {"4.weight"}


class Headed(nn.Module):
    """Two layers, and something behind the last of them."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 5), head

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.b(self.a(x).relu()))


@pytest.mark.parametrize(
    "head",
    [
        nn.Identity(),
        nn.Softmax(-1),
        nn.LogSoftmax(-1),
        lambda y: y - y.amax(-1, True),
        lambda y: (y, y.sum(-1)),
        lambda y: (y, y.argmax(-1)),
    ],
)
def test_a_number_spares_what_outputs_are_made_of_without_another_layer(head: Any) -> None:
    assert Slim(units=2).run(network(Headed(head), (torch.randn(2, 8),))) == {"alive": {"a.weight": 2}}


def test_a_decoder_tied_to_the_embedding_keeps_its_words() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.l = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.l.weight = self.e.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.l(torch.tanh(self.e(x)))

    net = network(Words(), (torch.randint(11, (2, 4)),))
    assert Slim(units=2).run(net) == {"alive": {"e.weight": 2}}
    alive = net.form("e.weight").dense() != 0  # type: ignore[union-attr]
    assert alive.any(1).all()
    assert int(alive.any(0).sum()) == 2


def test_a_bias_of_all_channels_or_of_several_layers_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
            self.two.bias = self.one.bias
            self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.addmm(self.bias, x, self.weight).relu()
            return self.out((self.one(x) + self.two(x)).relu())

    net = network(Shared(), (torch.randn(2, 6),))
    said = Slim(units=2).run(net)
    assert set(said["alive"]) == {"one.weight", "two.weight", "weight"}
    assert set(net.forms) == set(said["alive"])
