"""A diagnosis as one self-contained HTML page: no script, no network, every text escaped."""

from __future__ import annotations

import math
from html import escape
from string import Template
from typing import TYPE_CHECKING

from deepcomp.report.boxes import MOST, STYLE, plot
from deepcomp.report.table import counted, decibels, number

if TYPE_CHECKING:
    from deepcomp.diagnosis import Channels, Diagnosis, Outcome, Single

__all__ = ["page"]

_PARTS = {"fp32": "nothing quantised", "weights": "weights alone", "activations": "activations alone", "both": "both"}

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #222; --soft: #767b85; --line: #d5d8de; --paper: #fff; --card: #f6f7f9;
  --box: #b9cdf5; --accent: #3056b8; --band: #3056b814; --hover: #3056b822; --bad: #c0341d; --good: #2b7a3d;
  --weight: #3056b8; --activation: #c98612; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #9aa0ab; --line: #3a3f49; --paper: #16181d;
  --card: #1f2228; --box: #3b5490; --accent: #8fb0ff; --band: #8fb0ff1c; --hover: #8fb0ff2e; --bad: #ff8d78;
  --good: #7fd394; --weight: #8fb0ff; --activation: #e3b04b; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.soft, .card p, th { color: var(--soft); font-weight: normal; }
.bad { color: var(--bad); } .good { color: var(--good); }
.tiles, .cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.tile, .card { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.3; }
.card h3 { font-size: .95rem; margin: 0; }
.card p { font-size: .85rem; margin: 0 0 .5rem; }
.axis { display: grid; grid-template-columns: auto 1fr; gap: .4rem; font-size: .75rem; color: var(--soft); }
.ends { display: flex; flex-direction: column; justify-content: space-between; text-align: right; }
li { margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 9rem; }
td:last-child { width: 40%; min-width: 6rem; }
.bar { display: block; height: .7rem; border-radius: .2rem; min-width: 1px; }
.weight { background: var(--weight); } .activation { background: var(--activation); }
@media (max-width: 40rem) { .value { display: none; } th, td { padding: .2rem .35rem; } }
.narrow { width: auto; }
.narrow td:last-child { width: auto; }
a { color: inherit; text-decoration-color: var(--soft); }
$style
</style></head><body>
<h1>Diagnosis of $title</h1>
<p class="soft">$about</p>
$warnings
<div class="tiles">$tiles</div>
<h2>What to try</h2>
<ol>$advice</ol>
$checks
<h2>One quantiser at a time</h2>
<p class="soft">The network with that one on. Bars are the noise on its outputs$logits, relative to them.</p>
<div class="scroll"><table>
<thead><tr><th>quantiser</th><th>bits</th><th class="value">$metric</th><th>lost</th><th>SNR, dB</th><th></th></tr>
</thead>
<tbody>
$sweep
</tbody></table></div>
<h2>Channels</h2>
<p class="soft">What weights and activations hold before they are quantised, channel by channel: a line from end to end,
a box from quartile to quartile, a bar at the median. Shaded is what the grid covers, where all channels share one; a
broken line is its end, with numbers beyond. Point at a channel for its numbers.</p>
<div class="cards">
$cards
</div>
</body></html>
""")


def page(found: Diagnosis) -> str:
    """The page for what `diagnose` returned."""
    places = {(row.kind, row.name): f"c{place}" for place, row in enumerate(found.channels)}
    worst = max([_noise(row.outcome) for row in found.sweep], default=0.0) or 1.0
    recipe = "looked at as it is" if found.recipe is None else f"recipe {found.recipe}"
    logits = ", as probabilities" if found.metric in ("accuracy", "perplexity") else ""
    return _PAGE.substitute(
        title=escape(found.input),
        style=STYLE,
        about=escape(f"{recipe}; {found.metric} on {found.items} items; {counted(found)}"),
        warnings="".join(f'<p class="bad">{escape(text)}</p>' for text in found.warnings),
        tiles="".join(_tile(found, name, outcome) for name, outcome in found.parts.items()),
        advice="".join(f"<li>{escape(entry.text)}</li>" for entry in found.advice),
        checks=_checks(found),
        metric=escape(found.metric),
        logits=logits,
        sweep="\n".join(_row(found, row, places.get((row.kind, row.name)), worst) for row in found.sweep),
        cards="\n".join(_card(row, places[row.kind, row.name]) for row in found.channels),
    )


def _noise(outcome: Outcome) -> float:
    return min(math.sqrt(outcome.noise), 1.0)


def _tile(found: Diagnosis, name: str, outcome: Outcome | None) -> str:
    """One of the numbers at the top."""
    head = f'<span class="soft">{_PARTS[name]}</span>'
    if outcome is None:
        return f'<div class="tile">{head}<b>–</b><span class="soft">not measured</span></div>'
    below = escape(found.metric) if name == "fp32" else f"{_lost(found, outcome)} · {decibels(outcome)} dB"
    return f'<div class="tile">{head}<b>{number(found, outcome.value)}</b><span class="soft">{below}</span></div>'


def _lost(found: Diagnosis, outcome: Outcome) -> str:
    """A loss in words, in the colour of whether it counts."""
    kind = "bad" if outcome.loses(found.tolerance) else "good"
    word = "lost" if outcome.drop >= 0 else "gained"
    return f'<span class="{kind}">{number(found, abs(outcome.drop))} {word}</span>'


def _checks(found: Diagnosis) -> str:
    """The table of the network in floating point, behind each step."""
    if not found.fp32:
        return ""
    cells = [(check.behind, number(found, check.value), f"{check.change:.1e}") for check in found.fp32]
    if found.original is not None:
        cells.insert(0, ("original", number(found, found.original), ""))
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value}</td><td>{change}</td></tr>" for name, value, change in cells
    )
    return (
        '<h2>In floating point</h2><p class="soft">Behind each step of the recipe, with nothing quantised.</p>'
        f'<div class="scroll"><table class="narrow"><thead><tr><th>behind</th><th>{escape(found.metric)}</th>'
        f"<th>outputs moved by</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(found: Diagnosis, row: Single, place: str | None, worst: float) -> str:
    """A row of the sweep, with a link to the channels where there are any."""
    name = escape(row.name) if place is None else f'<a href="#{place}">{escape(row.name)}</a>'
    noise, lost = _noise(row.outcome), "bad" if row.outcome.loses(found.tolerance) else ""
    bar = f'<span class="bar {row.kind}" style="width:{100 * noise / worst:.1f}%" title="{100 * noise:.2g} %"></span>'
    return (
        f'<tr><td>{name} <span class="soft">{row.kind}</span></td><td>{row.bits or ""}</td>'
        f'<td class="value">{number(found, row.outcome.value)}</td><td class="{lost}">'
        f"{number(found, row.outcome.drop)}</td><td>{decibels(row.outcome)}</td><td>{bar}</td></tr>"
    )


def _card(row: Channels, place: str) -> str:
    """The channels of one weight or activation."""
    count, about = len(row.minimum), []
    if row.bits is not None:
        about.append(f"{row.bits} bits" + ("" if row.used is None else f", the median channel uses {row.used:.1f}"))
    about.append(f"{count} channel{'s' if count > 1 else ''}, the widest {row.spread:.3g} × the median")
    if count > MOST:
        about.append(f"{MOST} shown, by range")
    low, high = min([0.0, *row.minimum]), max([0.0, *row.maximum])
    return (
        f'<section class="card" id="{place}"><h3>{escape(row.name)} <span class="soft">{row.kind}</span></h3>'
        f'<p>{"; ".join(about)}</p><div class="axis"><div class="ends"><span>{high:.3g}</span><span>{low:.3g}</span>'
        f"</div>{plot(row)}</div></section>"
    )
