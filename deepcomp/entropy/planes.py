"""Byte planes of wide words: byte k of every word, side by side, for each k.

The bytes of floating-point numbers differ in kind: exponents repeat themselves, low mantissa bits are
noise. Rotated to the left by one, which moves the sign to the lowest bit, the exponent of an IEEE
float32 or a bfloat16 fills the highest plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deepcomp import jit

__all__ = ["count", "join", "split", "top"]

_SECONDS = 0.7e-9  # numpy, a byte
_BLOCK = 1 << 16  # words worked on at a time, in the cache


def split(words: NDArray[np.unsignedinteger], rotate: bool) -> list[NDArray[np.uint8]]:
    """Split uint8, uint16, uint32 or uint64 words, shape (n,), into byte planes, the lowest first.

    Parameters
    ----------
    rotate : bool
        Whether words are first rotated to the left by one bit.
    """
    size = words.itemsize
    planes = np.empty((size, len(words)), np.uint8)
    if jit.pays(words.nbytes * _SECONDS):
        from deepcomp.entropy import kernels

        kernels.split_planes(kernels.frozen(words), int(rotate), planes)
        return list(planes)
    one, top = words.dtype.type(1), words.dtype.type(8 * size - 1)
    for begin in range(0, len(words), _BLOCK):
        block = words[begin : begin + _BLOCK]
        turned = block << one | block >> top if rotate else block
        for k, plane in enumerate(planes):
            plane[begin : begin + _BLOCK] = turned >> words.dtype.type(8 * k)  # its low byte
    return list(planes)


def count(words: NDArray[np.unsignedinteger], rotate: bool) -> NDArray[np.int64]:
    """How often each byte occurs in each plane, shape (bytes of a word, 256), without splitting the words."""
    if jit.pays(words.nbytes * _SECONDS):
        from deepcomp.entropy import kernels

        counts = np.zeros((words.itemsize, 256), np.int64)
        kernels.count_planes(kernels.frozen(words), int(rotate), counts)
        return counts
    return np.stack([np.bincount(plane, minlength=256) for plane in split(words, rotate)])


def top(words: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """The highest plane of rotated words by itself."""
    return (words >> words.dtype.type(8 * words.itemsize - 9)).astype(np.uint8)


def join(
    planes: Sequence[NDArray[np.uint8]], dtype: DTypeLike, rotate: bool, out: NDArray[np.unsignedinteger] | None = None
) -> NDArray[np.unsignedinteger]:
    """Join byte planes, the lowest first, to words of `dtype`: `split` backwards.

    Parameters
    ----------
    planes : as many uint8 arrays, shape (n,), as a word has bytes
    dtype : uint8, uint16, uint32 or uint64
    out : array of `dtype`, shape (n,), optional
        Where to put the words.
    """
    words = np.empty(len(planes[0]), dtype) if out is None else out
    size = words.itemsize
    if jit.pays(words.nbytes * _SECONDS):
        from deepcomp.entropy import kernels

        kernels.join_planes(tuple(kernels.frozen(plane) for plane in planes), int(rotate), words)
        return words
    one, top = words.dtype.type(1), words.dtype.type(8 * size - 1)
    for begin in range(0, len(words), _BLOCK):
        block = planes[0][begin : begin + _BLOCK].astype(words.dtype)
        for k in range(1, size):
            block |= planes[k][begin : begin + _BLOCK].astype(words.dtype) << words.dtype.type(8 * k)
        words[begin : begin + _BLOCK] = block >> one | block << top if rotate else block
    return words
