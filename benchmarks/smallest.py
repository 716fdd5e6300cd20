"""The smallest files: the recipe `smallest` beside published ones, and what each of its ideas is worth.

`benchmarks/smallest.py [SECTION …] [NETWORK …]`; sections are `curve`, and of the LeNets `files`, those in
`checkpoints/`, and `ideas`. LeNets are trained on MNIST's images 0 to 54,999 from the weights in `checkpoints/`;
whatever is chosen is chosen on images 55,000 to 59,999, and test errors are shown beside it. ResNet-20 stands beside
files of `feedback`, which does not train, and the network in fp32 trained as long on the same images, the first
`--images`: training alone lifts it. Bytes are of the whole file: weights, biases, steps, names, operations, checksums.
For other coders of the same symbols give the files in `--folder` to `benchmarks/coder.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from drawings import DRAWINGS, kilobytes, save
from draws import spread, step
from matplotlib.figure import Figure
from runs import CHECKPOINTS, run
from subjects import SUBJECTS as NETWORKS
from subjects import decoded, score, through
from timing import check, data_folder, finish, heading, machine, show, table
from torch.utils.data import Subset

import deepcomp
from deepcomp.model.data import Data
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate

HELD = 5000
BOUNDS = {"lenet-300-100": (210, 1.65), "lenet-5": (1100, 0.9)}  # of `files`: ratio, test error in percent
RECIPE = """
{before}

[[step]]
do = "rate-train"
price = {price}
first = {first}
coarse = {coarse}
epochs = {epochs}
warm_epochs = {warm_epochs}
rate = {rate}
augment = "{augment}"

[[step]]
do = "code"

[dial]
set = "rate-train.price"
values = {prices}
"""
FOLD = '[[step]]\ndo = "fold-bn"'
FEW = '[[step]]\ndo = "prune-filters"\ndensity = { conv1 = 0.4, conv2 = 0.32, fc1 = 0.128 }'  # 8, 16 and 64 units


@dataclass(frozen=True)
class Subject:
    """A network, and how it is trained.

    Attributes
    ----------
    name : str
    price : float
        At which ideas are taken away one by one.
    prices : tuple of float
        Of the curve.
    first : float
        Those above it start, by doubling, from what is left at the price before.
    settings : dict
        Of the recipe.
    published : dict of str to (float, float)
        How many times smaller than in 32 bits, and test error in percent.
    untrained : tuple of float
        Prices of `feedback` files to stand beside.
    data : str
        What `load_data` knows it as.
    """

    name: str
    price: float
    prices: tuple[float, ...]
    first: float
    settings: dict[str, Any]
    published: dict[str, tuple[float, float]] = field(default_factory=dict)
    untrained: tuple[float, ...] = ()
    data: str = "mnist"

    @property
    def weights(self) -> Path:
        return NETWORKS[self.name].path if self.name in NETWORKS else CHECKPOINTS / f"{self.name}.safetensors"

    def recipe(self, epochs: int | None) -> str:
        own = self.settings if epochs is None else {**self.settings, "epochs": epochs, "warm_epochs": epochs}
        return RECIPE.format(price=self.price, first=self.first, prices=list(self.prices), **own)

    def ideas(self) -> dict[str, dict[str, Any]]:
        """What to change in the recipe, which trains for one price alone."""
        images = {"none": "as they are", "affine": "mapped by matrices", "elastic": "bent"}
        others = {f"images {how}": {"rate-train.augment": a} for a, how in images.items()}
        del others[f"images {images[self.settings['augment']]}"]
        return {
            "as it is": {},
            "steps stay as they were at first": {"rate-train.scales": 0.0},
            "bits by tensor, not by place": {"rate-train.context": False},
            "the whole price from the start": {"rate-train.ramp": 0.0},
            "vectors in 32 bits": {"rate-train.vectors": 0.0},
            "from a quarter of the price, by warm starts": {"rate-train.first": self.price / 4},
            "a teacher, half of the loss": {"rate-train.distill": 0.5},
            **others,
            **({"all units there": {"prune-filters.density": 1.0}} if self.settings["before"] else {}),
            "no price, steps learnt alone": {"rate-train.price": 0.0},
            "Huffman, rANS": {"code.coder": "fast"},
        }


SUBJECTS = {
    "lenet-300-100": Subject(
        "lenet-300-100",
        2.4e-6,
        (6e-7, 1.2e-6, 2.4e-6, 4.8e-6, 9.6e-6),
        6e-7,
        {"before": "", "epochs": 24, "warm_epochs": 20, "rate": 1.5e-3, "augment": "affine", "coarse": 1.0},
        {
            "Deep Compression (Han et al. 2016)": (40, 1.58),
            "soft weight-sharing (Ullrich et al. 2017), from memory": (64, 1.94),
            "Bayesian Compression (Louizos et al. 2017), from memory": (113, 2.0),
            "entropy-penalised reparametrisation (Oktay et al. 2020)": (124, 1.9),
        },
    ),
    "lenet-5": Subject(
        "lenet-5",
        4e-6,
        (2e-6, 4e-6, 8e-6, 1.1e-5, 1.6e-5),
        2e-6,
        {"before": FEW, "epochs": 24, "warm_epochs": 20, "rate": 2e-3, "augment": "affine", "coarse": 1.0},
        {
            "Deep Compression (Han et al. 2016)": (39, 0.74),
            "soft weight-sharing (Ullrich et al. 2017), quoted": (162, 0.97),
            "Bayesian Compression (Louizos et al. 2017)": (771, 1.0),
            "MIRACLE (Havasi et al. 2019)": (555, 0.69),
            "the same, smaller": (1110, 0.96),
            "a re-implementation of it (its README)": (1000, 0.83),
            "that, smaller": (1500, 0.98),
            "entropy-penalised reparametrisation (Oktay et al. 2020)": (606, 1.0),
        },
    ),
    "resnet20": Subject(
        "resnet20",
        1e-5,
        (5e-6, 1e-5, 2e-5, 4e-5),
        5e-6,
        {"before": FOLD, "epochs": 3, "warm_epochs": 2, "rate": 1e-3, "augment": "flip-crop", "coarse": 0.3},
        untrained=(2e-7, 5e-7, 1e-6, 2e-6),
        data="cifar10",
    ),
}


@dataclass(frozen=True)
class Point:
    """A file: its price, its bytes, the ratio, and errors in percent on the held-out and on the test images."""

    price: float
    bytes: int
    ratio: float
    held: float
    test: float


class Bench:
    """One network, its images, and the folder of its files."""

    def __init__(self, subject: Subject, folder: Path, options: argparse.Namespace) -> None:
        self.subject, self.folder, self.options = subject, folder, options
        whole = load_data(subject.data, data_folder())
        first = len(whole.train) - HELD
        train, held = Subset(whole.train, range(first)), Subset(whole.train, range(first, len(whole.train)))
        if subject.untrained:
            train, held = decoded(train, options.images or first), decoded(held, HELD)
        self.data = Data(train, whole.test, whole.metric, validation=held)
        self.held = Data(train, held, whole.metric)
        text = subject.recipe(options.epochs)
        self.recipe = folder / f"{subject.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.toml"
        self.recipe.write_text(text)

    @cached_property
    def curves(self) -> list[list[Point]]:
        """For each seed the points of one walk along the prices, from large files to small ones."""
        return [self._curve(seed) for seed in range(self.options.seeds)]

    def _curve(self, seed: int) -> list[Point]:
        curve = self.folder / f"{self.recipe.stem}-{seed}.curve.json"
        if not curve.is_file():
            deepcomp.compress(
                self.subject.weights,
                curve.with_suffix(".dcz"),
                recipe=self.recipe,
                model=self.subject.name,
                data=self.data,
                seed=seed,
                pareto=curve,
                max_drop=100.0,  # any, so that points tell the error on held-out images too
                force=True,
                resume=True,
            )
        return [
            Point(
                point["value"],
                point["bytes"],
                point["ratio"],
                100 - point["validation"]["after"],
                100 - point["quality"],
            )
            for point in json.loads(curve.read_text())["points"]
        ]

    def idea(self, settings: dict[str, Any]) -> list[Point]:
        """A file a seed, with other settings."""
        found, name = [], "-".join(f"{key}={value}" for key, value in settings.items())
        for seed in range(self.options.seeds):
            out = self.folder / f"{self.recipe.stem}-{name}-seed={seed}.dcz"
            report = run(out, self.subject.weights, self.recipe, self.data, settings=settings, seed=seed)
            held, test = evaluate(deepcomp.load(out), self.held), report["metric"]["after"]
            price = settings.get("rate-train.price", self.subject.price)
            found.append(Point(price, report["output_bytes"], report["ratio"], 100 - held.value, 100 - test))
        return found

    def untrained(self) -> list[Point]:
        """Files of `feedback`."""
        found = []
        for price in self.subject.untrained:
            out = self.folder / f"{self.subject.name}-feedback-{price:g}.dcz"
            done = deepcomp.compress(
                self.subject.weights,
                out,
                recipe="feedback",
                model=self.subject.name,
                data=self.data,
                settings={"quantize-feedback.price": price},
                force=True,
            )
            module = deepcomp.load(out)
            held, test = (evaluate(module, data).value for data in (self.held, self.data))
            found.append(Point(price, done.output_bytes, done.ratio, 100 - held, 100 - test))
        return found

    def trained(self) -> float:
        """Test error of the network in fp32, trained as long as the first file of the curve."""
        own = self.subject.settings
        epochs = own["epochs"] if self.options.epochs is None else self.options.epochs
        plan = step("finetune", epochs=epochs, rate=own["rate"], optimiser="adam", augment=own["augment"])
        return 100 - score(through(NETWORKS[self.subject.name], self.data, [plan]), self.data)


def curve(bench: Bench) -> None:
    """Our files along the price, and the smallest that is no worse on held-out images than each published one."""
    subject = bench.subject
    heading(f"{subject.name}: prices, {bench.options.seeds} seeds; mean (least to most)")
    columns = ["price", "bytes", "ratio", "held-out error, %", "test error, %"]
    by_price = {price: [_at(points, price) for points in bench.curves] for price in subject.prices}
    table(columns, [[f"{price:g}", *_cells(points)] for price, points in by_price.items()])
    if subject.untrained:
        without = bench.untrained()
        heading(f"{subject.name}: the recipe `feedback`, without training")
        table(columns, [[f"{point.price:g}", *_cells([point])] for point in without])
        show(f"fp32, trained for {subject.settings['epochs']} epochs, test error, %", f"{bench.trained():.2f}")
        _draw(bench, by_price, {"feedback, without training": [(point.bytes, point.test) for point in without]})
        return
    size = subject.weights.stat().st_size
    _draw(bench, by_price, {who: [(size / ratio, error)] for who, (ratio, error) in subject.published.items()})
    heading(f"{subject.name}: of each seed the smallest file whose held-out error is at most the published test error")
    rows = []
    for who, (ratio, error) in subject.published.items():
        fitting = [[point for point in points if point.held <= error] for points in bench.curves]
        chosen = [min(points, key=lambda point: point.bytes) for points in fitting if points]
        rows.append([who, f"{ratio} ×", f"{error} %", *(_cells(chosen) if chosen else ["none"] * 4)])
        ours = min((point.ratio for point in chosen), default=0.0) if all(fitting) else 0.0
        check(f"ratio at {error} %, least, beside {who.partition(' (')[0]}", ours, ratio, at_most=False, unit=" ×")
    print()
    table(["published", "ratio", "test error", "our bytes", "ratio", "held-out error, %", "test error, %"], rows)


def files(bench: Bench) -> None:
    """The file in `checkpoints/`."""
    subject, path = bench.subject, CHECKPOINTS / f"{bench.subject.name}.smallest.dcz"
    module, size = deepcomp.load(path), path.stat().st_size
    held, test = (100 - evaluate(module, data).value for data in (bench.held, bench.data))
    ratio, (least, most) = subject.weights.stat().st_size / size, BOUNDS[subject.name]
    heading(path.name)
    table(["bytes", "ratio", "held-out error, %", "test error, %"], [_cells([Point(0.0, size, ratio, held, test)])])
    check(f"{path.name}: ratio", ratio, least, at_most=False, unit=" ×")
    check(f"{path.name}: test error", test, most, unit=" %")


def ideas(bench: Bench) -> None:
    """One price, one idea changed at a time."""
    subject, seeds = bench.subject, bench.options.seeds
    heading(f"{subject.name} at a price of {subject.price:g}, one thing changed at a time; {seeds} seeds")
    rows = []
    for what, changed in subject.ideas().items():
        rows.append([what, *_cells(bench.idea({"rate-train.first": 0.0, **changed}))])
    table(["", "bytes", "ratio", "held-out error, %", "test error, %"], rows)


SECTIONS = {"curve": curve, "files": files, "ideas": ideas}


def _draw(bench: Bench, ours: dict[float, list[Point]], others: dict[str, list[tuple[float, float]]]) -> None:
    """Test errors against sizes: all our files, a line through the means, and those of others."""
    figure = Figure(figsize=(7.2, 5), layout="constrained")
    axes = figure.subplots()
    means = [
        (statistics.fmean(p.bytes for p in found), statistics.fmean(p.test for p in found)) for found in ours.values()
    ]
    axes.plot(*zip(*means, strict=True), "o-", ms=4, lw=1, color="C0", label="smallest: mean of the seeds")
    files = [(point.bytes, point.test) for found in ours.values() for point in found]
    axes.plot(*zip(*files, strict=True), "o", ms=2, color="C0", alpha=0.5)
    for number, (who, found) in enumerate(others.items()):
        axes.plot(*zip(*found, strict=True), "s^Dv*XpPh<>"[number] + "-", ms=6, lw=1, color=f"C{number + 1}", label=who)
    kilobytes(axes, (1, 1.5, 2, 3, 5, 7))
    axes.set_ylabel("test error, %")
    axes.set_title(bench.subject.name)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    save(figure, bench.options.drawings / f"smallest-{bench.subject.name}.svg")


def _at(points: Sequence[Point], price: float) -> Point:
    return next(point for point in points if point.price == price)


def _cells(points: Sequence[Point]) -> list[str]:
    return [
        spread([point.bytes for point in points], ",.0f"),
        f"{spread([point.ratio for point in points], '.0f')} ×",
        spread([point.held for point in points], ".2f"),
        spread([point.test for point in points], ".2f"),
    ]


def main() -> int:
    """Train and measure."""
    parser = argparse.ArgumentParser(description="The smallest files.")
    parser.add_argument("what", nargs="*", help=f"{', '.join((*SECTIONS, *SUBJECTS))} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the training images (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, help="of each training, for a quick look (default: as the recipe has them)"
    )
    parser.add_argument("--images", type=int, default=10000, help="that ResNet-20 trains on (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are kept, and found again")
    parser.add_argument("--drawings", type=Path, default=DRAWINGS, help="where they go (default: docs/figures)")
    options = parser.parse_args()
    if unknown := set(options.what) - {*SECTIONS, *SUBJECTS}:
        parser.error(f"{min(unknown)}: {', '.join((*SECTIONS, *SUBJECTS))} expected")
    torch.set_num_threads(1)
    machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in [name for name in options.what if name in SUBJECTS] or SUBJECTS:
            bench = Bench(SUBJECTS[name], folder, options)
            asked = [section for section in options.what if section in SECTIONS] or [*SECTIONS]
            for section in asked if bench.subject.published else {*asked} & {"curve"}:
                SECTIONS[section](bench)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
