"""Which layers have, or can have, a bias to themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from steps.nets import network
from torch import Tensor, nn

from deepcomp.model.biases import shiftable


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(11, 6), nn.LSTM(6, 6, batch_first=True)
        self.twice, self.bare = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.free, self.out = nn.Linear(6, 6, bias=False), nn.Linear(6, 11)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.table(x))[0]
        x = self.bare(F.relu(self.bare(self.twice(F.relu(self.twice(x))))))
        return self.out(self.free(x))


def test_layers_are_shiftable_where_a_bias_is_their_own() -> None:
    net = network(Odd(), torch.randint(11, (4, 7)))
    chosen = {name for name, _ in net.weights(skip="lstm")}
    found, skipped = shiftable(net.layers("test"), chosen)
    assert [(layer.weight, layer.bias) for layer in found] == [("free.weight", None), ("table.weight", "out.bias")]
    assert skipped == {
        "table.weight": "its embedding takes no bias",
        "twice.weight": "its bias is used 2 times",
        "bare.weight": "its weight is used 2 times",
    }


def test_layers_get_biases_of_zeros() -> None:
    net = network(Odd(), torch.randint(11, (4, 7)))
    assert net.module is not None
    x = torch.randint(11, (3, 7))
    before = net.module(x)
    found, _ = shiftable(net.layers("test"), {"free.weight", "table.weight"})
    assert net.biases("test", found) == ["free.bias", "out.bias"]
    assert not net.tensors["free.bias"].any()
    assert torch.equal(net.module(x), before)
    again, _ = shiftable(net.layers("test"), {"free.weight", "table.weight"})
    assert [layer.bias for layer in again] == ["free.bias", "out.bias"]
