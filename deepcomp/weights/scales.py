"""The precision that scales of a grid are stored in: float32, float16, four significant bits, or powers of two."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepcomp.weights.form import expect

__all__ = ["HALF", "SHORT", "as_precise", "pack_scales", "significant", "unpack_scales"]

SHORT = 4  # significant bits: a finer choice gains little, and the file stores such scales in a byte
HALF = 11  # those of float16: scales that learn go by steps small enough
_POWERS = 1  # significant bits of powers of two, which take a byte too
_SHORT_BIAS = 30  # of the exponents of short floats: from 2^-31 to below 2


def significant(numbers: Tensor, bits: int) -> Tensor:
    """The nearest float numbers of so many significant bits."""
    mantissa, exponent = torch.frexp(numbers)
    return torch.ldexp((mantissa * (1 << bits)).round() / (1 << bits), exponent)


def as_precise(scale: Tensor, like: Tensor) -> Tensor:
    """The nearest scales that are stored as narrowly as all of `like` are; both positive, float32."""
    for bits in (_POWERS, SHORT, HALF):
        if torch.equal(significant(like, bits), like):
            return significant(scale, bits)
    return scale


def pack_scales(scale: np.ndarray) -> np.ndarray:
    """Scales in the narrowest type for all: exponents of powers of two, short floats, words of float16, float32."""
    mantissa, exponent = np.frexp(scale)
    if np.all(mantissa == 0.5) and np.all(np.abs(exponent) < 100):
        return np.asarray(exponent - 1, np.int8)
    places = (exponent + _SHORT_BIAS) * 8 + (mantissa * 16 - 8)  # whole where four bits of the mantissa are all
    if np.all(places == np.floor(places)) and np.all((places >= 0) & (places < 256) & (mantissa > 0)):
        return np.asarray(places, np.uint8)
    with np.errstate(over="ignore"):
        half = scale.astype("<f2")
    if np.array_equal(half, scale):
        return half.view("<u2")
    return np.asarray(scale, "<f4")


def unpack_scales(table: np.ndarray) -> np.ndarray:
    """The float32 scales of a table that `pack_scales` has made.

    Raises
    ------
    FormatError
        If it is of another type, or holds numbers that are not finite.
    """
    if table.dtype == np.int8:
        return np.asarray(np.ldexp(np.float32(1), table.astype(np.int32)), np.float32)
    if table.dtype == np.uint8:
        exponent = table.astype(np.int32) // 8 - _SHORT_BIAS - 4
        return np.asarray(np.ldexp(np.float32(8) + table % 8, exponent), np.float32)
    if table.dtype == np.uint16:
        table = table.view("<f2").astype("<f4")
    expect(table.dtype == np.dtype("<f4"), f"scales of type {table.dtype}, float32, uint16, uint8 or int8 expected")
    expect(bool(np.isfinite(table).all()), "a scale that is not a finite number")
    return table.astype(np.float32)
