"""A user's own module, data set and loss, by the command."""

import textwrap

import pytest
import torch

import deepcomp
from deepcomp.cli import main

MINE = """
    import torch
    from torch import nn
    import deepcomp

    class Set:
        def __init__(self, count, seed):
            generator = torch.Generator().manual_seed(seed)
            self.x = torch.randn(count, 6, generator=generator)
            self.scale = torch.rand(count, 1, generator=generator)
        def __len__(self):
            return len(self.x)
        def __getitem__(self, i):
            return {"x": self.x[i], "scale": self.scale[i]}, self.x[i, :2] * self.scale[i]

    class Error:
        higher_is_better = False
        def __call__(self, outputs, targets):
            return (outputs - targets).abs().mean().item()

    def data():
        return deepcomp.Data(train=Set(300, 0), test=Set(60, 1), metric=Error())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
        def forward(self, x, scale):
            return self.layers(x) * scale

    def net():
        torch.manual_seed(0)
        return Net()

    def loss(outputs, targets):
        return ((outputs - targets) ** 2).mean()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_problem.py").write_text(textwrap.dedent(MINE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_problem

    torch.save(my_problem.net().state_dict(), "net.pt")
    yield my_problem
    import sys

    del sys.modules["my_problem"]


def command(*more):
    return main(
        ["compress", "net.pt", "-o", "net.dcz", "--model", "my_problem:net", "--data", "my_problem:data", *more]
    )


def test_own_network_data_and_loss_compress_with_the_built_in_recipe(mine, capsys):
    settings = ["prune.density=0.4", "prune.retrain.loss=my_problem:loss", "finetune.loss=my_problem:loss"]
    settings += ["finetune.rate=0.1"]
    code = command("--recipe", "deep-compression", *(word for s in settings for word in ("--set", s)))
    assert code == 0, capsys.readouterr().err
    data = mine.data()
    inputs, _targets = data.test[0]
    net = deepcomp.load("net.dcz")
    outputs = net(**{name: value[None] for name, value in inputs.items()})
    assert outputs.shape == (1, 2)
    before = data.metric(mine.net()(data.test.x, data.test.scale), data.test.x[:, :2] * data.test.scale)
    after = data.metric(net(x=data.test.x, scale=data.test.scale), data.test.x[:, :2] * data.test.scale)
    assert after < before / 2  # it was never trained before
    state = net.state_dict()
    assert (state["layers.0.weight"] != 0).float().mean() <= 0.41


def test_a_loss_has_to_be_named_where_the_metric_does_not_say_which(mine, capsys):
    assert command("--recipe", "deep-compression") == 2
    assert "name a loss" in capsys.readouterr().err
