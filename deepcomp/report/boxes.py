"""Box plots of channels, as SVG that needs no script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcomp.diagnosis import Channels

__all__ = ["MOST", "STYLE", "plot", "shown"]

MOST = 64  # boxes of a plot; of more channels every n-th, by their ranges
_WIDE, _HIGH = 10, 100  # of a box and of the plot, in units of the drawing

STYLE = """
.boxes { width: 100%; height: 8rem; display: block; overflow: visible; }
.boxes * { vector-effect: non-scaling-stroke; stroke-width: 1; }
.boxes .grid { fill: var(--band); }
.boxes .end { stroke: var(--accent); stroke-dasharray: 3 3; }
.boxes .zero { stroke: var(--line); }
.boxes .reach { stroke: var(--soft); fill: none; }
.boxes .half { fill: var(--box); stroke: var(--ink); }
.boxes .middle { stroke: var(--accent); stroke-width: 2; }
.boxes .hit { fill: transparent; }
.boxes g:hover .hit { fill: var(--hover); }
"""


def shown(found: Channels) -> list[int]:
    """The channels that are drawn: all in their order; of too many some, from the widest to the narrowest."""
    count = len(found.minimum)
    if count <= MOST:
        return list(range(count))
    order = sorted(range(count), key=lambda place: found.minimum[place] - found.maximum[place])
    return [order[round(place * (count - 1) / (MOST - 1))] for place in range(MOST)]


def plot(found: Channels) -> str:
    """A box for each channel: a line from end to end, a box from quartile to quartile, a bar at the median.

    Shaded is what the grid covers, where all channels share one; broken lines are its ends where numbers lie beyond.
    """
    places = shown(found)
    low, high = min([0.0, *found.minimum]), max([0.0, *found.maximum])
    span = (high - low) or 1.0

    def y(number: float) -> str:
        return f"{_HIGH * (high - number) / span:.4g}"

    width = _WIDE * len(places)
    parts = [*_grid(found, width, low, high, y), f'<path class="zero" d="M0 {y(0)}H{width}"/>']
    for place, channel in enumerate(places):
        x, ends = _WIDE * place, (found.minimum[channel], found.maximum[channel])
        quartiles = (found.lower[channel], found.median[channel], found.upper[channel])
        parts.append(
            f"<g><title>{escape(_told(channel, ends, quartiles))}</title>"
            f'<path class="hit" d="M{x} 0h{_WIDE}v{_HIGH}h-{_WIDE}z"/>'
            f'<path class="reach" d="M{x + 5} {y(ends[1])}V{y(ends[0])}"/>'
            f'<path class="half" d="M{x + 2} {y(quartiles[2])}h6V{y(quartiles[0])}h-6z"/>'
            f'<path class="middle" d="M{x + 2} {y(quartiles[1])}h6"/></g>'
        )
    return (
        f'<svg class="boxes" viewBox="0 0 {width} {_HIGH}" preserveAspectRatio="none" role="img" '
        f'style="max-width:{max(1.4 * len(places), 6):.4g}rem">{"".join(parts)}</svg>'
    )


def _grid(found: Channels, width: int, low: float, high: float, y: Callable[[float], str]) -> list[str]:
    """What a shared grid covers."""
    if found.low is None or found.high is None:
        return []
    bottom, top = max(found.low, low), min(found.high, high)
    band = f'<path class="grid" d="M0 {y(top)}H{width}V{y(bottom)}H0z"/>'
    beyond = [end for end in (bottom, top) if low < end < high]
    return [band, *(f'<path class="end" d="M0 {y(end)}H{width}"/>' for end in beyond)]


def _told(channel: int, ends: Sequence[float], quartiles: Sequence[float]) -> str:
    """What a box says when one points at it."""
    middle = ", ".join(f"{number:.3g}" for number in quartiles)
    return f"channel {channel}: {ends[0]:.3g} to {ends[1]:.3g}, quartiles {middle}"
