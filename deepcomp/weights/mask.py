"""Sparse positions over any values: the survivors of pruning."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from deepcomp import jit
from deepcomp.weights.codebook import Codebook
from deepcomp.weights.dtypes import dtype_of, to_words
from deepcomp.weights.form import Form, Packed, Zeros, count_of, expect

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["Mask"]

_SCATTER_SECONDS = 8e-9  # a survivor, with numpy


class Mask(Form):
    """A weight that is zero but at given positions, where an inner form holds the values.

    Positions are stored as gaps: the number of zeros since the previous entry in row-major order,
    without the filler entries of Han et al. 2016 (§3.3). Zeros behind the last entry cost nothing.

    Parameters
    ----------
    positions : int64 tensor, shape (n,)
        Flat row-major positions of the survivors, ascending. A buffer: training never moves it.
    inner : Form
        The survivors' values, in the order of the positions.
    shape : tuple of int
        Shape of the dense weight, any rank.
    """

    code = 3
    name = "mask"
    layer = 1
    work = 12
    symbols = ("gaps",)

    def __init__(self, positions: Tensor, inner: Form, shape: tuple[int, ...]) -> None:
        super().__init__(shape, inner.dtype)
        self.positions: Tensor
        self.register_buffer("positions", positions)
        self.inner = inner

    @classmethod
    def nonzero(cls, weight: Tensor, keep: Tensor | None = None) -> Self:
        """A mask over the raw values of `weight` where `keep` (default: where it is not zero)."""
        from deepcomp.weights.raw import Raw

        flat = weight.detach().reshape(-1)
        positions = torch.nonzero(flat if keep is None else keep.reshape(-1)).reshape(-1)
        return cls(positions, Raw(flat[positions]), tuple(weight.shape))

    @property
    def unmasked(self) -> Form:
        return self.inner

    def forward(self) -> Tensor:
        flat = torch.zeros(int(np.prod(self.shape)), dtype=self.dtype, device=self.positions.device)
        return flat.index_put((self.positions,), self.inner().reshape(-1)).reshape(self.shape)

    @torch.no_grad()
    def dense(self, zeros: Zeros = torch.zeros) -> Tensor:
        out: Tensor = zeros(self.shape, dtype=self.dtype)
        # words are scattered by numpy: it takes half the time of torch's index_put_
        to_words(out)[self.positions.numpy()] = to_words(self.inner.dense())
        return out

    @classmethod
    def restore(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, zeros: Zeros) -> Tensor:
        gaps, inner = packed.symbols["gaps"], packed.inner
        if inner is not None and inner.code == Codebook.code and jit.pays(_SCATTER_SECONDS * len(gaps)):
            from deepcomp.weights import kernels

            index, values = inner.symbols["index"], inner.tables["values"]
            if len(index) == len(gaps) and values.dtype == dtype_of(dtype).word and dtype != torch.bool:
                out: Tensor = zeros(shape, dtype=dtype)
                if kernels.scatter(gaps, index, values, to_words(out)):
                    return out
        return super().restore(packed, shape, dtype, zeros)  # which says what is wrong, if anything is

    def pack(self) -> Packed:
        gaps = np.diff(self.positions.numpy(), prepend=-1) - 1
        widest = int(gaps.max()) if gaps.size else 0
        narrow = np.uint8 if widest < 1 << 8 else np.uint32
        expect(widest < 1 << 32, f"{widest} zeros in a row found, fewer than 2^32 expected")
        return Packed(self.code, {"gaps": gaps.astype(narrow)}, inner=self.inner.pack())

    def aligned(self) -> Packed | None:
        dense = self.inner.among(self.positions, self.shape)
        return None if dense is None else dense.aligned()

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        from deepcomp.weights import form_class

        expect(at is None and packed.inner is not None, "a mask under a mask, or over nothing")
        assert packed.inner is not None
        gaps, size = packed.symbols["gaps"], count_of(shape, None)
        if len(gaps) >= 1 << 31:  # the sum of fewer cannot overflow
            expect(gaps.sum(dtype=np.float64) < size, f"positions beyond a tensor of {size}")
        positions = np.add(gaps, 1, dtype=np.int64)
        np.cumsum(positions, out=positions)
        positions -= 1
        if len(positions):
            expect(positions[-1] < size, f"position {positions[-1]} found in a tensor of {size}")
        where = torch.from_numpy(positions)
        return cls(where, form_class(packed.inner.code).unpack(packed.inner, shape, dtype, where), shape)

    def scipy_csr(self) -> scipy.sparse.csr_matrix:
        """The weight as a `scipy.sparse.csr_matrix`; dimensions beyond the first are flattened into columns."""
        import scipy.sparse

        rows, columns, values = self._coordinates()
        shape = (self.shape[0], int(np.prod(self.shape[1:])))
        return scipy.sparse.csr_matrix((values.numpy(), (rows.numpy(), columns.numpy())), shape=shape)

    def torch_csr(self) -> Tensor:
        """The weight as a `torch.sparse_csr` tensor of two dimensions, for sparse matrix products."""
        rows, columns, values = self._coordinates()
        starts = torch.searchsorted(rows, torch.arange(self.shape[0] + 1))
        shape = (self.shape[0], int(np.prod(self.shape[1:])))
        with warnings.catch_warnings():  # of torch: that the layout is new, and that it could check more
            warnings.simplefilter("ignore")
            return torch.sparse_csr_tensor(starts, columns, values, shape)

    def _coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        columns = int(np.prod(self.shape[1:]))
        return self.positions // columns, self.positions % columns, self.inner().detach().reshape(-1)
