"""Shared values: a codebook and, for every weight, the index of its value."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from deepcomp.weights import clustering
from deepcomp.weights.dtypes import dtype_of, from_words, to_words
from deepcomp.weights.form import Form, Packed, Zeros, count_of, expect, expect_words

__all__ = ["Codebook"]

_BLOCK = 1 << 16  # indices widened at a time, in the cache


class Codebook(Form):
    """Weights that share a few values (Han et al. 2016, §3).

    The gradient of a value is the sum over its members, as in the paper, because that is what
    autograd gives for `values[index]`; assignments stay frozen.

    Parameters
    ----------
    values : Tensor, shape (k,)
        The shared values, any dtype; trainable where that is a float type.
    index : uint8, int16, int32 or int64 tensor, shape of the weight
        Which value each weight takes.
    """

    code = 2
    name = "codebook"
    work = 8
    symbols = ("index",)
    tables = ("values",)

    def __init__(self, values: Tensor, index: Tensor) -> None:
        super().__init__(tuple(index.shape), values.dtype)
        self.values: Tensor
        self.index: Tensor
        if values.is_floating_point() and values.element_size() > 1:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)
        self.register_buffer("index", index)

    @classmethod
    def cluster(cls, weight: Tensor, k: int, start: str = "optimal", seed: int = 0) -> Self:
        """Share at most `k` values, found by k-means on the weights (see `clustering.centroids`); of none, none."""
        flat = weight.detach().reshape(-1).float().numpy()
        values = torch.from_numpy(clustering.centroids(flat, k, start, seed)).to(weight.dtype)
        index = clustering.assign(flat, values.float().numpy()) if flat.size else np.empty(0, np.uint8)
        return cls(values, torch.from_numpy(_index_type(index)).reshape(weight.shape))

    def forward(self) -> Tensor:
        return self.values[self.index.long()]

    def pack(self) -> Packed:
        # Most frequent value first: code lengths then never fall along the alphabet, and large
        # alphabets fall into buckets of nearly equal probability.
        return self._pack(np.argsort(-self._members(), kind="stable"))

    def aligned(self) -> Packed | None:
        return self._pack(np.argsort(self.values.detach().double().numpy(), kind="stable"))

    def among(self, positions: Tensor, shape: tuple[int, ...]) -> Self:
        words = np.append(to_words(self.values), dtype_of(self.dtype).word.type(0))
        index = torch.full((math.prod(shape),), len(self.values), dtype=torch.int32)
        index[positions] = self.index.int()
        return type(self)(from_words(words, self.dtype, words.shape), index.reshape(shape))

    def _members(self) -> np.ndarray:
        """How many weights share each value."""
        return np.bincount(self.index.reshape(-1).numpy(), minlength=len(self.values))

    def _pack(self, order: np.ndarray) -> Packed:
        """The values in an order, without those that nobody uses."""
        index, members = self.index.reshape(-1).numpy(), self._members()
        order = order[members[order] > 0]
        rank = np.zeros(
            len(members), np.uint32 if len(order) > 1 << 16 else np.uint16 if len(order) > 256 else np.uint8
        )
        rank[order] = np.arange(len(order))
        return Packed(self.code, {"index": rank[index]}, {"values": to_words(self.values)[order]})

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        index, words = packed.symbols["index"], packed.tables["values"]
        kind, count = dtype_of(dtype), count_of(shape, at)
        expect(kind.words == 1, f"a codebook of {kind.name}")
        expect_words(words, kind)
        expect(len(index) == count, f"{len(index)} indices found, {count} expected")
        if count:
            largest = int(index.max())
            expect(largest < len(words), f"index {largest} found in a codebook of {len(words)}")
        values = from_words(words.copy(), dtype, (len(words),))
        return cls(values, torch.from_numpy(_index_type(index)).reshape(shape if at is None else (count,)))

    @torch.no_grad()
    def dense(self, zeros: Zeros = torch.zeros) -> Tensor:
        out: Tensor = zeros(self.shape, dtype=self.dtype)
        # numpy looks up words of any type, where torch lacks kernels for some
        values, words, index = to_words(self.values), to_words(out), self.index.reshape(-1).numpy()
        for begin in range(0, len(index), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            np.take(values, index[part], out=words[part], mode="clip")
        return out


def _index_type(index: np.ndarray) -> np.ndarray:
    """Indices in the narrowest type torch can hold, in memory that may be written."""
    return np.require(index, requirements="W") if index.dtype == np.uint8 else index.astype(np.int32)
