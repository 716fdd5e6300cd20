"""Drawings, as SVG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from deepcomp.container.writer import place
from deepcomp.errors import UsageError

__all__ = ["curve", "save_sensitivity"]


def curve(title: str, points: list[dict[str, Any]]) -> bytes:
    """Quality against size, one mark a run that has one; size alone where nothing was measured."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    quality = "quality" if points and "quality" in points[0] else "ratio"
    drawn = [point for point in points if point[quality] is not None and math.isfinite(point[quality])]
    axes.plot([point["bytes"] for point in drawn], [point[quality] for point in drawn], "o-", color="#4269d0")
    for point in drawn:
        axes.annotate(
            f"{point['value']}" if point["setting"] else "",
            (point["bytes"], point[quality]),
            textcoords="offset points",
            xytext=(4, -12),
            fontsize=8,
        )
    axes.set_xlabel("bytes of the file")
    axes.set_ylabel(points[0].get("metric", "ratio") if points else "")
    axes.set_title(f"{title}: {points[0]['setting']}" if points and points[0]["setting"] else title)
    axes.grid(alpha=0.3)
    return _svg(figure)


def save_sensitivity(
    path: str | os.PathLike[str],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    chosen: Mapping[str, float],
    quality: str = "quality",
) -> None:
    """Quality against the density of one layer pruned alone, a line a layer, a ring at what was chosen.

    Parameters
    ----------
    path : path-like
        An SVG file, replaced where it exists.
    curves : mapping of str to sequence of (density, quality)
    chosen : mapping of str to float
        Densities, each one of its curve's.
    quality : str
        What is measured, for the axis.

    Raises
    ------
    UsageError
        If the path does not end in `.svg`: what it names may be no drawing.
    """
    if not os.fspath(path).endswith(".svg"):
        raise UsageError(f"{os.fspath(path)}: the drawing is SVG, a name that ends in .svg expected")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        found = dict(points)
        (line,) = axes.plot(list(found), list(found.values()), ".-", lw=1, label=f"{name}: {chosen[name]:g}")
        axes.plot(chosen[name], found[chosen[name]], "o", ms=8, mfc="none", color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlabel("density of the layer, the others whole")
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=1 + len(curves) // 24)
    place(path, _svg(figure), force=True)


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "deepcomp"}):  # names of parts are random otherwise
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
