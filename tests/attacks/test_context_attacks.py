"""Hostile streams of the context coder: arrangements, inputs and codes that are not; small streams of many symbols."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from build import CODEBOOK, MASK, RAW, ROWS, SAME, U8, Array, Part, Table, constant, file, reference, tensor, words
from independent_decoder import decode
from limits import limited

import deepcomp
from deepcomp import entropy, jit
from deepcomp.entropy import context
from deepcomp.entropy.context import Before, model
from deepcomp.entropy.context.layout import Layout
from deepcomp.errors import FormatError

LIVE = bytes.fromhex("04 00 00 00 70 98 59")  # 8 rows of 2, of which 0, 3 and 5 are live
FED = bytes.fromhex("04 00 00 01 21 83")  # 2 rows of 8, whose columns are fed by those rows
ALONE = bytes.fromhex("04 00 00 00 24 3a bc")  # the same, of which nothing is known
MB = 1 << 20


def codes(name, shape, stream, count=None, code=CODEBOOK):
    return tensor(name, shape, Part(code, (), (Array(stream, count),), (Table(2, bytes(8)),)))


FEEDING = codes("a", (8, 2), LIVE)
FED_ONE = codes("b", (2, 8), FED)


def test_what_is_fed_is_read_and_alone_too(tmp_path):
    (tmp_path / "x.dcz").write_bytes(file(FEEDING, FED_ONE))
    with deepcomp.open(tmp_path / "x.dcz") as opened:
        fed = opened.get_form("b").index
    assert fed.tolist() == [[1, 0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1, 0, 0]]
    assert np.array_equal(entropy.decode(ALONE, 16, 0, (2, 8)), fed.reshape(-1))
    decode(file(FEEDING, FED_ONE))


def test_the_first_byte_may_say_the_arrangement_and_the_inputs():
    short = {"24 00 70 98 59": (LIVE, (8, 2)), "24 00 24 3a bc": (ALONE, (2, 8)), "44 00 21 83": (FED, (2, 8))}
    rows = entropy.live_rows(LIVE, 16, 0, (8, 2))
    for stream, (long, shape) in short.items():
        stream = bytes.fromhex(stream)
        found = [entropy.decode(one, 16, 0, shape, lambda back: rows) for one in (stream, long)]
        assert np.array_equal(*found)
        assert np.array_equal(entropy.live_rows(stream, 16, 0, shape), entropy.live_rows(long, 16, 0, shape))
        assert entropy.encode(found[0], "context", shape, Before(1, rows) if long is FED else None) == stream


SILENT = "inputs from tensor 'a' found, which does not say which of its rows are live"
GAPS, ROW = Part(MASK, (), (Array(LIVE),)), Part(ROWS, (8,), (Array(constant(0), 8),))
VALUES = Part(CODEBOOK, (), (Array(LIVE, 16),), (Table(2, bytes(8)),))
FEEDERS = {
    "none before": ((), "inputs from 1 tensors back found, where 0 stand"),
    "words": ((tensor("a", (2,), words(1, 2)),), SILENT),
    "a Huffman stream": ((codes("a", (8, 2), b"\x02\x02\x11\x0e\x05\0"),), SILENT),
    "a constant": ((codes("a", (8, 2), constant(0)),), SILENT),
    "a single row": ((codes("a", (16,), LIVE),), SILENT),
    "no symbols": ((tensor("a", (0,), words()),), SILENT),
    "a reference": ((FEEDING, reference("c", (8, 2), 0, SAME)), SILENT.replace("'a'", "'c'")),
    "gaps": ((tensor("a", (8, 2), GAPS, words(*[1] * 16)),), SILENT),
    "repeated rows": ((tensor("a", (8, 2), ROW, VALUES),), SILENT),
    "rows that do not divide": ((codes("a", (3, 1), b"\x04\0\0\0\x80"),), "8 inputs of 2 rows, fed by 3 rows"),
    "too many rows": ((codes("a", (16, 1), b"\x04\0\0\0\x80"),), "8 inputs of 2 rows, fed by 16 rows"),
}


@pytest.mark.parametrize(("before", "found"), FEEDERS.values(), ids=FEEDERS)
def test_inputs_from(before, found, refused):
    def read(path):
        with deepcomp.open(path) as opened:
            opened.get_tensor("b")

    data = file(*before, FED_ONE)
    refused(data, rf"tensor 'b' .*{found}", read)
    with pytest.raises(ValueError):  # noqa: PT011
        decode(data)


@pytest.mark.parametrize("short", range(3, 8))
def test_inputs_from_beyond_the_first_tensor_in_short(short, refused_by_both):
    data = file(FEEDING, codes("b", (2, 8), bytes([short << 5 | 4]) + FED[4:]))
    refused_by_both(data, f"inputs from {short - 1} tensors back found, where 1 stand")


def test_inputs_of_a_single_row_are_refused(refused_by_both):
    refused_by_both(file(FEEDING, codes("b", (16,), FED)), "16 inputs of 1 rows, fed by 8 rows")


@pytest.mark.parametrize("back", [2, 3, 1 << 40, (1 << 64) - 1, 1 << 64])
def test_inputs_from_beyond_the_first_tensor(back, refused_by_both):
    number = b""
    while back > 127:
        number, back = number + bytes([back & 127 | 128]), back >> 7
    stream = b"\x04\0\0" + number + bytes([back]) + FED[4:]
    refused_by_both(
        file(FEEDING, codes("b", (2, 8), stream)), r"tensors back found, where 1 stand|at most 18446744073709551615"
    )


STREAMS = {
    "wide": ("14 00 00 00 00", "method 20"),
    "wide, and short": ("34 00 00", "method 52"),
    "Huffman, and short": ("42 00 00", "method 66"),
    "constant, and short": ("20 00", "method 32"),
    "short, without a zero": ("24", "1 bytes expected, 0 left"),
    "short, without a code": ("24 00", "a code|symbols from"),
    "without a zero": ("04", "1 bytes expected, 0 left"),
    "a zero of 2^31": ("04 80 80 80 80 08 00 00 00", "2147483648 found, at most 2147483647"),
    "more rows than symbols": ("04 00 11 01 01 00 80", "17 found, at most 16"),
    "rows that do not divide": ("04 00 03 01 01 00 80", "16 symbols in 3 rows of 1 planes"),
    "planes that do not divide": ("04 00 02 03 01 00 80", "16 symbols in 2 rows of 3 planes"),
    "no planes": ("04 00 01 00 01 00 80", "16 symbols in 1 rows of 0 planes"),
    "lines of 0": ("04 00 01 01 00 00 80", "in lines of 0"),
    "lines beyond a plane": ("04 00 02 02 05 00 80", "in lines of 5"),
    "no code": ("04 00 00 00", "a code|symbols from"),
    "a code too long": ("04 00 00 00 24 3a bc 00 00 01", "a code"),
    "a code that ends in 0": ("04 00 00 00 24 3a bc 00", "a code that is not the shortest"),
    "a code of ones": ("04 00 00 00" + " ff" * 40, "a code|symbols from"),
    "symbols below 0": ("04 00 00 00 00 00 00 01", "a code|symbols from"),
}


@pytest.mark.parametrize(("stream", "found"), STREAMS.values(), ids=STREAMS)
def test_stream(stream, found, refused_by_both):
    record = codes("w", (2, 8), bytes.fromhex(stream))
    refused_by_both(file(record), rf"tensor 'w' .* symbol stream: .*({found}).* at byte \d+$")


@pytest.mark.skipif(not jit.available(), reason="plain Python takes minutes")
@pytest.mark.parametrize(
    "shape", [(1 << 23,), (1 << 23, 1), (2, 1 << 22), (2, 1 << 22, 1, 1), (1 << 11, 1 << 10, 2, 2)]
)
@pytest.mark.parametrize("code", ["", "80"])
def test_a_code_that_has_ended_is_not_decoded_on(code, shape):
    # decisions that are certain cost next to nothing, so what is left of the code is still worth two million
    layout, code = Layout.of(shape, 1 << 23), np.array([*bytes.fromhex(code)], np.uint8)
    memory = context._memory(layout, np.zeros(1 << 23, np.int32), code, None, encoding=False, fast=True)
    told = memory.live_rows, memory.live_planes, memory.live_taps
    before = [np.count_nonzero(live) for live in told]
    context._walk(memory, fast=True)
    assert model.over(memory)
    assert np.count_nonzero(memory.values) < 1 << 22
    assert sum(np.count_nonzero(live) for live in told) - sum(before) * (layout.rows == 1) < 1 << 22


def test_rows_that_feed_many_are_decoded_once(tmp_path, bounded):
    back = [bytes([i]) if i < 128 else bytes([i & 127 | 128, i >> 7]) for i in range(1, 300)]
    fed = (codes(str(i), (2, 8), FED[:3] + number + FED[4:]) for i, number in enumerate(back))
    (tmp_path / "x.dcz").write_bytes(file(FEEDING, *fed))
    with bounded(), deepcomp.open(tmp_path / "x.dcz") as opened:
        assert len(list(opened.tensors())) == 300
        assert len(opened._live) == 1


@pytest.mark.skipif(not jit.available(), reason="plain Python takes minutes")
@pytest.mark.parametrize("shape", [(1, 1 << 21), (1 << 20, 2), (1, 1 << 21, 1)])
@pytest.mark.parametrize("code", [RAW, CODEBOOK, MASK])
def test_decoding_takes_no_more_memory_than_the_limit_counts(code, shape, tmp_path):
    symbols = np.zeros(1 << 21, np.uint8)
    symbols[-1] = 1
    with jit.use(numba=True):
        stream = entropy.encode(symbols, "context", shape)
        assert len(stream) < 1000
        forms = {
            RAW: (Part(RAW, (), (Array(stream),)),),
            CODEBOOK: (Part(CODEBOOK, (), (Array(stream),), (Table(0, bytes(2)),)),),
            MASK: (Part(MASK, (), (Array(stream),)), Part(RAW, (), (Array(constant(1)),))),
        }
        (tmp_path / "x.dcz").write_bytes(file(tensor("w", shape, *forms[code], dtype=U8)))
        with deepcomp.open(tmp_path / "x.dcz") as opened:
            entry = opened.entries["w"]
            allowed = entry.nbytes + entry.work + 4 * MB
            with limited(allowed), contextlib.suppress(FormatError):  # positions beyond the tensor, say
                opened.get_tensor("w")
