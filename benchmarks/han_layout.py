"""The layout of Han et al. 2016 (§2, Figure 2; §4), to compare with: fixed-width gaps, fillers, two Huffman codes.

A pruned weight is flattened in row-major order. An entry says how many zeros lie before it since the entry
before, in `gap_bits` bits, and which shared value it takes. Where more than 2**gap_bits - 1 zeros lie
between, a filler stands: the largest gap, and value 0, at a position of its own. Code 0 is therefore zero in
every codebook, and k shared values need an alphabet of k + 1.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coded", "Layout", "decode", "encode", "huffman_lengths"]

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """A weight in this layout.

    Attributes
    ----------
    codebook : float32 array, shape (k + 1,)
        Zero, then the shared values, ascending.
    codes : uint32 array, shape (entries,)
        Which value each entry takes; 0 in fillers alone.
    gaps : uint32 array, shape (entries,)
        Zeros before each entry, 0 to 2**gap_bits - 1.
    gap_bits : int
    shape : tuple of int
        Of the dense weight.
    """

    codebook: Floats
    codes: NDArray[np.uint32]
    gaps: NDArray[np.uint32]
    gap_bits: int
    shape: tuple[int, ...]

    @property
    def fillers(self) -> int:
        return int(np.count_nonzero(self.codes == 0))

    def fixed(self) -> int:
        """Bytes with fields of fixed width, and the codebook."""
        width = max(1, (len(self.codebook) - 1).bit_length()) + self.gap_bits
        return -(-len(self.codes) * width // 8) + self.codebook.nbytes

    def huffman(self) -> Coded:
        """What a Huffman code for the codes and one for the gaps make of it."""
        codes = np.bincount(self.codes, minlength=len(self.codebook))
        gaps = np.bincount(self.gaps, minlength=1 << self.gap_bits)
        return Coded(len(self.codes), _bits(codes), _bits(gaps), self.codebook.nbytes + len(codes) + len(gaps))


@dataclass(frozen=True)
class Coded:
    """Sizes with Huffman codes: bits in all of codes and gaps, bytes of codebook and code lengths."""

    entries: int
    codes: int
    gaps: int
    tables: int

    @property
    def bytes(self) -> int:
        """Bytes in all; code lengths take one byte a symbol."""
        return -(-(self.codes + self.gaps) // 8) + self.tables


def encode(weight: Floats, gap_bits: int) -> Layout:
    """Lay out a pruned weight of few distinct values.

    Parameters
    ----------
    weight : float32 array, any shape
    gap_bits : int
        1 to 31.
    """
    flat = weight.reshape(-1)
    positions = np.flatnonzero(flat)
    fillers, rest = np.divmod(np.diff(positions, prepend=-1) - 1, 1 << gap_bits)
    last = np.cumsum(fillers + 1) - 1  # the entry that holds each value, behind its fillers
    entries = int(last[-1]) + 1 if len(last) else 0
    values, index = np.unique(flat[positions], return_inverse=True)
    gaps = np.full(entries, (1 << gap_bits) - 1, np.uint32)
    codes = np.zeros(entries, np.uint32)
    gaps[last], codes[last] = rest, index + 1
    codebook = np.concatenate((np.zeros(1, np.float32), values))
    return Layout(codebook, codes, gaps, gap_bits, weight.shape)


def decode(layout: Layout) -> Floats:
    """The dense weight: `encode` backwards."""
    out = np.zeros(layout.shape, np.float32)
    positions = np.cumsum(layout.gaps.astype(np.int64) + 1) - 1
    out.reshape(-1)[positions] = layout.codebook[layout.codes]
    return out


def _bits(counts: Counts) -> int:
    return int(counts @ huffman_lengths(counts))


def huffman_lengths(counts: Counts) -> Counts:
    """Code lengths of a Huffman code (Huffman 1952), 0 where a symbol does not occur; a lone symbol takes one bit."""
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(counts[symbol]), int(symbol), [int(symbol)]) for symbol in np.flatnonzero(counts)]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        few, first, members = heapq.heappop(heap)
        more, _, others = heapq.heappop(heap)
        members = members + others
        lengths[members] += 1
        heapq.heappush(heap, (few + more, first, members))
    return lengths
