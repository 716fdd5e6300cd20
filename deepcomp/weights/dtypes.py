"""Element types: their numbers in the file, and tensors seen as words of bits.

numpy has no bfloat16 and no fp8, and a float that passes through arithmetic may lose a NaN's
payload; lossless work therefore sees every tensor as unsigned words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DTYPES", "DType", "dtype_of", "from_words", "to_words"]


@dataclass(frozen=True)
class DType:
    """One element type.

    code : its number in the file; never reused.
    word_bytes, words : an element is `words` unsigned words of `word_bytes` bytes.
    is_float : whether a word is a sign, an exponent and a mantissa.
    """

    code: int
    torch: torch.dtype
    word_bytes: int
    is_float: bool = False
    words: int = 1

    @property
    def name(self) -> str:
        return str(self.torch).removeprefix("torch.")

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return self.word_bytes * self.words

    @cached_property
    def word(self) -> np.dtype[Any]:
        """The unsigned numpy type of a word, little-endian."""
        return np.dtype(f"<u{self.word_bytes}")

    @cached_property
    def signed(self) -> np.dtype[Any]:
        """The numpy type as wide as a word that torch has too."""
        return np.dtype(f"<i{self.word_bytes}" if self.word_bytes > 1 else "u1")


DTYPES: dict[int, DType] = {
    entry.code: entry
    for entry in (
        DType(0, torch.float32, 4, True),
        DType(1, torch.float16, 2, True),
        DType(2, torch.bfloat16, 2, True),
        DType(3, torch.float64, 8, True),
        DType(4, torch.int8, 1),
        DType(5, torch.int16, 2),
        DType(6, torch.int32, 4),
        DType(7, torch.int64, 8),
        DType(8, torch.uint8, 1),
        DType(9, torch.uint16, 2),
        DType(10, torch.uint32, 4),
        DType(11, torch.uint64, 8),
        DType(12, torch.bool, 1),
        DType(13, torch.float8_e4m3fn, 1),
        DType(14, torch.float8_e5m2, 1),
        DType(15, torch.float8_e4m3fnuz, 1),
        DType(16, torch.float8_e5m2fnuz, 1),
        DType(17, torch.float8_e8m0fnu, 1),
        DType(18, torch.complex64, 4, True, 2),
        DType(19, torch.complex128, 8, True, 2),
    )
}
_BY_TORCH = {entry.torch: entry for entry in DTYPES.values()}
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # types torch and numpy share


def dtype_of(kind: torch.dtype) -> DType:
    """The entry of a torch dtype; `KeyError` where the file format has none."""
    return _BY_TORCH[kind]


def to_words(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The bits of a tensor, row-major, as a flat array of unsigned words; a view where it can be."""
    kind = dtype_of(tensor.dtype)
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.numel() == 0:
        return np.empty(0, kind.word)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.view(_SIGNED[kind.word_bytes]).numpy().view(kind.word)


def from_words(words: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """`to_words` backwards; shares the memory of `words`."""
    kind = dtype_of(dtype)
    if words.size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(words.view(kind.signed)).view(dtype).reshape(shape)
