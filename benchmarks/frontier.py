"""Size against quality without training, beside Figure 3 of Hubara et al. 2020: `benchmarks/frontier.py [NETWORK …]`.

Every point is a whole file, activations in fp32, and the quality of what it gives back on the test set. All calibrate
on the same unlabelled training inputs. NNCodec, which needs none, runs beside them in its best settings: dependent
quantisation, without and with rate-distortion optimisation (λ).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawings import DRAWINGS, kilobytes, save
from matplotlib.figure import Figure
from peers import load_nncodec, nncodec
from subjects import SUBJECTS, Subject, score, through
from timing import check, finish, heading, machine, show, table

import deepcomp
from deepcomp.steps import STEPS

FOLD = '[[step]]\ndo = "fold-bn"\n'
HALVES = '[[step]]\ndo = "store"\ndtype = "float16"\nvectors = true\n'
UNIFORM = FOLD + HALVES + '[[step]]\ndo = "quantize"\nrange = "mse"\nbits = {}\n'
ALLOCATE = FOLD + HALVES + '[[step]]\ndo = "allocate"\nshare = {}\n'
LIGHT = ALLOCATE + '[[step]]\ndo = "tune-bn"\n'
ADAQUANT = '[[step]]\ndo = "adaquant"\n'
ADVANCED = ALLOCATE + ADAQUANT + '[[step]]\ndo = "tune-bn"\n' + '[[step]]\ndo = "tune-biases"\n'
BITS = (6, 5, 4, 3)
SHARES = (0.13, 0.1, 0.08)  # of the weights in 32 bits
PRICES = (2e-7, 5e-7, 1e-6, 1.5e-6, 2e-6)
METHODS: dict[str, tuple[str, Sequence[Any]]] = {
    "uniform": (UNIFORM, BITS),
    "allocation": (ALLOCATE, SHARES),
    "adaquant-light": (LIGHT, SHARES),
    "AdaQuant": (UNIFORM + ADAQUANT, BITS[1:]),
    "adaquant": (ADVANCED, SHARES),
    "feedback": ("feedback", PRICES),
}
DIAL = {"feedback": "quantize-feedback.price"}
NNCODEC = [(qp, rdo) for qp in (-34, -30, -26, -24, -22, -20, -18) for rdo in (0.0, 1.0)]
SHOWN = 8.0  # points or percent lost at most, in the drawing
RATIOS = {"resnet20": 0.7, "transformer": 0.75}  # of NNCodec's bytes at the same quality: what is wanted


@dataclass(frozen=True)
class Point:
    """A file: what made it, its bytes, and its accuracy in percent or perplexity."""

    setting: str
    size: int
    quality: float


class Bench:
    """One network, its data, and a folder for files."""

    def __init__(self, subject: Subject, items: int, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self.data = subject.load(items)
        self.images = self.data.metric == "accuracy"
        self.float = score(subject.network(), self.data)

    def curve(self, method: str) -> Iterator[Point]:
        """The points of one method, from mild to strong."""
        recipe, values = METHODS[method]
        for value in values:
            settings = {DIAL[method]: value} if method in DIAL else {}
            yield self.point(recipe if settings else self._written(recipe.format(value)), settings, str(value))

    def point(self, recipe: str, settings: dict[str, Any], named: str) -> Point:
        subject, out = self.subject, self.folder / "out.dcz"
        model = None if subject.path.suffix == ".dcz" else subject.model
        report = deepcomp.compress(
            subject.path, out, recipe=recipe, model=model, settings=settings, data=self.data, force=True
        )
        assert report.metric is not None
        return Point(named, report.output_bytes, report.metric["after"])

    def _written(self, recipe: str) -> str:
        path = self.folder / "recipe.toml"
        path.write_text(recipe)
        return str(path)

    def peer(self, coder: Any) -> Iterator[Point]:
        """The points of NNCodec, batch norms folded: by itself where names tell it their layers, else as we do."""
        folds = self.subject.model == "resnet20"
        net = through(self.subject, None, [] if folds else [STEPS["fold-bn"]()])
        own = {name: tensor.detach() for name, tensor in net.tensors.items() if name not in net.tied}
        own = {name: tensor.float().clone() for name, tensor in own.items() if tensor.is_floating_point()}
        for qp, rdo in NNCODEC:
            size, found = nncodec(coder, dict(own), qp=qp, nonweight_qp=-40, lambda_scale=rdo, bnf=folds)
            back = {name: torch.from_numpy(np.asarray(found[name])).reshape(own[name].shape) for name in own}
            net.tensors = {n: back.get(net.tied.get(n, n), tensor) for n, tensor in net.tensors.items()}
            yield Point(f"qp {qp}, λ {rdo:g}", size, score(net, self.data))

    def loss(self, point: Point) -> float:
        """How much worse than in fp32: points, or percent of the perplexity."""
        return self.float - point.quality if self.images else 100 * (point.quality / self.float - 1)

    def smallest(self, points: Sequence[Point], worst: float) -> Point | None:
        """The smallest file that loses no more than `worst`."""
        return min((p for p in points if self.loss(p) <= worst), key=lambda p: p.size, default=None)


def frontier(bench: Bench, methods: Sequence[str], drawing: Path, bound: float | None) -> None:
    """Print and draw the curves; how our smallest files compare with NNCodec's of the same quality."""
    curves: dict[str, list[Point]] = {}
    for method in methods:
        curves[method] = list(_told(method, bench.curve(method)))
    if (coder := load_nncodec()) is not None:
        curves["NNCodec"] = list(_told("NNCodec", bench.peer(coder)))
    size, sign = bench.subject.path.stat().st_size, "points lost" if bench.images else "% more perplexity"
    rows = [
        [name, p.setting, f"{p.size:,}", f"{size / p.size:.1f} ×", f"{p.quality:.2f}", f"{bench.loss(p):+.2f}"]
        for name, points in curves.items()
        for p in points
    ]
    table(["method", "setting", "bytes", "ratio", "accuracy, %" if bench.images else "perplexity", sign], rows)
    _draw(bench, curves, drawing)
    for worst in (0.2, 0.5, 1.0, 2.0):
        sizes = {name: bench.smallest(points, worst) for name, points in curves.items()}
        found = ", ".join(f"{name} {p.size:,}" for name, p in sizes.items() if p)
        show(f"smallest with at most {worst:g} {sign}", found)
    peer = bench.smallest(curves.get("NNCodec", []), 0.5)
    if peer is not None:
        ours = bench.smallest(curves.get("feedback", []), bench.loss(peer))
        ratio = float("inf") if ours is None else ours.size / peer.size
        show("NNCodec's smallest with at most 0.5 lost", f"{peer.size:,} bytes, {peer.quality:.2f}")
        check("feedback no worse than that, of its bytes", ratio, bound or 1.0)


def _draw(bench: Bench, curves: dict[str, list[Point]], path: Path) -> None:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for (name, points), mark in zip(curves.items(), "os^Dv*x", strict=False):
        shown = sorted((p for p in points if bench.loss(p) <= SHOWN), key=lambda p: p.size)
        axes.plot([p.size for p in shown], [p.quality for p in shown], mark + "-", ms=4, lw=1, label=name)
    axes.axhline(bench.float, color="grey", lw=0.8, ls="--", label="fp32")
    kilobytes(axes, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    axes.set_ylabel("accuracy, %" if bench.images else "perplexity")
    axes.set_title(f"{bench.subject.title}, without training")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)


def _told(method: str, points: Iterator[Point]) -> Iterator[Point]:
    for point in points:
        print(f"{method}: {point}", file=sys.stderr, flush=True)
        yield point


def main() -> int:
    """Measure networks."""
    parser = argparse.ArgumentParser(description="Size against quality without training.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="of " + ", ".join(SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside NNCodec")
    parser.add_argument("--items", type=int, default=0, help="test items, the first ones (default: all)")
    parser.add_argument("--drawings", type=Path, default=DRAWINGS)
    options = parser.parse_args()
    if unknown := set(options.networks) - {*SUBJECTS}:
        parser.error(f"{min(unknown)}: one of {', '.join(SUBJECTS)} expected")
    torch.set_num_threads(1)
    machine()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks or ("resnet20", "mobilenet", "transformer"):
            bench = Bench(SUBJECTS[name], options.items, Path(folder))
            heading(f"{bench.subject.title}, fp32 {bench.float:.2f} {'%' if bench.images else 'perplexity'}")
            frontier(bench, options.methods, options.drawings / f"frontier-{name}.svg", RATIOS.get(name))
    return finish()


if __name__ == "__main__":
    sys.exit(main())
