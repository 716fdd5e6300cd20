"""A report as lines of text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcomp.pipeline import Report

__all__ = ["inspection", "printable", "report"]

_MOST = 60  # tensors shown; of longer lists the largest
_HEAD = ("tensor", "shape", "form", "density", "bits", "bytes", "where they go")


def report(done: Report) -> str:
    """What `compress` did: the sizes, the steps, the quality, and where each byte went."""
    size = f"{done.output_bytes:,} bytes, {done.ratio:.2f}x smaller than {done.input} ({done.input_bytes:,})"
    lines = [f"{done.output}: {size}"]
    for step in done.steps:
        said = ", ".join(f"{key} {_short(value)}" for key, value in step.items() if key not in ("do", "seconds"))
        lines.append(f"  {step['do']}: {said} ({step['seconds']:.1f} s)")
    for point in done.points:
        said = f", {point['metric']} {_short(point['quality'])}" if "metric" in point else ""
        lines.append(
            f"  tried {point['setting'] or 'the recipe'} {_short(point['value'])}: {point['bytes']:,} bytes{said}"
        )
    if done.metric:
        before, after = _short(done.metric["before"]), _short(done.metric["after"])
        lines.append(f"  {done.metric['name']}: {before} before, {after} after")
    return "\n".join([*lines, _tensors(done.tensors, done.output_bytes - sum(row["bytes"] for row in done.tensors))])


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
    widths = [max(len(line[i]) for line in table) for i in range(6)]
    lines = []
    for line in table:
        left = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[3:6], widths[3:], strict=True)]
        lines.append(("  " + "  ".join([*left, *right, line[6]])).rstrip())
    return "\n".join(lines)


def printable(text: object) -> str:
    """A name from a file, cut to 80 characters, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))[:80]


def _short(value: Any) -> str:
    """A value in a few characters: of a list (an entry an epoch) the ends, of a table its length."""
    if isinstance(value, list) and value:
        return _short(value[0]) if len(value) == 1 else f"{_short(value[0])} to {_short(value[-1])}"
    if isinstance(value, dict):
        return f"of {len(value)} tensors"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
