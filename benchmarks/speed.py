"""Time deepcomp beside its peers: `python benchmarks/speed.py [SECTION ...] [--full]`.

Every figure that has to keep a bound is printed beside it. All data are made here, from one seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from loading import loading
from networks import SEED, lossless, sharing, uniform
from streams import streams
from timing import finish, machine

SECTIONS = {"streams": streams, "loading": loading, "sharing": sharing, "uniform": uniform, "lossless": lossless}


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Time deepcomp beside its peers.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--full", action="store_true", help="give scikit-learn's KMeans all 10 M weights")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--scale", type=float, default=1, help="of the sizes, to try the script; bounds hold at 1")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)}: one of {', '.join(SECTIONS)} expected")
    machine()
    print(
        f"{torch.get_num_threads()} torch threads, seed {SEED}; {options.repeats} runs of each: median (least to most)"
    )
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for name in options.sections or SECTIONS:
            SECTIONS[name](options)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
