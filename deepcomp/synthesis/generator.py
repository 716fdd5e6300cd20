"""Images of a generator network that is trained against the network they are for (Xu et al. 2020, GDFQ, §3.2).

The generator learns to make, from noise and a class, an image that the network takes for one of that class and
that looks to its batch norms like training data. What it is trained against stays as it is; the adversarial part of
other methods, a student that disagrees with it, is left out.

Beside the paper: what stands for a class is added to the noise, where the paper multiplies the two. A product of zero
mean says nothing of the class to a linear layer, and the generator learns it far more slowly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcomp.errors import UsageError
from deepcomp.synthesis.descent import Descent
from deepcomp.synthesis.statistics import Watched

__all__ = ["Generator", "generate"]

_LATENT = 100
_WIDTH = 64


class Generator(nn.Module):
    """Noise around a point that stands for a class → images; twice as large with each of two upsamplings.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of an image, of any size.
    classes : int
        0: images belong to no class.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        quarter, half = ((-(-height // by), -(-width // by)) for by in (4, 2))
        self.label = nn.Embedding(classes, _LATENT) if classes else None
        self.images = nn.Sequential(
            nn.Linear(_LATENT, _WIDTH * quarter[0] * quarter[1]),
            nn.Unflatten(1, (_WIDTH, *quarter)),
            nn.BatchNorm2d(_WIDTH),
            nn.Upsample(half),
            *_convolution(_WIDTH, _WIDTH),
            nn.Upsample((height, width)),
            *_convolution(_WIDTH, _WIDTH // 2),
            nn.Conv2d(_WIDTH // 2, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels),  # mean and spread of inputs are what the network was trained on, not known here
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Images of shape (batch, channels, height, width).

        Parameters
        ----------
        latent : float32 Tensor, shape (batch, 100)
        labels : int64 Tensor, shape (batch,)
            Not looked at where there are no classes.
        """
        images: Tensor = self.images(latent if self.label is None else latent + self.label(labels))
        return images


def _convolution(read: int, made: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(read, made, 3, padding=1), nn.BatchNorm2d(made), nn.LeakyReLU(0.2)


def generate(
    watched: Watched, like: Mapping[str, Tensor], classes: int, batch: int, descent: Descent, random: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a generator, and draw from it.

    Parameters
    ----------
    watched : Watched
    like : mapping of str to Tensor
        Inputs of which as many are to be made, of the same shapes: those of one input, by its name, images.
    classes : int
        Of the network's output, if that holds logits of classes; else 0.
    batch : int
        Images that pass at a time.
    descent : Descent
    random : torch.Generator
        On the CPU; all that is random comes from it.

    Returns
    -------
    dict of str to Tensor
        The images by the name of the input: float32, on the CPU.
    dict of str to float
        The mean cross-entropy of the network's outputs on them with the classes they were made for, `before` and
        `after` training; empty without classes.

    Raises
    ------
    UsageError
        If the network reads anything but images.
    InputError
        See `Descent.run`.
    """
    name, samples, shape = _image(descent.what, like)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=random)))
        generator = Generator(shape, classes).to(watched.device)

    def draw() -> tuple[Tensor, Tensor]:
        latent = torch.randn(batch, _LATENT, generator=random)
        labels = torch.randint(max(classes, 1), (batch,), generator=random)
        return latent.to(watched.device), labels.to(watched.device)

    def loss() -> Tensor:
        latent, labels = draw()
        outputs, far = watched({name: generator(latent, labels)})
        assert isinstance(far, Tensor)
        return far + functional.cross_entropy(outputs.float(), labels) if classes else far

    draws = [draw() for _ in range(-(-samples // batch))]
    _, before = _drawn(generator, watched, name, draws)
    descent.run(generator.parameters(), loss)
    images, after = _drawn(generator, watched, name, draws)
    return {name: images[:samples]}, {"before": before, "after": after} if classes else {}


@torch.no_grad()
def _drawn(
    generator: Generator, watched: Watched, name: str, draws: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, float]:
    """Images, each batch normalised by itself as in training, and their cross-entropy with their classes."""
    images, total = [], 0.0
    for latent, labels in draws:
        made = generator(latent, labels)
        images.append(made.cpu())
        if generator.label is not None:
            total += functional.cross_entropy(watched({name: made})[0].float(), labels).item()
    return torch.cat(images), total / len(draws)


def _image(what: str, like: Mapping[str, Tensor]) -> tuple[str, int, tuple[int, int, int]]:
    """The name of the input, how many images there are, and the shape of one."""
    (name, images), *others = like.items()
    if others or images.ndim != 4:
        found = ", ".join(f"{name} of {tensor.ndim} dimensions" for name, tensor in like.items())
        raise UsageError(f"{what}: by = 'generator' makes images, one input of 4 dimensions expected; {found} found")
    samples, channels, height, width = images.shape
    return name, samples, (channels, height, width)
