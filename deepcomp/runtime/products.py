"""Products of integers with a constant matrix or kernel, exact in int32.

PyTorch has one kernel of that kind for the processor, int8 × int8 → int32 (`torch._int_mm`); convolutions reach it
with their windows laid out as rows. Operands that do not fit int8, and processors on which the kernel saturates on
the way, get PyTorch's slow product of int32 instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Convolution", "Matrix", "channels_last", "each", "has_kernel", "matrices", "pad", "windows"]

_LAID_OUT = 1 << 22  # elements of windows at a time: about what a processor's cache holds
_JOINED = 32  # channels that the kernel should get at once …
_PADDED = 1 << 28  # … as long as no more elements come of it
_MOST = 1 << 31  # elements of a padded operand


@dataclass(frozen=True, eq=False)
class Matrix:
    """x ↦ x·w along the last dimension.

    Attributes
    ----------
    columns : int8 or int32 tensor, shape (outputs, inputs)
        Of w, less their `centres`; with centres, a column of ones comes behind, which adds up the inputs.
    centres : int32 tensor, shape (outputs,), optional
        The middles of columns that do not fit int8: integers of 8 bits less a zero-point take 9.
    """

    columns: Tensor
    centres: Tensor | None = None

    @classmethod
    def of(cls, w: Tensor, narrow: bool) -> Self:
        """For int32 w of shape (inputs, outputs), and x that fits int8 if `narrow`."""
        low, high = w.amin(0), w.amax(0)
        if not (narrow and has_kernel() and bool((high - low <= 255).all())):
            return cls(w.t().contiguous())
        centres = torch.where((low < -128) | (high > 127), (low + high + 1) >> 1, 0)
        if not centres.any():
            return cls(w.t().to(torch.int8).contiguous())
        ones = torch.ones(len(w), 1, dtype=torch.int32)
        return cls(torch.cat([w - centres, ones], 1).t().to(torch.int8).contiguous(), centres)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()  # windows may overlap: not for the kernel
        if self.columns.dtype == torch.int8:
            found = torch._int_mm(rows, self.columns.t())
            if self.centres is not None:
                found = found[:, :-1] + found[:, -1:] * self.centres
        else:
            found = rows.int() @ self.columns.t()
        return found.reshape(*x.shape[:-1], found.shape[1])


@cache
def has_kernel() -> bool:
    """Whether int8 products are exact here: without VNNI instructions, sums of pairs may saturate at 16 bits."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(1, 64)
    extremes = torch.where(signs > 0, 127, -128).to(torch.int8)
    return torch.equal(torch._int_mm(extremes, extremes.t()), extremes.int() @ extremes.int().t())


def matrices(blocks: Tensor, narrow: bool) -> tuple[Matrix, ...]:
    """A kernel as matrices, one for each group of channels; small groups are joined, with zeros between them.

    Parameters
    ----------
    blocks : int32 tensor, shape (groups, taps, inputs of a group, outputs of a group)
    narrow : bool
        Whether the inputs fit int8.
    """
    groups, taps, inputs, outputs = blocks.shape
    most = max(min(_JOINED // inputs, _PADDED // blocks.numel(), groups), 1)
    several = max(n for n in range(1, most + 1) if groups % n == 0)
    parts = blocks.reshape(-1, several, taps, inputs, outputs)
    joined = blocks.new_zeros(len(parts), taps, several, inputs, several, outputs)
    for n in range(several):
        joined[:, :, n, :, n] = parts[:, n]
    return tuple([Matrix.of(w.reshape(taps * several * inputs, -1), narrow) for w in joined])


@dataclass(frozen=True, eq=False)
class Convolution:
    """Cross-correlation with a constant kernel; takes (…, channels, dimensions) and gives (…, places, channels).

    Attributes
    ----------
    matrices : tuple of Matrix
        Of equally many input channels each; the inputs of a matrix are ordered by tap, then by channel.
    kernel, stride, dilation, spread : tuple of int
        By dimension. `spread` is how far apart the inputs are set: the stride of a transposed convolution.
    padding : tuple of (int, int)
        How much comes before and behind the inputs, by dimension; less than nothing is cut off.
    zero : int
        The integer that stands between and around the inputs.
    """

    matrices: tuple[Matrix, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    spread: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    zero: int

    def __call__(self, x: Tensor) -> Tensor:
        apart = spread(channels_last(x, len(self.kernel)), self.spread, self.zero)
        view = windows(pad(apart, self.padding, self.zero), self.kernel, self.stride, self.dilation)
        outside = 1 + len(self.kernel)
        parts = zip(self.matrices, view.chunk(len(self.matrices), -1), strict=True)
        found = _one([_one([matrix(rows) for rows in _rows(part, outside)], 0) for matrix, part in parts], 1)
        return found.reshape(*x.shape[:-outside], *view.shape[1:outside], found.shape[1])


def each(setting: Sequence[int], count: int) -> tuple[int, ...]:
    """A setting by dimension, where one may stand for all."""
    return tuple(setting) * count if len(setting) == 1 else tuple(setting)


def channels_last(x: Tensor, count: int) -> Tensor:
    """x of shape (…, channels, so many dimensions) as (batch, dimensions, channels)."""
    batch = math.prod(x.shape[: -1 - count])
    return x.reshape(batch, *x.shape[-1 - count :]).movedim(1, -1).contiguous()


def spread(x: Tensor, steps: Sequence[int], zero: int) -> Tensor:
    """Channels-last x with its elements set apart, `zero` between them."""
    if set(steps) == {1}:
        return x
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[1:-1], steps, strict=True)]
    out = x.new_full(_checked((x.shape[0], *sizes, x.shape[-1])), zero)
    out[(slice(None), *(slice(None, None, step) for step in steps))] = x
    return out


def pad(x: Tensor, padding: Sequence[tuple[int, int]], zero: int) -> Tensor:
    """Channels-last x with `zero` around it."""
    around = [size for pair in reversed(padding) for size in pair]
    if not any(around):
        return x
    _checked([size + sum(pair) for size, pair in zip(x.shape[1:-1], padding, strict=True)] + [len(x), x.shape[-1]])
    return F.pad(x, (0, 0, *around), value=zero)


def windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The windows of channels-last x, a view of shape (batch, places …, taps …, channels)."""
    spans = zip(x.shape[1:-1], kernel, stride, dilation, strict=True)
    places = [(size - far * (taps - 1) - 1) // step + 1 for size, taps, step, far in spans]
    if min(places) < 1:
        raise ValueError(f"a kernel of {list(kernel)} found, larger than its padded input {list(x.shape[1:-1])}")
    first, *inner, last = x.stride()
    by_place = [size * step for size, step in zip(inner, stride, strict=True)]
    by_tap = [size * far for size, far in zip(inner, dilation, strict=True)]
    shape, strides = (len(x), *places, *kernel, x.shape[-1]), (first, *by_place, *by_tap, last)
    return x.as_strided(shape, strides, x.storage_offset())


def _rows(view: Tensor, outside: int) -> Iterator[Tensor]:
    """Windows as rows, few at a time; their first `outside` dimensions are places."""
    each = math.prod(view.shape[1:])
    if each > _LAID_OUT and outside > 1 and len(view):
        for part in view:
            yield from _rows(part, outside - 1)
    else:
        width = math.prod(view.shape[outside:])
        for part in torch.split(view, max(_LAID_OUT // max(each, 1), 1)):
            yield part.reshape(math.prod(part.shape[:outside]), width)


def _one(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _checked(shape: Sequence[int]) -> Sequence[int]:
    """Insist that a tensor of this shape can be held; a kernel of a few bytes can ask for any padding."""
    if math.prod(shape) > _MOST:
        raise ValueError(f"an operand of {math.prod(shape)} elements with its padding, at most {_MOST} allowed")
    return shape
