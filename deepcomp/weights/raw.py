"""Raw: the exact bits of any tensor, as byte planes where that helps."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from deepcomp import entropy
from deepcomp.entropy import planes
from deepcomp.weights.dtypes import DTYPES, DType, dtype_of, from_words, to_words
from deepcomp.weights.form import Form, Packed, Zeros, count_of, expect, expect_words

__all__ = ["Raw", "expect_planes", "plane_bits"]

_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}  # what may be stored narrower
_SAMPLE = 1 << 14  # words looked at to tell what planes cost
_MANY = 1 << 12  # words that are cut in planes unseen
_LARGE = 1 << 16  # bytes that are worth memory in large pages
_PLANE_OVERHEAD = 8 * 24  # bits: a stream's head and a code table


class Raw(Form):
    """A tensor as it is, or rounded to a narrower float type for storage.

    A float's word is rotated left by one bit, so that the exponent fills the top of the word; the
    word is then cut into byte planes. The exponent plane of a trained network has an entropy of
    about three bits (Hershcovitch et al. 2024, ZipNN); mantissa planes are stored as they are.

    Parameters
    ----------
    tensor : Tensor
        Any dtype of `DTYPES`, any shape.
    stored : torch.dtype, optional
        A float type to round to in the file; the weight keeps the dtype of `tensor`.
    """

    code = 1
    name = "raw"
    work = 4
    symbols: ClassVar[tuple[str, ...]] = tuple(f"plane{i}" for i in range(8))  # one a byte of a word, the lowest first
    tables: ClassVar[tuple[str, ...]] = ("words",)  # instead of planes
    facts: ClassVar[tuple[str, ...]] = ("stored",)

    def __init__(self, tensor: Tensor, stored: torch.dtype | None = None) -> None:
        super().__init__(tuple(tensor.shape), tensor.dtype)
        self.stored = stored or tensor.dtype
        tensor = tensor.detach().to(self.stored)
        self.value: Tensor
        if tensor.is_floating_point() and tensor.element_size() > 1:
            self.value = nn.Parameter(tensor)
        else:
            self.register_buffer("value", tensor)

    def forward(self) -> Tensor:
        return self.value.to(self.dtype)

    def pack(self) -> Packed:
        kind = dtype_of(self.stored)
        words = to_words(self.value)
        facts = {"stored": kind.code} if self.stored != self.dtype else {}
        if not _planes_pay(words, kind.is_float):
            return Packed(self.code, tables={"words": words}, facts=facts)
        cut = planes.split(words, rotate=kind.is_float)
        return Packed(self.code, {f"plane{i}": plane for i, plane in enumerate(cut)}, facts=facts)

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        stored = packed.facts.get("stored", dtype_of(dtype).code)
        expect(stored in DTYPES, f"element type {stored} found, 0 to {max(DTYPES)} expected")
        kind, count = DTYPES[stored], count_of(shape, at)
        widens = {dtype, kind.torch} <= _FLOATS and kind.size < dtype.itemsize
        expect(kind.torch == dtype or widens, f"{kind.name} found where {dtype_of(dtype).name} is stored")
        words, shape = np.empty(count * kind.words, kind.word), shape if at is None else (count,)
        cls._fill(packed, kind, shape, words)
        form = cls(from_words(words, kind.torch, shape))
        form.dtype = dtype
        return form

    @classmethod
    def restore(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, zeros: Zeros) -> Tensor:
        if packed.facts:
            return super().restore(packed, shape, dtype, zeros)
        kind, count = dtype_of(dtype), math.prod(shape)
        large = count * kind.size >= _LARGE
        words = to_words(zeros(shape, dtype=dtype)) if large else np.empty(count * kind.words, kind.word)
        cls._fill(packed, kind, shape, words)
        return from_words(words, dtype, shape)

    @classmethod
    def _fill(cls, packed: Packed, kind: DType, shape: tuple[int, ...], words: np.ndarray) -> None:
        """Put what was packed into the `words` of a tensor of this shape."""
        if packed.tables:
            (found,) = packed.tables.values()
            expect(not packed.symbols, "words and byte planes of them")
            expect_words(found, kind)
            expect(len(found) == len(words), f"{len(found)} words found, {len(words)} expected")
            words[:] = found
        else:
            cut = list(packed.symbols.values())
            expect_planes(cut, kind, len(words))
            planes.join(cut, kind.word, kind.is_float, words)
            if kind.torch == torch.bool:
                expect_words(words, kind)


def expect_planes(cut: list[np.ndarray], kind: DType, count: int) -> None:
    """Insist on the byte planes of `count` words."""
    expect(len(cut) == kind.word_bytes, f"{len(cut)} byte planes found, {kind.word_bytes} expected")
    expect(len({len(plane) for plane in cut}) == 1, "byte planes of different lengths")
    expect(len(cut[0]) == count, f"{len(cut[0])} words found, {count} expected")
    expect(all(plane.dtype == np.uint8 for plane in cut), "a byte plane with values beyond 255")


def plane_bits(words: np.ndarray, is_float: bool) -> np.ndarray:
    """What each byte plane of some words costs, its order-0 entropy in bits, judged by a sample."""
    sample = words if words.size < 2 * _SAMPLE else words[:: words.size // _SAMPLE].copy()
    found: np.ndarray = entropy.bits(planes.count(sample, rotate=is_float)) * (words.size / max(sample.size, 1))
    return found


def _planes_pay(words: np.ndarray, is_float: bool) -> bool:
    """Whether coding byte planes beats the words as they are; of many words they cost next to nothing more."""
    if words.size > _MANY:
        return True
    if 8 * words.size <= _PLANE_OVERHEAD:
        return False
    saved = 8 * words.size - plane_bits(words, is_float) - _PLANE_OVERHEAD
    return float(np.maximum(saved, 0).sum()) > 8 * 2 * words.itemsize
