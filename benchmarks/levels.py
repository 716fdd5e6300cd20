"""LeNets whose weights, all of them, have two or three levels or powers of two: `benchmarks/levels.py [NETWORK …]`.

Trained from the weights in `checkpoints/`, the epoch chosen on the last 5,000 training images, the test set read once a
file. Bits are those of the streams that hold the levels, per weight; bytes and ratios are of the whole file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from draws import spread
from runs import CHECKPOINTS, run
from timing import check, data_folder, finish, heading, machine, table

from deepcomp.model.datasets import load_data

RECIPE = """
[[step]]
do = "quantize-levels"
{levels}

[[step]]
do = "finetune"
epochs = {epochs}
optimiser = "adam"
rate = 0.001
"""
LEVELS = {
    "binary": 'levels = "binary"',
    "ternary": 'levels = "ternary"',
    "ternary, two scales": 'levels = "ternary"\nsides = 2',
    "powers of two, 3 bits": 'levels = "power-of-two"\nbits = 3',
    "sums of two powers of two, 4 bits": 'levels = "additive-power-of-two"\nbits = 4',
    "Lloyd–Max, 2 bits": 'levels = "lloyd-max"\nbits = 2',
}
FIELD = {"binary": 1.0, "ternary": math.log2(3), "ternary, two scales": math.log2(3)}  # bits of equally frequent levels
WORST = {"binary": 1.2, "ternary": 1.0}  # percent of test images that LeNet-5 may get wrong


def main() -> int:
    """Train and measure."""
    parser = argparse.ArgumentParser(description="LeNets of very few levels.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="lenet-300-100, lenet-5 (default: both)")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--epochs", type=int, default=15, help="of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the training images (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are kept, and found again")
    options = parser.parse_args()
    if unknown := set(options.networks) - {"lenet-300-100", "lenet-5"}:
        parser.error(f"{min(unknown)}: lenet-300-100 or lenet-5 expected")
    torch.set_num_threads(1)
    machine()
    data = load_data("mnist", data_folder())
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for network in options.networks or ("lenet-300-100", "lenet-5"):
            heading(f"{network}, {options.epochs} epochs, {options.seeds} seeds")
            rows = []
            for levels in options.levels:
                recipe = folder / f"{levels}-{options.epochs}.toml"
                recipe.write_text(RECIPE.format(levels=LEVELS[levels], epochs=options.epochs))
                weights, out = CHECKPOINTS / f"{network}.safetensors", f"{network}-{levels}-{options.epochs}"
                seeds = range(options.seeds)
                files = [run(folder / f"{out}-{seed}.dcz", weights, recipe, data, seed=seed) for seed in seeds]
                rows.append(_row(network, levels, files))
            table(["levels", "test error, %", "bits a weight", "bytes", "ratio"], rows)
    return finish()


def _row(network: str, levels: str, files: Sequence[dict[str, Any]]) -> list[str]:
    errors = [100 - file["metric"]["after"] for file in files]
    bits = [_bits(file) for file in files]
    sizes = [file["output_bytes"] for file in files]
    if levels in FIELD:
        check(f"{network}, {levels}: bits of a weight beside equally frequent levels", max(bits) / FIELD[levels], 1.01)
    if network == "lenet-5" and levels in WORST:
        check(f"{network}, {levels}: test error", statistics.fmean(errors), WORST[levels], unit=" %")
    ratio = statistics.fmean(file["ratio"] for file in files)
    before = 100 - files[0]["metric"]["before"]
    return [
        levels,
        f"{before:.2f} → {spread(errors, '.2f')}",
        spread(bits, ".3f"),
        spread(sizes, ",.0f"),
        f"{ratio:.1f} ×",
    ]


def _bits(report: dict[str, Any]) -> float:
    """Of the streams of levels, per weight."""
    weights = [tensor for tensor in report["tensors"] if tensor["form"] == "scaled"]
    return 8 * sum(tensor["parts"]["q"] for tensor in weights) / sum(math.prod(tensor["shape"]) for tensor in weights)


if __name__ == "__main__":
    sys.exit(main())
