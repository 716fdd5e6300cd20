"""Timings side by side, and the lines in which both benchmarks print what was found."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Time", "check", "compare", "data_folder", "finish", "heading", "machine", "show", "table"]

_PACKAGES = ("numpy", "torch", "numba", "scikit-learn", "zstandard", "dahuffman", "zipnn", "nncodec")
_headings = [""]
_missed: list[str] = []


@dataclass(frozen=True)
class Time:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, middle, high = (_seconds(s) for s in (min(self.seconds), self.median, max(self.seconds)))
        return middle if len(self.seconds) == 1 else f"{middle} ({low} to {high})"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.4g} ms"


def compare(
    rivals: dict[str, Callable[[], object]], repeats: int, before: Callable[[], object] | None = None
) -> dict[str, Time]:
    """Time rivals in turn, A B A B …, so that a disturbance of the machine meets all of them.

    Parameters
    ----------
    rivals : what to time, by name; the result of one is freed before the next one starts.
    repeats : runs of each.
    before : what to do, untimed, before each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, work in rivals.items():
            if before is not None:
                before()
            start = time.perf_counter()
            result = work()
            seconds[name].append(time.perf_counter() - start)
            del result
    return {name: Time(tuple(runs)) for name, runs in seconds.items()}


def heading(text: str) -> None:
    _headings.append(text)
    print(f"\n## {text}\n", flush=True)


def show(name: str, found: object) -> None:
    print(f"{name:<46} {found}", flush=True)


def check(name: str, value: float, bound: float, at_most: bool = True, unit: str = "") -> None:
    """Print a figure beside the bound it has to keep, and remember whether it does."""
    kept = value <= bound if at_most else value >= bound
    sign = "≤" if at_most else "≥"
    print(f"{name:<46} {value:.6g}{unit}   required {sign} {bound:g}{unit}   {'ok' if kept else 'MISSED'}", flush=True)
    if not kept:
        _missed.append(f"{_headings[-1]}: {name}: {value:.6g}{unit}, required {sign} {bound:g}{unit}")


def finish() -> int:
    """Print what was missed; the exit status."""
    heading("Bounds")
    print("all kept" if not _missed else "MISSED\n" + "\n".join(f"- {line}" for line in _missed))
    return 1 if _missed else 0


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table, its first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rules = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    print("\n".join([line(columns), line(rules), *map(line, rows)]), flush=True)


def machine() -> None:
    """Print what the figures were measured on."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    print(f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, {', '.join(versions)}", flush=True)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def data_folder() -> Path:
    """Where the data are that the project does not ship."""
    return Path(os.environ.get("DEEPCOMP_DATA") or Path(__file__).parents[2] / "shared/data")
