"""Damaged files: every change of a byte and every truncation of the golden files is found, by whatever reads them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deepcomp
from deepcomp.entry import GRAPH, TENSOR
from deepcomp.errors import FormatError

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.dcz"))
CASES = 1000
LARGE = 10_000  # bytes; of larger files, `load` reads a sample of the cases unless run with `-m slow`
SAMPLE = 100

Reader = Callable[[Path], Any]

each_golden = pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)


def changes(golden: Path, target: Path) -> Iterator[str]:
    """`target` with a byte changed, as many times as there are cases; what was changed."""
    choose = random.Random(golden.stem)
    shutil.copy(golden, target)
    with target.open("r+b", buffering=0) as file:
        for _ in range(CASES):
            place, change = choose.randrange(golden.stat().st_size), choose.randrange(1, 256)
            byte = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([byte[0] ^ change]), place)
            yield f"byte {place} changed by {change}"
            os.pwrite(file.fileno(), byte, place)


def truncations(golden: Path, target: Path) -> Iterator[str]:
    """`target` cut ever shorter."""
    choose = random.Random(golden.stem)
    size = golden.stat().st_size
    shutil.copy(golden, target)
    for length in sorted((choose.randrange(size) for _ in range(CASES)), reverse=True):
        os.truncate(target, length)
        yield f"cut to {length} bytes"


def readers(golden: Path) -> list[Reader]:
    """What loads a file: as a dict and, where it has operations, as a module."""
    with deepcomp.open(golden) as file:
        runs = any(record.kind == GRAPH for record in file.reader.records)
    return [deepcomp.load_state_dict, deepcomp.load] if runs else [deepcomp.load_state_dict]


def check(damaged: Iterator[str], target: Path, reads: list[Reader], bounded: Any, every: int = 1) -> None:
    """Each reader refuses each damaged file with one line that names it."""
    for number, what in enumerate(damaged):
        for read in reads if number % every == 0 else []:
            with bounded(), pytest.raises(FormatError) as caught:
                read(target)
            line = str(caught.value)
            assert line.startswith(f"{target}: "), what
            assert "\n" not in line, what
            assert len(line) < 1000, what


@each_golden
@pytest.mark.parametrize("damage", [changes, truncations])
def test_verify_finds_all_damage(golden, damage, tmp_path, bounded):
    target = tmp_path / golden.name
    check(damage(golden, target), target, [deepcomp.verify], bounded)


@each_golden
@pytest.mark.parametrize("damage", [changes, truncations])
def test_loading_finds_all_damage(golden, damage, tmp_path, bounded):
    target = tmp_path / golden.name
    every = CASES // SAMPLE if golden.stat().st_size > LARGE and damage is changes else 1
    check(damage(golden, target), target, readers(golden), bounded, every)


@pytest.mark.slow
@each_golden
def test_loading_finds_every_change(golden, tmp_path, bounded):
    target = tmp_path / golden.name
    check(changes(golden, target), target, readers(golden), bounded)


@each_golden
def test_every_chunk_holds_a_tensor_so_that_loading_checks_every_byte(golden):
    with deepcomp.open(golden) as file:
        records = [record for record in file.reader.records if record.length]
        assert {record.chunk for record in records} == {r.chunk for r in records if r.kind == TENSOR}


def test_a_damaged_chunk_does_not_keep_others_from_being_read(tmp_path):
    golden = next(path for path in GOLDEN if path.stem == "forms-1.0")
    target = tmp_path / golden.name
    raw = bytearray(golden.read_bytes())
    with deepcomp.open(golden) as file:
        chunk = {r.name: r.chunk for r in file.reader.records if r.kind == TENSOR and r.length}
    first = min(chunk.values())
    raw[first] ^= 1
    target.write_bytes(raw)
    with deepcomp.open(target) as file:
        for name, start in chunk.items():
            if start != first:
                file.get_tensor(name)
            else:
                with pytest.raises(FormatError, match="checksum"):
                    file.get_tensor(name)
