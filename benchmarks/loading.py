"""Loading of a pruned network with shared values, beside torch.load of the dense one."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from networks import layers
from timing import Time, check, compare, heading, show

import deepcomp
from deepcomp import jit

__all__ = ["loading"]

_PROCESSES = 3  # of each kind

_CHILD = """
import json, sys, time, torch, deepcomp
from pathlib import Path
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, not from the imports
path, before, start = sys.argv[1], memory("VmRSS"), time.perf_counter()
state = deepcomp.load_state_dict(path) if path.endswith("dcz") else torch.load(path, weights_only=True)
print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]))
"""


def fresh(path: Path, kernels: str = "") -> tuple[float, int]:
    """Seconds and peak memory in bytes of the first load in a process that has done its imports.

    The resource module's ru_maxrss would not do: a process inherits it from the one that starts it.
    """
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        env={**os.environ, "DEEPCOMP_JIT": kernels},
        check=True,
        capture_output=True,
    )
    seconds, peak = json.loads(run.stdout)
    return seconds, peak


def trim() -> None:
    """Give freed memory back to the kernel: a process that loads one network has none at hand."""
    ctypes.CDLL(None).malloc_trim(0)


def forget(*paths: Path) -> None:
    """Make the kernel drop what it has cached of files."""
    trim()
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(options: argparse.Namespace) -> None:
    """25 layers of a million weights, a tenth of them not zero."""
    dcz, dense = options.folder / "sparse.dcz", options.folder / "dense.pt"
    settings = {"prune.density": 0.1, "share.values": 32}
    deepcomp.compress(layers(options.scale), dcz, recipe="deep-compression", settings=settings)
    state = deepcomp.load_state_dict(dcz)
    torch.save(state, dense)
    size = sum(tensor.nbytes for tensor in state.values())
    del state
    heading(f"Load {size / 4e6:.3g} M weights, 10 % of them not zero, 32 values a layer")
    show("bytes", f"{dcz.stat().st_size:,}, dense {dense.stat().st_size:,}")
    rivals: dict[str, Callable[[], object]] = {
        "deepcomp": partial(deepcomp.load_state_dict, dcz),
        "torch.load": partial(torch.load, dense, weights_only=True),
    }
    with jit.use(numba=True):
        deepcomp.load_state_dict(dcz)  # compiles
        for what, before, bound in (
            ("warm", trim, 0.8),
            ("cold", partial(forget, dcz, dense), 0.7),
            ("again", None, None),  # into memory freed a moment ago
        ):
            times = compare(rivals, 2 * options.repeats, before)
            for who, time in times.items():
                show(f"{what}, {who}", time)
            ratio = times["deepcomp"].median / times["torch.load"].median
            if bound is None:
                show(f"{what}, deepcomp / torch.load", f"{ratio:.6g}")
            else:
                check(f"{what}, deepcomp / torch.load", ratio, bound)
    with jit.use(numba=False):
        show("warm, deepcomp with numpy alone", compare({"": rivals["deepcomp"]}, options.repeats, trim)[""])
    for who, path, kernels in (
        ("deepcomp", dcz, ""),
        ("deepcomp, numba", dcz, "numba"),
        ("deepcomp, numpy", dcz, "numpy"),
        ("torch.load", dense, ""),
    ):
        runs = [fresh(path, kernels) for _ in range(_PROCESSES)]
        peak = max(peak for _, peak in runs)
        show(f"new process, {who}", f"{Time(tuple(s for s, _ in runs))}, {peak / 1e6:.0f} MB at the peak")
        if who == "deepcomp":  # the choice that users get; numba's own code takes 100 MB and more
            check("peak memory / (1.3 dense + 100 MB)", peak / (1.3 * size + 1e8), 1)
