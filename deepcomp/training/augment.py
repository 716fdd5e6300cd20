"""Training inputs changed at random, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcomp.errors import InputError, blaming
from deepcomp.model.data import Inputs
from deepcomp.model.zoo import find

__all__ = ["AUGMENTATIONS", "augmentation"]

Augment = Callable[[Inputs], Inputs]

# In halves of an image, which reaches from -1 to 1 both ways
_TURN, _SHIFT = 0.15, 0.1  # at most, of each entry of the matrix and of the shift
_BEND = 0.06  # the standard deviation of where points go
_POINTS = 5  # that bend an image along each side


def _flip_crop(inputs: Inputs) -> Inputs:
    """Images (N, C, H, W) shifted by up to an eighth, zeros following, and every second one mirrored."""
    images = _images("flip-crop", inputs)
    count, _, height, width = images.shape
    down, across = height // 8, width // 8
    padded = F.pad(images, (across, across, down, down))
    rows = torch.randint(2 * down + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    image = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _warp(inputs: Inputs, name: str, bend: float) -> Inputs:
    """Images (N, C, H, W) mapped by a matrix near the identity, zeros following, and maybe bent.

    A bent image follows a few points that move at random, and what lies between them, smoothly (Simard et al. 2003).
    """
    images = _images(name, inputs)
    count, _, height, width = images.shape
    most = torch.tensor([_TURN, _TURN, _SHIFT])
    matrix = torch.eye(2, 3) + (2 * torch.rand(count, 2, 3) - 1) * most
    places = F.affine_grid(matrix, [count, 1, height, width], align_corners=False)
    if bend:
        moved = bend * torch.randn(count, 2, _POINTS, _POINTS)
        field = F.interpolate(moved, (height, width), mode="bicubic", align_corners=True)
        places = places + field.permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), places, align_corners=False).to(images.dtype)


def _images(name: str, inputs: Inputs) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        found = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(f"augment = {name}: inputs {found} found, images (N, C, H, W) expected")
    return inputs


AUGMENTATIONS: dict[str, Augment] = {
    "none": lambda inputs: inputs,
    "flip-crop": _flip_crop,
    "affine": partial(_warp, name="affine", bend=0.0),
    "elastic": partial(_warp, name="elastic", bend=_BEND),
}


def augmentation(name: str) -> Augment:
    """The function a plan's `augment` names; its random numbers come from torch's global generator."""
    return AUGMENTATIONS[name] if name in AUGMENTATIONS else _own(name, cast(Augment, find(name)))


def _own(name: str, found: Augment) -> Augment:
    def augment(inputs: Inputs) -> Inputs:
        with blaming(f"augment {name}"):
            return found(inputs)

    return augment
