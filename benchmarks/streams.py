"""Coding of symbols, beside zstd -1 and dahuffman: the streams a compressed network is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import zstandard
from numpy.typing import NDArray
from timing import Time, check, compare, heading, show

from deepcomp import entropy, jit

__all__ = ["streams"]

SEED = 0
SYMBOLS = 10_000_000
FEW = 200_000  # symbols that dahuffman gets; its times are counted a symbol

Bytes = NDArray[np.uint8]


def indices(random: np.random.Generator, count: int) -> Bytes:
    """5-bit codebook indices of a pruned layer, two humps"""
    sides = np.where(random.random(count) < 0.5, 7.5, 23.5)
    return np.clip(np.rint(sides + 1.53 * random.standard_normal(count)), 0, 31).astype(np.uint8)


def gaps(random: np.random.Generator, count: int) -> Bytes:
    """gaps between survivors at density 8 %, geometric, as deepcomp stores them"""
    return np.minimum(random.geometric(0.08, count) - 1, 255).astype(np.uint8)


def relative(random: np.random.Generator, count: int) -> Bytes:
    """the same gaps in 4 bits with fillers (Han et al. 2016)"""
    fillers, rest = np.divmod(random.geometric(0.08, count) - 1, 15)
    ends = np.cumsum(fillers + 1)
    symbols = np.full(ends[-1], 15, np.uint8)
    symbols[ends - 1] = rest
    return symbols[:count]


def grid(random: np.random.Generator, count: int) -> Bytes:
    """8-bit uniform grid on Gaussian weights"""
    return np.clip(np.rint(128 + 15.49 * random.standard_normal(count)), 0, 255).astype(np.uint8)


STREAMS = {"a": indices, "b": gaps, "b4": relative, "c": grid}


def streams(options: argparse.Namespace) -> None:
    """Encode and decode each stream."""
    random = np.random.default_rng(SEED)
    for name, make in STREAMS.items():
        symbols = make(random, int(SYMBOLS * options.scale))
        bits = entropy.cost(symbols)
        each = f"{bits / len(symbols):.2f} bits each"
        heading(f"Stream {name}: {make.__doc__}; {len(symbols) / 1e6:g} M symbols of {each}")
        _measure(symbols, bits, options.repeats)


def _measure(symbols: Bytes, bits: float, repeats: int) -> None:
    from dahuffman import HuffmanCodec

    few = symbols[:FEW].tolist()
    codec = HuffmanCodec.from_frequencies(dict(enumerate(np.bincount(symbols).tolist())))
    packer, unpacker = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    ours, zstd, slow = entropy.encode(symbols), packer.compress(symbols.data), codec.encode(few)
    encode, decode = partial(entropy.encode, symbols), partial(entropy.decode, ours, len(symbols))
    for numba in (True, False):
        with jit.use(numba):
            if entropy.encode(symbols) != ours or not np.array_equal(decode(), symbols):
                raise SystemExit("decoded symbols differ")
    packing = compare(
        {
            "numba": _with(True, encode),
            "numpy": _with(False, encode),
            "zstd -1": lambda: packer.compress(symbols.data),
            "dahuffman": lambda: codec.encode(few),
        },
        repeats,
    )
    unpacking = compare(
        {
            "numba": _with(True, decode),
            "numpy": _with(False, decode),
            "zstd -1": lambda: unpacker.decompress(zstd),
            "dahuffman": lambda: codec.decode(slow),
        },
        repeats,
    )

    def speed(times: dict[str, Time], who: str) -> float:
        """Symbols a second."""
        return (len(few) if who == "dahuffman" else len(symbols)) / times[who].median

    for what, times in (("encode", packing), ("decode", unpacking)):
        for who, time in times.items():
            show(f"{what}, {who}", f"{speed(times, who) / 1e6:,.1f} M/s, {time}")
    for what, times, who, whom, bound in (
        ("encode", packing, "numba", "zstd -1", 0.5),
        ("decode", unpacking, "numba", "zstd -1", 0.8),
        ("decode", unpacking, "numba", "dahuffman", 1000),
        ("decode", unpacking, "numpy", "dahuffman", 50),
    ):
        check(f"{what} speed, {who} / {whom}", speed(times, who) / speed(times, whom), bound, at_most=False)
    check("bytes / order-0 entropy", len(ours) / (bits / 8), 1.02)
    show("bytes / order-0 entropy, zstd -1", f"{len(zstd) / (bits / 8):.4f}")


def _with(numba: bool, work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with jit.use(numba):
            return work()

    return run
