"""The networks that quantisation is tried on, taken through steps in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from runs import CHECKPOINTS
from timing import data_folder
from torch import Tensor
from torch.utils.data import TensorDataset

from deepcomp.entry import CONSTANT
from deepcomp.model import zoo
from deepcomp.model.capture import capture
from deepcomp.model.data import Data, MapStyle, batches
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate
from deepcomp.model.sources import Gathered
from deepcomp.network import Network
from deepcomp.opening import open_network
from deepcomp.pipeline import one_thread
from deepcomp.steps import Step

__all__ = ["SUBJECTS", "Subject", "decoded", "score", "through"]


@dataclass(frozen=True)
class Subject:
    """A trained network and its data.

    Attributes
    ----------
    title : str
    model : str
        The built-in network.
    weights : str
        Their file, in `checkpoints/` or beside the data.
    data : str
    """

    title: str
    model: str
    weights: str
    data: str

    @property
    def path(self) -> Path:
        own = CHECKPOINTS / self.weights
        return own if own.exists() else data_folder() / self.weights

    def network(self) -> Network:
        """The network with its operations, ready for steps."""
        net, _ = open_network(self.path, None if self.path.suffix == ".dcz" else self.model)
        if net.captured is None:
            assert net.module is not None
            net.captured = capture(net.module, zoo.example(self.model))
            net.tensors = Gathered.of(net.tensors, net.captured.constants)
            net.roles |= dict.fromkeys(net.captured.constants, CONSTANT)
        net.teacher = net.module
        return net

    def load(self, items: int = 0) -> Data:
        """Its data, of the test set the first `items` (all: 0), decoded once."""
        data = load_data(self.data, data_folder())
        assert data.test is not None
        return Data(data.train, decoded(data.test, items or len(data.test)), data.metric)


SUBJECTS = {
    "resnet20": Subject("ResNet-20", "resnet20", "resnet20-cifar10.safetensors", "cifar10"),
    "mobilenet": Subject("MobileNetV2 for CIFAR", "mobilenet-cifar", "mobilenet-cifar.safetensors", "cifar10"),
    "lstm": Subject("LSTM", "lstm-wikitext2", "lstm-wikitext2.dcz", "wikitext2"),
    "transformer": Subject("Transformer", "transformer-wikitext2", "transformer-wikitext2.dcz", "wikitext2"),
}


def decoded(dataset: MapStyle, items: int) -> TensorDataset:
    """The first items of a set, in memory."""
    (inputs, targets) = next(iter(batches(dataset, items, torch.arange(items))))
    assert isinstance(inputs, Tensor)
    return TensorDataset(inputs, targets)


def through(subject: Subject, data: Data | None, steps: Sequence[Step], seed: int = 0) -> Network:
    """The network after some steps, as `compress` runs them."""
    with one_thread():
        torch.manual_seed(seed)
        net = subject.network()
        net.data, net.seed = data, seed
        for step in steps:
            step.run(net)
    return net


def score(net: Network, data: Data) -> float:
    """Accuracy in percent or perplexity on the test items, of weights as their forms make them."""
    return evaluate(net.interpreter(formed=True), data).value
