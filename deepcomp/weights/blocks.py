"""Which weights share a scale: the whole tensor, a channel, a group of channels, a block within a channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks:
    """The granularity of a grid over a weight of a given shape.

    Blocks are numbered channel group first, then along the rest of the weight in row-major order.

    Attributes
    ----------
    shape : tuple of int
        Shape of the weight.
    axis : int, optional
        The channel dimension (0 for linear and conv weights, 1 for transposed convolutions, 0 for
        the rows of an embedding); None: one block for the whole tensor.
    group : int
        How many neighbouring channels share a block.
    size : int
        Sub-channel blocks of this many weights along each channel (the last one may be shorter);
        0: whole channels. Not together with `group` > 1.
    """

    shape: tuple[int, ...]
    axis: int | None = None
    group: int = 1
    size: int = 0

    @classmethod
    def within(cls, shape: tuple[int, ...], axis: int | None, group: int, size: int) -> Self:
        """Blocks cut down to the weight: no group has more channels, and no block more weights, than there are."""
        whole = cls(shape, axis)
        return whole if axis is None else cls(shape, axis, min(group, max(whole._channels, 1)), min(size, whole._row))

    @property
    def fits(self) -> bool:
        """Whether the axis is there, and groups and blocks have the sizes that `within` gives them."""
        if self.axis is None:
            return self.group == 1 and self.size == 0
        if not 0 <= self.axis < len(self.shape) or (self.group > 1 and self.size > 0):
            return False
        return 1 <= self.group <= self._channels and 0 <= self.size <= self._row

    @property
    def count(self) -> int:
        """How many blocks there are."""
        if self.axis is None:
            return 1
        return -(-self._channels // self.group) * self._per_channel

    def channelwise(self, axis: int, channels: int) -> bool:
        """Whether there is a block for each of so many channels along an axis."""
        return self == Blocks(self.shape, axis) and self.count == channels

    @property
    def _channels(self) -> int:
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def _row(self) -> int:
        """Weights in one channel."""
        return math.prod(self.shape) // max(self._channels, 1)

    @property
    def _per_channel(self) -> int:
        return -(-self._row // self.size) if self.size else 1

    def rows(self, weight: Tensor, fill: float) -> Tensor:
        """The weight with one row a block, shape (count, n); short blocks are filled up with `fill`."""
        if self.axis is None:
            return weight.reshape(1, -1)
        channels = weight.movedim(self.axis, 0).reshape(self._channels, self._row)
        if self.size:
            short = self._per_channel * self.size - self._row
            return F.pad(channels, (0, short), value=fill).reshape(self.count, self.size)
        short = self.count * self.group - self._channels
        return F.pad(channels, (0, 0, 0, short), value=fill).reshape(self.count, self.group * self._row)

    def spread(self, values: Tensor) -> Tensor:
        """One value a block, shape (count,), made to broadcast against the weight."""
        if self.axis is None:
            return values.reshape([1] * len(self.shape))
        rest = [n for i, n in enumerate(self.shape) if i != self.axis]
        if self.size:
            blocks = values.reshape(self._channels, self._per_channel)
            per_weight = blocks.repeat_interleave(self.size, dim=1)[:, : self._row]
            return per_weight.reshape(self._channels, *rest).movedim(0, self.axis)
        per_channel = values.repeat_interleave(self.group)[: self._channels]
        return per_channel.reshape([-1 if i == self.axis else 1 for i in range(len(self.shape))])

    def at(self, positions: Tensor) -> Tensor:
        """The block of each flat row-major position, int64."""
        if self.axis is None:
            return torch.zeros_like(positions)
        inside = math.prod(self.shape[self.axis + 1 :])  # weights between neighbours along the axis
        channel = positions // inside % self._channels
        if not self.size:
            return channel // self.group
        place = positions // (inside * self._channels) * inside + positions % inside
        return channel * self._per_channel + place // self.size
