"""Second moments, the Fisher information, and two networks side by side."""

from __future__ import annotations

import math

import pytest
import torch
from steps.nets import network
from torch import nn
from torch.utils.data import TensorDataset

from deepcomp.curvature import Matrix, Moments, alongside, damped, divergence, fisher
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data
from deepcomp.model.patches import patches, product


def convolutions():
    parts = [nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Conv2d(4, 3, 2)]
    return network(nn.Sequential(*parts), (torch.randn(2, 4, 6, 6),))


def moments(net, place, batches, centred=False, rows=1 << 20):
    layers = net.layers("test")
    found = Moments(layers, layers.at(place)[0], centred)
    for before, after in batches:
        found.add(before, after, rows, torch.Generator().manual_seed(0))
    return found


@pytest.mark.parametrize(("place", "shape"), [(0, (4, 6, 6)), (1, (6, 6, 6)), (2, (4, 7, 7))])
def test_moments_do_not_depend_on_batches_and_give_the_errors_of_outputs(place, shape):
    net = convolutions()
    x = torch.randn(12, *shape)
    whole = moments(net, place, [(x, x)])
    parts = moments(net, place, [(part, part) for part in x[torch.randperm(12)].split(5)])
    torch.testing.assert_close(whole.form(1e-9), parts.form(1e-9), rtol=1e-4, atol=1e-5)
    layer = net.layers("test").at(place)[0]
    matrix = Matrix.of(net.layers("test"), layer.weight, net.tensors[layer.weight])
    change = torch.randn(matrix.shape)
    blocks = matrix.blocks(change).double()
    assert torch.equal(matrix.unblocked(matrix.blocks(change)), change)
    made = product(layer, patches(net.captured.graph.nodes[place], layer, x), change)
    wanted = made.double().square().mean(0).reshape(blocks.shape[:2])
    found = torch.einsum("gri,gij,grj->gr", blocks, whole.form(1e-9), blocks)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_targets_regain_what_was_made_before():
    net = network(nn.Sequential(nn.Linear(5, 3)), (torch.randn(2, 5),))
    x, mixed = torch.randn(200, 5), torch.randn(5, 5)
    now = x @ mixed + 2
    found = moments(net, 0, [(x, now)], centred=True)
    weight = torch.randn(1, 3, 5, dtype=torch.float64)
    target = found.target(weight, 1e-9)
    bias = found.shift(weight, target)
    torch.testing.assert_close(now.double() @ target[0].mT + bias, x.double() @ weight[0].mT, rtol=1e-3, atol=1e-3)
    same = moments(net, 0, [(x, x)], centred=True)
    torch.testing.assert_close(same.target(weight, 0.01), weight)


def test_some_positions_stand_for_all():
    net = convolutions()
    x = torch.randn(64, 4, 6, 6)
    whole, some = moments(net, 0, [(x, x)]), moments(net, 0, [(x, x)], rows=1000)
    assert torch.linalg.norm(whole.form(1e-9) - some.form(1e-9)) < 0.2 * torch.linalg.norm(whole.form(1e-9))


def test_what_nothing_reads_counts_as_one():
    found = damped(torch.stack([torch.zeros(3, 3), 2 * torch.eye(3)]).double(), 0.01)
    torch.testing.assert_close(found, torch.stack([torch.eye(3), 2.02 * torch.eye(3)]).double())
    net = network(nn.Sequential(nn.Linear(5, 3)), (torch.randn(2, 5),))
    constant = moments(net, 0, [(torch.full((9, 5), 7.3), torch.full((9, 5), 7.3))], centred=True)
    assert torch.linalg.eigvalsh(constant.form(0.01)).min() > 0


def classifier(items=256):
    net = network(nn.Sequential(nn.Linear(4, 3)), (torch.randn(2, 4),))
    x = torch.randn(items, 4)
    net.data = Data(TensorDataset(x, torch.zeros(items)), TensorDataset(x, torch.zeros(items).long()), "accuracy")
    return net, x


def information(net, samples=256, temperature=1.0):
    matrices = [Matrix.of(net.layers("test"), name, weight) for name, weight in net.weights()]
    return fisher(net, "test", net.interpreter(), matrices, samples, temperature)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_fisher_information_of_a_classifier(temperature):
    net, x = classifier(2048)
    p = (net.module(x) / temperature).softmax(1)
    wanted = (p * (1 - p) * x.square().sum(1, keepdim=True)).mean(0).double()
    found = information(net, 2048, temperature)["0.weight"].rows[0]
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.01)
    assert torch.equal(information(net)["0.weight"].rows, information(net)["0.weight"].rows)


def test_fisher_information_of_other_outputs_is_their_squared_change():
    net, x = classifier(2048)
    net.data = Data(TensorDataset(x, torch.zeros(2048)))
    wanted = x.square().sum(1).mean().expand(3).double()
    torch.testing.assert_close(information(net, 2048)["0.weight"].rows[0], wanted, rtol=0.2, atol=0)


def test_tables_and_shared_weights_have_factors_of_their_columns():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.twice = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.twice(self.twice(self.table(x))).mean(1)

    net, x = network(Net(), (torch.randint(9, (2, 5)),)), torch.randint(9, (64, 5))
    net.data = Data(TensorDataset(x, torch.zeros(64)))
    for name, shape in (("table.weight", (1, 9)), ("twice.weight", (1, 4))):
        found = information(net, 64)[name]
        assert found.rows.shape == shape
        assert found.columns.shape == (1, 4, 4)
        assert float(found.columns.diagonal(dim1=1, dim2=2).sum()) == pytest.approx(float(found.rows.sum()), rel=1e-4)


def test_rows_of_a_table_that_no_input_has_expect_what_rows_of_a_single_batch_have():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(2000, 4)

        def forward(self, x):
            return self.table(x).sum(1)

    net = network(Net(), (torch.randint(9, (2, 5)),))
    often = 1 / torch.arange(1, 2001.0)  # as words are used
    x = often.multinomial(512 * 5, replacement=True).reshape(512, 5)
    net.data = Data(TensorDataset(x, torch.zeros(512)))
    rows = information(net, 512)["table.weight"].rows[0]
    used = x.flatten().bincount(minlength=2000) > 0
    assert 500 < used.sum() < 1500
    assert rows[~used].unique().numel() == 1
    torch.testing.assert_close(rows[used].sum(), torch.tensor(20.0).double(), rtol=0.2, atol=0)  # 5 words of 4 numbers
    wanted = 20 * often[~used].sum() / often.sum()
    torch.testing.assert_close(rows[~used].sum(), wanted.double(), rtol=0.25, atol=0)


def test_gradients_that_are_not_finite_are_an_error():
    net, _ = classifier()
    net.data = Data(TensorDataset(torch.full((8, 4), math.inf), torch.zeros(8)))
    with pytest.raises(InputError, match=r"0\.weight: its gradients on the calibration data are not all finite"):
        information(net, 8)
    net.data = None
    with pytest.raises(UsageError, match="test: needs data to calibrate on"):
        information(net, 8)


def test_weights_changed_meanwhile_are_used_from_then_on():
    net = network(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)), (torch.randn(2, 3),))
    first, second = net.interpreter(), net.interpreter()
    inputs = [{net.captured.graph.inputs[0].name: torch.randn(n, 3)} for n in (4, 2)]
    values = [layer.reads.value for layer in net.layers("test")]
    seen = []
    for value, pairs in alongside(first, second, values, inputs):
        assert [len(pair[0]) for pair in pairs] == [4, 2]
        seen.append((value, [torch.equal(*pair) for pair in pairs]))
        if len(seen) == 2:
            second.get_parameter("1.weight").data.mul_(2)
    assert seen == [(values[0], [True, True]), (values[1], [True, True]), (values[2], [False, False])]


@pytest.mark.parametrize(("shape", "moved"), [((9, 10), 0.1), ((2, 5, 40_000), 0.01), ((3, 70_000), 1e-4)])
def test_divergence_is_that_of_all_positions_together(shape, moved):
    before = 3 * torch.randn(shape)
    after = before + moved * torch.randn(shape)
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    wanted = float((p.exp() * (p - q)).sum())
    assert divergence(before, after, True) == pytest.approx(wanted, rel=0.01, abs=1e-6)
    assert divergence(before, before, True) == 0
    assert divergence(before, after, False) == pytest.approx(float((after.double() - before).square().sum()) / 2)
