"""Finds what is already there: the smallest form that gives a tensor back to the bit.

Zeros become a mask, few distinct values a codebook, repeated rows are stored once, and whatever is
left keeps its bits as byte planes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcomp import entropy
from deepcomp.weights.codebook import Codebook
from deepcomp.weights.dtypes import dtype_of, from_words, to_words
from deepcomp.weights.form import Form
from deepcomp.weights.mask import Mask
from deepcomp.weights.raw import Raw, plane_bits
from deepcomp.weights.rows import Rows
from deepcomp.weights.shifted import Shifted

__all__ = ["exact"]

MOST_VALUES = 1 << 16  # a codebook holds at most this many
_BLOCK = 1 << 17  # words sorted at a time while distinct values are counted
_SAMPLE = 1 << 14  # words counted to tell whether a codebook of 16-bit words can pay …
_FEW = 1 << 12  # … and of wider ones
_CODEBOOK_WORTH = 0.975  # of the raw bits: what a sample must promise before values are counted
_MASK_WORTH = 1.01  # a mask may be this much larger: it decodes faster
_GAP_PENALTY = 1.012  # measured cost of coded gaps over the Shannon bound of the positions

Words = np.ndarray[Any, Any]


def exact(tensor: Tensor) -> Form:
    """The cheapest form that loses nothing.

    Parameters
    ----------
    tensor : Tensor
        Any dtype the file knows, any shape.

    Returns
    -------
    Form
        `Raw`, `Shifted`, `Codebook`, `Mask` over raw or a codebook, or `Rows` over one of all these.
    """
    kind = dtype_of(tensor.dtype)
    if kind.words > 1 or tensor.numel() < 16:
        return Raw(tensor)
    words = to_words(tensor)
    if words[0] == words[-1] and (words == words[0]).all():
        return Raw(tensor)
    repeated = _repeated_rows(words.reshape(tensor.shape)) if tensor.ndim > 1 else None
    if repeated is not None:
        first, index = repeated
        return Rows(torch.from_numpy(index), exact(tensor[torch.from_numpy(first)]))
    filled = int(np.count_nonzero(words))
    dense, dense_bits = _dense(tensor, words, kind.is_float)
    if filled > 0.9 * words.size:
        return dense
    positions = np.flatnonzero(words)
    survivors = words[positions]
    inner, inner_bits = _dense(from_words(survivors, tensor.dtype, survivors.shape), survivors, kind.is_float)
    if _GAP_PENALTY * _position_bits(filled, words.size) + inner_bits > _MASK_WORTH * dense_bits:
        return dense
    return Mask(torch.from_numpy(positions), inner, tuple(tensor.shape))


def _dense(tensor: Tensor, words: Words, is_float: bool) -> tuple[Form, float]:
    """A codebook or raw bits, whichever is smaller, and its estimated bits."""
    raw_bits = float(plane_bits(words, is_float).sum())
    found = None if _hopeless(words, raw_bits) else _distinct(words)
    if found is None:
        return _raw(tensor), raw_bits
    values, counts = found
    bits = float(entropy.bits(counts)) + 8 * values.nbytes
    if bits >= raw_bits:
        return _raw(tensor), raw_bits
    index = _places(values, words)
    narrow = index.astype(np.uint8) if len(values) <= 256 else index
    codebook = Codebook(from_words(values, tensor.dtype, values.shape), torch.from_numpy(narrow).reshape(tensor.shape))
    return codebook, bits


def _hopeless(words: Words, raw_bits: float) -> bool:
    """Whether a sample shows that no codebook can pay."""
    if words.itemsize > 2:
        if words.size < 4 * _FEW:
            return False
        sample = words[:: words.size // _FEW]
        most = min(MOST_VALUES, words.size // 2)
        # of so few values, at least half as many pairs of a sample are equal as if all were equally frequent
        return len(sample) - _distinct_number(sample) < len(sample) ** 2 / (4 * most)
    if words.size < 4 * _SAMPLE:
        return False
    sample = words[:: words.size // _SAMPLE]
    often = np.bincount(sample)
    often = often[often > 0]
    # a sample's entropy is too small, to first order by half a nat for each value less one (Miller 1955)
    each = (float(entropy.bits(often)) + (len(often) - 1) / (2 * math.log(2))) / len(sample)
    return each * words.size + 8 * words.itemsize * len(often) > _CODEBOOK_WORTH * raw_bits


def _raw(tensor: Tensor) -> Raw:
    return Shifted(tensor) if Shifted.pays(tensor) else Raw(tensor)


def _distinct_number(words: Words) -> int:
    ordered = np.sort(words)
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _distinct(words: Words) -> tuple[Words, Words] | None:
    """The distinct words, ascending, and how often each occurs; None where a codebook cannot pay."""
    most = min(MOST_VALUES, words.size // 2)
    if words.itemsize <= 2 and words.size > 1 << 8 * words.itemsize - 2:  # else sorting is quicker than a table of all
        often = np.zeros(1 << 8 * words.itemsize, np.int64)
        for start in range(0, words.size, 8 * _BLOCK):  # what is counted is widened to eight bytes meanwhile
            often += np.bincount(words[start : start + 8 * _BLOCK], minlength=len(often))
        values = np.flatnonzero(often).astype(words.dtype)
        return (values, often[values]) if len(values) <= most else None
    values, counts = np.empty(0, words.dtype), np.empty(0, np.int64)
    for start in range(0, words.size, _BLOCK):
        ordered = np.sort(np.concatenate((values, words[start : start + _BLOCK])))
        last = np.append(ordered[1:] != ordered[:-1], True)
        if np.count_nonzero(last) > most:
            return None
        ends = np.flatnonzero(last)
        often = np.diff(ends, prepend=-1)
        often[np.searchsorted(ordered[ends], values)] += counts - 1
        values, counts = ordered[ends], often
    return values, counts


def _places(values: Words, words: Words) -> Words:
    """The place of each word among the distinct ones."""
    if words.itemsize > 2:
        return np.searchsorted(values, words).astype(np.int32)
    place = np.zeros(1 << 8 * words.itemsize, np.int32)
    place[values] = np.arange(len(values))
    return place[words]


def _position_bits(filled: int, size: int) -> float:
    """Shannon bound in bits for which `filled` of `size` places are taken."""
    share = filled / size
    return -size * float(share * np.log2(share) + (1 - share) * np.log2(1 - share))


def _repeated_rows(words: Words) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """For rows that repeat: where each distinct row first stands, and which one each row is."""
    rows = np.ascontiguousarray(words.reshape(len(words), -1))
    if len(rows) < 2 or rows.shape[1] * rows.itemsize < 16:
        return None
    starts = np.ascontiguousarray(rows[:, : 8 // rows.itemsize]).view(np.uint64)
    if _distinct_number(starts.reshape(-1)) > 0.9 * len(rows):
        return None  # most rows differ in their first eight bytes already
    whole = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)
    _, first, index = np.unique(whole, return_index=True, return_inverse=True)
    if len(first) > 0.9 * len(rows):
        return None
    # number the distinct rows by where they first stand, so that the order is the file's own
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[index]
