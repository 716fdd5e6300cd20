"""Post-training quantisation beside the tables of Nagel et al. 2021: `benchmarks/ptq.py [SECTION …] [NETWORK …]`.

Sections are `weights` (their Table 1), `activations` (2), `equalization` (3 and 4), `rounding` (5) and `recipe` (6).
Figures are of the whole test set, which nothing is chosen on. Where calibration data is used, they
are means of three draws of it (`--seeds`), with the least and the greatest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from draws import Draws, Figures, asked, cell, step
from nagel import TABLES
from subjects import SUBJECTS
from timing import check, finish, heading, machine, show, table

from deepcomp.recipe import Recipe
from deepcomp.steps import Step
from deepcomp.weights.ranges import RANGES

BITS = (8, 6, 4)

Ways = dict[str, Callable[[int], list[Step]]]


class Bench(Draws):
    """One network, and ways against bits."""

    def grid(self, title: str, ways: Ways, seeds: Sequence[int] = (0,)) -> dict[str, list[Figures]]:
        """Print ways against bits."""
        found = {name: [self.of(steps(bits), seeds) for bits in BITS] for name, steps in ways.items()}
        table([title, *(f"{bits} bits" for bits in BITS)], [[name, *map(cell, row)] for name, row in found.items()])
        return found


def weights(bench: Bench) -> None:
    """Ranges of weights; activations in fp32."""

    def way(range: str, per: str) -> Callable[[int], list[Step]]:
        return lambda bits: [step("fold-bn"), step("quantize", bits=bits, per=per, range=range)]

    ways = {f"{range}, {per}": way(range, per) for per in ("tensor", "channel") for range in RANGES}
    found = bench.grid("range of weights", ways)
    for per in ("tensor", "channel"):
        gain = bench.gain(found[f"mse, {per}"][-1], found[f"min-max, {per}"][-1])
        check(f"W4, {per}: mse better than min-max by", gain, 0, at_most=False)


def activations(bench: Bench) -> None:
    """Ranges of activations; weights in fp32."""

    def way(**settings: object) -> Callable[[int], list[Step]]:
        return lambda bits: [step("fold-bn"), step("quantize-activations", bits=bits, **settings)]

    bench.grid("range of activations", {range: way(range=range, logits=range) for range in RANGES}, bench.seeds)
    bench.grid("", {"mse, cross-entropy of logits": way(range="mse", logits="cross-entropy")}, bench.seeds)
    without = {f"dynamic, per {per}": way(dynamic=per) for per in ("tensor", "token")}
    if bench.images:
        without["batch norm, 6σ"] = way(range="batch-norm")
    bench.grid("without data", without)


def equalization(bench: Bench) -> None:
    """What rescues a depthwise network whose weights share one scale."""
    if not bench.images:
        return
    fold, equalize, absorb = step("fold-bn"), step("equalize"), step("absorb-bias")
    analytic, empirical = step("correct-bias", by="statistics"), step("correct-bias", by="data")
    before: dict[str, list[Step]] = {
        "original": [fold],
        "equalised": [fold, equalize],
        "equalised, absorbed": [fold, equalize, absorb],
    }
    ways: dict[str, tuple[list[Step], str, list[Step]]] = {}
    for name, steps in before.items():
        ways[name] = steps, "tensor", []
        ways[f"{name}, bias correction"] = steps, "tensor", [analytic]
    ways["equalised, bias correction by data"] = before["equalised"], "tensor", [empirical]
    ways["original, per channel"] = before["original"], "channel", []
    rows: list[list[str]] = []
    found: dict[tuple[str, int], Figures] = {}
    for name, (steps, per, more) in ways.items():
        cells = []
        for bits in BITS:
            chain = [*steps, step("quantize", bits=bits, per=per, range="min-max"), *more]
            found[name, bits] = bench.of([*chain, step("quantize-activations", bits=8)], bench.seeds)
            cells.append(cell(found[name, bits]))
        rows.append([name, cell(bench.of(steps)), *cells])
    table(["per tensor but where it says otherwise", "fp32", *(f"W{bits}A8" for bits in BITS)], rows)
    for bits in BITS:
        gain = bench.gain(found["equalised, absorbed, bias correction", bits], found["original", bits])
        show(f"W{bits}A8: equalised, absorbed, corrected gains", f"{gain:.2f} points over the original")


def rounding(bench: Bench) -> None:
    """Rounding of 4-bit weights; activations in fp32."""
    rows, found = [], {}
    for per in ("tensor", "channel"):
        grid = step("quantize", bits=4, per=per, range="mse")
        ways = {
            "nearest": [],
            "nearest, bias correction by data": [step("correct-bias", by="data")],
            "AdaRound": [step("adaround")],
        }
        for name, more in ways.items():
            found[per, name] = bench.of([step("fold-bn"), grid, *more], bench.seeds if more else (0,))
            rows.append([f"{name}, {per}", cell(found[per, name])])
    table(["W4", "all layers"], rows)
    for per in ("tensor", "channel"):
        gain = bench.gain(found[per, "AdaRound"], found[per, "nearest"])
        check(f"W4, {per}: AdaRound better than nearest by", gain, 0, at_most=False)


def recipe(bench: Bench) -> None:
    """The recipe `ptq`, with data and without."""
    rows = []
    for calibrated in (True, False) if bench.images else (True,):
        cells = {}
        for per in ("tensor", "channel"):
            for bits in (8, 4):
                steps = Recipe.load("ptq", {"quantize.per": per, "quantize.bits": bits}, calibrated).steps
                cells[per, bits] = bench.of(steps, bench.seeds if calibrated else (0,))
        rows.append(["with data" if calibrated else "without", f"{bench.float:.2f}", *map(cell, cells.values())])
        if calibrated and bench.images:
            check("W8A8 per channel, points lost", -bench.gain(cells["channel", 8], [bench.float]), 0.5)
            check("W4A8 per channel, points lost", -bench.gain(cells["channel", 4], [bench.float]), 1.5)
    table(["ptq", "fp32", "tensor, W8A8", "tensor, W4A8", "channel, W8A8", "channel, W4A8"], rows)


SECTIONS = {
    "weights": weights,
    "activations": activations,
    "equalization": equalization,
    "rounding": rounding,
    "recipe": recipe,
}


def main() -> int:
    """Measure sections of networks."""
    sections, subjects, options = asked("Post-training quantisation beside Nagel et al. 2021.", SECTIONS, SUBJECTS)
    torch.set_num_threads(1)
    machine()
    for subject in subjects:
        bench = Bench(subject, options.items, options.seeds)
        for name in sections:
            heading(f"{subject.title}, fp32 {bench.float:.2f} {'%' if bench.images else 'perplexity'}: {name}")
            SECTIONS[name](bench)
            print()
            table(*TABLES[name])
    return finish()


if __name__ == "__main__":
    sys.exit(main())
