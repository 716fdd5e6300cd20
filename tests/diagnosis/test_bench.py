"""Measurements: the metric as `evaluate` has it, and the noise by its definition."""

import math

import pytest
import torch
from patients import cnn, labelled, metric, mlp
from torch import nn

from deepcomp import Data, InputError
from deepcomp.diagnosis import bench as benches
from deepcomp.diagnosis.bench import Bench
from deepcomp.model.evaluate import evaluate, output_change


class Noisy(nn.Module):
    def __init__(self, net, noise):
        super().__init__()
        self.net, self.noise = net, noise

    def forward(self, x):
        return self.net(x) + self.noise * torch.sin(1000 * x.flatten(1).sum(1, keepdim=True) + torch.arange(6.0))


@pytest.mark.parametrize("kind", ["accuracy", metric(True), metric(False)])
def test_the_metric_is_that_of_evaluate(kind):
    net = mlp()
    data = labelled(net, metric=kind)
    bench = Bench(data, 1000, 0)
    before, after = bench.run(net), bench.run(Noisy(net, 0.3))
    found = after.beside(before)
    assert before.score == evaluate(net, data)
    assert found.value == evaluate(Noisy(net, 0.3), data).value
    assert found.drop > 0


def test_noise_is_that_of_outputs_or_of_the_probabilities_they_stand_for():
    net = mlp()
    data = labelled(net)
    x = torch.stack([row for row, _ in data.test])
    y, z = net(x).detach().double(), Noisy(net, 0.1)(x).detach().double()
    bench = Bench(data, 1000, 0)
    run, other = bench.run(Noisy(net, 0.1)), bench.run(net)
    assert run.change(other) == pytest.approx(float((z - y).norm() / y.norm()), rel=1e-5)
    p, q = y.softmax(1), z.softmax(1)
    assert run.beside(other).snr == pytest.approx(-20 * math.log10(float((q - p).norm() / p.norm())), rel=1e-5)
    plain = Bench(Data(data.test, data.test), 1000, 0)
    found = plain.run(Noisy(net, 0.1)).beside(plain.run(net))
    assert found.value == found.drop == pytest.approx(output_change(net, Noisy(net, 0.1), data), rel=1e-5)
    assert found.noise == pytest.approx(found.value**2)


def test_the_error_of_a_drop_counts_the_decisions_that_have_changed():
    net = mlp()
    data = labelled(net)
    bench = Bench(data, 1000, 0)
    found = bench.run(Noisy(net, 0.3)).beside(bench.run(net))
    changed = round(len(data.test) * found.drop / 100)
    assert found.error == pytest.approx(100 * math.sqrt(changed) / len(data.test))
    assert found.loses(found.drop) == (found.drop >= 2 * found.error)
    assert bench.run(net).beside(bench.run(net)).error == 0


def test_a_tolerable_loss_is_two_items_at_least():
    net = mlp()
    for items, wanted in ((10, 20.0), (100, 2.0), (1000, 200 / 160)):
        bench = Bench(labelled(net), items, 0)
        assert bench.tolerance(bench.run(net)) == wanted
    own = Bench(labelled(net, metric=metric(True)), 1000, 0)
    assert own.tolerance(own.run(net)) == 0.01


def test_outputs_beyond_what_is_kept_are_not_compared(monkeypatch):
    monkeypatch.setattr(benches, "_KEPT", 100)
    net = mlp()
    run = Bench(labelled(net), 1000, 0).run(net)
    assert [len(part) for part in run.outputs] == [64]


def test_infinite_outputs_are_masked_ones():
    class Masked(nn.Module):
        def __init__(self, noise):
            super().__init__()
            self.net, self.noise = mlp(), noise

        def forward(self, x):
            return (self.net(x) + self.noise).masked_fill(torch.arange(6) == 2, -math.inf)

    data = labelled(mlp())
    bench = Bench(Data(data.test), 1000, 0)
    assert 0 < bench.run(Masked(0.1)).beside(bench.run(Masked(0.0))).value < 1


@pytest.mark.parametrize("kind", ["accuracy", None])
def test_outputs_that_are_no_numbers_are_said_to_be(kind):
    net = mlp()
    data = labelled(net, metric=kind)
    net[4].bias.data[0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        Bench(data, 1000, 0).run(net)


def test_named_outputs_and_inputs_are_understood():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()

        def forward(self, image, more):
            return {"hidden": image, "logits": self.net(image) + more}

    items = [({"image": torch.randn(3, 8, 8), "more": torch.zeros(5)}, torch.tensor(i % 5)) for i in range(10)]
    bench = Bench(Data(items, items, "accuracy"), 7, 0)
    run = bench.run(Named().eval())
    assert bench.items == 7
    assert [part.shape for part in run.outputs] == [(7, 5)]


def test_an_item_that_cannot_be_read_is_said_in_one_line():
    class Broken:
        def __len__(self):
            return 5

        def __getitem__(self, place):
            if place == 3:
                raise OSError("disk on fire")
            return torch.zeros(12), torch.tensor(0)

    with pytest.raises(InputError, match="data set: OSError: disk on fire"):
        Bench(Data(Broken(), Broken(), "accuracy"), 5, 0)
