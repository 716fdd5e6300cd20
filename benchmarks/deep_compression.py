"""Beside the tables and figures of Han et al. 2016: `python benchmarks/deep_compression.py [SECTION ...]`.

Whatever a figure depends on is made here, from one seed. Every figure that has to keep a bound is printed
beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from drawings import DRAWINGS
from figures import figure_5, sensitivity, starts
from imagenet import alexnet, vgg_16
from lenets import lenet_5, lenet_300_100
from timing import finish, machine

SECTIONS = {
    "alexnet": alexnet,
    "vgg-16": vgg_16,
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "figure-5": figure_5,
    "starts": starts,
    "sensitivity": sensitivity,
}


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Deep compression beside the paper's tables and figures.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="of the LeNets (default: %(default)s)")
    parser.add_argument(
        "--folder",
        dest="kept",
        type=Path,
        help="where trained networks are kept; those found there are not trained again",
    )
    parser.add_argument("--epochs", type=int, help="of every training run, to try things out; default: as each needs")
    parser.add_argument("--drawings", type=Path, default=DRAWINGS, help="where figures go (default: docs/figures)")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)}: one of {', '.join(SECTIONS)} expected")
    torch.set_num_threads(1)
    machine()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        options.kept = options.kept or options.folder
        options.kept.mkdir(parents=True, exist_ok=True)
        for name in options.sections or SECTIONS:
            SECTIONS[name](options)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
