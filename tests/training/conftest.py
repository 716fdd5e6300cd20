"""A small problem that trains in a moment."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepcomp.model.data import Data
from deepcomp.model.sources import from_module
from deepcomp.network import Network


def problem(count=400, seed=0):
    """Eight numbers, and which of the first three is the largest."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x[:, :3].argmax(1))


@pytest.fixture
def data():
    return Data(problem(), problem(100, seed=1), "accuracy")


@pytest.fixture
def make_net(data):
    def make(module=None, **more):
        torch.manual_seed(3)
        module = module or nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3))
        source = from_module(module.eval())
        return Network(source.tensors, tied=source.tied, module=module, teacher=module, **{"data": data, **more})

    return make


@pytest.fixture
def net(make_net):
    return make_net()
