"""Hostile files, each refused with one line that says where, before it costs time or memory.

Every file here has right checksums, so that the attack reaches the layer it aims at. The limits are
those of `bounded`: 256 MB and an alarm.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import (
    BOOL,
    C64,
    CODEBOOK,
    F16,
    F32,
    I32,
    MASK,
    METADATA,
    RAW,
    SAME,
    TENSOR,
    TIED,
    U8,
    Array,
    Part,
    Record,
    Table,
    chunks,
    codebook,
    constant,
    deflated,
    file,
    fixed,
    grid,
    mask,
    nibbles,
    plain,
    planes,
    reference,
    rows,
    seal,
    shaped,
    signed,
    tensor,
    text,
    varint,
    words,
)

import deepcomp
from deepcomp.container.layout import INDEX_LIMIT, MOST_RECORDS
from deepcomp.errors import DeepcompError, FormatError, InputError

Attacks = dict[str, tuple[bytes, str]]
W = tensor("w", (2,), words(1, 2))
PAIR = words(1, 2)


def attacks(table: Attacks) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("data", "found"), table.values(), ids=table)


@pytest.fixture
def refused(tmp_path: Path, bounded: Any) -> Callable[..., None]:
    """Insist that each reader refuses a file with one line that names it and what was found."""

    def check(data: bytes, found: str, *reads: Callable[[Path], Any], memory: int = 256 << 20) -> None:
        path = tmp_path / "x.dcz"
        path.write_bytes(data)
        for read in reads or (deepcomp.verify, deepcomp.load_state_dict):
            with bounded(memory), pytest.raises(FormatError, match=found) as caught:
                read(path)
            line = str(caught.value)
            assert line.startswith(f"{path}: ")
            assert "\n" not in line
            assert len(line) < 1000

    return check


def test_what_the_attacks_are_made_from_is_no_attack(tmp_path):
    (tmp_path / "x.dcz").write_bytes(
        file(
            W,
            tensor("planes", (3, 3), planes(0)),
            tensor("codebook", (4,), codebook(fixed(1, 0, 1, 1, 0), 5, 6)),
            tensor("mask", (9,), mask(fixed(2, 1, 2), 2), words(1, 2)),
            tensor("rows", (3, 2), rows(fixed(1, 0, 1, 0), 3, 2), words(1, 2, 3, 4)),
            tensor("grid", (4,), grid(fixed(3, 0, 1, 5, 6), 0.5, bits=3)),
            tensor("all", (3, 4), rows(fixed(1, 1, 0, 1), 3, 2), mask(constant(3), 2), grid(fixed(2, 2, 0), 2, bits=2)),
            tensor("bool", (2,), words(0, 1, kind="B"), dtype=BOOL),
            reference("tied", (2,), 0),
            Record(METADATA, "", b'{"a": 1}'),
        )
    )
    assert len(deepcomp.verify(tmp_path / "x.dcz")["tensors"]) == 9
    state = deepcomp.load_state_dict(tmp_path / "x.dcz")
    assert state["codebook"].tolist() == [5, 6, 6, 5]
    assert state["mask"].tolist() == [0, 1, 0, 0, 2, 0, 0, 0, 0]
    assert state["rows"].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert state["grid"].tolist() == [-1.5, -1, 1, 1.5]
    assert state["all"].tolist() == [[0, 0, 0, -2], [0, 0, 0, 2], [0, 0, 0, -2]]


# --- the frame ----------------------------------------------------------------------------------


def half_sealed(index: bytes) -> bytes:
    """A file whose SHA-256 is wrong and whose trailer's CRC-32 is right for that."""
    import zlib

    head, size, sha = b"\x93DCZ\1\0", struct.pack("<I", len(index)), bytes(32)
    return head + index + size + sha + struct.pack("<I", zlib.crc32(head + index + size + sha))


FRAME: Attacks = {
    "no bytes": (b"", "not a .dcz file: 0 bytes, at least 46 expected"),
    "45 bytes": (file()[:45], "45 bytes, at least 46"),
    "another magic": (b"\x89PNG" + file()[4:], r"starts with b'\\x89PNG'"),
    "major version 0": (file(version=(0, 0)), r"format 0\.0 found, this deepcomp reads 1\.x$"),
    "major version 2": (file(version=(2, 0)), r"format 2\.0 found.*newer one is needed"),
    "major version 255": (file(version=(255, 255)), r"format 255\.255 found"),
    "index longer than the file": (seal(b"", plain([]), length=1000), "index of 1000 bytes found in a file of 48"),
    "index of 4 GiB": (seal(b"", plain([]), length=2**32 - 1), "index of 4294967295 bytes found"),
    "no index": (seal(b"", b""), "index: 1 bytes expected, 0 left at byte 6"),
    "index of no coding": (seal(b"", b"\x02\x00"), "index coding 2 found, 0 or 1 expected at byte 7"),
    "hole before the index": (seal(chunks([W]) + b"hole", plain([W])), "chunks end at byte 18, but .* byte 22"),
    "hole without records": (seal(b"hole", plain([])), "chunks end at byte 6, but the index starts at byte 10"),
    "chunk longer than the file": (
        seal(b"", plain([Record(TENSOR, "w", b"", length=1 << 50)])),
        "chunks end at byte 1125899906842634",
    ),
    "chunks that overlap": (
        seal(chunks([W]), plain([W, tensor("v", (2,), PAIR)])),
        "chunks end at byte 30, but the index starts at byte 18",
    ),
    "length of 2^63": (seal(b"", plain([Record(TENSOR, "w", b"", length=1 << 63)])), "at most .* expected at byte"),
    "length of 2^70": (seal(b"", plain([Record(TENSOR, "w", b"", length=1 << 70)])), "longer than 64 bits"),
    "lengths that add up beyond 2^64": (
        seal(b"", plain([Record(TENSOR, str(i), b"", length=1 << 56) for i in range(300)])),
        "chunks end at byte 2",
    ),
    "open chunk at the end": (file(tensor("w", (2,), PAIR, last=False)), "index ends within a chunk"),
    "open chunk of no bytes": (file(tensor("w", (0,), words(), last=False)), "index ends within a chunk"),
    "chunk with a wrong checksum": (seal(chunks([W])[:-1] + b"\0", plain([W])), "checksum of 'w' .* bytes 6 to 14"),
}


@attacks(FRAME)
def test_frame(data, found, refused):
    refused(data, found)


def test_a_wrong_sha256_is_found_by_verify(refused):
    refused(half_sealed(plain([])), "SHA-256 of the file does not match", deepcomp.verify)


@pytest.mark.parametrize("minor", [1, 255])
def test_a_newer_minor_version_opens_and_what_is_unknown_in_it_is_refused(minor, refused, tmp_path):
    refused(file(W, Record(3, "new", b""), version=(1, minor)), "record of kind 3, named 'new'")
    refused(file(tensor("w", (2,), Part(6)), version=(1, minor)), "form 6 found")
    (tmp_path / "x.dcz").write_bytes(file(W, version=(1, minor)))
    assert deepcomp.load_state_dict(tmp_path / "x.dcz")["w"].tolist() == [1, 2]


# --- the index ----------------------------------------------------------------------------------


INDEX: Attacks = {
    "2^40 records": (seal(b"", plain([], count=1 << 40)), "1099511627776 found, at most 6 expected at byte"),
    "a record too few": (seal(b"", plain([Record(TENSOR, "", b"")], count=2)), "1 bytes expected|at most"),
    "a record too many": (seal(b"", plain([Record(TENSOR, "", b"")], count=0)), "bytes left over"),
    "more records than anyone has": (
        seal(b"", deflated(varint(MOST_RECORDS + 1) + bytes(5 * MOST_RECORDS))),
        f"{MOST_RECORDS + 1} found, at most {MOST_RECORDS}",
    ),
    "count with needless zeros": (seal(b"", b"\0\x80\0"), "needless leading zeros at byte 9"),
    "two tensors of one name": (file(W, W), "a second record named 'w' at byte"),
    "two graphs": (file(Record(1, "", b""), Record(1, "", b"")), "a second record named ''"),
    "graph with a name": (file(Record(1, "g", b"")), "record of kind 1, named 'g'"),
    "graph with a body": (file(Record(1, "", b"", b"x")), "kind 1, named '', with a body of 1 bytes"),
    "metadata with a body": (file(Record(2, "", b"{}", b"x")), "kind 2, named '', with a body of 1 bytes"),
    "unknown kind": (file(Record(30000, "w", b"")), "record of kind 30000, named 'w'"),
    "kind of 2^60": (file(Record(1 << 60, "w", b"")), "at most 65536 expected"),
    "name that is not UTF-8": (file(Record(TENSOR, b"\xff\xfe", b"")), "not UTF-8 at byte"),
    "name with a surrogate": (file(Record(TENSOR, b"\xed\xa0\x80", b"")), "not UTF-8 at byte"),
    "name of 65,537 bytes": (file(Record(TENSOR, "x" * 65537, b"")), "65537 found, at most 65536 expected"),
    "head longer than the index": (
        seal(b"", b"\0" + varint(1) + varint(1) + text("w") + varint(1 << 62)),
        "4611686018427387904 found, at most 9 expected",
    ),
    "deflate cut short": (seal(b"", deflated(plain([W]))[:-4]), "does not inflate to the .* bytes it declares"),
    "deflate of noise": (seal(b"", b"\x01\x09" + b"\xff" * 9), "does not inflate"),
    "deflate with more behind": (seal(b"", deflated(varint(0)) + b"x"), "does not inflate to the 1 bytes"),
    "deflate to less than declared": (seal(b"", deflated(varint(0), size=2)), "does not inflate to the 2 bytes"),
    "deflate to more than declared": (seal(b"", deflated(bytes(9), size=8)), "does not inflate to the 8 bytes"),
    "deflate to terabytes": (seal(b"", deflated(bytes(1 << 20), size=1 << 40)), "1099511627776 found, at most"),
    "deflate bomb that declares little": (seal(b"", deflated(bytes(1 << 27), size=100)), "does not inflate to the 100"),
}


@attacks(INDEX)
def test_index(data, found, refused):
    refused(data, found)


def test_the_largest_index_that_may_unfold_takes_little_more_than_itself(refused):
    bomb = seal(b"", deflated(bytes(INDEX_LIMIT)))
    assert len(bomb) < INDEX_LIMIT / 1000
    refused(bomb, f"{INDEX_LIMIT - 1} bytes left over", deepcomp.load_state_dict, memory=4 * INDEX_LIMIT)
    refused(seal(b"", deflated(bytes(INDEX_LIMIT), size=INDEX_LIMIT + 1)), "at most")


def test_many_tied_tensors_take_time_in_proportion(tmp_path, bounded):
    number = 20_000  # work for each that grows with their number would take minutes
    names = [reference(str(i), (2,), 0) for i in range(number)]
    (tmp_path / "x.dcz").write_bytes(seal(chunks([W]), deflated(plain([W, *names])[1:])))
    with bounded(seconds=60):
        assert len(deepcomp.load_state_dict(tmp_path / "x.dcz")) == number + 1


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
    "unknown form": (head(shaped(F32, (2,)) + b"\x00\x00"), r"tensor 'w': form 0 found, one of \[1, 2, 3, 4, 5\]"),
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
def test_head(data, found, refused):
    refused(data, found)


def test_head_cut_at_every_byte(refused):
    whole = tensor("w", (3, 4), rows(constant(1), 3, 2), mask(constant(3), 2), grid(constant(2), 2, bits=2))
    for length in range(len(whole.head)):
        refused(file(Record(TENSOR, "w", whole.head[:length], whole.body)), "tensor 'w'")


# --- bodies -------------------------------------------------------------------------------------


def float_grid(*scale: float, **settings: Any) -> Record:
    return tensor("w", (2, 4), grid(constant(1), *scale, **settings))


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
    "codebook without values": (tensor("w", (2,), Part(CODEBOOK, (), (Array(constant(0)),))), "'values' is missing"),
    "codebook without indices": (tensor("w", (2,), Part(CODEBOOK, (), (), (Table(2, b""),))), "'index' is missing"),
    "codebook of nothing": (tensor("w", (2,), codebook(constant(0))), "index 0 found in a codebook of 0"),
    "index out of range": (tensor("w", (2,), codebook(fixed(2, 0, 2), 1, 2)), "index 2 found in a codebook of 2"),
    "index of 2^32 - 1": (tensor("w", (2,), codebook(constant(2**32 - 1), 1, 2)), "index 4294967295 found"),
    "too few indices": (tensor("w", (2,), codebook(constant(0), 1, count=1)), "1 indices found, 2 expected"),
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
def test_body(record, found, refused):
    place = rf"tensor 'w' in bytes 6 to {6 + len(record.body)}: .*"
    refused(file(record), f"{place}({found})")


# --- streams ------------------------------------------------------------------------------------

TWO = nibbles(1, 1)  # two symbols with codes of one bit
LANES = b"\x0e"  # of 2^14 symbols

STREAMS: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "1 bytes expected, 0 left"),
    "unknown method": (b"\x04", "method 4"),
    "reserved bits": (b"\xe0\x00", "method 224"),
    "constant beyond 32 bits": (constant(1 << 32), "4294967296 found, at most 4294967295"),
    "constant with more behind": (constant(0) + b"\0", "1 bytes left over"),
    "fields of 0 bits": (b"\x01\x00", "fields of 0 bits"),
    "fields of 33 bits": (b"\x01\x21" + bytes(99), "fields of 33 bits"),
    "too few fields": (b"\x01\x08\x00", "3 bytes expected, 1 left"),
    "pad bits": (b"\x01\x01\xff", "pad bits"),
    "over-subscribed code": (b"\x02" + nibbles(1, 1, 1) + LANES + b"\0", "a code that fills 6144 of 4096"),
    "incomplete code": (b"\x02" + nibbles(2, 2) + LANES + b"\0", "a code that fills 2048 of 4096"),
    "code of one symbol": (b"\x02" + nibbles(1) + LANES + b"\0", "a code that fills 2048 of 4096"),
    "code of 15 bits": (b"\x02" + nibbles(1, 15) + LANES + b"\0", "a code table with 15, at most 12"),
    "code of 257 symbols": (b"\x02" + nibbles(*[8] * 257) + LANES, "at most 511"),
    "code without an end": (b"\x02\xff\x03" + b"\xff" * 200, "a code table cut short"),
    "code that ends in no symbol": (b"\x02" + nibbles(1, 1, 0) + LANES, "ends in a symbol without a code"),
    "lanes of 2^9": (b"\x02" + TWO + b"\x09\0", r"lanes of 2\*\*9 symbols"),
    "lanes of 2^255": (b"\x02" + TWO + b"\xff\0", r"lanes of 2\*\*255 symbols"),
    "Huffman without codes": (b"\x02" + TWO + LANES, "a lane that is cut short"),
    "Huffman with a byte too many": (b"\x02" + TWO + LANES + b"\0\0", "a lane that is cut short"),
    "precision of 9": (b"\x03\x09" + TWO + b"\xff" + LANES, "a precision of 9 bits"),
    "frequencies below 2^8": (
        b"\x03\x08" + nibbles(2, 2) + b"\0\0" + LANES + bytes(4),
        "frequencies that add up to 128",
    ),
    "frequencies above 2^8": (b"\x03\x08" + TWO + b"\xff\0" + LANES + bytes(4), "frequencies that add up to"),
    "rANS without a state": (b"\x03\x08" + TWO + b"\0\0" + LANES, "a lane without a state"),
    "rANS with half a word": (b"\x03\x08" + TWO + b"\0\0" + LANES + bytes(5), "a multiple of 2 expected"),
    "rANS with state 0": (b"\x03\x08" + TWO + b"\0\0" + LANES + bytes(4), "a lane that is cut short"),
    "token beyond 227": (b"\x10\x00" + varint(228), "tokens up to 228, 132 to 227 expected"),
    "wide without wide tokens": (b"\x11\x00\x08\1\2\3", "tokens up to 3, 132 to 227 expected"),
    "extra bits longer than the stream": (b"\x12" + varint(1 << 63), "at most"),
    "too few extra bits": (b"\x11\x02\x08\x84\x84\x84\0\0", "3 bytes expected, 2 left"),
    "too many extra bits": (b"\x11\x04\x08\x84\x84\x84" + bytes(4), "1 bytes left over"),
}


@pytest.mark.parametrize(("stream", "found"), STREAMS.values(), ids=STREAMS)
def test_stream(stream, found, refused):
    record = tensor("w", (3,), Part(CODEBOOK, (), (Array(stream),), (Table(2, bytes(4)),)))
    refused(file(record), rf"tensor 'w' .* symbol stream: .*{found}.* at byte \d+$")


# 100,000 symbols in lanes of 2^10: the length of the shortest, the width of the differences, and these.
MANY = 100_000
LENGTHS = {
    "longer than the data": varint(1000) + b"\x00",
    "of 2^63": varint(1 << 63) + b"\x00",
    "beyond 64 bits": varint(1 << 70) + b"\x00",
    "that add up beyond the data": varint(2) + b"\x01" + b"\xff" * 12 + b"\x01",
    "with differences of 32 bits": varint(0) + b"\x20" + b"\xff" * 388,
    "with differences of 255 bits": varint(0) + b"\xff" + b"\xff" * 9999,
    "with differences beyond the data": varint(0) + b"\x20",
}


@pytest.mark.parametrize("coder", [b"\x02" + TWO, b"\x03\x08" + TWO + b"\0\0"], ids=["Huffman", "rANS"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lanes(lengths, coder, refused):
    record = tensor(
        "w", (MANY,), Part(CODEBOOK, (), (Array(coder + b"\x0a" + lengths + bytes(200)),), (Table(2, bytes(8)),))
    )
    refused(file(record), r"tensor 'w' .* symbol stream: .* at byte \d+$")


# --- bombs --------------------------------------------------------------------------------------

MB, GB, TB = 1 << 20, 1 << 30, 1 << 40

BOMBS: Attacks = {
    "terabytes of zeros": (file(tensor("w", (TB,), planes(0))), "4398046511104 dense bytes declared, at most 42949"),
    "many tensors, each below the limit": (
        file(*(tensor(str(i), (GB,), planes(0, U8), dtype=U8) for i in range(5))),
        "5368709120 dense bytes declared, at most 4294967296 allowed",
    ),
    "one tensor, referred to often": (
        file(tensor("w", (MB,), planes(0)), *(reference(str(i), (MB,), 0, SAME) for i in range(1024))),
        "4299161600 dense bytes declared",
    ),
    "rows of one row": (
        file(tensor("w", (TB, 1), rows(constant(0), TB, 1), words(1))),
        "4398046511104 dense bytes declared|spelled out",
    ),
    "sparse terabytes": (file(tensor("w", (TB,), mask(constant(0), 1), words(1))), "dense bytes declared"),
    "positions of every byte": (
        file(tensor("w", (GB,), mask(constant(0), GB - 1), planes(0, U8), dtype=U8)),
        "tensor 'w' takes .* bytes to decode, at most 4294967296 allowed",
    ),
    "positions and blocks of every number": (
        file(tensor("w", (GB,), mask(constant(0), GB - 1), grid(constant(1), 1), dtype=F16)),
        "tensor 'w' takes .* bytes to decode",
    ),
    "a row for every byte": (
        file(tensor("w", (GB,), rows(constant(0), GB - 1, 1), words(1, kind="B"), dtype=U8)),
        "tensor 'w' takes .* bytes to decode",
    ),
}


@attacks(BOMBS)
def test_bomb(data, found, refused):
    assert len(data) < 25_000
    refused(data, found)


def test_the_caller_sets_the_limit(refused, tmp_path):
    data = file(tensor("w", (MB,), planes(0)))
    refused(
        data,
        "4194304 dense bytes declared, at most 4194303",
        lambda path: deepcomp.load_state_dict(path, max_bytes=4 * MB - 1),
    )
    assert deepcomp.load_state_dict(tmp_path / "x.dcz", max_bytes=4 * MB)["w"].shape == (MB,)


N = 1 << 22
FORMS = {
    "planes": (planes(1),),
    "planes of large symbols": (Part(RAW, (), (Array(constant(2**32 - 1)),) * 4),),
    "codebook": (codebook(constant(0), 1),),
    "wide codebook": (codebook(constant(65536), *[1] * 65537),),
    "mask": (mask(constant(0), N - 1), Part(RAW, (), (Array(constant(1)),) * 4)),
    "wide mask": (mask(constant(2**32 - 1), N - 1), Part(RAW, (), (Array(constant(1)),) * 4)),
    "rows": (rows(constant(0), N // 4, N // 4 - 1), Part(RAW, (), (Array(constant(1), N - 4), *[Array(constant(1))] * 3))),
    "grid": (grid(constant(1), *[1] * (N // 4), axis=0),),
    "grid of blocks": (grid(constant(1), *[1] * (N // 2), axis=0, size=2),),
    "mask, grid": (mask(constant(0), N - 1), grid(constant(1), *[1] * (N // 2), axis=0, size=2)),
    "rows, mask, codebook": (
        rows(constant(0), N // 4, N // 4 - 1), mask(constant(0), N - 4), codebook(constant(65536), *[1] * 65537)
    ),
}  # fmt: skip


@pytest.mark.parametrize("parts", FORMS.values(), ids=FORMS)
def test_decoding_takes_no_more_memory_than_the_limit_counts(parts, tmp_path, bounded):
    (tmp_path / "x.dcz").write_bytes(file(tensor("w", (N // 4, 4), *parts)))
    with deepcomp.open(tmp_path / "x.dcz") as opened:
        entry = opened.entries["w"]
        assert entry.work < 64 * N
        with bounded(entry.nbytes + entry.work + opened.reader.size + 16 * MB):
            try:
                opened.get_tensor("w")
            except DeepcompError:
                assert "large symbols" in str(parts) or parts in (FORMS["planes of large symbols"], FORMS["wide mask"])


# --- metadata -----------------------------------------------------------------------------------

NOTES = {
    "no JSON": b"",
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "nested too deep": b'{"a":' + b"[" * 500_000,
    "megabytes of brackets": b"[" * 10_000_000,
    "megabytes of lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
    "a number of a million digits": b'{"a":' + b"1" * 1_000_000 + b"}",
    "something behind": b"{}{}",
}


@pytest.mark.parametrize("notes", NOTES.values(), ids=NOTES)
def test_metadata(notes, refused):
    squeezed = seal(b"", deflated(plain([Record(METADATA, "", notes)])[1:]))
    refused(squeezed, "metadata that is not a JSON object", deepcomp.verify, deepcomp.inspect)


# --- what is no file at all ---------------------------------------------------------------------


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path, bounded):
    os.mkfifo(tmp_path / "x.dcz")
    for read in (deepcomp.verify, deepcomp.load_state_dict, deepcomp.load, deepcomp.inspect, deepcomp.open):
        with bounded(), pytest.raises(InputError, match="cannot be read: not a regular file"):
            read(tmp_path / "x.dcz")


@pytest.mark.parametrize("path", [".", "/dev/zero", "/dev/null", "nowhere.dcz", "nowhere/x.dcz", "x\0.dcz", "x" * 5000])
def test_what_is_no_file_is_refused(path, bounded):
    with bounded(), pytest.raises(InputError, match="cannot be read: "):
        deepcomp.load_state_dict(path)


def test_a_symbolic_link_is_followed_and_a_ring_of_them_is_not(tmp_path):
    (tmp_path / "x.dcz").write_bytes(file(W))
    (tmp_path / "link").symlink_to(tmp_path / "x.dcz")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert list(deepcomp.load_state_dict(tmp_path / "link")) == ["w"]
    with pytest.raises(InputError, match="cannot be read: "):
        deepcomp.load_state_dict(tmp_path / "ring")


@pytest.mark.parametrize("size", [0, 6, 10, 100])
def test_a_file_that_shrinks_while_it_is_read(size, tmp_path):
    path = tmp_path / "x.dcz"
    path.write_bytes(file(W, tensor("v", (100,), words(*range(100)))))
    with deepcomp.open(path) as opened:
        os.truncate(path, size)
        with pytest.raises(FormatError, match=r"bytes expected at byte \d+, \d+ found"):
            opened.get_tensor("v")
        with pytest.raises(FormatError, match="found"):
            opened.reader.check()
