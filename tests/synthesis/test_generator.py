"""A generator: images of any size, of the classes it is asked for, that batch norms take for what they have seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from remembering import cnn, images, remembering
from safetensors.torch import load_file
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model import sources, zoo
from deepcomp.model.capture import capture
from deepcomp.network import Network
from deepcomp.synthesis import Descent, Watched, generate
from deepcomp.synthesis.generator import Generator

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.fixture
def net() -> Network:
    return remembering(cnn(), images())


def made(net: Network, iterations: int, classes: int = 5, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, float]]:
    random = torch.Generator().manual_seed(seed)
    like = {"input": torch.zeros(40, 3, 10, 9)}
    return generate(Watched(net, "test", net.names()), like, classes, 16, Descent("test", iterations, 0.002), random)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 7, 13), (4, 1, 1)])
@pytest.mark.parametrize("classes", [0, 6])
def test_images_of_any_size(shape: tuple[int, int, int], classes: int) -> None:
    labels = torch.tensor([0, max(classes, 1) - 1])
    assert Generator(shape, classes)(torch.randn(2, 100), labels).shape == (2, *shape)


def test_a_trained_network_takes_its_images_for_what_they_were_made_for() -> None:
    digits = zoo.build("digits-cnn")
    digits.load_state_dict(load_file(CHECKPOINTS / "digits-cnn.safetensors"), strict=False)
    source = sources.from_module(digits.eval())
    net = Network(source.tensors, captured=capture(digits, zoo.example("digits-cnn")), module=digits)
    watched, like = Watched(net, "test", net.names()), {"x": torch.zeros(64, 1, 8, 8)}
    made = [
        generate(watched, like, 10, 32, Descent("test", iterations, 0.01), torch.Generator().manual_seed(0))
        for iterations in (0, 60)
    ]
    entropy = made[1][1]
    assert entropy["after"] < entropy["before"] / 20
    before, after = (watched.judge(images, 32)[1] for images, _ in made)
    assert after < before / 3


def test_without_classes_there_is_no_cross_entropy(net: Network) -> None:
    assert made(net, 2, classes=0)[1] == {}


def test_the_same_seed_gives_the_same_images_and_disturbs_no_other(net: Network) -> None:
    torch.manual_seed(3)
    undisturbed = torch.randn(4)
    torch.manual_seed(3)
    one, _ = made(net, 2)
    assert torch.equal(torch.randn(4), undisturbed)
    two, other = made(net, 2)[0], made(net, 2, seed=1)[0]
    assert torch.equal(one["input"], two["input"])
    assert not torch.equal(one["input"], other["input"])


@pytest.mark.parametrize("like", [{"x": torch.zeros(4, 7)}, {"x": torch.zeros(4, 3, 8, 8), "y": torch.zeros(4, 2)}])
def test_what_is_no_image_is_refused(net: Network, like: dict[str, Tensor]) -> None:
    watched, random = Watched(net, "test", net.names()), torch.Generator()
    with pytest.raises(UsageError, match=r"by = 'generator' makes images, one input of 4 dimensions expected; x of"):
        generate(watched, like, 0, 2, Descent("test", 1, 0.1), random)
