"""Outputs of a network come back as what they were, or nearly."""

import collections
import typing

import pytest
import torch
from torch import nn

import deepcomp
from deepcomp.model.evaluate import leading


class Named(typing.NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


Unnamed = collections.namedtuple("Unnamed", ["first", "second"])


class Two(nn.Module):
    """Two outputs, joined by what is given."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.join = nn.Linear(8, 16), nn.Linear(16, 3), join

    def forward(self, x):
        hidden = self.a(x).relu()
        return self.join(hidden, self.b(hidden))


def test_an_output_may_hold_nothing(tmp_path):
    net, x = Two(lambda hidden, logits: {"logits": logits, "more": {}}).eval(), torch.randn(2, 8)
    deepcomp.compress(net, tmp_path / "x.dcz", example_inputs=x)
    assert torch.equal(deepcomp.load(tmp_path / "x.dcz")(x).logits, net(x)["logits"])


@pytest.mark.parametrize("join", [Named, Unnamed])
def test_named_tuples_come_back_by_their_names(tmp_path, join):
    net, x = Two(join).eval(), torch.randn(2, 8)
    deepcomp.compress(net, tmp_path / "x.dcz", example_inputs=x)
    found, expected = deepcomp.load(tmp_path / "x.dcz")(x), net(x)
    assert list(found) == list(expected._fields)
    for name in expected._fields:
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(leading(found, "x"), leading(expected, "x"))


def test_outputs_of_other_kinds_are_stored_as_weights_alone(tmp_path):
    net = Two(lambda *outputs: collections.deque(outputs)).eval()
    with pytest.warns(UserWarning, match="weights alone are stored: an output is a deque"):
        deepcomp.compress(net, tmp_path / "x.dcz", example_inputs=torch.randn(2, 8))
