"""The context coder alone: bytes for the same symbols beside entropy and other coders, and how fast it is.

`python benchmarks/coder.py [FILE ...]`: of `.dcz` files the quantised weights are taken, `.npz` files hold integers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import lzma
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from peers import load_nncodec
from timing import check, finish, heading, machine, show, table

import deepcomp
from deepcomp import entropy, jit
from deepcomp.entropy.context import Before

Integers = NDArray[np.int64]

FOLDER = Path(__file__).parents[1] / "checkpoints"
MILLION = 1_000_000
SPEED = 10 * MILLION  # weights whose coding is timed
LEAST = 3.0  # million symbols a second
MOST = 1.005  # times the entropy of independent symbols


def integers(path: Path) -> dict[str, Integers]:
    """The quantised weights of a file, as integers in the order of their values; 0 is the commonest."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].astype(np.int64) for name in arrays if arrays[name].any()}
    found = {}
    with deepcomp.open(path) as file:
        for name, entry in file.entries.items():
            if entry.source is not None:
                continue
            form = file.get_form(name)
            packed = form.aligned()
            if packed is not None:
                symbols = next(iter(packed.symbols.values())).astype(np.int64)
                found[name] = (symbols - np.bincount(symbols).argmax()).reshape(form.shape)
    return found


def unsigned(values: Integers) -> Any:
    symbols = (values - values.min()).reshape(-1)
    return symbols.astype(np.min_scalar_type(int(symbols.max())))


def context(weights: dict[str, Integers], across: bool) -> int:
    """Bytes of the context coder; `across`: with the rows of each layer told to the next."""
    total, before = 0, None
    for number, values in enumerate(weights.values()):
        symbols = unsigned(values)
        known = before and Before(number - before[0], before[1])
        stream = entropy.encode(symbols, "context", values.shape, known if across else None)
        total += len(stream)
        rows = entropy.live_rows(stream, len(symbols), 0, values.shape)
        before = before if rows is None or values.ndim < 2 else (number, rows)
    return total


def fast(values: Integers) -> int:
    """Bytes of what is the default: Huffman or rANS, of all symbols or of gaps and of what is not zero."""
    places = np.flatnonzero(values)
    gaps = (np.diff(places, prepend=-1) - 1).astype(np.uint32)
    dense = len(entropy.encode(unsigned(values)))
    if not len(places):
        return dense
    return min(dense, len(entropy.encode(gaps)) + len(entropy.encode(unsigned(values.reshape(-1)[places]))))


def bytes_of(values: Integers) -> bytes:
    """One byte a symbol where that will do."""
    return unsigned(values).tobytes()


def nncodec(coder: Any, weights: dict[str, Integers]) -> str:
    """Bytes of NNCodec's stream of these integers, which it must give back."""
    arrays = {name: values.astype(np.int32) for name, values in weights.items()}
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        stream = coder.compress(
            dict(arrays), bitstream_path=None, return_bitstream=True, use_dq=False, row_skipping=True
        )
        found = coder.decompress(stream)
    same = all(np.array_equal(found[name], values) for name, values in arrays.items())
    return f"{len(stream):,}" if same else "not exact"


def sizes(paths: list[Path]) -> None:
    heading(
        "Sizes: bytes for all quantised weights of a file, each tensor alone, without its table of values or scales"
    )
    coder = load_nncodec()
    rows = []
    for path in paths:
        weights = integers(path)
        if not weights:
            continue
        ideal = sum(entropy.cost(unsigned(values)) for values in weights.values()) / 8
        ours = context(weights, across=True)
        others = [
            context(weights, across=False),
            sum(map(fast, weights.values())),
            sum(len(lzma.compress(bytes_of(v), preset=9 | lzma.PRESET_EXTREME)) for v in weights.values()),
            sum(len(zstandard.compress(bytes_of(v), 19)) for v in weights.values()),
        ]
        rows.append(
            [path.name, f"{ideal:,.0f}", f"{ours:,} ({100 * (ours / ideal - 1):+.1f} %)"]
            + [f"{size:,}" for size in others]
            + [nncodec(coder, weights) if coder else "-"]
        )
    heads = ["file", "order-0 entropy", "context", "without layer before", "Huffman, rANS", "xz -9e", "zstd -19"]
    table([*heads, f"NNCodec {importlib.metadata.version('nncodec')}" if coder else "NNCodec"], rows)


INDEPENDENT = {
    "2 % not zero": lambda random, n: (random.random(n) < 0.02) * random.choice([-1, 1], n),
    "20 % not zero": lambda random, n: (random.random(n) < 0.2) * random.geometric(0.5, n),
    "Gaussian, 3.3 bits": lambda random, n: np.rint(2.3 * random.standard_normal(n)),
    "Gaussian, 7.4 bits": lambda random, n: np.rint(40 * random.standard_normal(n)),
    "uniform, 5 bits": lambda random, n: random.integers(0, 32, n),
}


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one core, and the result."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def speeds() -> None:
    heading(
        f"Independent symbols: 10 M in a matrix of 2,000 × 5,000; seconds of one core ({SPEED // MILLION} M symbols)"
    )
    shape, jitted = (2000, 5000), jit.available()
    with jit.use(jitted):
        entropy.encode(np.arange(9, dtype=np.uint8), "context", (3, 3))  # kernels are compiled
        for name, make in INDEPENDENT.items():
            symbols = unsigned(make(np.random.default_rng(0), SPEED).astype(np.int64))
            packing, stream = cpu(lambda symbols=symbols: entropy.encode(symbols, "context", shape))
            unpacking, found = cpu(lambda stream=stream: entropy.decode(stream, SPEED, 0, shape))
            if not np.array_equal(found, symbols):
                raise SystemExit("decoded symbols differ")
            check(f"{name}: bytes / order-0 entropy", 8 * len(stream) / entropy.cost(symbols), MOST)
            show(f"{name}: encode", f"{SPEED / packing / MILLION:.1f} M/s")
            check(f"{name}: decode", SPEED / unpacking / MILLION, LEAST, at_most=False, unit=" M/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    machine()
    sizes(options.files or sorted(FOLDER.glob("*.dcz")))
    speeds()
    return finish()


if __name__ == "__main__":
    raise SystemExit(main())
