"""Beside the tables of Han et al. 2016: `python benchmarks/deep_compression.py [SECTION ...]`.

Whatever a figure depends on is made here, from one seed. Every figure that has to keep a bound is printed
beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from imagenet import alexnet, vgg_16
from timing import finish, machine

SECTIONS = {"alexnet": alexnet, "vgg-16": vgg_16}


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Deep compression beside the paper's tables.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)}: one of {', '.join(SECTIONS)} expected")
    torch.set_num_threads(1)
    machine()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for name in options.sections or SECTIONS:
            SECTIONS[name](options)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
