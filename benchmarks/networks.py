"""Work on whole networks: sharing values, uniform quantisation, and lossless compression beside ZipNN."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import Zipnn, installed
from safetensors.torch import load_file
from timing import check, compare, data_folder, heading, show
from torch import Tensor

import deepcomp
from deepcomp import jit
from deepcomp.weights import clustering

__all__ = ["layers", "lossless", "sharing", "uniform"]

SEED = 0
LAYERS, SIDE = 25, 1000  # 25 layers of a million weights
SHARED = 10_000_000

Floats = NDArray[np.float32]


def layers(scale: float) -> dict[str, Tensor]:
    """Weights like trained ones: Gaussian, each row on a scale of its own."""
    torch.manual_seed(SEED)
    side = int(SIDE * scale**0.5)
    return {
        f"layer{i}.weight": 0.02 * torch.exp(0.5 * torch.randn(side, 1)) * torch.randn(side, side)
        for i in range(LAYERS)
    }


# --- sharing ------------------------------------------------------------------------------------


def sharing(options: argparse.Namespace) -> None:
    """Find 32 values for 10 M weights, beside scikit-learn's KMeans."""
    from sklearn.cluster import KMeans

    count = int(SHARED * options.scale)
    values = (0.02 * np.random.default_rng(SEED).standard_t(6, count)).astype(np.float32)
    part = values if options.full else values[: count // 10]
    heading(f"Share 32 values among {count / 1e6:g} M weights (Student's t, 6 degrees of freedom)")

    def share(weights: Floats) -> Floats:
        found = clustering.centroids(weights, 32)
        clustering.assign(weights, found)
        return found

    plain = KMeans(n_clusters=32, n_init=1, random_state=0)
    with jit.use(numba=False):
        show("deepcomp, numpy alone", compare({"": partial(share, values)}, options.repeats)[""])
    with jit.use(numba=True):
        share(values[:1000])  # compiles
        show("deepcomp", compare({"": partial(share, values)}, options.repeats)[""])
        if not options.full:
            print(f"scikit-learn is given {len(part) / 1e6:g} M of them; --full gives it all")
        ours = compare({"": partial(share, part)}, options.repeats)[""]
        theirs = compare({"": lambda: plain.fit(part[:, None])}, 1)[""]
        show(f"deepcomp, {len(part) / 1e6:g} M", ours)
        show(f"KMeans, {len(part) / 1e6:g} M", theirs)
        check("time, deepcomp / KMeans", ours.median / theirs.median, 0.02)
        best = optimum(part, 32)
        check("inertia, deepcomp / optimal", clustering.inertia(part, share(part)) / best, 1.001)
        show("inertia, KMeans / optimal", f"{plain.inertia_ / best:.4f}")


def optimum(values: Floats, k: int) -> float:
    """The least inertia there is: the dynamic programme with every weight a bin of its own."""
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


# --- uniform ------------------------------------------------------------------------------------


def uniform(options: argparse.Namespace) -> None:
    """Compress to four bits, from tensors in memory to the file on disk."""
    tensors = layers(options.scale)
    count = sum(tensor.numel() for tensor in tensors.values())
    heading(f"Uniform, 4 bits: {count / 1e6:.3g} M weights from memory to the file")

    def run(jobs: int) -> object:
        settings = {"quantize.bits": 4}
        out = options.folder / "uniform.dcz"
        return deepcomp.compress(tensors, out, recipe="uniform", settings=settings, jobs=jobs, force=True)

    with jit.use(numba=True):
        run(1)  # compiles
        times = compare({"jobs 1": partial(run, 1), "jobs 2": partial(run, 2)}, options.repeats)
    with jit.use(numba=False):
        times |= compare({"numpy alone": partial(run, 1)}, 1)
    for what, time in times.items():
        show(what, f"{count / time.median / 1e6:.1f} M weights/s, {time}")
    check("million weights a second", count / times["jobs 1"].median / 1e6, 20, at_most=False)


# --- lossless -----------------------------------------------------------------------------------


def lossless(options: argparse.Namespace) -> None:
    """To the bit, from tensors in memory to a synced file and back, for both programs."""
    if not installed("zipnn"):
        return
    tensors = layers(options.scale)
    count = sum(tensor.numel() for tensor in tensors.values())
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        name = str(kind).removeprefix("torch.")
        _lossless(f"{count / 1e6:.3g} M weights, {name}", {n: t.to(kind) for n, t in tensors.items()}, options)
    path = data_folder() / "resnet20-cifar10.safetensors"
    if path.is_file():
        _lossless("ResNet-20, float32, small tensors", load_file(path), options, bound=None)
    else:
        print(f"\nResNet-20 left out: no {path}")


def _lossless(title: str, tensors: dict[str, Tensor], options: argparse.Namespace, bound: float | None = 2) -> None:
    """One comparison; `bound` is what our time may be of ZipNN's, which holds for throughput, not for small files."""
    heading(f"Lossless: {title}")
    size = sum(tensor.nbytes for tensor in tensors.values())
    kind = str(max(tensors.values(), key=Tensor.numel).dtype).removeprefix("torch.")
    spare = {name: tensor.clone() for name, tensor in tensors.items()}
    ours = options.folder / "lossless.dcz"

    def refill() -> None:
        """Undo what ZipNN does to the tensors it compresses; not timed."""
        for name, tensor in tensors.items():
            spare[name].copy_(tensor)

    def pack(jobs: int) -> Any:
        return deepcomp.compress(tensors, ours, recipe="lossless", jobs=jobs, force=True)

    packs: dict[str, Callable[[], object]] = {"deepcomp": partial(pack, 1), "deepcomp, 2 jobs": partial(pack, 2)}
    unpacks: dict[str, Callable[[], object]] = {"deepcomp": partial(deepcomp.load_state_dict, ours)}
    zipnn = size
    for threads, cores in ((1, "1 thread"), (0, "all cores")):
        for each, how in ((True, "by tensor"), (False, "as bytes")):
            coder, path = Zipnn(threads, each, kind), options.folder / f"{threads}{each}.znn"
            refill()
            coder.write(spare, path)
            _same("ZipNN", coder.read(path, tensors), tensors)
            zipnn = min(zipnn, path.stat().st_size)
            packs[f"ZipNN {how}, {cores}"] = partial(coder.write, spare, path)
            unpacks[f"ZipNN {how}, {cores}"] = partial(coder.read, path, tensors)
    with jit.use(numba=True):
        report = pack(1)
        _same("deepcomp", deepcomp.load_state_dict(ours), tensors)
        packing = compare(packs, options.repeats, refill)
        unpacking = compare(unpacks, options.repeats)
    show("bytes", f"{size:,}; deepcomp {report.output_bytes:,}; ZipNN {zipnn:,}")
    check("bytes, deepcomp / ZipNN", report.output_bytes / zipnn, 1)
    for what, times in (("compress", packing), ("decompress", unpacking)):
        for who, time in times.items():
            show(f"{what}, {who}", f"{size / time.median / 1e6:,.0f} MB/s, {time}")
        best = {cores: min(t.median for w, t in times.items() if w.endswith(cores)) for cores in ("thread", "cores")}
        ratio = times["deepcomp"].median / best["thread"]
        if bound is None:
            show(f"{what} time, deepcomp / ZipNN, 1 thread", f"{ratio:.4g}")
        else:
            check(f"{what} time, deepcomp / ZipNN, 1 thread", ratio, bound)
        mine = min(t.median for w, t in times.items() if w.startswith("deepcomp"))
        show(f"{what} time, deepcomp / ZipNN, all cores", f"{mine / best['cores']:.4g}")


def _same(who: str, found: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.equal(found[name], tensor):
            raise SystemExit(f"{who}: {name} is not what it was")
