"""An inspection as one self-contained HTML page: no script, no network, every text escaped."""

from __future__ import annotations

from html import escape
from string import Template
from typing import Any

__all__ = ["page"]

_COLOURS = {
    "gaps": "#4269d0", "index": "#efb118", "values": "#ff725c", "q": "#6cc5b0", "scale": "#3ca951",
    "zero_point": "#ff8ab7", "words": "#9498a0", "row": "#a463f2", "shift": "#97bbf5", "levels": "#b5a642",
    "frame": "#9c6b4e",
}  # fmt: skip
_OTHER = "#000000"  # a part that this version has no colour for
_BAR = 180  # pixels of the longest bar

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; word-break: break-all; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
tr { border-bottom: 1px solid #ddd; }
.key span { display: inline-block; margin-right: 1rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
svg { vertical-align: middle; }
</style></head><body>
<h1>$title</h1>
<p><b>$bytes</b> bytes, <b>$ratio×</b> smaller than its $dense dense bytes. Format $format. $runnable</p>
<p class="key">$key</p>
<div class="scroll"><table>
<thead><tr><th>tensor</th><th class="text">shape</th><th class="text">dtype</th><th class="text">form</th>
<th>density</th><th>bits a weight</th><th>bytes</th><th>share</th><th class="text">where they go</th></tr></thead>
<tbody>
$rows
</tbody></table></div>
</body></html>
""")


def page(inspection: dict[str, Any]) -> str:
    """The page for what `inspection.inspect` returned."""
    tensors, total = inspection["tensors"], max(inspection["bytes"], 1)
    frame = sum(inspection["frame"].values())
    widest = max([row["bytes"] for row in tensors] + [frame, 1])
    parts = dict.fromkeys(name for row in tensors for name in row["parts"])
    rows = [
        _cells(
            [row["name"], "×".join(map(str, row["shape"])) or "scalar", row["dtype"], row["form"]],
            [f"{row['density']:.1%}", f"{row['bits']:.3f}", f"{row['bytes']:,}", f"{row['bytes'] / total:.1%}"],
            _bar(row["parts"], widest),
        )
        for row in tensors
    ]
    rows.append(
        _cells(
            ["frame", "", "", "header, index, checksums"],
            ["", "", f"{frame:,}", f"{frame / total:.1%}"],
            _bar({"frame": frame}, widest),
        )
    )
    return _PAGE.substitute(
        title=escape(str(inspection["file"])),
        bytes=f"{inspection['bytes']:,}",
        dense=f"{inspection['dense_bytes']:,}",
        ratio=f"{inspection['ratio']:.2f}",
        format=escape(inspection["format"]),
        runnable="It runs without source code." if inspection["runnable"] else "It holds weights alone.",
        key="".join(
            f'<span><i style="background:{_colour(name)}"></i>{escape(name)}</span>' for name in [*parts, "frame"]
        ),
        rows="\n".join(rows),
    )


def _cells(texts: list[str], numbers: list[str], bar: str) -> str:
    first, *rest = map(escape, texts)
    cells = f"<td>{first}</td>" + "".join(f'<td class="text">{text}</td>' for text in rest)
    return f'<tr>{cells}{"".join(f"<td>{number}</td>" for number in numbers)}<td class="text">{bar}</td></tr>'


def _bar(parts: dict[str, int], widest: int) -> str:
    """The bytes of each part as a bar, all rows to one scale."""
    out, x = [], 0.0
    for name, size in parts.items():
        width = _BAR * size / widest
        label = escape(f"{name}: {size:,} bytes")
        out.append(
            f'<rect x="{x:.2f}" width="{width:.2f}" height="12" fill="{_colour(name)}"><title>{label}</title></rect>'
        )
        x += width
    return f'<svg width="{_BAR}" height="12" role="img">{"".join(out)}</svg>'


def _colour(part: str) -> str:
    plane = part.removeprefix("plane")
    if plane != part and plane.isdecimal():  # higher planes are darker
        return f"hsl(215 80% {max(85 - 6 * int(plane), 0)}%)"
    return _COLOURS.get(part, _OTHER)
