"""The integer runtime beside the simulation and fp32: `python benchmarks/integer.py [NETWORK ...] [--images N]`.

Networks come from files of the recipe `ptq`: weights of 8 and of 4 bits, activations of 8.
What is timed in integers is a reference: exact products by PyTorch's int8 kernel, and everything else as one operation
of PyTorch's after another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from subjects import SUBJECTS, Subject
from timing import check, compare, finish, heading, machine, show, table

import deepcomp
from deepcomp.loader import RUNTIMES
from deepcomp.model.data import Data
from deepcomp.model.evaluate import evaluate
from deepcomp.runtime.agreement import differences, drift
from deepcomp.runtime.products import has_kernel

SEED = 0
NETWORKS = ("resnet20", "mobilenet")
BATCHES = (1, 64)
BITS = (8, 4)  # of weights
# Rows, inputs and outputs of layers as products of matrices; a convolution's windows are its rows.
SHAPES = {
    "ResNet-20, 16 channels, batch 64": (65536, 144, 16),
    "ResNet-20, 32 channels, batch 64": (16384, 288, 32),
    "ResNet-20, 64 channels, batch 64": (4096, 576, 64),
    "ResNet-20, 64 channels, batch 1": (64, 576, 64),
    "linear 512 to 512, batch 1": (1, 512, 512),
    "linear 512 to 512, batch 64": (64, 512, 512),
    "linear 2048 to 2048, batch 512": (512, 2048, 2048),
}


def main() -> int:
    """Compress, compare, time."""
    parser = argparse.ArgumentParser(description="The integer runtime beside the simulation and fp32.")
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; default: all there are"
    )
    parser.add_argument("--images", type=int, default=0, help="test images for accuracies (default: all)")
    parser.add_argument("--repeats", type=int, default=25, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"{', '.join(unknown)}: one of {', '.join(NETWORKS)} expected")
    torch.set_num_threads(1)
    machine()
    print(f"one thread, {options.repeats} runs of each in turn: median (least to most)")
    kernels(options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks or NETWORKS:
            if SUBJECTS[name].path.exists():
                network(SUBJECTS[name], Path(folder), options)
            else:
                print(f"\n{SUBJECTS[name].title} left out: no {SUBJECTS[name].path}")
    return finish()


def kernels(repeats: int) -> None:
    """Products of matrices alone."""
    heading("The kernel: int8 × int8 → int32 beside fp32")
    show("exact on this processor", has_kernel())
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for what, (count, inputs, outputs) in SHAPES.items():
        x, w = (torch.randint(-128, 128, (size, inputs), generator=generator) for size in (count, outputs))
        runs: dict[str, Callable[[], object]] = {
            "fp32": partial(torch.nn.functional.linear, x.float(), w.float()),
            "int8": partial(torch._int_mm, x.to(torch.int8), w.to(torch.int8).t()),
        }
        assert torch.equal(runs["int8"](), x.int() @ w.int().t())
        compare(runs, 3)  # warms up
        times = compare(runs, repeats)
        ratio = times["fp32"].median / times["int8"].median
        rows.append([what, f"{count} × {inputs} × {outputs}", *map(str, times.values()), f"{ratio:.2f} ×"])
    table(["layer", "rows × inputs × outputs", "fp32", "int8", "faster"], rows)


def network(subject: Subject, folder: Path, options: argparse.Namespace) -> None:
    """One network: accuracy, agreement, time."""
    data, path = subject.load(options.images), folder / "network.dcz"
    for bits in BITS:
        heading(f"{subject.title}, W{bits}A8")
        settings = {"quantize.bits": bits}
        report = deepcomp.compress(
            subject.path, path, recipe="ptq", model=subject.model, data=data, settings=settings, seed=SEED, force=True
        )
        assert report.metric is not None
        runtimes: dict[str, Any] = {runtime: deepcomp.load(path, runtime=runtime) for runtime in RUNTIMES}
        show("file", f"{report.output_bytes:,} bytes")
        show("operations in floating point", runtimes["integer"].float_operations or "none")
        show("accuracy, fp32", f"{report.metric['before']:.2f} %")
        for runtime, module in runtimes.items():
            show(f"accuracy, {runtime}", f"{evaluate(module, data).value:.2f} %")
        agreement(runtimes, data)
        if bits == BITS[0]:
            times(runtimes, data, options.repeats)


def images(data: Data, count: int) -> torch.Tensor:
    assert data.test is not None
    return torch.stack([data.test[place][0] for place in range(count)])


def agreement(runtimes: dict[str, Any], data: Data) -> None:
    """Behind every quantiser, each given the simulation's integers, and at the end without."""
    x = images(data, 256)
    found = differences(runtimes["simulated"], runtimes["integer"], x)
    table(
        ["quantiser behind", "largest difference, steps", "integers that differ"],
        [[row.name, str(row.largest), f"{100 * row.share:.4f} %"] for row in found],
    )
    check("largest difference of a layer, steps", max(row.largest for row in found), 1)
    show("outputs, largest difference / largest", f"{drift(runtimes['simulated'], runtimes['integer'], x):.4f}")
    labels = [runtimes[runtime](x).argmax(1) for runtime in ("simulated", "integer")]
    show("images of 256 with another label", int((labels[0] != labels[1]).sum()))


def times(runtimes: dict[str, Any], data: Data, repeats: int) -> None:
    rows = []
    for batch in BATCHES:
        x = images(data, batch)
        runs: dict[str, Callable[[], object]] = {name: partial(module, x) for name, module in runtimes.items()}
        with torch.inference_mode():
            compare(runs, 3)  # warms up
            found = compare(runs, repeats)
        for name, time in found.items():
            rows.append([f"batch {batch}, {name}", str(time), f"{time.median / found['float'].median:.2f} ×"])
    table(["", "time", "of fp32's"], rows)


if __name__ == "__main__":
    sys.exit(main())
