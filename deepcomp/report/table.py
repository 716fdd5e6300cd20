"""A report as lines of text for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcomp.diagnosis import Diagnosis, Outcome
    from deepcomp.pipeline import Report

__all__ = ["counted", "decibels", "diagnosis", "inspection", "number", "printable", "report"]

_MOST = 60  # tensors shown; of longer lists the largest
_HEAD = ("tensor", "shape", "form", "density", "bits", "bytes", "where they go")


def report(done: Report) -> str:
    """What `compress` did: the sizes, the steps, the quality, and where each byte went."""
    size = f"{done.output_bytes:,} bytes, {done.ratio:.2f}x smaller than {done.input} ({done.input_bytes:,})"
    lines = [f"{done.output}: {size}"]
    for step in done.steps:
        said = ", ".join(f"{key} {_short(value)}" for key, value in step.items() if key not in ("do", "seconds"))
        lines.append(f"  {step['do']}: {said} ({step['seconds']:.1f} s)")
    lines += map(_point, done.points)
    if done.metric:
        before, after = _short(done.metric["before"]), _short(done.metric["after"])
        lines.append(f"  {done.metric['name']}: {before} before, {after} after")
    return "\n".join([*lines, _tensors(done.tensors, done.output_bytes - sum(row["bytes"] for row in done.tensors))])


def _point(tried: dict[str, Any]) -> str:
    """One run of a search."""
    what = f"{tried['setting']} {_short(tried['value'])}" if tried["setting"] else "the recipe as it is"
    line = f"  tried {what}: {tried['bytes']:,} bytes"
    if "metric" in tried:
        line += f", {tried['metric']} {_short(tried['quality'])}, drop {_short(tried['drop'])}"
    if "validation" in tried:
        line += f" (validation: {_short(tried['validation']['after'])}, drop {_short(tried['validation']['drop'])})"
    return line


def inspection(found: dict[str, Any]) -> str:
    """What `inspect` found."""
    about = ", ".join(
        f"{printable(key)} {printable(value)}"
        for key, value in found["metadata"].items()
        if not isinstance(value, dict)
    )
    runs = "runs without source code" if found["runnable"] else "weights alone"
    size = f"{found['bytes']:,} bytes, {found['ratio']:.2f}x smaller than dense ({found['dense_bytes']:,})"
    head = [f"{found['file']}: {size}; {runs}", f"  format {found['format']}; {about}"]
    return "\n".join([*head, _tensors(found["tensors"], sum(found["frame"].values()))])


def diagnosis(found: Diagnosis) -> str:
    """What `diagnose` found, what to do about it at the end."""
    recipe = "as it is" if found.recipe is None else f"recipe {printable(found.recipe)}"
    metric = printable(found.metric)
    lines = [f"{printable(found.input)}, {recipe}: {metric} on {found.items} items; {counted(found)}"]
    if found.fp32:
        table = [("in floating point", metric, "outputs moved by", "")]
        table += [] if found.original is None else [("original", number(found, found.original), "", "")]
        table += [
            (printable(check.behind), number(found, check.value), f"{check.change:.1e}", "") for check in found.fp32
        ]
        lines += ["", *_aligned(table, texts=1)]
    parts = [("nothing" if name == "fp32" else name, outcome) for name, outcome in found.parts.items()]
    rows = [(name, *_outcome(found, outcome), "") for name, outcome in parts if outcome is not None]
    lines += ["", *_aligned([("quantised", *_outcome(found), ""), *rows], texts=1)]
    lines += ["", *_sweep(found), "", "what to try"]
    for place, entry in enumerate(found.advice, 1):
        lines += textwrap.wrap(
            f"  {place}. {printable(entry.text, len(entry.text))}",
            100,
            subsequent_indent="     ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _sweep(found: Diagnosis) -> list[str]:
    """The table of one quantiser at a time, with the channels of what it quantises."""
    ranges = {(row.kind, row.name): row for row in found.channels}
    table = [("one at a time", "bits", *_outcome(found), "widest channel", "bits used", "")]
    for single in found.sweep[:_MOST]:
        row = ranges.get((single.kind, single.name))
        spread = "" if row is None else f"{row.spread:.1f}x"
        used = "" if row is None or row.used is None else f"{row.used:.1f}"
        name = f"{single.kind} {printable(single.name)}"
        table.append((name, str(single.bits or ""), *_outcome(found, single.outcome), spread, used, ""))
    more = len(found.sweep) - _MOST
    return [*_aligned(table, texts=1), *([f"  {more} more, with less noise"] if more > 0 else [])]


def _outcome(found: Diagnosis, outcome: Outcome | None = None) -> tuple[str, str, str]:
    """What was measured, in three columns; their names if nothing is given."""
    if outcome is None:
        return printable(found.metric), "lost", "SNR, dB"
    return number(found, outcome.value), number(found, outcome.drop), decibels(outcome)


def counted(found: Diagnosis) -> str:
    """Which losses count."""
    error = " or twice its standard error" if found.metric == "accuracy" else ""
    return f"a loss below {found.tolerance:.3g}{error} counts as none"


def number(found: Diagnosis, value: float) -> str:
    """A value of the metric of a diagnosis, or a loss."""
    return f"{value:.2f}" if found.metric in ("accuracy", "perplexity") else f"{value:.4g}"


def decibels(outcome: Outcome) -> str:
    """A ratio of signal to noise, if there is noise."""
    return "inf" if math.isinf(outcome.snr) else f"{outcome.snr:.1f}"


def _tensors(rows: list[dict[str, Any]], frame: int) -> str:
    """The table of where each byte went; `frame` is what belongs to no tensor."""
    shown = rows if len(rows) <= _MOST else sorted(rows, key=lambda row: -row["bytes"])[:_MOST]
    table = [_HEAD]
    for row in shown:
        parts = ", ".join(f"{name} {size:,}" for name, size in row["parts"].items() if size)
        shape = "x".join(map(str, row["shape"])) or "scalar"
        numbers = (f"{row['density']:.1%}", f"{row['bits']:.2f}", f"{row['bytes']:,}")
        table.append((printable(row["name"]), shape, printable(row["form"]), *numbers, parts))
    if len(shown) < len(rows):
        rest = sum(row["bytes"] for row in rows) - sum(row["bytes"] for row in shown)
        table.append((f"{len(rows) - len(shown)} more", "", "", "", "", f"{rest:,}", ""))
    table.append(("frame", "", "", "", "", f"{frame:,}", "header, index with the graph, checksums"))
    return "\n".join(_aligned(table, texts=3))


def _aligned(table: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Rows as lines: so many columns of texts to the left, numbers to the right; the last as it comes."""
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]) - 1)]
    lines = []
    for row in table:
        cells = list(zip(row[:-1], widths, strict=True))
        left = [cell.ljust(width) for cell, width in cells[:texts]]
        right = [cell.rjust(width) for cell, width in cells[texts:]]
        lines.append(("  " + "  ".join([*left, *right, row[-1]])).rstrip())
    return lines


def printable(text: object, most: int = 80) -> str:
    """A name from a file, cut to so many characters, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))[:most]


def _short(value: Any) -> str:
    """A value in a few characters: of a list (an entry an epoch) the ends, of a table its length."""
    if isinstance(value, list) and value:
        return _short(value[0]) if len(value) == 1 else f"{_short(value[0])} to {_short(value[-1])}"
    if isinstance(value, dict):
        return f"of {len(value)} tensors"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
