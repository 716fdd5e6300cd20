"""Outlier channel splitting beside clipping, as Zhao et al. 2019 compare them: `benchmarks/ocs.py [NETWORK …]`.

Weights share one scale a layer, or a channel (`--per`). For each bit-width: ways to clip; splits without clipping; the
same splits with the way to clip that does best on them; and splits into plain halves. Best means best on
the test items, as in the paper. With `--activations 8` activations are quantised too, on grids that the network
in fp32 has set, and figures are means over draws of calibration data.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from draws import Figures, cell, gain, step
from subjects import SUBJECTS, Subject, score, through
from timing import check, finish, heading, machine, show, table

import deepcomp
from deepcomp.network import Network

BITS = (8, 7, 6, 5, 4, 3)
RATIOS = (0.01, 0.02, 0.05)
WHOLE, *CLIPS = "min-max", "mse", "aciq", "kl", "percentile"


class Bench:
    """One network, its data, and what has been measured of it."""

    def __init__(self, subject: Subject, options: argparse.Namespace) -> None:
        self.subject, self.options = subject, options
        self.data = subject.load(options.items)
        self.images = self.data.metric == "accuracy"
        self.seeds = range(options.seeds if options.activations else 1)
        self.prepared = cache(self._prepared)
        self.cell = cache(self._cell)
        self.float = score(self.prepared(0.0, "aware", 0, False), self.data)

    def _prepared(self, ratio: float, split: str, seed: int, quantised: bool) -> Network:
        """The network with its channels split and its activations quantised, its weights not yet."""
        steps = [step("fold-bn"), step("split-channels", ratio=ratio, split=split)]
        if quantised:
            steps.append(step("quantize-activations", bits=self.options.activations))
        return through(self.subject, self.data, steps, seed)

    def _cell(self, bits: int, clip: str, ratio: float = 0.0, split: str = "aware") -> Figures:
        """Accuracy or perplexity, for each draw of calibration data."""
        found = []
        for seed in self.seeds:
            ready = self.prepared(ratio, split, seed, bool(self.options.activations))
            net = replace(ready, forms={}, offsets=dict(ready.offsets))
            step("quantize", bits=bits, per=self.options.per, range=clip).run(net)
            found.append(score(net, self.data))
        print(f"{bits} bits, {clip}, ratio {ratio}, {split}: {cell(found)}", file=sys.stderr, flush=True)
        return found

    def gain(self, found: Figures, than: Figures) -> float:
        """How much better one figure is than another on average: points, or percent of the perplexity."""
        return gain(found, than, self.images)

    def best(self, *found: Figures) -> Figures:
        return max(found, key=lambda figures: self.gain(figures, found[0]))

    def clipped(self, bits: int, ratio: float) -> Figures:
        """The figures of the way to clip with which weights split at a ratio do best."""
        return self.best(*(self.cell(bits, clip, ratio) for clip in CLIPS))

    def column(self, bits: int) -> dict[str, Figures]:
        """The figures of one bit-width, by what is done."""
        found = {"no clip": self.cell(bits, WHOLE)} | {f"clip: {name}": self.cell(bits, name) for name in CLIPS}
        found |= {f"OCS {ratio}": self.cell(bits, WHOLE, ratio) for ratio in RATIOS}
        found |= {f"OCS {ratio} + best clip": self.clipped(bits, ratio) for ratio in RATIOS}
        return found | {f"OCS {ratio}, plain halves": self.cell(bits, WHOLE, ratio, "half") for ratio in RATIOS}


def grid(bench: Bench) -> dict[str, float]:
    """Print the grid; how far each of the paper's findings holds, in points or percent of the perplexity."""
    columns = {bits: bench.column(bits) for bits in bench.options.bits}
    names = list(next(iter(columns.values())))
    rows = [[name, *(cell(columns[bits][name]) for bits in columns)] for name in names]
    table(["weights", *(f"{bits} bits" for bits in columns)], rows)

    def best(bits: int, what: str) -> Figures:
        return bench.best(*(found for name, found in columns[bits].items() if name in _KINDS[what]))

    found = {}
    for bits in {5, 6} & {*columns}:
        found[f"OCS over best clip, {bits} bits"] = bench.gain(best(bits, "split"), best(bits, "clip"))
    if 4 in columns:
        found["OCS + clip over best clip, 4 bits"] = bench.gain(best(4, "both"), best(4, "clip"))
    aware = [(bits, ratio) for bits in columns for ratio in RATIOS]
    gains = [bench.gain(columns[b][f"OCS {r}"], columns[b][f"OCS {r}, plain halves"]) for b, r in aware]
    found["aware over plain halves, mean"] = statistics.fmean(gains)
    for name, value in found.items():
        show(name, f"{value:+.2f} {'points' if bench.images else '% of the perplexity'}")
    return found


_KINDS = {
    "clip": ["no clip", *(f"clip: {name}" for name in CLIPS)],
    "split": [f"OCS {ratio}" for ratio in RATIOS],
    "both": [f"OCS {ratio} + best clip" for ratio in RATIOS],
}


def sizes(subject: Subject, bits: int = 5) -> None:
    """What splits cost in files, beside what ceil(ratio·C) more of C input channels make."""
    model = None if subject.path.suffix == ".dcz" else subject.model
    rows, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for ratio in (0.0, *RATIOS):
            settings = {"split-channels.ratio": ratio, "quantize.bits": bits}
            out = Path(folder) / f"{ratio}.dcz"
            report = deepcomp.compress(subject.path, out, recipe="ocs", model=model, settings=settings)
            files[ratio] = report.output_bytes, {row["name"]: row["shape"] for row in report.tensors}, report.steps[1]
    (whole, shapes, _) = files[0.0]
    for ratio, (size, found, said) in files.items():
        expected = {name: widened(name, shape, ratio, name in said["split"]) for name, shape in shapes.items()}
        before, after = (sum(math.prod(one[name]) for name in shapes) for one in (shapes, found))
        wrong = [name for name in shapes if expected[name] != list(found[name])]
        check(f"ratio {ratio}: tensors of another shape than predicted", len(wrong), 0)
        rows.append([f"{ratio}", f"{after:,}", f"{after / before - 1:+.2%}", f"{size:,}", f"{size / whole - 1:+.2%}"])
    table(["ratio", "numbers", "more", f"bytes, {bits} bits", "more"], rows)


def widened(name: str, shape: Sequence[int], ratio: float, split: bool) -> list[int]:
    """The shape of a tensor after splits of the inputs it reads, and of the units of an LSTM."""
    sizes = list(shape)
    if name.startswith("lstm."):
        sizes[0] += 4 * more(ratio, sizes[0] // 4)
    if split:
        sizes[1] += more(ratio, sizes[1])
    return sizes


def more(ratio: float, channels: int) -> int:
    return math.ceil(round(ratio * 100) * channels / 100)


def main() -> int:
    """Measure networks."""
    parser = argparse.ArgumentParser(description="Outlier channel splitting beside clipping.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="of " + ", ".join(SUBJECTS))
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="of weights (default: 8 to 3)")
    parser.add_argument("--per", default="tensor", help="what shares a scale (default: %(default)s)")
    parser.add_argument("--activations", type=int, default=0, help="their bits (default: left as they are)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration data (default: %(default)s)")
    parser.add_argument("--items", type=int, default=0, help="test items, the first ones (default: all)")
    options = parser.parse_args()
    if unknown := set(options.networks) - {*SUBJECTS}:
        parser.error(f"{min(unknown)}: one of {', '.join(SUBJECTS)} expected")
    torch.set_num_threads(1)
    machine()
    found = {}
    for name in options.networks or SUBJECTS:
        subject = SUBJECTS[name]
        bench = Bench(subject, options)
        heading(f"{subject.title}, fp32 {bench.float:.2f} {'%' if bench.images else 'perplexity'}")
        found[subject.title] = grid(bench)
        print()
        sizes(subject)
    heading("Findings of the paper")
    for finding in dict.fromkeys(name for gains in found.values() for name in gains):
        gains = {title: row[finding] for title, row in found.items()}
        show(finding, ", ".join(f"{title} {gain:+.2f}" for title, gain in gains.items()))
        holds = sum(gain >= 0 for gain in gains.values())
        check(f"{finding}: networks where it holds", holds, math.ceil(2 * len(found) / 3), at_most=False)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
