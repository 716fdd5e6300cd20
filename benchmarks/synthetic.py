"""Weights in place of trained ones, from a seed: what Han et al. 2016 print about theirs, and nothing else.

Two kinds, both Laplacian, of which magnitude pruning leaves two humps:

published
    The network as the paper's training leaves it, its shared values included. The scale of a row is exp(s z), z
    standard normal, and magnitude decides who survives; s is such that gaps in Han's layout take the published
    bits after Huffman coding. A survivor takes one of 2**bits - 1 values (with zero all that codes can name),
    which are spaced evenly as in the paper's linear start (§3.2); on them the exponential tails of the Laplace
    distribution are geometric, with a ratio such that values take the published bits.
independent
    All weights alike. Positions have no structure that any coder could use, and k-means has to find the
    values. The published bits play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import torch
from han_layout import huffman_lengths
from numpy.typing import NDArray
from published import Layer, Network
from torch import Tensor, nn

__all__ = ["KINDS", "rows_spread", "value_frequencies", "weights"]

KINDS = ("published", "independent")
SEED = 0

_SCALE = np.float32(0.01)  # the smallest survivor
_SPACING = np.float32(0.25)  # of shared values, in units of the smallest survivor; no byte of a file depends on it
_ROWS = 256  # that stand for all rows while their spread is looked for
_HALVINGS = 40

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def weights(module: nn.Module, network: Network, kind: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network, float32, biases Gaussian; layers are those of the published table, in its order."""
    layers = {layer.name: layer for layer in network.layers}
    for number, (name, like) in enumerate(module.named_parameters()):
        random = np.random.default_rng([SEED, number])
        if like.ndim == 1:
            found = 0.1 * random.standard_normal(like.shape, np.float32)
        elif kind == "published":
            found = _published(random, tuple(like.shape), layers[name.partition(".")[0]], network.gap_bits)
        else:
            found = _SCALE * _signs(random, like.numel()) * random.standard_exponential(like.numel(), np.float32)
        yield name, torch.from_numpy(found.reshape(like.shape))


def _signs(random: np.random.Generator, count: int) -> Floats:
    return np.float32(1) - np.float32(2) * random.integers(0, 2, count, np.int8)


def _published(random: np.random.Generator, shape: tuple[int, ...], layer: Layer, gap_bits: int) -> Floats:
    spread = rows_spread(layer.density / 100, gap_bits, layer.index_bits[1])
    sizes = random.standard_exponential((shape[0], int(np.prod(shape[1:]))), np.float32)
    sizes *= np.exp(spread * random.standard_normal((shape[0], 1), np.float32))
    sizes = sizes.reshape(-1)
    kept = round(layer.density / 100 * sizes.size)
    least = np.partition(sizes, sizes.size - kept)[sizes.size - kept]
    survivors = np.flatnonzero(sizes >= least)
    out = _signs(random, sizes.size) * sizes / (least * np.float32(1.001))
    frequencies = value_frequencies(int(layer.weight_bits[0]), layer.weight_bits[1])
    middle = len(frequencies) // 2
    code = np.searchsorted(np.cumsum(frequencies[:-1]), random.random(len(survivors)), "right") - middle
    out[survivors] = np.where(code < 0, -1, 1) * (1 + _SPACING * np.where(code < 0, -1 - code, code))
    return _SCALE * out


def rows_spread(density: float, gap_bits: int, bits: float) -> float:
    """The s at which gaps in Han's layout take `bits` after Huffman coding; 0 where equal rows take no more."""
    quantiles = (np.arange(_ROWS) + 0.5) / _ROWS
    scales = np.array([NormalDist().inv_cdf(quantile) for quantile in quantiles])

    def excess(spread: float) -> float:
        rows = np.exp(spread * scales)
        threshold = _root(lambda t: float(np.exp(-t / rows).mean()) - density, 0, 1e3)
        return _huffman_bits(_gap_frequencies(np.exp(-threshold / rows), gap_bits)) - bits

    return _root(excess, 0, 3) if excess(0) > 0 else 0.0


def _gap_frequencies(densities: Doubles, gap_bits: int) -> Doubles:
    """How often each gap occurs in Han's layout, with rows of these densities and independent positions within."""
    log_zero = np.log1p(-np.clip(densities, 1e-12, 1 - 1e-12))
    largest = 1 << gap_bits
    ends = densities / -np.expm1(largest * log_zero)  # entries, of which some are fillers
    frequencies: Doubles = (ends * densities * np.exp(np.arange(largest)[:, None] * log_zero)).sum(1)
    frequencies[-1] += (ends * np.exp(largest * log_zero)).sum()
    return frequencies


def value_frequencies(width: int, bits: float) -> Doubles:
    """The two-sided geometric distribution on 2**width - 1 ascending values that takes `bits` after Huffman coding."""
    steps = np.arange(-(1 << width - 1) + 1, 1 << width - 1)
    steps = np.where(steps < 0, -1 - steps, steps)

    def frequencies(ratio: float) -> Doubles:
        powers = ratio**steps
        return powers / powers.sum()

    return frequencies(_root(lambda ratio: bits - _huffman_bits(frequencies(ratio)), 1e-3, 1))


def _huffman_bits(frequencies: Doubles) -> float:
    counts = np.rint(frequencies / frequencies.sum() * (1 << 40)).astype(np.int64)
    return float(counts @ huffman_lengths(counts)) / float(counts.sum())


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
