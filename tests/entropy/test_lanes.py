"""Lanes: their number, and their lengths as they stand in a stream."""

from __future__ import annotations

import numpy as np
import pytest

from deepcomp.entropy import lanes
from deepcomp.wire import Cursor


@pytest.mark.parametrize("bits_each", [0.08, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("count", [1, 1000, 1 << 14, (1 << 14) + 1, 10**5, 10**6, 10**8])
def test_lanes_are_long_enough_to_pay_for_themselves(count, bits_each):
    k = lanes.choose(count, count * bits_each, 512)
    assert 10 <= k <= 16
    if count <= 1 << 14:
        assert k == 14
    elif k < 16:
        assert (1 << k) * bits_each >= 8 * 512


@pytest.mark.parametrize("lengths", [[7], [7, 3], [500, 500, 2], [500, 700, 511, 9], [70_000, 1, 40]])
def test_lengths_round_trip(lengths):
    unit = 2
    stream = lanes.write(10, np.array(lengths)) + bytes(unit * sum(lengths))
    layout = lanes.read(Cursor(stream), 1024 * (len(lengths) - 1) + 5, unit)
    assert (layout.ends - layout.starts).tolist() == lengths
    assert layout.ends[-1] == sum(lengths)
    assert layout.last == 5


def test_a_lane_costs_about_a_byte():
    lengths = np.random.default_rng(0).normal(600, 12, 1000).astype(np.int64)
    assert len(lanes.write(10, lengths)) <= 1 + 2 + 1 + 1000


def test_steps_cover_every_symbol_once():
    starts = np.arange(4)
    layout = lanes.Lanes(3 * 1024 + 77, 1024, starts, starts + 1)
    seen = np.zeros((4, 1024), int)
    for active, first, end in lanes.steps(layout):
        seen[:active, first:end] += 1
    assert (seen.reshape(-1)[: layout.count] == 1).all()
    assert seen.sum() == layout.count


def test_runs_leave_room_behind_every_lane():
    starts = np.array([0, 40, 95, 99])
    layout = lanes.Lanes(4 * 1024, 1024, starts, np.append(starts[1:], 100))
    units = np.arange(100, dtype=np.uint8)
    seen = []
    for part, run, origin in lanes.runs(layout, units, 14 / 1024):
        for start in starts[part] - origin:
            assert start + 30 <= len(run)
            assert run[start] == start + origin
        seen += range(4)[part]
    assert seen == [0, 1, 2, 3]
