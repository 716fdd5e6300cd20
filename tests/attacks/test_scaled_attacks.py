"""Hostile levels and scales: both decoders refuse them, and read what is left as the same bits."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
from build import F32, I32, Array, Part, Record, Table, constant, file, fixed, mask, rows, tensor, words
from independent_decoder import decode

import deepcomp
from deepcomp.errors import FormatError
from deepcomp.weights.dtypes import to_words

SCALED = 7


def scaled(
    q: bytes,
    levels: bytes,
    *scale: float,
    count: int | None = 3,
    sides: int = 1,
    axis: int = -1,
    group: int = 1,
    size: int = 0,
    lowest: int = -1,
) -> Part:
    """Levels times scales; three levels, −1, 0 and 1, if nothing else is said."""
    table = Table(4, struct.pack(f"<{len(scale)}f", *scale))
    return Part(SCALED, (sides, axis, group, size, lowest), (Array(q), Array(levels, count)), (table,))


Q, TERNARY = fixed(2, 0, 1, 2, 2, 1, 0), fixed(2, 0, 1, 2)


def ternary(*scale: float, q: bytes = Q, levels: bytes = TERNARY, dtype: int = F32, **facts: Any) -> Record:
    """Six weights."""
    return tensor("w", (2, 3), scaled(q, levels, *scale, **facts), dtype=dtype)


def parts(facts: int = 5, arrays: int = 2, tables: int = 1) -> Record:
    """The same with as many of each as given."""
    whole = scaled(Q, TERNARY, 1)
    return tensor("w", (2, 3), Part(SCALED, whole.facts[:facts], whole.arrays[:arrays], whole.tables[:tables]))


WRONG = {
    "no sides": (ternary(1, sides=0), "0 sides found, 1 or 2 expected"),
    "three sides": (ternary(1, 1, 1, sides=3), "3 sides found"),
    "2^62 sides": (ternary(1, sides=1 << 62), "sides found, 1 or 2 expected"),
    "integers": (ternary(1, dtype=I32), "scaled levels of int32"),
    "bytes": (ternary(1, dtype=13), "scaled levels of float8_e4m3fn"),
    "axis out of range": (ternary(1, axis=2), "axis 2, group 1, size 0 found"),
    "axis -2": (ternary(1, axis=-2), "axis -2"),
    "group without an axis": (ternary(1, group=2), "axis -1, group 2"),
    "groups and blocks": (ternary(1, axis=0, group=2, size=2), "axis 0, group 2, size 2"),
    "block of 2^60": (ternary(1, 1, axis=0, size=1 << 60), "size 1152921504606846976"),
    "too few scales": (ternary(1, axis=0), "1 scales found, 2 expected"),
    "a scale a block for two sides": (ternary(1, 1, axis=0, sides=2), "2 scales found, 4 expected"),
    "two scales a block for one side": (ternary(1, 1), "2 scales found, 1 expected"),
    "scale that is NaN": (ternary(float("nan")), "a scale that is not a finite number"),
    "scale that is infinite": (ternary(1, float("inf"), sides=2), "a scale that is not a finite number"),
    "level that is not there": (ternary(1, q=constant(3)), "level 3 taken of 3"),
    "level far beyond": (ternary(1, q=constant(2**32 - 1)), "level 4294967295 taken of 3"),
    "no levels": (ternary(1, levels=constant(0), count=0), "level 2 taken of 0"),
    "levels alike": (ternary(1, levels=constant(1)), "levels that do not ascend"),
    "levels that descend": (ternary(1, levels=fixed(2, 0, 2, 1)), "levels that do not ascend"),
    "level beyond 2^16": (ternary(1, lowest=65535), "levels 65535 to 65537 found"),
    "level below -2^16": (ternary(1, lowest=-65537), "levels -65537 to -65535 found"),
    "lowest of -2^63": (ternary(1, lowest=-(1 << 63)), "levels -9223372036854775808 to"),
    "levels that are wide apart": (ternary(1, levels=fixed(32, 0, 1, 2**32 - 1)), "levels -1 to 4294967294 found"),
    "too few values": (
        tensor(
            "w",
            (2, 3),
            Part(SCALED, (1, -1, 1, 0, 0), (Array(fixed(2, *[0] * 5), 5), Array(TERNARY, 3)), (Table(4, bytes(4)),)),
        ),
        "5 levels taken, 6 expected",
    ),
    "scales as integers": (
        tensor("w", (2, 3), Part(SCALED, (1, -1, 1, 0, -1), (Array(Q), Array(TERNARY, 3)), (Table(2, bytes(4)),))),
        "scales of type uint32",
    ),
    "facts left out": (parts(facts=4), "'lowest' is missing"),
    "levels left out": (parts(arrays=1), "'levels' is missing"),
    "scales left out": (parts(tables=0), "'scale' is missing"),
}


@pytest.mark.parametrize(("record", "found"), WRONG.values(), ids=WRONG)
def test_what_the_text_does_not_allow_is_refused(record, found, refused_by_both):
    refused_by_both(file(record), found)


def agree(path: Path, *parts: Part, shape: tuple[int, ...] = (2, 3), dtype: int = F32) -> bool:
    """Whether both decoders read a tensor, to the same bits; fails where they differ."""
    data = file(tensor("w", shape, *parts, dtype=dtype))
    path.write_bytes(data)
    try:
        found = to_words(deepcomp.load_state_dict(path)["w"])
    except FormatError:
        with pytest.raises(ValueError):  # noqa: PT011
            decode(data)
        return False
    assert decode(data).tensors[0].data == bytes(found)
    return True


def test_products_are_rounded_as_the_text_says(tmp_path):
    numbers = [0.1, -0.1, 1e-45, 3e38, 65519.0, 0.0, -0.0, 2.0**-24]
    q, levels = fixed(2, 0, 1, 2, 3), fixed(18, 0, 65533, 65536, 131072)
    for dtype, scale in itertools.product(range(4), itertools.permutations(numbers, 2)):
        part = scaled(q, levels, *scale, count=None, sides=2, lowest=-65536)
        assert agree(tmp_path / "x.dcz", part, shape=(4,), dtype=dtype)


def test_blocks_and_sides_share_scales_as_in_a_grid(tmp_path):
    read = set()
    for axis, group, size, sides, scales in itertools.product((-1, 0, 1), (1, 2), (0, 1, 2), (1, 2), range(1, 13)):
        part = scaled(Q, TERNARY, *range(1, scales + 1), axis=axis, group=group, size=size, sides=sides)
        if agree(tmp_path / "x.dcz", part):
            read.add((axis, group, size, scales // sides))
            assert scales % sides == 0
    assert read == {
        (-1, 1, 0, 1), (0, 1, 0, 2), (0, 1, 1, 6), (0, 1, 2, 4), (0, 2, 0, 1),
        (1, 1, 0, 3), (1, 1, 1, 6), (1, 1, 2, 3), (1, 2, 0, 2),
    }  # fmt: skip


@pytest.mark.parametrize("table", [Table(0, bytes([112])), Table(5, bytes([255])), Table(4, struct.pack("<f", 0.3))])
def test_scales_may_be_bytes_and_exponents(table, tmp_path):
    part = Part(SCALED, (1, -1, 1, 0, -1), (Array(Q), Array(TERNARY, 3)), (table,))
    assert agree(tmp_path / "x.dcz", part)


def test_levels_lie_under_masks_and_rows(tmp_path):
    over = scaled(fixed(2, 2, 0), TERNARY, 0.5, 0.25, axis=0, count=3)
    assert agree(tmp_path / "x.dcz", mask(fixed(2, 1, 2), 2), over)
    row = Array(fixed(2, 2, 0, 1), 3), Array(TERNARY)
    part = Part(SCALED, (1, -1, 1, 0, -1), row, (Table(4, struct.pack("<f", 0.5)),))
    assert agree(tmp_path / "x.dcz", rows(constant(0), 2, 1), part)
    nothing = Part(SCALED, (1, -1, 1, 0, 9), (Array(constant(0)), Array(constant(0), None)), (Table(4, bytes(4)),))
    assert agree(tmp_path / "x.dcz", mask(constant(0), 0), nothing)
    assert not agree(tmp_path / "x.dcz", scaled(Q, TERNARY, 1), words(1))


N = 1 << 21


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_decoding_takes_no_more_memory_than_the_limit_counts(masked, sides, tmp_path, bounded):
    part = scaled(constant(1), fixed(1, 0, 1), *[1] * (sides * N // 2), axis=0, size=2, count=2, sides=sides)
    parts = (mask(constant(0), N - 1), part) if masked else (part,)
    (tmp_path / "x.dcz").write_bytes(file(tensor("w", (N // 4, 4), *parts)))
    with deepcomp.open(tmp_path / "x.dcz") as opened:
        entry = opened.entries["w"]
        assert entry.work < 96 * N
        with bounded(entry.nbytes + entry.work + opened.reader.size + (16 << 20)):
            assert float(opened.get_tensor("w").sum()) == 0
