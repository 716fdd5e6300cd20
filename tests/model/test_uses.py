"""What weights are used for."""

import torch
import torch.nn.functional as F
from torch import nn

from deepcomp.model.capture import capture
from deepcomp.model.uses import uses


class Words(nn.Module):
    """An embedding tied to the decoder, a recurrent layer and a product between."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.mix = nn.Parameter(torch.randn(6, 6))
        self.decoder = nn.Linear(6, 20)
        self.decoder.weight = self.table.weight

    def forward(self, tokens):
        return self.decoder(self.lstm(self.table(tokens))[0] @ self.mix)


class Images(nn.Module):
    """Two stems that are added, a transposed convolution, and two heads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2)
        self.head1, self.head2 = nn.Linear(2, 3), nn.Linear(2, 4)

    def forward(self, x):
        y = F.relu(self.up(F.relu(self.a(x) + self.b(x)))).mean((2, 3))
        return self.head1(y), self.head2(y)


def found(module, inputs, tied=None):
    return uses(capture(module.eval(), inputs), tied or {})


def test_every_stem_is_first_and_every_head_last():
    table = found(Images(), (torch.randn(2, 3, 5, 5),))
    assert {name for name, used in table.items() if used[0].first} == {"a.weight", "b.weight"}
    assert {name for name, used in table.items() if used[0].last} == {"head1.weight", "head2.weight"}
    assert {name: used[0].axis for name, used in table.items()} == {**dict.fromkeys(table, 0), "up.weight": 1}


def test_tied_and_recurrent_weights():
    table = found(Words(), (torch.zeros(2, 7, dtype=torch.int64),), {"decoder.weight": "table.weight"})
    kinds = {name: [use.kind for use in used] for name, used in table.items() if used[0].kind != "lstm"}
    assert kinds == {"table.weight": ["embedding", "linear"], "mix": ["matmul"]}
    first, last = table["table.weight"]
    assert (first.first, first.last, last.first, last.last) == (True, False, False, True)
    assert table["mix"][0].axis == 1
    assert "lstm.weight_ih_l0" in table
    assert not table["lstm.weight_ih_l0"][0].first


def test_a_network_of_one_layer_begins_and_ends_with_it():
    (one,) = found(nn.Linear(3, 4), (torch.randn(2, 3),))["weight"]
    assert one.first
    assert one.last
