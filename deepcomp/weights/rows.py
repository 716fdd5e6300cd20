"""Repeated rows: each distinct row once, and which of them stands where."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from deepcomp.weights.codebook import Codebook
from deepcomp.weights.dtypes import to_words
from deepcomp.weights.form import Form, Packed, Zeros, expect

__all__ = ["Rows"]


class Rows(Form):
    """A weight whose slices along the first dimension repeat.

    Parameters
    ----------
    index : int64 tensor, shape (rows,)
        Which distinct row stands at each place.
    inner : Form
        The distinct rows, shape (distinct, ...).
    """

    code = 4
    name = "rows"
    layer = 0
    work = 12
    symbols = ("row",)
    facts = ("distinct",)

    def __init__(self, index: Tensor, inner: Form) -> None:
        super().__init__((len(index), *inner.shape[1:]), inner.dtype)
        self.index: Tensor
        self.register_buffer("index", index)
        self.inner = inner

    def forward(self) -> Tensor:
        rows: Tensor = self.inner()
        return rows[self.index]

    @torch.no_grad()
    def dense(self, zeros: Zeros = torch.zeros) -> Tensor:
        out: Tensor = zeros(self.shape, dtype=self.dtype)
        if out.numel():
            distinct = to_words(self.inner.dense()).reshape(self.inner.shape[0], -1)
            words = to_words(out).reshape(len(self.index), -1)
            np.take(distinct, self.index.numpy(), axis=0, out=words, mode="clip")
        return out

    def pack(self) -> Packed:
        rows = self.index.numpy().astype(np.uint32)
        return Packed(self.code, {"row": rows}, facts={"distinct": self.inner.shape[0]}, inner=self.inner.pack())

    def aligned(self) -> Packed | None:
        packed = self.inner.aligned()
        if packed is None or packed.code != Codebook.code:  # others hold what belongs to the distinct rows
            return None
        distinct = packed.symbols["index"].reshape(self.inner.shape[0], -1)
        return replace(packed, symbols={"index": distinct[self.index.numpy()].reshape(-1)})

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        from deepcomp.weights import form_class

        rows, inner = packed.symbols["row"], packed.inner
        expect(at is None and inner is not None and len(shape) > 0, "repeated rows of nothing, or under a mask")
        assert inner is not None
        distinct = packed.facts["distinct"]
        expect(len(rows) == shape[0], f"{len(rows)} rows found, {shape[0]} expected")
        expect(0 <= distinct <= len(rows), f"{distinct} distinct rows found, at most {len(rows)} expected")
        if len(rows):
            expect(int(rows.max()) < distinct, f"row {int(rows.max())} found, fewer than {distinct} expected")
        expect(inner.code != cls.code, "repeated rows of repeated rows")
        return cls(
            torch.from_numpy(rows.astype(np.int64)), form_class(inner.code).unpack(inner, (distinct, *shape[1:]), dtype)
        )
