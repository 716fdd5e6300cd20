"""The model of the context coder: in which order an array is told, and what each decision may depend on.

First what is dead: rows, planes, places. Then, row by row, what is not: whether the taps of a plane hold anything,
and of each value whether it is zero, its sign, its size. Encoding and decoding are one walk: a decision is told its
bit where it encodes, and tells it where it decodes.

Every function here is plain Python on integers and, compiled as it stands (`kernels`), a kernel of numba: both make
the same decisions, bit for bit.

A walk ends early where a decoder has read beyond the code, which no valid one lets it: so few bytes cannot keep it
busy with all the symbols that a file says they stand for.
"""

from __future__ import annotations

from deepcomp.entropy.context.arithmetic import ENCODING, PLACE
from deepcomp.entropy.context.memory import Memory
from deepcomp.entropy.context.mixing import decide, decide_alone, moved

__all__ = ["KNOWN", "MIXES", "STATES", "walk"]

# what is known of the row so far
ACTIVITY, LOCAL, LEAN, SIGN, KERNEL, KERNEL2 = range(KNOWN := 6)

LEANING = (1 << 16) - 1
FAR = 12
SLOW, QUICK, BRIEF = 255, 15, 7  # moves that activities of rows and columns, leanings and the local ones remember

# where the states of each kind of decision begin
ROWS, PLANES, TAPS, KERNELS, SIGNS, NODES, SIZES = 0, 5, 20, 98, 416, 497, 1521
FED_PLANES, FED_TAPS = 5, 26  # states for each thing that may be known of an input
EACH = 896  # states of a decision on the size
NEAR, POSITION, PATTERN, BOTH = 256, 512, 576, 640  # of these, where those of each context begin
STATES = SIZES + 31 * EACH
# and the mixes
MIX_ROW, MIX_PLANE, MIX_TAP, MIX_KERNEL, MIX_SIGN, MIX_SIZE = range(6)
MIXES = MIX_SIZE + 31


def over(m: Memory) -> bool:
    """Whether more was read than any code may be read beyond its end, or written than there is room for."""
    return m.registers[PLACE] > len(m.data) + 6


# --- what is dead -------------------------------------------------------------------------------


def walk_rows(m: Memory) -> None:
    """Which rows hold anything."""
    one = two = 0
    for row in range(m.rows):
        if over(m):
            return
        m.contexts[0] = ROWS
        m.contexts[1] = ROWS + 1 + one + 2 * two
        two = one
        one = m.live_rows[row] = decide(m.live_rows[row], 2, MIX_ROW, m)


def walk_planes(m: Memory) -> None:
    """Which planes hold anything."""
    one = two = 0
    for plane in range(m.planes):
        if over(m):
            return
        base = PLANES + FED_PLANES * m.fed[plane * m.taps]
        m.contexts[0] = base
        m.contexts[1] = base + 1 + one + 2 * two
        two = one
        one = m.live_planes[plane] = decide(m.live_planes[plane], 2, MIX_PLANE, m)


def walk_taps(plane: int, m: Memory) -> None:
    """Which taps of a plane hold anything."""
    live = m.live_taps
    for tap in range(m.taps):
        if over(m):
            return
        at = plane * m.taps + tap
        x = tap % m.width
        west = live[at - 1] if x > 0 else 0
        west2 = live[at - 2] if x > 1 else 0
        north = live[at - m.width] if tap >= m.width else 0
        north2 = live[at - 2 * m.width] if tap >= 2 * m.width else 0
        north_west = live[at - m.width - 1] if tap >= m.width and x > 0 else 0
        north_east = live[at - m.width + 1] if tap >= m.width and x < m.width - 1 else 0
        behind = live[at - m.taps] if plane > 0 else 0
        base = TAPS + FED_TAPS * m.fed[at]
        m.contexts[0] = base + behind
        m.contexts[1] = base + 2 + west + 2 * north + 4 * north_east + 8 * north_west
        m.contexts[2] = base + 18 + west + west2 + north + north2 + north_west + north_east + behind
        live[at] = decide(live[at], 3, MIX_TAP, m)


def walk_kernel(start: int, plane: int, m: Memory) -> int:
    """Whether the taps of a plane, in the row whose values there begin at `start`, hold anything."""
    live = 0
    if m.registers[ENCODING]:
        for tap in range(m.taps):
            live |= 1 if m.values[start + tap] != 0 else 0
    along = m.level[m.row[ACTIVITY] >> 12]
    across = m.level[m.plane_activity[plane] >> 12]
    m.contexts[0] = KERNELS + m.row[KERNEL] + 2 * m.row[KERNEL2] + 4 * m.live_kernels[plane]
    m.contexts[1] = KERNELS + 8 + along
    m.contexts[2] = KERNELS + 35 + across
    m.contexts[3] = KERNELS + 62 + (along >> 1) * 16 + (across >> 1)
    live = decide(live, 4, MIX_KERNEL, m)
    m.row[KERNEL2] = m.row[KERNEL]
    m.row[KERNEL] = live
    m.live_kernels[plane] = live
    return live


# --- values -------------------------------------------------------------------------------------


def sign(value: int) -> int:
    """-1, 0 or 1."""
    return (1 if value > 0 else 0) - (1 if value < 0 else 0)


def steps(value: int) -> int:
    """A signed number on a scale of 0 to 12, 6 for 0."""
    size = abs(value)
    scale = size if size < 3 else 3 if size < 5 else 4 if size < 9 else 5 if size < 17 else 6
    return 6 + sign(value) * scale


def note(at: int, plane: int, size: int, m: Memory) -> None:
    """Remember how large a value was: of its row, its plane, its tap, and of its neighbourhood."""
    activity = min(size, 15) << 12
    m.row[ACTIVITY] = moved(m.row[ACTIVITY], activity, SLOW, m)
    m.row[LOCAL] = moved(m.row[LOCAL], activity, BRIEF, m)
    m.plane_activity[plane] = moved(m.plane_activity[plane], activity, SLOW, m)
    m.tap_activity[at] = moved(m.tap_activity[at], activity, SLOW, m)


def around(at: int, tap: int, x: int, m: Memory) -> int:
    """The activity of a tap and of the four beside it, in a single plane."""
    own = m.tap_activity[at] >> 12
    total = 2 * own
    total += m.tap_activity[at - 1] >> 12 if x > 0 else own
    total += m.tap_activity[at + 1] >> 12 if x < m.width - 1 and tap < m.taps - 1 else own
    total += m.tap_activity[at - m.width] >> 12 if tap >= m.width else own
    total += m.tap_activity[at + m.width] >> 12 if tap + m.width < m.taps else own
    return total // 6


def walk_size(size: int, negative: int, beside: int, own: int, both: int, near: int, agreement: int, m: Memory) -> int:
    """The size of a value that is not zero: its exponent in unary, then the bits below the leading one."""
    exponent = 0
    while exponent < 30:
        base = SIZES + (exponent + 1) * EACH
        m.contexts[0] = base + beside
        m.contexts[1] = base + NEAR + agreement
        m.contexts[2] = base + POSITION + 32 * negative + own
        m.contexts[3] = base + PATTERN + near
        m.contexts[4] = base + BOTH + both
        if not decide(1 if size >> exponent + 1 else 0, 5, MIX_SIZE + 1 + exponent, m):
            break
        exponent += 1
    found = path = 1
    nodes = NODES + 512 * negative
    first = nodes + min(1 << exponent, 256) - 1
    for place in range(exponent - 1, -1, -1):
        bit = decide_alone(size >> place & 1, first + path if path < 256 else nodes + 511, m)
        path = min(2 * path + bit, 256)
        found = 2 * found + bit
    return found


def walk_value(at: int, place: int, tap: int, x: int, plane: int, above: int, m: Memory) -> None:
    """A value: whether it is zero, its sign, its size.

    at : where it lies; place : in its row; tap, plane : there; above : values from its place in the last live row.
    """
    values = m.values
    west = values[at - 1] if x > 0 else 0
    west2 = values[at - 2] if x > 1 else 0
    north = values[at - m.width] if tap >= m.width else 0
    north_west = values[at - m.width - 1] if tap >= m.width and x > 0 else 0
    north_east = values[at - m.width + 1] if tap >= m.width and x < m.width - 1 else 0
    behind = values[at - m.taps] if plane > 0 else 0
    trend = 2 * west + 2 * north + north_west + north_east + west2 + behind
    near = 2 * abs(west) + 2 * abs(north) + abs(north_west) + abs(north_east) + abs(west2) + abs(behind)

    own = m.level[m.tap_activity[place] >> 12]
    along = m.level[m.row[ACTIVITY] >> 12] >> 1
    across = m.level[m.plane_activity[plane] >> 12 if m.planes > 1 else around(place, tap, x, m)] >> 1
    beside = min(abs(west) + abs(north), 3) * 64 + (own >> 2) * 8 + (across >> 1)
    both = along * 16 + across
    corners = min(abs(north_west), 1) + min(abs(north_east), 1)
    pattern = min(abs(west), 2) + 3 * min(abs(north), 2) + 9 * corners + 27 * min(abs(west2), 1)
    m.contexts[0] = SIZES + beside
    m.contexts[1] = SIZES + NEAR + m.level[m.row[LOCAL] >> 12] * 8 + min(near, 7)
    m.contexts[2] = SIZES + POSITION + own
    m.contexts[3] = SIZES + PATTERN + pattern
    m.contexts[4] = SIZES + BOTH + both
    value = values[at]
    if not decide(1 if value != 0 else 0, 5, MIX_SIZE, m):
        note(place, plane, 0, m)
        return
    last = values[at - above] if above > 0 else 0
    m.contexts[0] = SIGNS + steps(trend)
    m.contexts[1] = SIGNS + 13 + (m.tap_lean[place] >> 24)
    m.contexts[2] = SIGNS + 29 + (m.row[LEAN] >> 24)
    m.contexts[3] = SIGNS + 45 + 9 * (sign(behind) + 1) + 3 * (sign(north) + 1) + sign(west) + 1
    m.contexts[4] = SIGNS + 72 + 3 * (sign(last) + 1) + m.row[SIGN] + 1
    negative = decide(1 if value < 0 else 0, 5, MIX_SIGN, m)
    m.tap_lean[place] = moved(m.tap_lean[place], LEANING * negative, BRIEF, m)
    m.row[LEAN] = moved(m.row[LEAN], LEANING * negative, QUICK, m)
    m.row[SIGN] = 1 - 2 * negative
    agreement = min(max(trend * m.row[SIGN], -FAR), FAR) + FAR
    size = walk_size(abs(value), negative, beside, own, both, min(near, 23), agreement, m)
    values[at] = -size if negative else size
    note(place, plane, size, m)


def walk_row(row: int, above: int, m: Memory) -> None:
    """A live row; the last one lies `above` values before it."""
    m.row[ACTIVITY] = m.row[LOCAL] = m.row[SIGN] = m.row[KERNEL] = m.row[KERNEL2] = 0
    m.row[LEAN] = 1 << 27
    for plane in range(m.planes):
        if not m.live_planes[plane]:
            continue
        first = plane * m.taps
        start = row * m.planes * m.taps + first
        live = walk_kernel(start, plane, m) if m.planes > 1 else 1
        x = 0
        for tap in range(m.taps):
            if over(m):
                return
            if not live:
                note(first + tap, plane, 0, m)
            elif m.live_taps[first + tap]:
                walk_value(start + tap, first + tap, tap, x, plane, above, m)
            x = x + 1 if x + 1 < m.width else 0


def walk(m: Memory) -> None:
    """Code an array: what is dead, then the values of what is not."""
    if m.rows > 1:
        walk_rows(m)
    if m.planes > 1:
        walk_planes(m)
    if m.rows > 1:
        for plane in range(m.planes):
            if m.live_planes[plane]:
                walk_taps(plane, m)
    last = -1
    for row in range(m.rows):
        if over(m):
            return
        if m.live_rows[row]:
            walk_row(row, (row - last) * m.planes * m.taps if last >= 0 else 0, m)
            last = row
