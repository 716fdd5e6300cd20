"""Filter pruning of ResNet-20 on CIFAR-10: `python benchmarks/structured.py [--epochs 2] [--folder DIR]`.

The network with 30 % fewer filters beside the whole one, both fine-tuned for as many epochs on the same
images: the pretrained weights have never seen JPEG images, so fine-tuning alone lifts them. The
epoch is chosen on held-out training images; the test set is read once by each file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from timing import check, compare, data_folder, finish, heading, machine, show, table

import deepcomp

SEED = 0
DENSITIES = (1.0, 0.7, 0.5)

TRAIN = """
[[step]]
do = "finetune"
epochs = {epochs}
rate = 0.02
decay = 1e-4
augment = "flip-crop"
"""
PRUNE = """
[[step]]
do = "prune-filters"
density = {density}
"""


def compressed(density: float, options: argparse.Namespace) -> Path:
    """The file of ResNet-20 with that share of its filters; one made before is used again."""
    out = options.folder / f"resnet20-{density:g}-{options.epochs}.dcz"
    recipe = options.folder / f"filters-{density:g}.toml"
    recipe.write_text((PRUNE.format(density=density) if density < 1 else "") + TRAIN.format(epochs=options.epochs))
    if not out.exists():
        weights = data_folder() / "resnet20-cifar10.safetensors"
        more = {"data": "cifar10", "data_dir": data_folder(), "seed": SEED, "resume": True}
        report = deepcomp.compress(weights, out, recipe=recipe, model="resnet20", **more)
        for step in report.steps:
            show(f"{density:.0%} of the filters, {step['do']}", {k: v for k, v in step.items() if k != "do"})
        assert report.metric is not None
        show(f"{density:.0%} of the filters, accuracy before and after", report.metric)
    return out


def main() -> int:
    """Train, then measure."""
    parser = argparse.ArgumentParser(description="Filter pruning of ResNet-20 beside the whole network.")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are kept, and found again")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine()
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = options.folder or Path(scratch)
        options.folder.mkdir(parents=True, exist_ok=True)
        heading(f"ResNet-20, CIFAR-10 as JPEG, {options.epochs} epochs of fine-tuning each, seed {SEED}")
        files = {density: compressed(density, options) for density in DENSITIES}
        measure(files, options)
    return finish()


def measure(files: dict[float, Path], options: argparse.Namespace) -> None:
    """Accuracy, bytes and speed of the files, run from the file alone."""
    from deepcomp.model.datasets import load_data
    from deepcomp.model.evaluate import evaluate

    data = load_data("cifar10", data_folder())
    networks = {density: deepcomp.load(path) for density, path in files.items()}
    times = {}
    for batch in (1, 64, 256):
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(SEED))
        with torch.no_grad():
            runs = {f"{density:g}": partial(network, images) for density, network in networks.items()}
            compare(runs, 3)
            times[batch] = {float(name): time for name, time in compare(runs, options.repeats).items()}
    whole = files[1.0].stat().st_size
    rows = []
    for density, network in networks.items():
        size = files[density].stat().st_size
        weights = sum(parameter.numel() for parameter in network.parameters())
        speed = [f"{times[batch][density].median / times[batch][1.0].median:.2f} ×" for batch in times]
        accuracy = f"{evaluate(network, data).value:.2f} %"
        rows.append([f"{density:.0%}", f"{weights:,}", f"{size:,}", f"{size / whole:.2f} ×", accuracy, *speed])
    heads = ["filters", "weights", "bytes", "of the whole", "accuracy", *(f"time, batch {batch}" for batch in times)]
    table(heads, rows)
    for batch, found in times.items():
        for density, time in found.items():
            show(f"batch {batch}, {density:.0%} of the filters", time)
    check("70 % of the filters, bytes / whole", files[0.7].stat().st_size / whole, 1)
    check("70 % of the filters, time / whole, batch 64", times[64][0.7].median / times[64][1.0].median, 1)


if __name__ == "__main__":
    sys.exit(main())
