"""What weights on grids cost in the file, as training feels it: bits that depend on what else is alive around them.

A weight of q steps, q being real while it learns, counts as

    c · f(|q|)        f(u) = log₂(1 + u) for u < 1, and 1 + 1.5 log₂ u from there

bits: f is what its magnitude takes, an Exp-Golomb code made smooth, and c what it takes to say that a weight is there
at all, which a coder that knows how many are alive in its row, column and kernel does in fewer bits where they are
many. So what is alone is dear, and whole rows, columns and kernels die together. The coder that makes use of it is
`entropy.context`. Costs count as constants while weights learn, and are brought up to date now and then. Entropy as a
penalty is that of Oktay et al. 2020; costs by place are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcomp.quantizer import half_up
from deepcomp.training.quantizers import WeightQuantizer

__all__ = ["EVERY", "Rate", "chances", "costs", "magnitude"]

EVERY = 100  # steps of training between two looks at what is alive

_LEAST, _MOST = 2e-4, 0.6  # chances that a weight is alive
_CHEAPEST, _DEAREST = 1.5, 13.0  # bits
_KERNEL = 0.7  # how much a kernel's own density counts, beside that of its row and its column


class Rate:
    """The bits that some weights will take, differentiable by latent weights and scales.

    Parameters
    ----------
    parts : sequence of WeightQuantizer
        On grids of any scales, under a mask or not.
    picture : tuple of int
        Channels, height and width of the network's inputs, or () where they are no pictures. The columns of a matrix
        with so many are taken to be their pixels.
    context : bool
        Whether bits depend on the place of a weight; if not, on how many of its tensor are alive, as for coders of
        independent symbols.
    """

    def __init__(self, parts: Sequence[WeightQuantizer], picture: tuple[int, ...] = (), context: bool = True) -> None:
        self._parts, self._picture, self._context = parts, picture, context
        self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Set the costs by what is alive by now."""
        self._costs = [costs(self._chances(half_up(part.steps()) != 0)) for part in self._parts]

    def _chances(self, alive: Tensor) -> Tensor:
        return chances(alive, self._picture) if self._context else alive.float().mean()

    def __call__(self) -> Tensor:
        """The bits of all weights together, a scalar."""
        found = [(cost * magnitude(part.steps())).sum() for cost, part in zip(self._costs, self._parts, strict=True)]
        return torch.stack(found).sum()


def magnitude(q: Tensor) -> Tensor:
    """f(|q|) of the text above; nothing draws at a weight that is exactly 0."""
    u = q.abs()
    return torch.log2(1 + u.clamp(max=1)) + 1.5 * torch.log2(u.clamp(min=1))


def costs(p: Tensor) -> Tensor:
    """What a weight costs that is alive with a chance of p, 1.5 to 13 bits: log₂((1 − p)/p) + 2.

    They are for its place, its sign, and whether it is more than one step.
    """
    p = p.clamp(_LEAST, _MOST)
    return (torch.log2((1 - p) / p) + 2).clamp(_CHEAPEST, _DEAREST)


def chances(alive: Tensor, picture: tuple[int, ...] = ()) -> Tensor:
    """How probable it is that a weight is alive, by how many are in its row, its column and its kernel.

    That is row × column / mean density; where there are kernels of several weights, 0.3 of this and 0.7 of the
    kernel's density. Rows lie along the first axis and a convolution's planes along the second, outputs or
    inputs, which makes no difference. A column is a tap of a plane; pixels take the mean of their neighbourhood,
    3 × 3.

    Parameters
    ----------
    alive : bool tensor
        Which weights of a tensor are not zero.
    picture : tuple of int
        See `Rate`.

    Returns
    -------
    float32 tensor of the same shape
    """
    planes = alive.shape[1] if alive.ndim > 1 else 1
    there = alive.float().reshape(len(alive), planes, -1)
    mean = there.mean()
    rows, columns = _density(there, (1, 2), mean), _density(there, (0,), mean)
    if picture and there.shape[2] == 1 and planes == math.prod(picture):
        pixels = columns.reshape(1, *picture)
        columns = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False).reshape(1, -1, 1)
    p = rows * columns / mean.clamp(min=_LEAST)
    if there.shape[2] > 1:
        p = _KERNEL * there.mean(2, keepdim=True) + (1 - _KERNEL) * p
    return p.expand_as(there).reshape(alive.shape)


def _density(there: Tensor, dims: tuple[int, ...], mean: Tensor) -> Tensor:
    """The mean along some dimensions; where there is but one weight along them, that of all."""
    alone = math.prod(there.shape[dim] for dim in dims) == 1
    return mean.reshape(1, 1, 1) if alone else there.mean(dims, keepdim=True)
