"""Hostile frames: each file is refused with one line that says where, before it costs time or memory.

Every file here has right checksums, so that the attack reaches the layer it aims at. The limits are
those of `limited`: 256 MB beyond what the process holds, and an alarm.
"""

from __future__ import annotations

import os
import struct
import zlib

import pytest
from build import (
    BOOL,
    METADATA,
    TENSOR,
    Part,
    Record,
    chunks,
    codebook,
    constant,
    deflated,
    file,
    fixed,
    grid,
    in_columns,
    mask,
    plain,
    planes,
    reference,
    rows,
    seal,
    tensor,
    text,
    varint,
    words,
)

import deepcomp
from deepcomp.container.layout import INDEX_LIMIT, MOST_RECORDS
from deepcomp.errors import FormatError, InputError

Attacks = dict[str, tuple[bytes, str]]


def attacks(table: Attacks) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("data", "found"), table.values(), ids=table)


W = tensor("w", (2,), words(1, 2))
PAIR = words(1, 2)


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
    "index of no coding": (seal(b"", b"\x03\x00"), "index coding 3 found, at most 2 expected at byte 7"),
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
    "open chunk at the end": (file(tensor("w", (2,), PAIR, last=False)), "index: ends within a chunk at byte"),
    "open chunk of no bytes": (file(tensor("w", (0,), words(), last=False)), "index: ends within a chunk at byte"),
    "chunk with a wrong checksum": (seal(chunks([W])[:-1] + b"\0", plain([W])), "checksum of 'w' .* bytes 6 to 14"),
}


@attacks(FRAME)
def test_frame(data, found, refused):
    refused(data, found)


def test_a_wrong_sha256_is_found_by_verify(refused):
    refused(half_sealed(plain([])), "SHA-256 of the file does not match", deepcomp.verify)


@pytest.mark.parametrize("minor", [1, 2, 255])
def test_a_newer_minor_version_opens_and_what_is_unknown_in_it_is_refused(minor, refused, tmp_path):
    refused(file(W, Record(3, "new", b""), version=(1, minor)), "record of kind 3, named 'new'")
    refused(file(tensor("w", (2,), Part(99)), version=(1, minor)), "form 99 found")
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
    columns = seal(b"", in_columns(b"\1" + bytes(INDEX_LIMIT - 1)))
    refused(columns, "parts of .* bytes|bytes left over|form", deepcomp.load_state_dict, memory=4 * INDEX_LIMIT)
    larger = seal(b"", in_columns(bytes(INDEX_LIMIT + 1)))
    refused(larger, f"does not inflate to {INDEX_LIMIT} bytes at most", memory=2 * INDEX_LIMIT)


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
