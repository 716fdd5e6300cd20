"""Quantisation-aware training beside the tables of Nagel et al. 2021: `benchmarks/qat.py [SECTION …] [NETWORK …]`.

Sections are `norms` (their Table 7), `starts` (8), `equalization` (9), `bits` (10), and `files`: what is trained, as
files in every runtime. What is trained is compared
with the network in fp32, trained as long on the same images: training alone may lift it. Figures are of the whole test
set, which nothing is chosen on; epochs are chosen on training images held out. With several seeds of the order of
training and of calibration (`--seeds`) they are means, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from draws import cell, step
from nagel import TRAINED
from subjects import SUBJECTS, Subject, decoded, score, through
from timing import check, finish, heading, machine, show, table

import deepcomp
from deepcomp.container import Writer
from deepcomp.loader import RUNTIMES
from deepcomp.model.data import Data, batches
from deepcomp.model.evaluate import evaluate
from deepcomp.serializer import write
from deepcomp.steps import Step

NETWORKS = ("resnet20", "mobilenet")
# Of weights, of activations, and of the first and the last layer, the inputs and the outputs (0: as the others)
BITS = {"W8A8": (8, 8, 0), "W4A8": (4, 8, 0), "W4A4-ends8": (4, 4, 8), "W4A4": (4, 4, 0), "W2A8": (2, 8, 0)}
BOUNDS = {"W4A8": 0.3, "W4A4-ends8": 1.5}  # points below fp32, of ResNet-20 with a scale a channel
PER = ("tensor", "channel")
Found = list[float]


class Bench:
    """One network, its images, and how it is trained."""

    def __init__(self, subject: Subject, options: argparse.Namespace) -> None:
        self.subject, self.options = subject, options
        data = subject.load(options.items)
        train = decoded(data.train, options.images) if options.images else data.train
        self.data = Data(train, data.test, data.metric)
        self._found: dict[str, Found] = {}

    def of(self, steps: Sequence[Step]) -> Found:
        """Accuracy after some steps, for each seed; measured once, though several sections ask for it."""
        key = repr(steps)
        if key not in self._found:
            seeds = range(self.options.seeds)
            self._found[key] = [score(through(self.subject, self.data, steps, seed), self.data) for seed in seeds]
            print(f"{self.subject.model} {key}: {self._found[key]}", file=sys.stderr, flush=True)
        return self._found[key]

    def train(self) -> Step:
        chosen = self.options
        return step("finetune", epochs=chosen.epochs, rate=chosen.rate, optimiser=chosen.optimiser, augment="flip-crop")

    @cached_property
    def float(self) -> Found:
        """The network in fp32, trained as all others are."""
        return self.of([self.train()])

    def both(self, steps: Sequence[Step], behind: Sequence[Step] = ()) -> tuple[Found, Found]:
        """Without training and with it."""
        return self.of([*steps, *behind]), self.of([*steps, self.train(), *behind])

    def gap(self, found: Found) -> float:
        """Points below the network in fp32."""
        return statistics.fmean(self.float) - statistics.fmean(found)


def grids(widths: str, per: str, range: str = "mse", of_activations: str = "mse") -> list[Step]:
    """Weights and activations on grids; of as many bits as `BITS` has under that name."""
    weights, activations, ends = BITS[widths]
    return [
        step("quantize", bits=weights, ends=ends, per=per, range=range),
        step("quantize-activations", bits=activations, ends=ends, range=of_activations),
    ]


def recipe(widths: str, per: str) -> tuple[list[Step], list[Step]]:
    """Steps before training and behind it: batch norms become part of the scales where each channel has its own."""
    fold, steps = step("fold-bn"), grids(widths, per)
    return (steps, [fold]) if per == "channel" else ([fold, step("equalize"), *steps], [])


def norms(bench: Bench) -> None:
    """What becomes of batch norms."""
    rows = []
    for widths in ("W4A8", "W4A4"):
        ways = {
            "folded, per tensor": bench.both(*recipe(widths, "tensor")),
            "folded, per channel": bench.both([step("fold-bn"), *grids(widths, "channel")]),
            "kept, merged behind, per channel": bench.both(*recipe(widths, "channel")),
        }
        rows += [[f"{widths}, {name}", *map(cell, found)] for name, found in ways.items()]
    table(["batch norms", "before", "trained"], rows)


def starts(bench: Bench) -> None:
    """Where ranges start."""
    rows = []
    fold, equalize = step("fold-bn"), step("equalize")
    for range in ("min-max", "mse", "lsq"):
        found = bench.both([fold, equalize, *grids("W4A8", "tensor", range)])
        rows.append([f"W4A8, weights {range}", *map(cell, found)])
    for range in ("min-max", "mse", "lsq"):
        found = bench.both([fold, equalize, *grids("W4A4", "tensor", "mse", range)])
        rows.append([f"W4A4, activations {range}", *map(cell, found)])
    table(["start, per tensor", "before", "trained"], rows)


def equalization(bench: Bench) -> None:
    """Whether equalisation and bias correction come first, with one scale a layer."""
    rows = []
    fold, equalize, correct = step("fold-bn"), step("equalize"), step("correct-bias", by="data")
    weights, activations = grids("W4A8", "tensor")
    ways: dict[str, list[Step]] = {
        "as trained": [fold, weights, activations],
        "equalised": [fold, equalize, weights, activations],
        "equalised, bias correction": [fold, equalize, weights, correct, activations],
    }
    for name, steps in ways.items():
        found = bench.both(steps)
        rows.append([name, *map(cell, found)])
    table(["W4A8, per tensor", "before", "trained"], rows)


def bits(bench: Bench) -> None:
    """The recipe: bits against granularity."""
    rows = []
    for per in bench.options.per:
        for widths in bench.options.bits:
            before, trained = bench.both(*recipe(widths, per))
            name = f"{widths}, per {per}"
            rows.append([name, cell(before), cell(trained), f"{bench.gap(trained):+.2f}"])
            gained = statistics.fmean(trained) - statistics.fmean(before)
            check(f"{name}: points gained by training", gained, 0, at_most=False)
            if per == "channel" and widths in BOUNDS and bench.subject.model == "resnet20":
                check(f"{name}: points below fp32", bench.gap(trained), BOUNDS[widths])
    table(["", "before", "trained", "below fp32"], rows)


def files(bench: Bench) -> None:
    """Batch norms that trained along, in a file of their own and merged into the scales, in every runtime."""
    test, rows, outputs = bench.data, [], []
    net = through(bench.subject, test, [*grids("W4A8", "channel"), bench.train()])
    inputs = next(iter(batches(test.test, 256)))[0]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("kept", "merged"):
            path = Path(folder) / f"{name}.dcz"
            with Writer(path) as writer:
                for _ in write(net, writer, {}):
                    pass
            modules: dict[str, Any] = {runtime: deepcomp.load(path, runtime=runtime) for runtime in RUNTIMES}
            found = [f"{evaluate(module, test).value:.2f}" for module in modules.values()]
            rows.append([f"batch norms {name}", f"{path.stat().st_size:,}", *found])
            with torch.inference_mode():
                outputs.append(modules["float"](inputs))
            step("fold-bn").run(net)
    table(["W4A8, per channel, trained", "bytes", *RUNTIMES], rows)
    apart = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    check("largest difference between both, of the largest output", apart, 1e-4)


SECTIONS = {"norms": norms, "starts": starts, "equalization": equalization, "bits": bits, "files": files}


def main() -> int:
    """Train networks in all ways of some sections."""
    parser = argparse.ArgumentParser(description="Quantisation-aware training beside Nagel et al. 2021.")
    parser.add_argument("what", nargs="*", metavar="SECTION or NETWORK", help="of " + ", ".join([*SECTIONS, *NETWORKS]))
    parser.add_argument("--per", nargs="+", choices=PER, default=PER, help="what shares a scale, in `bits`")
    parser.add_argument("--bits", nargs="+", choices=[*BITS], default=[*BITS], help="of weights and activations")
    parser.add_argument("--items", type=int, default=0, help="test images, the first ones (default: all)")
    parser.add_argument("--images", type=int, default=0, help="training images, the first ones (default: all)")
    parser.add_argument("--epochs", type=int, default=2, help="of training (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.001, help="learning rate (default: %(default)s)")
    parser.add_argument("--optimiser", default="adam", help="sgd, adam or adamw (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each way (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.what) - {*SECTIONS, *NETWORKS}:
        parser.error(f"{min(unknown)}: one of {', '.join([*SECTIONS, *NETWORKS])} expected")
    torch.set_num_threads(1)
    machine()
    sections = [name for name in SECTIONS if name in options.what] or list(SECTIONS)
    for name in [name for name in NETWORKS if name in options.what] or NETWORKS:
        bench = Bench(SUBJECTS[name], options)
        heading(f"{bench.subject.title}, {options.epochs} epochs of {options.optimiser}, rate {options.rate}")
        show("fp32, as it was", cell(bench.of([])[:1]))
        if {*sections} != {"files"}:
            show("fp32, trained as long on the same images", cell(bench.float))
        for section in sections:
            heading(f"{bench.subject.title}: {section}")
            SECTIONS[section](bench)
            print()
            if section in TRAINED:
                table(*TRAINED[section])
    return finish()


if __name__ == "__main__":
    sys.exit(main())
