"""Drawings, as SVG."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

__all__ = ["curve"]


def curve(title: str, points: list[dict[str, Any]]) -> bytes:
    """Quality against size, one mark a run; size alone where nothing was measured."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    quality = "quality" if points and "quality" in points[0] else "ratio"
    axes.plot([point["bytes"] for point in points], [point[quality] for point in points], "o-", color="#4269d0")
    for point in points:
        axes.annotate(
            f"{point['value']}",
            (point["bytes"], point[quality]),
            textcoords="offset points",
            xytext=(4, -12),
            fontsize=8,
        )
    axes.set_xlabel("bytes of the file")
    axes.set_ylabel(points[0].get("metric", "ratio") if points else "")
    axes.set_title(f"{title}: {points[0]['setting']}" if points and points[0]["setting"] else title)
    axes.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
