"""Time deepcomp beside its peers: `python benchmarks/speed.py [SECTION ...] [--full]`.

Every figure with a bound is printed beside it. All data are made here, from one seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zstandard
from peers import Zipnn
from safetensors.torch import load_file
from timing import Time, check, compare, data_folder, finish, heading, machine, show
from torch import Tensor

import deepcomp
from deepcomp import entropy, jit
from deepcomp.weights import clustering

SEED = 0
LAYERS, SIDE = 25, 1000  # 25 layers of a million weights
SYMBOLS = 10_000_000
FEW = 200_000  # symbols that dahuffman gets

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def million(count: float, time: Time) -> str:
    return f"{count / time.median / 1e6:,.1f} M/s, {time}"


# --- symbols ------------------------------------------------------------------------------------


def indices(random: np.random.Generator, count: int) -> Bytes:
    """Codebook indices of a pruned layer: two humps of 16 values each, 3.68 bits."""
    sides = np.where(random.random(count) < 0.5, 7.5, 23.5)
    return np.clip(np.rint(sides + 1.53 * random.standard_normal(count)), 0, 31).astype(np.uint8)


def gaps(random: np.random.Generator, count: int) -> Bytes:
    """Zeros between the survivors of pruning to 8 %, 5.03 bits."""
    return np.minimum(random.geometric(0.08, count) - 1, 255).astype(np.uint8)


def gaps4(random: np.random.Generator, count: int) -> Bytes:
    """The same with the four bits and fillers of Han et al. 2016, 3.59 bits."""
    fillers, rest = np.divmod(random.geometric(0.08, count) - 1, 15)
    ends = np.cumsum(fillers + 1)
    symbols = np.full(ends[-1], 15, np.uint8)
    symbols[ends - 1] = rest
    return symbols[:count]


def grid(random: np.random.Generator, count: int) -> Bytes:
    """Gaussian weights on a uniform grid of eight bits, 6.00 bits."""
    return np.clip(np.rint(128 + 15.49 * random.standard_normal(count)), 0, 255).astype(np.uint8)


STREAMS = {"a. 5-bit indices": indices, "b. gaps": gaps, "b4. gaps in 4 bits": gaps4, "c. 8-bit grid": grid}


def streams(options: argparse.Namespace) -> None:
    """Code and decode symbols, beside zstd -1 and dahuffman."""
    from dahuffman import HuffmanCodec

    count = int(SYMBOLS * options.scale)
    random = np.random.default_rng(SEED)
    packer, unpacker = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    for name, make in STREAMS.items():
        heading(f"Stream {name}: {make.__doc__} {count / 1e6:g} M symbols")
        symbols = make(random, count)
        few = symbols[:FEW].tolist()
        codec = HuffmanCodec.from_frequencies(dict(enumerate(np.bincount(symbols).tolist())))
        with jit.use(numba=True):
            ours = entropy.encode(symbols)
            if not np.array_equal(entropy.decode(ours, count), symbols):
                raise SystemExit("decoded symbols differ")
        zstd, slow = packer.compress(symbols), codec.encode(few)

        def forced(numba: bool, work: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                with jit.use(numba):
                    return work()

            return run

        encode, decode = partial(entropy.encode, symbols), partial(entropy.decode, ours, count)
        packing = compare(
            {
                "numba": forced(True, encode),
                "numpy": forced(False, encode),
                "zstd -1": partial(packer.compress, symbols),
                "dahuffman": partial(codec.encode, few),
            },
            options.repeats,
        )
        unpacking = compare(
            {
                "numba": forced(True, decode),
                "numpy": forced(False, decode),
                "zstd -1": partial(unpacker.decompress, zstd),
                "dahuffman": partial(codec.decode, slow),
            },
            options.repeats,
        )
        for what, times in (("encode", packing), ("decode", unpacking)):
            for who, time in times.items():
                show(f"{what}, {who}", million(len(few) if who == "dahuffman" else count, time))

        def ratio(times: dict[str, Time], who: str, whom: str) -> float:
            symbols_of = {"dahuffman": len(few)}
            speed = symbols_of.get(who, count) / times[who].median
            return speed / (symbols_of.get(whom, count) / times[whom].median)

        bits = entropy.cost(symbols)
        check("encode, numba / zstd -1", ratio(packing, "numba", "zstd -1"), 0.5, at_most=False)
        check("decode, numba / zstd -1", ratio(unpacking, "numba", "zstd -1"), 0.8, at_most=False)
        check("decode, numba / dahuffman", ratio(unpacking, "numba", "dahuffman"), 1000, at_most=False)
        check("decode, numpy / dahuffman", ratio(unpacking, "numpy", "dahuffman"), 50, at_most=False)
        show("zstd -1, bytes / order-0 entropy", f"{len(zstd) / (bits / 8):.4f}")
        check(f"bytes / order-0 entropy ({bits / count:.2f} bits)", len(ours) / (bits / 8), 1.02)


# --- loading ------------------------------------------------------------------------------------

_CHILD = """
import json, sys, time, torch, deepcomp
from pathlib import Path
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before, start = memory("VmRSS"), time.perf_counter()
state = deepcomp.load_state_dict(sys.argv[1]) if sys.argv[1].endswith("dcz") else torch.load(sys.argv[1], weights_only=True)
print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]))
"""


def fresh(path: Path, kernels: str = "") -> tuple[float, int]:
    """Seconds to load a file in a process that has only done its imports, and the peak of memory on the way."""
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        env={**os.environ, "DEEPCOMP_JIT": kernels},
        check=True,
        capture_output=True,
    )
    seconds, peak = json.loads(run.stdout)
    return seconds, peak


def forget(*paths: Path) -> None:
    """Make the kernel drop what it has cached of files."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def layers(seed: int, side: int, spread: float = 0.5) -> dict[str, Tensor]:
    """Weights like trained ones: Gaussian, each row of a scale of its own."""
    torch.manual_seed(seed)
    return {
        f"layer{i}.weight": 0.02 * torch.exp(spread * torch.randn(side, 1)) * torch.randn(side, side)
        for i in range(LAYERS)
    }


def loading(options: argparse.Namespace) -> None:
    """Load a pruned and shared network, beside torch.load of the dense one."""
    side = int(SIDE * options.scale**0.5)
    dcz, dense = options.folder / "sparse.dcz", options.folder / "dense.pt"
    settings = {"prune.density": 0.1, "share.values": 32}
    deepcomp.compress(layers(SEED, side), dcz, recipe="deep-compression", settings=settings, force=True)
    state = deepcomp.load_state_dict(dcz)
    torch.save(state, dense)
    size = sum(tensor.nbytes for tensor in state.values())
    del state
    heading(f"Load {size / 4e6:.3g} M weights, 10 % of them not zero, 32 values a layer")
    show("bytes", f"{dcz.stat().st_size:,}, dense {dense.stat().st_size:,}")
    rivals = {
        "deepcomp": partial(deepcomp.load_state_dict, dcz),
        "torch.load": partial(torch.load, dense, weights_only=True),
    }
    cold = dict.fromkeys(rivals, partial(forget, dcz, dense))
    with jit.use(numba=True):
        deepcomp.load_state_dict(dcz)
        for what, before, bound in (("warm", None, 0.8), ("cold", cold, 0.7)):
            times = compare(rivals, 2 * options.repeats, before)
            for who, time in times.items():
                show(f"{what}, {who}", time)
            check(f"{what}, deepcomp / torch.load", times["deepcomp"].median / times["torch.load"].median, bound)
    with jit.use(numba=False):
        show("warm, deepcomp with numpy alone", compare({"": rivals["deepcomp"]}, 1)[""])
    runs = {
        "deepcomp": partial(fresh, dcz),
        "deepcomp, numba": partial(fresh, dcz, "numba"),
        "deepcomp, numpy": partial(fresh, dcz, "numpy"),
        "torch.load": partial(fresh, dense),
    }
    for who, run in runs.items():
        found = [run() for _ in range(3)]
        show(f"first load of a process, {who}", Time(tuple(seconds for seconds, _ in found)))
        peak = max(peak for _, peak in found)
        if who == "deepcomp":
            check("peak memory, bytes / (1.3 dense + 100 MB)", peak / (1.3 * size + 1e8), 1)
        show(f"peak memory, {who}", f"{peak / 1e6:.0f} MB, dense {size / 1e6:.0f} MB")


# --- sharing ------------------------------------------------------------------------------------


def optimum(values: np.ndarray, k: int) -> float:
    """The least inertia there is: the dynamic programme with every weight a bin of its own, no histogram."""
    from deepcomp.weights import kernels

    x = np.sort(values).astype(np.float64)
    x -= x.mean()
    sums, counts = np.append(0, np.cumsum(x)), np.arange(len(x) + 1.0)
    score = np.full(len(sums), -np.inf)
    score[1:] = sums[1:] ** 2 / counts[1:]
    floor, cuts = np.zeros((2, len(sums)), np.int32)
    for j in range(2, k + 1):
        score = kernels.layer(score, sums, counts, floor, j if j < k else len(x), cuts)
        floor, cuts = cuts, floor
    return float(x @ x - score[-1])


def sharing(options: argparse.Namespace) -> None:
    """Cluster weights, beside scikit-learn's KMeans on the same weights."""
    from sklearn.cluster import KMeans

    count, few = int(SYMBOLS * options.scale), int(SYMBOLS * options.scale * (1 if options.full else 0.1))
    values = (0.02 * np.random.default_rng(SEED).standard_t(6, count)).astype(np.float32)
    heading(f"Share 32 values among {count / 1e6:g} M weights (Student's t with 6 degrees of freedom)")

    def share(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = clustering.centroids(weights, 32)
        return found, clustering.assign(weights, found)

    def plain(weights: np.ndarray) -> KMeans:
        return KMeans(n_clusters=32, n_init=1, random_state=0).fit(weights[:, None])

    with jit.use(numba=False):
        show("deepcomp, numpy alone", compare({"": partial(share, values)}, options.repeats)[""])
    with jit.use(numba=True):
        share(values[:1000])
        whole = compare({"": partial(share, values)}, options.repeats)[""]
        show("deepcomp", whole)
        if few < count:
            show("scikit-learn gets", f"{few / 1e6:g} M of them; --full gives it all")
        times = compare({"deepcomp": partial(share, values[:few]), "KMeans": partial(plain, values[:few])}, 1)
        ours = whole if few == count else times["deepcomp"]
        show(f"deepcomp, {few / 1e6:g} M", ours)
        show(f"KMeans, {few / 1e6:g} M", times["KMeans"])
        check("time, deepcomp / KMeans", ours.median / times["KMeans"].median, 0.02)
        best = optimum(values[:few], 32)
        check(
            "inertia, deepcomp / optimal",
            clustering.inertia(values[:few], clustering.centroids(values[:few], 32)) / best,
            1.001,
        )
        show("inertia, KMeans / optimal", f"{plain(values[:few]).inertia_ / best:.4f}" if not options.full else "")


# --- whole networks -----------------------------------------------------------------------------


def uniform(options: argparse.Namespace) -> None:
    """Compress to four bits, from tensors in memory to the file on disk."""
    tensors = layers(SEED, int(SIDE * options.scale**0.5))
    count = sum(tensor.numel() for tensor in tensors.values())
    heading(f"Uniform, 4 bits: {count / 1e6:.3g} M weights from memory to the file")

    def run(jobs: int) -> object:
        settings = {"quantize.bits": 4}
        out = options.folder / "uniform.dcz"
        return deepcomp.compress(tensors, out, recipe="uniform", settings=settings, jobs=jobs, force=True)

    with jit.use(numba=False):
        show("numpy alone", million(count, compare({"": partial(run, 1)}, 1)[""]))
    with jit.use(numba=True):
        run(1)
        times = compare({"1": partial(run, 1), "2": partial(run, 2)}, options.repeats)
    for jobs, time in times.items():
        show(f"jobs {jobs}", million(count, time))
    check("million weights a second", count / times["1"].median / 1e6, 20, at_most=False)


def lossless(options: argparse.Namespace) -> None:
    """Bit-exact both ways between tensors in memory and a synced file, beside ZipNN."""
    tensors = layers(SEED, int(SIDE * options.scale**0.5))
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        count = sum(tensor.numel() for tensor in tensors.values())
        heading(f"Lossless: {count / 1e6:.3g} M weights, {kind}".replace("torch.", ""))
        _lossless({name: tensor.to(kind) for name, tensor in tensors.items()}, options)
    path = data_folder() / "resnet20-cifar10.safetensors"
    heading("Lossless: ResNet-20, float32")
    if path.is_file():
        _lossless(load_file(path), options)
    else:
        print(f"skipped: no {path}")


def _lossless(tensors: dict[str, Tensor], options: argparse.Namespace) -> None:
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    size = sum(tensor.nbytes for tensor in tensors.values())
    spare = {name: tensor.clone() for name, tensor in tensors.items()}
    ours = options.folder / "lossless.dcz"

    def refill() -> None:
        for name, tensor in tensors.items():
            spare[name].copy_(tensor)

    def pack(jobs: int) -> object:
        return deepcomp.compress(tensors, ours, recipe="lossless", jobs=jobs, force=True)

    packs: dict[str, Callable[[], object]] = {"deepcomp": partial(pack, 1), "deepcomp, 2 jobs": partial(pack, 2)}
    unpacks: dict[str, Callable[[], object]] = {"deepcomp": partial(deepcomp.load_state_dict, ours)}
    sizes = {}
    for threads, label in ((1, "1 thread"), (0, "all cores")):
        for each, how in ((True, "by tensor"), (False, "as bytes")):
            coder, path = Zipnn(threads, each, kind), options.folder / f"{threads}{each}.znn"
            refill()
            coder.write(spare, path)
            same("ZipNN", coder.read(path, tensors), tensors)
            sizes[f"ZipNN {how}, {label}"] = path.stat().st_size
            packs[f"ZipNN {how}, {label}"] = partial(coder.write, spare, path)
            unpacks[f"ZipNN {how}, {label}"] = partial(coder.read, path, tensors)
    with jit.use(numba=True):
        pack(1)
        same("deepcomp", deepcomp.load_state_dict(ours), tensors)
        packing = compare(packs, options.repeats, dict.fromkeys(packs, refill))
        unpacking = compare(unpacks, options.repeats)
    for what, times in (("compress", packing), ("decompress", unpacking)):
        for who, time in times.items():
            show(f"{what}, {who}", f"{size / time.median / 1e6:,.0f} MB/s, {time}")
    show("bytes", f"{size:,}; deepcomp {ours.stat().st_size:,}; ZipNN {min(sizes.values()):,}")
    check("bytes, deepcomp / ZipNN", ours.stat().st_size / min(sizes.values()), 1)
    for what, times in (("compress", packing), ("decompress", unpacking)):
        best = min(time.median for who, time in times.items() if who.endswith("1 thread"))
        check(f"{what} time, deepcomp / ZipNN on 1 thread", times["deepcomp"].median / best, 2)
        best = min(time.median for who, time in times.items() if who.endswith("all cores"))
        mine = min(time.median for who, time in times.items() if who.startswith("deepcomp"))
        show(f"{what} time, deepcomp / ZipNN on all cores", f"{mine / best:.2f}")


def same(who: str, found: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.equal(found[name], tensor):
            raise SystemExit(f"{who}: {name} is not what it was")


SECTIONS = {"streams": streams, "loading": loading, "sharing": sharing, "uniform": uniform, "lossless": lossless}


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Time deepcomp beside its peers.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--full", action="store_true", help="give scikit-learn's KMeans all 10 M weights (minutes)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--scale", type=float, default=1, help="share of the sizes, to try the script; bounds hold at 1")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)}: one of {', '.join(SECTIONS)} expected")
    machine()
    print(f"seed {SEED}, {options.repeats} runs of each in turn: median (least to most)")
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for name in options.sections or SECTIONS:
            SECTIONS[name](options)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
