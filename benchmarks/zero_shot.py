"""Synthetic inputs beside real ones to calibrate on: `benchmarks/zero_shot.py [NETWORK …]`.

Weights and activations go through what the recipe `zero-shot` does behind its first step, on 512 real images, on
distilled inputs (Cai et al. 2020, ZeroQ), on images of a generator (Xu et al. 2020, GDFQ), and on Gaussian noise.
Figures are of the whole test set, which nothing is chosen on, and means over draws of real images or of noise, with the
least and the greatest.
"""

from __future__ import annotations

import argparse
import sys

import torch
from draws import Draws, Figures, cell, step
from subjects import SUBJECTS, score, through
from timing import check, finish, heading, machine, table

from deepcomp.model.data import Data
from deepcomp.recipe import Recipe

NETWORKS = ("resnet20", "mobilenet")
BITS = ((8, 8), (4, 8))  # of weights and activations
SAMPLES = 512
WITHIN = 1.0  # points that W8A8 on distilled inputs is to lose at most beside real ones
WAYS: dict[str, dict[str, object] | None] = {
    "real images": None,
    "distilled inputs": {"by": "inputs"},
    "generator": {"by": "generator"},
    "Gaussian noise": {"iterations": 0},
}


def compare(draws: Draws, samples: int, **effort: object) -> None:
    """Ways to come by inputs, against bits."""
    found = {name: _figures(draws, None if way is None else effort | way, samples) for name, way in WAYS.items()}
    rows = [[name, *map(cell, figures)] for name, figures in found.items()]
    table([f"{samples} calibration inputs", *(f"W{weights}A{inputs}" for weights, inputs in BITS)], rows)
    print(f"fp32: {draws.float:.2f}")
    real, distilled, *_ = (figures[0] for figures in found.values())
    check("W8A8: distilled inputs lost beside real images", -draws.gain(distilled, real), WITHIN)


def _figures(draws: Draws, way: dict[str, object] | None, samples: int) -> list[Figures]:
    """Figures by bits, each for every draw; inputs are made once for all bits."""
    found: list[Figures] = [[] for _ in BITS]
    for seed in draws.seeds:
        data = draws.data if way is None else _made(draws, way, samples, seed)
        for figures, (weights, inputs) in zip(found, BITS, strict=True):
            settings = {"quantize.bits": weights, "quantize-activations.bits": inputs}
            counts = {"adaround.samples": samples, "quantize-activations.samples": samples}
            _, *steps = Recipe.load("zero-shot", settings | counts).steps
            figures.append(score(through(draws.subject, data, steps, seed), draws.data))
    return found


def _made(draws: Draws, way: dict[str, object], samples: int, seed: int) -> Data:
    """Synthetic inputs for a network."""
    data = through(draws.subject, None, [step("synthesise", samples=samples, **way)], seed).data
    assert data is not None
    return data


def main() -> int:
    """Measure networks."""
    parser = argparse.ArgumentParser(description="Zero-shot calibration beside real images.")
    parser.add_argument("what", nargs="*", metavar="NETWORK", help="of " + ", ".join(NETWORKS))
    parser.add_argument("--items", type=int, default=0, help="test items, the first ones (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration data (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration inputs (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="of synthesis (default: the step's)")
    parser.add_argument("--device", default="cpu", help="of synthesis (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.what) - {*NETWORKS}:
        parser.error(f"{min(unknown)}: one of {', '.join(NETWORKS)} expected")
    torch.set_num_threads(1)
    machine()
    for name in options.what or NETWORKS:
        draws = Draws(SUBJECTS[name], options.items, options.seeds)
        heading(f"{draws.subject.title}, fp32 {draws.float:.2f} %")
        compare(draws, options.samples, iterations=options.iterations, device=options.device)
        print()
    return finish()


if __name__ == "__main__":
    sys.exit(main())
