"""Exact bits whose rows differ in scale: byte planes, the exponents of each row shifted to a common level."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from deepcomp import entropy, jit
from deepcomp.entropy import planes
from deepcomp.weights.dtypes import DType, dtype_of, to_words
from deepcomp.weights.form import Packed, expect
from deepcomp.weights.raw import Raw, expect_planes

__all__ = ["Shifted"]

# By how much a word's top byte changes when the exponent, rotated to the top of the word, changes by one.
_STEP = {torch.float32: 1, torch.bfloat16: 1, torch.float16: 8}
_SAMPLE = 1 << 15  # weights looked at
_SUM_SECONDS = 0.2e-9  # numpy, a byte
_SHORTEST = 32  # weights in a row: a shift costs some bits


class Shifted(Raw):
    """A tensor as it is, its rows brought to one scale by whole powers of two.

    One table for all exponents is too wide for each row where rows differ in scale. Here the mean
    exponent of each row, less the smallest, is taken off the row's exponents (modulo 256, so
    that nothing is lost) and stored once a row. Rows are the slices along the first dimension.

    Parameters
    ----------
    tensor : Tensor, shape (rows, …)
        float32, float16 or bfloat16.
    """

    code = 6
    name = "shifted"
    work = 4
    symbols = ("shift", *Raw.symbols)
    tables = ()
    facts = ()

    @classmethod
    def pays(cls, tensor: Tensor) -> bool:
        """Whether shifting saves anything over the planes as they are."""
        if tensor.dtype not in _STEP or tensor.ndim < 2 or tensor.numel() < max(1024, _SHORTEST * tensor.shape[0]):
            return False
        some = tensor[:: max(1, tensor.numel() // _SAMPLE)]  # every so many rows
        top = planes.top(to_words(some)).reshape(len(some), -1)
        shift = _shift(top, _STEP[tensor.dtype])
        if not shift.any():
            return False
        saved = entropy.cost(top.reshape(-1)) - entropy.cost((top - shift[:, None]).reshape(-1))
        return saved > entropy.cost(shift) + 8 * 32 * len(some) / len(tensor)

    def pack(self) -> Packed:
        cut = planes.split(to_words(self.value), rotate=True)
        top = cut[-1].reshape(self.shape[0], -1)
        shift = _shift(top, _STEP[self.dtype])
        top -= shift[:, None]
        return Packed(self.code, {"shift": shift, **{f"plane{i}": plane for i, plane in enumerate(cut)}})

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        expect(at is None, f"shifted rows of {dtype_of(dtype).name} under a mask")
        return super().unpack(packed, shape, dtype)

    @classmethod
    def _fill(cls, packed: Packed, kind: DType, shape: tuple[int, ...], words: np.ndarray[Any, Any]) -> None:
        expect(kind.torch in _STEP and len(shape) > 0, f"shifted rows of {kind.name} {shape}")
        expect(len(packed.symbols) > 0, "rows without shifts")
        shift, *cut = packed.symbols.values()
        expect_planes(cut, kind, len(words))
        expect(len(shift) == shape[0], f"{len(shift)} shifts found, {shape[0]} expected")
        expect(shift.dtype == np.uint8, "a byte with a value beyond 255")
        cut[-1] = (cut[-1].reshape(len(shift), -1) + shift[:, None]).reshape(-1)
        planes.join(cut, kind.word, True, words)


def _shift(top: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """How far each row's mean exponent lies above the lowest row's, as a change of the top byte."""
    if jit.pays(top.size * _SUM_SECONDS):
        from deepcomp.weights import kernels

        sums = np.empty(len(top), np.int64)
        kernels.row_sums(top, sums)
    else:
        sums = top.sum(1, dtype=np.int64)
    level = np.rint(sums / (step * top.shape[1])).astype(np.int64)
    return np.asarray((level - level.min()) * step, np.uint8)
