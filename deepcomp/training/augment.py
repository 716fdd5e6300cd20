"""Training inputs changed at random, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcomp.errors import InputError
from deepcomp.model.data import Inputs
from deepcomp.model.zoo import find

__all__ = ["AUGMENTATIONS", "augmentation"]

Augment = Callable[[Inputs], Inputs]


def _flip_crop(inputs: Inputs) -> Inputs:
    """Images (N, C, H, W) shifted by up to an eighth, zeros following, and every second one mirrored."""
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        found = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(f"augment = flip-crop: inputs {found} found, images (N, C, H, W) expected")
    count, _, height, width = inputs.shape
    down, across = height // 8, width // 8
    padded = F.pad(inputs, (across, across, down, down))
    rows = torch.randint(2 * down + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    image = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


AUGMENTATIONS: dict[str, Augment] = {"none": lambda inputs: inputs, "flip-crop": _flip_crop}


def augmentation(name: str) -> Augment:
    """The function a plan's `augment` names; its random numbers come from torch's global generator."""
    return AUGMENTATIONS[name] if name in AUGMENTATIONS else cast(Augment, find(name))
