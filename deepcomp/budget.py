"""Budgets: the largest file that fits a size, the smallest that keeps the quality, or the whole curve.

A recipe names one setting as its dial, with values from mild to strong. Along them files shrink and quality falls, so a
bisection finds the place in a few runs; sizes of files tell where to look next, which saves some. A recipe that takes a
size as a setting gets the limit itself. Every run is in the report.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcomp.container.writer import move, place
from deepcomp.errors import BudgetError, InfeasibleError, InputError, UsageError
from deepcomp.recipe import Dial, Recipe
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
        How much worse the metric may get, in its own unit (percentage points of accuracy), on the validation set where
        the data has one, else on the test set.
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

    def best(self, tried: Sequence[Report]) -> Report:
        """Of files, from large to small, the largest that fits, the smallest that keeps the quality, or the nearest."""
        if self.max_size is not None:
            fitting = [report for report in tried if report.output_bytes <= self.max_size]
            return fitting[0] if fitting else tried[-1]
        assert self.max_drop is not None
        kept = [report for report in tried if _drop(report) <= self.max_drop]
        return kept[-1] if kept else min(tried, key=_drop)

    def missed(self, report: Report) -> str | None:
        """Why a file does not fit; None where it does."""
        if self.max_size is not None and report.output_bytes > self.max_size:
            return f"{report.output_bytes:,} bytes is the smallest found, at most {self.max_size:,} allowed"
        if self.max_drop is not None and _drop(report) > self.max_drop:
            least = "found" if self.max_size is None else "that fits the size"
            where = " on the validation set" if "validation" in (report.metric or {}) else ""
            return f"a drop of {_drop(report):.4g}{where} is the least {least}, at most {self.max_drop:.4g} allowed"
        return None


def search(
    budget: Budget,
    recipe: Recipe,
    settings: dict[str, Any],
    run: Callable[[dict[str, Any], Path], Report],
    out: Path,
    force: bool,
) -> Report:
    """Run a recipe with other settings until the file that a budget asks for is known.

    Parameters
    ----------
    run : callable
        Compresses with given settings into a given file.

    Returns
    -------
    Report
        Of the file now at `out`; its `points` list every run, from large to small.

    Raises
    ------
    BudgetError
        If nothing fits: the file at `out` is the nearest.
    UsageError
        If a curve is wanted, and nothing is there to draw it with.
    """
    draw = _drawer() if budget.curve is not None else None
    beside = Path(os.path.realpath(out))
    with _folder_beside(beside) as folder:
        runs = _Runs(recipe, settings, run, Path(folder))
        if budget.curve is not None:
            runs.all()
        if budget.max_size is not None:
            runs.fit(budget.max_size)
        elif budget.max_drop is not None:
            runs.keep(budget.max_drop)
        limited = (budget.max_size, budget.max_drop) != (None, None)
        report = budget.best(runs.reports) if limited else runs.default
        report.points = [point for tried in runs.reports for point in tried.points]
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


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror} ({path.parent})") from None


class _Runs:
    """The files of a recipe with one setting at several values; places count those of the dial, from mild to strong."""

    def __init__(
        self, recipe: Recipe, settings: dict[str, Any], run: Callable[[dict[str, Any], Path], Report], folder: Path
    ) -> None:
        dial = recipe.dial or Dial("", [None])
        self._settings, self._run, self._folder = settings, run, folder
        self._key, self._values, self._size = dial.set, [*dial.values], dial.size
        self._fixed = next((key for key in (dial.set, dial.size) if key in settings), None)
        if self._fixed is not None:
            self._key, self._values, self._size = self._fixed, [settings[self._fixed]], ""
        default = recipe.value(self._key) if self._key else None
        self._default = self._values.index(default) if default in self._values else 0
        self._off = default if default not in self._values else None  # the recipe's own value, where it is off the dial
        self._places: dict[int, Report] = {}
        self._tried: list[tuple[int, Report]] = []

    @property
    def reports(self) -> list[Report]:
        """From large files to small ones, of equal ones the milder first; each has its point."""
        return [report for _, report in sorted(self._tried, key=lambda tried: (-tried[1].output_bytes, tried[0]))]

    @property
    def default(self) -> Report:
        """With the recipe's own value."""
        return self._at(self._default) if self._off is None else self._with(self._key, self._off)

    def all(self) -> None:
        """Try every value."""
        for number in range(len(self._values)):
            self._at(number)

    def fit(self, limit: int) -> None:
        """Try what finds the largest file of at most so many bytes."""
        if self._size:
            self._hand_over(limit)
        else:
            _first(len(self._values), lambda place: self._at(place).output_bytes <= limit, partial(self._guess, limit))

    def keep(self, drop: float) -> None:
        """Try what finds the smallest file that loses no more."""
        _first(len(self._values), lambda place: _drop(self._at(place)) > drop)

    def _hand_over(self, limit: int) -> None:
        """Ask for the limit, and as long as files come out larger, for what other steps add, for less."""
        asked = limit
        for number in itertools.count():
            try:
                over = self._with(self._size, asked).output_bytes - limit
            except InfeasibleError as found:
                if found.setting != self._size:
                    raise
                self._with(self._size, found.nearest)
                return
            if over <= 0 or asked == 1:
                return
            asked = max(asked - (over << number), 1)

    def _at(self, place: int) -> Report:
        """The file of a value; of one that cannot be kept, of the nearest that can."""
        place = self._values.index(self._values[place])
        if place not in self._places:
            try:
                self._places[place] = self._with(self._key, self._values[place], place)
            except InfeasibleError as found:
                if self._fixed or found.setting != self._key or found.nearest == self._values[place]:
                    raise
                self._values[place] = found.nearest
                return self._at(place)
        return self._places[place]

    def _with(self, key: str, value: Any, place: int = -1) -> Report:
        out = self._folder / f"{len(self._tried)}.dcz"
        report = self._run({**self._settings, key: value} if key else self._settings, out)
        report.points = [_point(key, value, report)]
        self._tried.append((place, report))
        return report

    def _guess(self, limit: int, low: int, high: int) -> int:
        """Where a line through the logarithms of the two sizes nearest to the limit meets it; halfway without such."""
        sizes = {place: math.log(report.output_bytes / limit) for place, report in self._places.items()}
        near = sorted(sizes, key=lambda place: abs(sizes[place]))[:2]
        if len(near) == 2 and (sizes[near[0]] - sizes[near[1]]) * (near[0] - near[1]) < 0:
            (a, b), (x, y) = near, (sizes[place] for place in near)
            return math.ceil(a + (b - a) * x / (x - y))
        return _halfway(low, high)


def _halfway(low: int, high: int) -> int:
    return (low + high) // 2


def _first(count: int, holds: Callable[[int], bool], guess: Callable[[int, int], int] = _halfway) -> int:
    """The first place where a condition that stays true once it is true holds; `count` where it never does.

    It is known after no more trials than bisection takes at worst: `guess` is asked for a place from `low` on and below
    `high`, and followed as far as the trials left can tell all other places apart.
    """
    low, high, left = 0, count, count.bit_length()
    while low < high:
        left -= 1
        reach = (1 << left) - 1
        place = min(max(guess(low, high), low, high - 1 - reach), low + reach, high - 1)
        if holds(place):
            high = place
        else:
            low = place + 1
    return low


def _drop(report: Report) -> float:
    assert report.metric is not None
    worse = report.metric.get("validation", report.metric)["drop"]
    return math.inf if worse is None or math.isnan(worse) else float(worse)


def _point(key: str, value: Any, report: Report) -> dict[str, Any]:
    point = {"setting": key, "value": value, "bytes": report.output_bytes, "ratio": report.ratio}
    if report.metric is not None:
        point |= {"metric": report.metric["name"], "quality": report.metric["after"], "drop": report.metric["drop"]}
        if "validation" in report.metric:
            point["validation"] = report.metric["validation"]
    return point


def _drawer() -> Callable[[str, list[dict[str, Any]]], bytes]:
    try:
        from deepcomp.report.plot import curve
    except ModuleNotFoundError:
        raise UsageError(
            "--pareto draws with matplotlib, which is not installed: pip install 'deepcomp[report]'"
        ) from None
    return curve
