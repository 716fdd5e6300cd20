"""Examples of what a weight is for: inputs as they are now, outputs as they were, behind the activation function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.entry import PARAMETER
from deepcomp.errors import InputError, UsageError
from deepcomp.model import sources
from deepcomp.model.capture import capture
from deepcomp.model.data import Data, Pairs
from deepcomp.model.patches import product
from deepcomp.network import Network
from deepcomp.steps.quantize import Quantize
from deepcomp.training.reconstruction import Examples, Reconstruction
from deepcomp.weights import Raw

ALL = 1 << 20  # more positions than there are


def network(module: nn.Module, x: Tensor) -> Network:
    captured, source = capture(module.eval(), x[:2]), sources.from_module(module)
    roles = dict.fromkeys(source.tensors, PARAMETER)
    return Network(source.tensors, roles, source.tied, captured, module, data=Data(Pairs(x, torch.zeros(len(x)))))


def examples(net: Network, name: str, rows: int = ALL, **more: Any) -> Reconstruction:
    layers = net.layers("test")
    return Reconstruction(net, layers, [layer for layer in layers if layer.weight == name], "test", 512, rows, **more)


class Net(nn.Module):
    """A convolution, an activation function behind a second one, and a linear layer."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.activation, self.last = activation, nn.Linear(6 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.second(F.relu(self.first(x)))).flatten(1))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.Hardtanh(-0.3, 0.2), nn.PReLU(6), nn.PReLU(), nn.SiLU(), nn.LeakyReLU(0.1)],
)
@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_the_error_is_that_of_the_outputs(activation: nn.Module, budget: int, randn: Any) -> None:
    x, module = randn(70, 3, 8, 8), Net(activation)
    net = network(module, x)
    Quantize(bits=3).run(net)
    weight = net.forms["second.weight"].dense()
    with torch.no_grad():
        wanted = activation(module.second(F.relu(module.first(x))))
        read = F.relu(F.conv2d(x, net.forms["first.weight"].dense(), module.first.bias, padding=1))
        made = activation(F.conv2d(read, weight, module.second.bias, stride=2, groups=2))
    errors = (made - wanted).square().sum(1)
    found = examples(net, "second.weight", budget=budget)
    assert found.error(weight) == pytest.approx(float(errors.mean()), rel=1e-4)
    assert float(found.loss(weight, ALL)) == pytest.approx(float(errors.mean()), rel=1e-4)
    assert examples(net, "second.weight", rows=100, budget=budget).error(weight) == pytest.approx(
        float(errors.mean()), rel=0.5
    )


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_what_is_drawn_from_inputs_is_what_the_original_makes(name: str, randn: Any) -> None:
    x, module = randn(10, 3, 8, 8), Net(nn.ReLU())
    net = network(module, x)
    layers = net.layers("test")
    sites = [layer for layer in layers if layer.weight == f"{name}.weight"]
    (read, (_, held)) = sites[0].reads, next(net.observe("test", [sites[0].reads.value], 10))  # type: ignore[union-attr]
    weight, bias = net.tensors[f"{name}.weight"].detach(), net.tensors[f"{name}.bias"].detach()
    assert read is not None
    for after in (held, held + 1):
        found = Examples(net, layers, sites, 1000)
        found.draw(0, held, after, 1000, torch.Generator())
        error = found.error(lambda _, rows: product(sites[0], rows, weight) + bias)
        assert (error < 1e-10) == (after is held)


def test_tokens_are_examples_too(randn: Any) -> None:
    x, module = randn(20, 7, 5), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    net = network(module, x)
    Quantize(bits=3).run(net)
    weight = net.forms["0.weight"].dense()
    errors = (F.linear(x, weight, module[0].bias).tanh() - module[1](module[0](x))).square().sum(2).detach()
    assert examples(net, "0.weight").error(weight) == pytest.approx(float(errors.mean()), rel=1e-4)


def test_an_activation_function_that_others_pass_by_does_not_count(randn: Any) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(F.relu(y) + y)

    x, module = randn(20, 5), Beside()
    net = network(module, x)
    weight = net.tensors["a.weight"] + 1
    errors = (F.linear(x, weight) - F.linear(x, net.tensors["a.weight"])).square().sum(1)
    assert examples(net, "a.weight").error(weight) == pytest.approx(float(errors.mean()), rel=1e-4)


def test_all_uses_of_a_weight_count(randn: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(F.relu(self.a(x)))

    x, module = randn(20, 5), Twice()
    net = network(module, x)
    Quantize(bits=3).run(net)
    weight = net.forms["a.weight"].dense()
    with torch.no_grad():
        inner, wanted = F.relu(module.a(x)), F.relu(F.linear(x, weight, module.a.bias))
        outer = F.linear(wanted, weight, module.a.bias) - module(x)
    both = (float((wanted - inner).square().sum(1).mean()) + float(outer.square().sum(1).mean())) / 2
    assert examples(net, "a.weight").error(weight) == pytest.approx(both, rel=1e-4)


def test_a_corrected_bias_is_on_the_side_of_what_is_made(randn: Any) -> None:
    x, module = randn(20, 5), nn.Sequential(nn.Linear(5, 4))
    net = network(module, x)
    net.store("0.bias", Raw(module[0].bias.detach() + 2))
    assert examples(net, "0.weight").error(net.tensors["0.weight"]) == pytest.approx(4 * 2**2, rel=1e-4)


def test_the_same_seed_draws_the_same_examples(randn: Any) -> None:
    x, module = randn(70, 3, 8, 8), Net(nn.ReLU())
    net = network(module, x)
    weight = net.tensors["first.weight"] + 0.1
    one, two = examples(net, "first.weight", rows=50), examples(net, "first.weight", rows=50)
    assert [float(one.loss(weight, 8)) for _ in range(3)] == [float(two.loss(weight, 8)) for _ in range(3)]
    net.seed = 1
    assert examples(net, "first.weight", rows=50).error(weight) != one.error(weight)


def test_what_cannot_be_is_refused(randn: Any) -> None:
    x, module = randn(20, 5), nn.Sequential(nn.Linear(5, 4))
    net = network(module, x)
    net.tensors = {**net.tensors, "0.bias": torch.full((4,), float("inf"))}
    with pytest.raises(InputError, match=r"test: the outputs of 0\.weight on the calibration data are not all finite"):
        examples(net, "0.weight")
    net.data = None
    with pytest.raises(UsageError, match="test: needs data to calibrate on"):
        examples(net, "0.weight")
