"""AdaQuant beside Hubara et al. 2020: `benchmarks/adaquant.py [SECTION …] [NETWORK …]`.

Weights and activations at 4 bits; those of the first and the last layers at 8, as the network's input and outputs.
Sections are `ways` (their Table 1: layers tuned side by side, one after the other, and what comes behind), `samples`
(their Figure 1: how much calibration data it takes) and `parts` (their Figure 2b: what of a layer is tuned). Figures
are of the whole test set, which nothing is chosen on, and means over draws of calibration data, with the least and the
greatest.
"""

from __future__ import annotations

import sys

import torch
from draws import Draws, asked, cell, step
from timing import check, finish, heading, machine, table

from deepcomp.steps import Step

BITS, ENDS = 4, 8
SAMPLES = (32, 128, 512, 2048)
RATES = ("weights", "ranges", "inputs", "biases")
PARTS = (RATES[:1], RATES[1:2], RATES[2:3], RATES[3:], ("weights", "biases"), RATES[1:], RATES)
WITHIN = 2.0  # points or percent of fp32 that the whole of the advanced recipe is to lose at most


def calibrated(samples: int = 512) -> list[Step]:
    """Grids that make the errors of weights and activations small, each by itself."""
    return [
        step("fold-bn"),
        step("quantize", bits=BITS, ends=ENDS, range="mse"),
        step("quantize-activations", bits=BITS, ends=ENDS, samples=samples),
    ]


def ways(draws: Draws) -> None:
    """Calibrated alone, tuned, and tuned with the steps of the recipe that come behind."""
    tuned, statistics, biases = step("adaquant"), step("tune-bn"), step("tune-biases")
    chains = {
        "calibrated": [],
        "AdaQuant, parallel": [step("adaquant", sequential=False)],
        "AdaQuant, sequential": [tuned],
        "the same, then tune-bn": [tuned, statistics],
        "the same, then tune-biases": [tuned, statistics, biases],
    }
    found = {name: draws.of([*calibrated(), *more], draws.seeds) for name, more in chains.items()}
    rows = [[name, cell(figures), f"{draws.gain(figures, [draws.float]):+.2f}"] for name, figures in found.items()]
    table([f"W{BITS}A{BITS}, ends W{ENDS}A{ENDS}", draws.measure, "beside fp32"], rows)
    first, parallel, sequential, *_, last = found
    for better, than in ((parallel, first), (sequential, parallel)):
        check(f"{better}: better than {than} by", draws.gain(found[better], found[than]), 0, at_most=False)
    check("the whole advanced recipe: lost", -draws.gain(found[last], [draws.float]), WITHIN)


def samples(draws: Draws) -> None:
    """How much calibration data it takes, of which an eighth judges and teaches nothing."""
    rows = []
    for count in SAMPLES:
        chains = [[step("adaquant", samples=count, sequential=way)] for way in (False, True)]
        found = [draws.of([*calibrated(count), *more], draws.seeds) for more in ([], *chains)]
        rows.append([f"{count:,}", *map(cell, found)])
    table(["inputs", "calibrated", "parallel", "sequential"], rows)


def parts(draws: Draws) -> None:
    """What of a layer is tuned: its weights, their ranges, the range of its input, its bias."""
    rows = [["nothing", cell(draws.of(calibrated(), draws.seeds))]]
    for chosen in PARTS:
        left = dict.fromkeys({*RATES} - {*chosen}, 0.0)
        rows.append([", ".join(chosen), cell(draws.of([*calibrated(), step("adaquant", **left)], draws.seeds))])
    table(["tuned", draws.measure], rows)


SECTIONS = {"ways": ways, "samples": samples, "parts": parts}


def main() -> int:
    """Measure sections of networks."""
    sections, subjects, options = asked("AdaQuant beside Hubara et al. 2020.", SECTIONS, ["resnet20"])
    torch.set_num_threads(1)
    machine()
    for subject in subjects:
        draws = Draws(subject, options.items, options.seeds)
        heading(f"{subject.title}, fp32 {draws.float:.2f} {'%' if draws.images else 'perplexity'}")
        for section in sections:
            SECTIONS[section](draws)
            print()
    return finish()


if __name__ == "__main__":
    sys.exit(main())
