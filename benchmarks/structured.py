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
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate

SEED = 0
VARIANTS = {"all": (1.0, 1), "70 %": (0.7, 1), "70 %, by eights": (0.7, 8)}  # density, multiple

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
multiple = {multiple}
"""


def compressed(name: str, options: argparse.Namespace) -> Path:
    """The file of one variant; one made before is used again."""
    density, multiple = VARIANTS[name]
    out = options.folder / f"resnet20-{density:g}-{multiple}-{options.epochs}.dcz"
    recipe = options.folder / f"filters-{density:g}-{multiple}.toml"
    prune = PRUNE.format(density=density, multiple=multiple) if density < 1 else ""
    recipe.write_text(prune + TRAIN.format(epochs=options.epochs))
    if not out.exists():
        weights = data_folder() / "resnet20-cifar10.safetensors"
        more = {"data": "cifar10", "data_dir": data_folder(), "seed": SEED, "resume": True}
        report = deepcomp.compress(weights, out, recipe=recipe, model="resnet20", **more)
        for step in report.steps:
            show(f"{name} of the filters, {step['do']}", {k: v for k, v in step.items() if k != "do"})
        show(f"{name} of the filters, accuracy before and after", report.metric)
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
        files = {name: compressed(name, options) for name in VARIANTS}
        measure(files, options)
    return finish()


def measure(files: dict[str, Path], options: argparse.Namespace) -> None:
    """Accuracy, bytes and speed of the files, run from the file alone."""
    data = load_data("cifar10", data_folder())
    networks = {name: deepcomp.load(path) for name, path in files.items()}
    times = {}
    for batch in (1, 64, 256):
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(SEED))
        runs = {name: partial(network, images) for name, network in networks.items()}
        with torch.no_grad():
            compare(runs, 3)  # warms up
            times[batch] = compare(runs, options.repeats)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    rows = []
    for name, network in networks.items():
        weights = sum(parameter.numel() for parameter in network.parameters())
        speed = [f"{found[name].median / found['all'].median:.2f} ×" for found in times.values()]
        accuracy = f"{evaluate(network, data).value:.2f} %"
        rows.append([name, f"{weights:,}", f"{sizes[name]:,}", f"{sizes[name] / sizes['all']:.2f} ×", accuracy, *speed])
    heads = ["filters", "weights", "bytes", "of the whole", "accuracy", *(f"time, batch {batch}" for batch in times)]
    table(heads, rows)
    for batch, found in times.items():
        for name, time in found.items():
            show(f"batch {batch}, {name} of the filters", time)
    check("70 % of the filters, bytes / whole", sizes["70 %"] / sizes["all"], 1)
    check("70 % of the filters, time / whole, batch 64", times[64]["70 %"].median / times[64]["all"].median, 1)


if __name__ == "__main__":
    sys.exit(main())
