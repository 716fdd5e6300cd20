"""Hostile tensors: heads, bodies and streams, each refused with one line that names the tensor and the place."""

from __future__ import annotations

from typing import Any

import pytest
from build import (
    BOOL,
    C64,
    CODEBOOK,
    F16,
    F32,
    F64,
    I32,
    MASK,
    RAW,
    SAME,
    SHIFTED,
    SIZES,
    TENSOR,
    TIED,
    Array,
    Part,
    Record,
    Table,
    codebook,
    constant,
    file,
    fixed,
    grid,
    mask,
    planes,
    reference,
    rows,
    shaped,
    signed,
    tensor,
    varint,
    words,
)

import deepcomp
from deepcomp import jit
from deepcomp.errors import FormatError
from deepcomp.weights.dtypes import to_words

Attacks = dict[str, tuple[bytes, str]]


def attacks(table: Attacks) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("data", "found"), table.values(), ids=table)


PAIR = words(1, 2)
W = tensor("w", (2,), PAIR)


@pytest.mark.parametrize("dtype", range(18))
def test_forms_of_every_type_that_has_one_word_an_element_are_no_attack(dtype, tmp_path):
    size = SIZES[dtype]
    table = Table({1: 0, 2: 1, 4: 2, 8: 3}[size], (1).to_bytes(size, "little") + bytes(size))
    values, index = Part(RAW, (), (), (table,)), fixed(1, 0, 1, 0, 0)
    book = Part(CODEBOOK, (), (Array(index),), (table,))
    few = Part(CODEBOOK, (), (Array(constant(0)),), (table,))
    (tmp_path / "x.dcz").write_bytes(
        file(
            tensor("codebook", (2, 2), book, dtype=dtype),
            tensor("mask", (2, 2), mask(constant(1), 2), few, dtype=dtype),
            tensor("rows", (2, 2), rows(constant(0), 2, 1), values, dtype=dtype),
        )
    )
    state = deepcomp.load_state_dict(tmp_path / "x.dcz")
    found = {name: to_words(tensor).tolist() for name, tensor in state.items()}
    assert found == {"codebook": [1, 0, 1, 1], "mask": [0, 1, 0, 1], "rows": [1, 0, 1, 0]}


# --- heads of tensors ---------------------------------------------------------------------------


def head(content: bytes, body: bytes = b"") -> bytes:
    """A file whose only tensor has this head."""
    return file(Record(TENSOR, "w", content, body))


def array(stream: bytes, count: int | None = None, length: int | None = None) -> Part:
    """A codebook of one value with this array."""
    return Part(CODEBOOK, (), (Array(stream, count, length),), (Table(2, bytes(4)),))


HEADS: Attacks = {
    "no head": (head(b""), "tensor 'w': head: 1 bytes expected, 0 left at byte 0"),
    "unknown element type": (head(shaped(20, (2,)) + b"\x01\x00"), "element type 20 of role 0 found at byte 1"),
    "unknown role": (head(shaped(F32, (2,), role=3) + b"\x01\x00"), "element type 0 of role 3 found at byte 1"),
    "33 dimensions": (head(shaped(F32, (1,) * 33)), "33 found, at most 32 expected at byte 2"),
    "2^64 dimensions": (head(shaped(F32, (), dimensions=2**64 - 1)), "at most 32 expected"),
    "shape beyond 64 bits": (head(shaped(F32, (1 << 40, 1 << 40)) + b"\x01\x00"), "impossible shape"),
    "shape that is 0 modulo 2^64": (head(shaped(F32, (1 << 32, 1 << 32)) + b"\x01\x00"), "impossible shape"),
    "shape of no elements beyond 64 bits": (head(shaped(F32, (1 << 63, 0, 9)) + b"\x01\x00"), "impossible shape"),
    "dimension beyond 64 bits": (head(shaped(F32, (1 << 65,))), "longer than 64 bits|at most"),
    "no form": (head(shaped(F32, (2,))), "1 bytes expected, 0 left"),
    "unknown form": (head(shaped(F32, (2,)) + b"\x00\x00"), r"tensor 'w': form 0 found, one of \[1, 2, "),
    "form of no kind": (head(shaped(F32, (2,)) + b"\x7d\x00"), "form 125 found"),
    "too many facts": (file(tensor("w", (2,), Part(RAW, (0, 0)))), "2 facts, 0 arrays and 0 tables found in a raw"),
    "too many arrays": (file(tensor("w", (2,), Part(RAW, (), (Array(constant(0)),) * 9))), "9 arrays"),
    "too many tables": (file(tensor("w", (9,), mask(constant(0), 2), PAIR, PAIR)), "raw as part 2, not the last"),
    "table in a mask": (
        file(tensor("w", (2,), Part(MASK, (), (), (Table(0, b""),)), PAIR)),
        "1 tables found in a mask",
    ),
    "unknown table type": (head(shaped(F32, (2,)) + b"\x01\x80\x06\x02"), "table of type 6 found"),
    "table of 2^60 elements": (
        file(tensor("w", (2,), Part(RAW, (), (), (Table(2, b"", 1 << 60),)))),
        "1152921504606846976 found, at most",
    ),
    "table longer than the body": (
        file(tensor("w", (2,), Part(RAW, (), (), (Table(2, bytes(8), 3),)))),
        "parts of 12 bytes found in a body of 8",
    ),
    "body longer than its parts": (head(tensor("w", (2,), PAIR).head, bytes(9)), "parts of 8 bytes .* body of 9"),
    "array longer than the body": (
        file(tensor("w", (2,), array(constant(0), length=1 << 40))),
        "parts of 1099511627780 bytes found in a body of 6",
    ),
    "array of 2^60 bytes": (file(tensor("w", (2,), array(constant(0), length=1 << 60))), "at most .* expected at"),
    "array of more symbols than elements": (
        file(tensor("w", (2,), array(constant(0), count=3))),
        "3 symbols found in a tensor of 2",
    ),
    "array of 2^62 symbols": (file(tensor("w", (2,), array(constant(0), count=1 << 62))), "symbols found in a tensor"),
    "count spelled out": (file(tensor("w", (2,), array(constant(0), count=2))), "2 symbols spelled out"),
    "something behind the parts": (head(tensor("w", (2,), PAIR).head + b"\0", bytes(8)), "1 bytes left over at byte"),
    "fact beyond 64 bits": (head(shaped(F32, (2,)) + b"\x01\x01" + signed(1 << 64)), "longer than 64 bits|at most"),
    "raw over raw": (file(tensor("w", (2,), PAIR, PAIR)), "raw as part 1, not the last"),
    "rows over rows": (
        file(tensor("w", (2, 2), rows(constant(0), 2, 1), rows(constant(0), 1, 1), PAIR)),
        "rows as part 2, not the last",
    ),
    "mask over rows": (
        file(tensor("w", (2, 2), mask(constant(0), 2), rows(constant(0), 1, 1), PAIR)),
        "rows as part 2, not the last",
    ),
    "mask over mask": (
        file(tensor("w", (9,), mask(constant(0), 2), mask(constant(0), 1), PAIR)),
        "mask as part 2, not the last",
    ),
    "mask over nothing": (file(tensor("w", (2,), Part(MASK, (), (Array(constant(0)),)))), "mask as part 1, the last"),
    "mask over a reference": (
        head(shaped(F32, (2,)) + bytes([MASK | 128, 8]) + varint(0) + varint(2) + bytes([SAME, 0])),
        "form 126 found",
    ),
    "rows of a scalar": (file(tensor("w", (), rows(constant(0), 1, 1), words(1))), "spelled out|rows"),
    "codebook of complex numbers": (file(tensor("w", (2,), array(constant(0)), dtype=C64)), "codebook of complex64"),
    "mask of complex numbers": (file(tensor("w", (9,), mask(constant(0), 2), PAIR, dtype=C64)), "mask of complex64"),
    "codebook of no elements": (file(tensor("w", (0,), array(constant(0)))), r"codebook of float32 \(0,\), raw"),
    "tied to itself": (file(reference("w", (2,), 0)), "tensor 0 referred to, an earlier one than 0 expected"),
    "tied to a later one": (file(reference("v", (2,), 1), W), "tensor 1 referred to, an earlier one than 0"),
    "tied to number 2^63": (file(W, reference("v", (2,), 1 << 63)), "tensor 9223372036854775808 referred to"),
    "tied to a tied one": (file(W, reference("v", (2,), 0), reference("u", (2,), 1)), "'u': stands for tensor 1, "),
    "equal to an equal one": (
        file(W, reference("v", (2,), 0, SAME), reference("u", (2,), 1, SAME)),
        "'u': stands for tensor 1, which is not like it",
    ),
    "tied to another shape": (file(W, reference("v", (2, 1), 0)), "'v': stands for tensor 0, which is not like it"),
    "tied to another type": (file(W, reference("v", (2,), 0, dtype=I32)), "'v': stands for tensor 0, which is not"),
    "tied with a body": (
        file(W, Record(TENSOR, "v", shaped(F32, (2,)) + bytes([TIED, 0]), bytes(8))),
        "parts of 0 bytes found in a body of 8",
    ),
}


@attacks(HEADS)
def test_head(data, found, refused_by_both):
    refused_by_both(data, found)


def test_head_cut_at_every_byte(refused):
    whole = tensor("w", (3, 4), rows(constant(1), 3, 2), mask(constant(3), 2), grid(constant(2), 2, bits=2))
    for length in range(len(whole.head)):
        refused(file(Record(TENSOR, "w", whole.head[:length], whole.body)), "tensor 'w'")


# --- bodies -------------------------------------------------------------------------------------


def float_grid(*scale: float, **settings: Any) -> Record:
    return tensor("w", (2, 4), grid(constant(1), *scale, **settings))


def shifted(shifts: int, value: int, dtype: int = F32) -> Part:
    """Four values as byte planes, and so many shifts."""
    flat = (Array(constant(0)),) * (SIZES[dtype] - 1)
    return Part(SHIFTED, (), (Array(constant(value), shifts), Array(constant(0), 4), *flat))


def stored(code: int, size: int) -> Part:
    """Two raw words of another element type."""
    return Part(RAW, (code,), (), (Table({1: 0, 2: 1, 4: 2, 8: 3}[size], bytes(2 * size)),))


BODIES: dict[str, tuple[Record, str]] = {
    "raw without values": (tensor("w", (2,), Part(RAW)), "0 byte planes found, 4 expected"),
    "raw of words and planes": (
        tensor("w", (2,), Part(RAW, (), (Array(constant(0)),) * 4, (Table(2, bytes(8)),))),
        "words and byte planes",
    ),
    "raw of words of another width": (
        tensor("w", (2,), words(1, 2, kind="d")),
        "words as uint64 found, uint32 expected",
    ),
    "raw of floats where words belong": (
        tensor("w", (2,), Part(RAW, (), (), (Table(4, bytes(8)),))),
        "words as float32 found, uint32 expected",
    ),
    "raw of too few words": (tensor("w", (3,), PAIR), "2 words found, 3 expected"),
    "raw of too many words": (tensor("w", (1,), PAIR), "2 words found, 1 expected"),
    "planes of other lengths": (
        tensor("w", (2,), Part(RAW, (), (*[Array(constant(0))] * 3, Array(constant(0), 1)))),
        "byte planes of different lengths",
    ),
    "plane of large symbols": (
        tensor("w", (2,), Part(RAW, (), (*[Array(constant(0))] * 3, Array(constant(256))))),
        "a byte plane with values beyond 255",
    ),
    "stored as no type": (tensor("w", (2,), stored(99, 4)), "element type 99 found"),
    "stored as type -1": (tensor("w", (2,), stored(-1, 4)), "element type -1 found"),
    "stored as integers": (tensor("w", (2,), stored(I32, 4)), "int32 found where float32 is stored"),
    "stored as complex numbers": (tensor("w", (2,), stored(C64, 4)), "complex64 found where float32 is stored"),
    "stored wider": (tensor("w", (2,), stored(F32, 4), dtype=F16), "float32 found where float16 is stored"),
    "bool of 7": (tensor("w", (2,), words(1, 7, kind="B"), dtype=BOOL), "a bool of 7 found, 0 or 1 expected"),
    "bool of 255 in a plane": (tensor("w", (2,), planes(255, BOOL), dtype=BOOL), "a bool of 255 found"),
    "bool of 2 in a codebook": (
        tensor("w", (2,), Part(CODEBOOK, (), (Array(constant(0)),), (Table(0, b"\2"),)), dtype=BOOL),
        "a bool of 2 found",
    ),
    "shifted without shifts": (tensor("w", (2, 1), Part(SHIFTED)), "rows without shifts"),
    "shifted by too few": (tensor("w", (2, 2), shifted(1, 2)), "1 shifts found, 2 expected"),
    "shifted by more than a byte": (tensor("w", (2, 2), shifted(2, 256)), "a byte with a value beyond 255"),
    "shifted of too few planes": (
        tensor("w", (2, 2), Part(SHIFTED, (), (Array(constant(0), 2), *[Array(constant(0))] * 3))),
        "3 byte planes found, 4 expected",
    ),
    "shifted of doubles": (tensor("w", (2, 2), shifted(2, 0, F64), dtype=F64), "shifted rows of float64"),
    "shifted scalar": (tensor("w", (), Part(SHIFTED, (), (Array(constant(0)),) * 5)), r"shifted rows of float32 \(\)"),
    "shifted under a mask": (tensor("w", (2, 2), mask(constant(0), 1), shifted(2, 0)), "shifted rows of float32"),
    "codebook without values": (tensor("w", (2,), Part(CODEBOOK, (), (Array(constant(0)),))), "'values' is missing"),
    "codebook without indices": (tensor("w", (2,), Part(CODEBOOK, (), (), (Table(2, b""),))), "'index' is missing"),
    "codebook of nothing": (tensor("w", (2,), codebook(constant(0))), "index 0 found in a codebook of 0"),
    "index out of range": (tensor("w", (2,), codebook(fixed(2, 0, 2), 1, 2)), "index 2 found in a codebook of 2"),
    "index of 2^32 - 1": (tensor("w", (2,), codebook(constant(2**32 - 1), 1, 2)), "index 4294967295 found"),
    "too few indices": (tensor("w", (2,), codebook(constant(0), 1, count=1)), "1 indices found, 2 expected"),
    "index out of range under a mask": (
        tensor("w", (9,), mask(constant(1), 2), codebook(fixed(2, 0, 2), 1, 2)),
        "index 2 found in a codebook of 2",
    ),
    "bool of 2 in a codebook under a mask": (
        tensor(
            "w", (9,), mask(constant(1), 2), Part(CODEBOOK, (), (Array(constant(0)),), (Table(0, b"\2"),)), dtype=BOOL
        ),
        "a bool of 2 found",
    ),
    "position beyond the tensor under a mask of shared values": (
        tensor("w", (9,), mask(constant(4), 2), codebook(constant(0), 1)),
        "position 9 found in a tensor of 9",
    ),
    "position beyond the tensor": (tensor("w", (9,), mask(constant(4), 2), PAIR), "position 9 found in a tensor of 9"),
    "positions that overflow": (
        tensor("w", (2, 2), mask(constant(2**32 - 1), 3), words(1, 2, 3)),
        "position 12884901887 found in a tensor of 4",
    ),
    "mask over too few values": (tensor("w", (9,), mask(constant(0), 3), PAIR), "2 words found, 3 expected"),
    "mask without gaps": (tensor("w", (9,), Part(MASK), PAIR), "'gaps' is missing"),
    "row out of range": (
        tensor("w", (3, 2), rows(fixed(2, 0, 1, 2), 3, 2), PAIR),
        "row 2 found, fewer than 2 expected",
    ),
    "no distinct rows": (tensor("w", (3, 2), rows(constant(0), 3, 0), words()), "row 0 found, fewer than 0 expected"),
    "more distinct rows than rows": (tensor("w", (3, 2), rows(constant(0), 3, 9), PAIR), "9 distinct rows found"),
    "-1 distinct rows": (tensor("w", (3, 2), rows(constant(0), 3, -1), PAIR), "-1 distinct rows found"),
    "2^60 distinct rows": (tensor("w", (3, 2), rows(constant(0), 3, 1 << 60), PAIR), "distinct rows found"),
    "too few rows": (tensor("w", (3, 2), rows(constant(0), 2, 2), PAIR), "2 rows found, 3 expected"),
    "grid of 0 bits": (float_grid(1, bits=0), "0 bits found, 1 to 16 expected"),
    "grid of 17 bits": (float_grid(1, bits=17), "17 bits found"),
    "grid of 2^62 bits": (float_grid(1, bits=1 << 62), "bits found, 1 to 16 expected"),
    "grid half symmetric": (float_grid(1, symmetric=2), "symmetric = 2 found"),
    "grid of integers": (tensor("w", (2,), grid(constant(1), 1), dtype=I32), "a grid of int32"),
    "grid of bytes": (tensor("w", (2,), grid(constant(1), 1), dtype=13), "a grid of float8_e4m3fn"),
    "axis out of range": (float_grid(1, 1, axis=2), "axis 2, group 1, size 0 found"),
    "axis -2": (float_grid(1, axis=-2), "axis -2, group 1"),
    "group of 2^60": (float_grid(1, axis=0, group=1 << 60), "group 1152921504606846976"),
    "group of 0": (float_grid(1, axis=0, group=0), "axis 0, group 0"),
    "group of -1": (float_grid(1, axis=0, group=-1), "axis 0, group -1"),
    "group without an axis": (float_grid(1, group=2), "axis -1, group 2"),
    "block of 2^60": (float_grid(1, 1, axis=0, size=1 << 60), "size 1152921504606846976"),
    "block of -1": (float_grid(1, 1, axis=0, size=-1), "size -1"),
    "groups and blocks": (float_grid(1, 1, axis=0, group=2, size=2), "axis 0, group 2, size 2"),
    "too few scales": (float_grid(1, axis=0), "1 scales found, 2 expected"),
    "too many scales": (float_grid(1, 1), "2 scales found, 1 expected"),
    "scale that is NaN": (float_grid(float("nan")), "a scale that is not a finite number"),
    "scale that is infinite": (float_grid(float("inf")), "a scale that is not a finite number"),
    "scales as integers": (
        tensor("w", (2,), Part(5, (4, 1, -1, 1, 0, 0), (Array(constant(1)),), (Table(2, bytes(4)),))),
        "scales of type uint32",
    ),
    "integer beyond the grid": (tensor("w", (2,), grid(constant(15), 1)), r"integers \(15, 15\) found on a grid of 4"),
    "integer far beyond the grid": (tensor("w", (2,), grid(constant(2**32 - 1), 1)), r"integers \(4294967295, "),
    "lowest below 0": (tensor("w", (2,), grid(fixed(1, 0, 1), 1, lowest=-1)), r"integers \(-1, 0\) found"),
    "lowest of 2^62": (float_grid(1, lowest=1 << 62), "integers .* found on a grid of 4 bits"),
    "lowest of -2^63": (float_grid(1, lowest=-(1 << 63)), "integers .* found on a grid of 4 bits"),
    "symmetric with zero-points": (float_grid(1, zero_point=constant(0)), "a symmetric grid with zero-points"),
    "asymmetric without zero-points": (float_grid(1, symmetric=0), "an asymmetric grid without zero-points"),
    "too many zero-points": (
        float_grid(1, symmetric=0, zero_point=constant(0), zero_points=2),
        "2 zero-points found, 1 expected",
    ),
    "zero-point beyond the grid": (float_grid(1, symmetric=0, zero_point=constant(16)), "zero-point 16 found"),
    "grid without its facts": (
        tensor("w", (2,), Part(5, (4,), (Array(constant(1)),), (Table(4, bytes(4)),))),
        "'symmetric' is missing",
    ),
}


@pytest.mark.parametrize(("record", "found"), BODIES.values(), ids=BODIES)
def test_body(record, found, refused_by_both):
    place = rf"tensor 'w' in bytes 6 to {6 + len(record.body)}: .*"
    refused_by_both(file(record), f"{place}({found})")


@pytest.mark.parametrize(("record", "found"), BODIES.values(), ids=BODIES)
def test_body_with_numba(record, found, tmp_path):
    pytest.importorskip("numba")
    (tmp_path / "x.dcz").write_bytes(file(record))
    with jit.use(numba=True), pytest.raises(FormatError, match=found):
        deepcomp.load_state_dict(tmp_path / "x.dcz")
