"""A network while steps change it: what leaves, what comes, what is forgotten, what is observed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from deepcomp.entry import BUFFER, CONSTANT, PARAMETER
from deepcomp.errors import InputError, UsageError
from deepcomp.model import sources
from deepcomp.model.capture import Captured, capture
from deepcomp.model.data import Data, Pairs
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Value
from deepcomp.network import Network, Statistics
from deepcomp.weights import Raw


class Net(nn.Module):
    """Two linear layers, the second tied to a third that nothing calls, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(3, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused.weight = self.b.weight
        self.register_buffer("shift", torch.randn(4), persistent=False)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x) + self.shift)


@pytest.fixture
def net() -> Network:
    module = Net().eval()
    captured, source = capture(module, torch.zeros(2, 3)), sources.from_module(module)
    names = [source.tied.get(name, name) for name in captured.names]
    captured = Captured(captured.graph, names, captured.constants)
    roles = {name: BUFFER if name in source.buffers else PARAMETER for name in source.tensors}
    roles |= dict.fromkeys(captured.constants, CONSTANT)
    return Network({**source.tensors, **captured.constants}, roles, source.tied, captured, module)


def test_the_module_becomes_what_the_operations_and_tensors_say(net: Network, randn: Any) -> None:
    assert net.captured is not None
    x, whole, module = randn(5, 3), dict(net.tensors), net.module
    net.rewire("a step", net.captured, {"a.weight": 2 * whole["a.weight"]})
    assert net.module is not None
    assert net.module is not module
    shifted = 2 * x @ whole["a.weight"].T + whole["shift"]
    torch.testing.assert_close(net.module(x), shifted @ whole["b.weight"].T + whole["b.bias"])
    assert net.module.state_dict().keys() == module.state_dict().keys()
    net.module.get_parameter("a.weight").data.zero_()
    assert net.tensors["a.weight"].any()  # the module has copies


def test_new_tensors_come_behind_those_of_their_module(net: Network) -> None:
    assert net.captured is not None
    edit = Edit(net.captured, net.tensors)
    index = edit.constant("a.index", torch.tensor([2, 1, 0]))
    edit.change(0, input=edit.add("index_select", {"self": Value(0), "dim": 1, "index": index}))
    edit.set_bias(next(iter(net.layers("a step"))), torch.ones(4))
    net.rewire("a step", edit.finish(), edit.changed)
    assert list(net.tensors) == ["count", "a.weight", "a.index", "a.bias", "b.weight", "b.bias",
                                 "unused.weight", "unused.bias", "shift"]  # fmt: skip
    assert net.roles["a.index"] == CONSTANT
    assert net.captured.constants.keys() == {"shift", "a.index"}
    assert net.module is not None
    assert "a.bias" in dict(net.module.named_parameters())
    assert "a.index" not in net.module.state_dict()


def test_constants_nothing_refers_to_leave_and_what_is_removed_unless_it_is_in_use(net: Network) -> None:
    assert net.captured is not None
    edit = Edit(net.captured, net.tensors)
    edit.bypass(Value(2), Value(1))  # the sum with `shift`
    net.rewire("a step", edit.finish(), edit.changed, {"b.bias", "unused.bias", "unused.weight", "absent"})
    assert list(net.tensors) == ["count", "a.weight", "b.weight", "b.bias"]
    assert net.tied == {}
    assert net.roles.keys() == net.tensors.keys()
    assert net.captured.constants == {}


def test_tied_tensors_change_together_and_the_first_stays_while_another_does(net: Network) -> None:
    assert net.captured is not None
    assert net.tied == {"unused.weight": "b.weight"}
    net.rewire("a step", net.captured, {"b.weight": torch.zeros(4, 4)}, {"b.weight"})
    assert net.tensors["unused.weight"] is net.tensors["b.weight"]
    assert net.module is not None
    shared = dict(net.module.named_parameters(remove_duplicate=False))
    assert shared["unused.weight"] is shared["b.weight"]
    edit = Edit(net.captured, net.tensors)
    edit.bypass(Value(3), Value(2))
    net.rewire("a step", edit.finish(), {}, {"b.weight"})
    assert "b.weight" in net.tensors


@pytest.mark.parametrize(("tensors", "removed"), [({"b.weight": torch.zeros(4, 4)}, ()), ({}, {"unused.bias"})])
def test_what_has_a_form_neither_changes_nor_leaves(net: Network, tensors: Any, removed: Any) -> None:
    assert net.captured is not None
    before = dict(net.tensors)
    for name in ("b.weight", "unused.bias"):
        net.store(name, Raw(net.tensors[name]))
    with pytest.raises(UsageError, match=r"a step: (b\.weight|unused\.bias) has a form already: steps that choose"):
        net.rewire("a step", net.captured, tensors, removed)
    assert dict(net.tensors) == before
    net.rewire("a step", net.captured, {"b.bias": torch.zeros(4)})


def test_statistics_of_what_changes_are_forgotten(net: Network) -> None:
    assert net.captured is not None
    known = Statistics(torch.zeros(4), torch.ones(4))
    net.statistics = {"a.weight": known, "b.weight": known}
    net.rewire("a step", net.captured, {"a.weight": net.tensors["a.weight"] + 1})
    assert net.statistics == {"b.weight": known}
    net.update("b.weight", net.tensors["b.weight"] + 1)
    assert net.statistics == {}


def test_weights_alone_have_no_layers() -> None:
    with pytest.raises(InputError, match="a step: the network's operations expected"):
        Network({"a.weight": torch.ones(4, 4)}).layers("a step")


def test_layers_of_tied_tensors_have_the_first_name(net: Network) -> None:
    assert net.captured is not None
    swapped = ["unused.weight" if name == "b.weight" else name for name in net.captured.names]
    net.captured = Captured(net.captured.graph, swapped, net.captured.constants)
    assert [layer.weight for layer in net.layers("a step")] == ["a.weight", "b.weight"]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_values_are_observed_on_calibration_inputs_batch_by_batch(net: Network, kind: str, randn: Any) -> None:
    x = randn(10, 3).double()
    make = {"tensor": lambda row: row, "tuple": lambda row: (row,), "dict": lambda row: {"x": row}}[kind]
    net.data = Data([(make(row), 0) for row in x])
    net.seed = 1
    seen = list(net.observe("a step", [Value(1), Value(0)], samples=7, size=4))
    assert [(value.index, len(tensor)) for value, tensor in seen] == [(0, 4), (1, 4), (0, 3), (1, 3)]
    rows = torch.cat([tensor for value, tensor in seen if value == Value(0)])
    assert rows.dtype == torch.float32
    assert len({tuple(row.tolist()) for row in rows}) == 7
    assert all((row == x.float()).all(1).any() for row in rows)
    assert torch.equal(torch.cat([t for v, t in seen if v == Value(1)]), rows @ net.tensors["a.weight"].T)
    again = [tensor for value, tensor in net.observe("a step", [Value(0)], samples=7, size=7) if value == Value(0)]
    assert torch.equal(again[0], rows)  # the same samples whatever the size of a batch


def test_observing_leaves_gradients_on_for_who_looks(net: Network, randn: Any) -> None:
    net.data = Data(Pairs(randn(4, 3), torch.zeros(4)))
    for _, tensor in net.observe("a step", [Value(1)], samples=4):
        assert torch.is_grad_enabled()
        assert not tensor.requires_grad


def test_observing_needs_data(net: Network) -> None:
    with pytest.raises(UsageError, match="a step: needs data to calibrate on"):
        next(iter(net.observe("a step", [Value(0)], samples=4)))
