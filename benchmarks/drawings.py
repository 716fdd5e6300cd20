"""Where drawings go, and how they are saved: the same drawing, the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

__all__ = ["DRAWINGS", "STYLE", "kilobytes", "save"]

DRAWINGS = Path(__file__).parents[1] / "docs" / "figures"
STYLE = {"svg.hashsalt": "deepcomp", "svg.fonttype": "path"}


def kilobytes(axes: Axes, ticks: Sequence[float]) -> None:
    """Bytes of files along x, on a logarithmic scale, with these ticks in each power of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1000:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("file, kB")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})
