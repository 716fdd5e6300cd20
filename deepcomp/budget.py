"""Budgets: the mildest settings that fit a size, the strongest that keep the quality, or the whole curve.

A recipe names one setting as its dial, with values from mild to strong. Along them files shrink and
quality falls, so a bisection finds the place in a few runs; every run is in the report.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcomp.container.writer import move, place
from deepcomp.errors import BudgetError, UsageError
from deepcomp.recipe import Recipe
from deepcomp.report.strict_json import dumps

if TYPE_CHECKING:
    from deepcomp.pipeline import Report

__all__ = ["Budget", "search"]


@dataclass(frozen=True)
class Budget:
    """What a file may cost.

    Attributes
    ----------
    max_size : int, optional
        Bytes the file may have.
    max_drop : float, optional
        How much worse the metric may get, in its own unit (percentage points of accuracy).
    curve : path-like, optional
        Where the whole size–quality curve goes, as JSON, with a drawing beside it.

    Raises
    ------
    UsageError
        If a limit is none that a file could meet.
    """

    max_size: int | None = None
    max_drop: float | None = None
    curve: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        size, worst = self.max_size, self.max_drop
        if size is not None and not (isinstance(size, int) and size > 0):
            raise UsageError(f"max_size = {size!r}: a whole number of bytes expected, 1 or more")
        if worst is not None and not (isinstance(worst, (int, float)) and 0 <= worst < math.inf):
            raise UsageError(f"max_drop = {worst!r}: a number expected, 0 or more")

    def __bool__(self) -> bool:
        return (self.max_size, self.max_drop, self.curve) != (None, None, None)

    def targets(self) -> Iterator[Path]:
        """What is written beside the file: the curve, then its drawing."""
        if self.curve is not None:
            yield Path(self.curve)
            yield Path(self.curve).with_suffix(".svg")

    def missed(self, report: Report) -> str | None:
        """Why a file does not fit; None where it does."""
        if self.max_size is not None and report.output_bytes > self.max_size:
            return f"{report.output_bytes:,} bytes is the smallest found, at most {self.max_size:,} allowed"
        if self.max_drop is not None and _drop(report) > self.max_drop:
            least = "found" if self.max_size is None else "that fits the size"
            return f"a drop of {_drop(report):.4g} is the least {least}, at most {self.max_drop:.4g} allowed"
        return None


def search(
    budget: Budget,
    recipe: Recipe,
    settings: dict[str, Any],
    run: Callable[[dict[str, Any], Path], Report],
    out: Path,
    force: bool,
) -> Report:
    """Run a recipe with the dial's values until the budget's place on it is known.

    Parameters
    ----------
    run : callable
        Compresses with given settings into a given file.

    Returns
    -------
    Report
        Of the file now at `out`; its `points` list every run.

    Raises
    ------
    BudgetError
        If nothing fits: the file at `out` is the nearest.
    UsageError
        If a curve is wanted, and nothing is there to draw it with.
    """
    draw = _drawer() if budget.curve is not None else None
    key, values = recipe.dial or ("", [None])
    if key in settings:
        values = [settings[key]]
    reports: dict[int, Report] = {}
    beside = Path(os.path.realpath(out))
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder:

        def at(place: int) -> Report:
            if place not in reports:
                dialled = {**settings, key: values[place]} if key else settings
                reports[place] = run(dialled, Path(folder) / f"{place}.dcz")
            return reports[place]

        if budget.curve is not None:
            for place_ in range(len(values)):
                at(place_)
        if budget.max_size is not None:
            chosen = _first(len(values), lambda place: at(place).output_bytes <= (budget.max_size or 0))
            chosen = min(chosen, len(values) - 1)
        elif budget.max_drop is not None:
            chosen = max(_first(len(values), lambda place: _drop(at(place)) > (budget.max_drop or 0)) - 1, 0)
        else:
            default = recipe.value(key) if key else None
            chosen = values.index(default) if default in values else 0
        report = at(chosen)
        report.points = [_point(key, values[place], reports[place]) for place in sorted(reports)]
        move(report.output, out, force)
        report.output = os.fspath(out)
    if draw is not None:
        curve = dumps({"recipe": recipe.name, "points": report.points}, indent=1).encode()
        for path, content in zip(budget.targets(), (curve, draw(recipe.name, report.points)), strict=True):
            place(path, content, force)
    missed = budget.missed(report)
    if missed:
        raise BudgetError(f"budget not met: {missed}; the nearest is at {out}", report)
    return report


def _drop(report: Report) -> float:
    assert report.metric is not None
    worse = report.metric["drop"]
    return math.inf if worse is None or math.isnan(worse) else float(worse)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The first place where a condition that stays true once it is true holds; `count` where it never does."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _point(key: str, value: Any, report: Report) -> dict[str, Any]:
    point = {"setting": key, "value": value, "bytes": report.output_bytes, "ratio": report.ratio}
    if report.metric is not None:
        point |= {"metric": report.metric["name"], "quality": report.metric["after"], "drop": report.metric["drop"]}
    return point


def _drawer() -> Callable[[str, list[dict[str, Any]]], bytes]:
    try:
        from deepcomp.report.plot import curve
    except ModuleNotFoundError:
        raise UsageError(
            "--pareto draws with matplotlib, which is not installed: pip install 'deepcomp[report]'"
        ) from None
    return curve
