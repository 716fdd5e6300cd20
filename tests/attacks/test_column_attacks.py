"""Hostile indices in columns: what is true of a list is true of them, and they must end where they say."""

from __future__ import annotations

import struct
import zlib

import pytest
from build import in_columns, seal, text, varint
from independent_decoder import decode

import deepcomp

PAIR = struct.pack("<2f", 1, 2)
COLUMNS = ("01", "0177", "00", "0102", "0180", "", "0202", "", "00")  # one tensor, w; no graph, no metadata
FIELDS = ("number", "name", "type", "shape", "form", "symbols", "table", "length", "graph")
MB = 1 << 20


def columns(**changed: str) -> bytes:
    """The columns of a vector of two floats, some of them changed."""
    fields = dict(zip(FIELDS, COLUMNS, strict=True)) | changed
    return bytes.fromhex("".join(fields.values()))


def closed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def vectors(*names: str) -> bytes:
    """The columns of some vectors of no elements."""
    many = len(names)
    return b"".join(
        [varint(many), *map(text, names), bytes(many), b"\1\0" * many, b"\1\x80" * many, b"\2\0" * many, b"\0"]
    )


def test_what_is_not_attacked_is_read(tmp_path):
    for data in (
        seal(b"", in_columns(columns(), PAIR)),
        seal(b"", in_columns(columns() + b'{"a": 1}', PAIR)),
        seal(closed(PAIR), in_columns(columns(type="80"))),
        seal(closed(PAIR), in_columns(columns(type="80")), version=(1, 1)),
    ):
        (tmp_path / "x.dcz").write_bytes(data)
        assert deepcomp.load_state_dict(tmp_path / "x.dcz")["w"].tolist() == [1, 2]
        assert decode(data).tensors[0].data == PAIR
    (tmp_path / "x.dcz").write_bytes(seal(b"", in_columns(vectors("a", "b"))))
    assert list(deepcomp.load_state_dict(tmp_path / "x.dcz")) == ["a", "b"]


def one(found: str, body: bytes = PAIR, **changed: str) -> tuple[bytes, str]:
    return seal(b"", in_columns(columns(**changed), body)), found


ATTACKS = {
    "no columns": (seal(b"", in_columns(b"")), "1 bytes expected, 0 left"),
    "2^40 tensors": one("1099511627776 found, at most", number="808080808020"),
    "a tensor too many": one("bytes? expected|found", number="02"),
    "a name beyond the index": one("bytes expected, .* left", name="7077"),
    "a name of 65,537 bytes": one("65537 found, at most 65536 expected", name="818004"),
    "a name that is not UTF-8": one("not UTF-8", name="01ff"),
    "two tensors of one name": (seal(b"", in_columns(vectors("a", "a"))), "a second record named 'a' at byte"),
    "an unknown element type": one("element type 20", type="50"),
    "2^40 dimensions": one("1099511627776 found, at most", shape="808080808020"),
    "33 dimensions": one("33 found, at most 32", shape="21" + "01" * 32 + "02"),
    "a size with needless zeros": one("needless leading zeros", shape="018200"),
    "a size beyond 64 bits": one("longer than 64 bits", shape="01" + "ff" * 10 + "01"),
    "terabytes": one(
        "dense bytes declared", bytes(8),
        shape="01808080808020", form="0120", symbols="00" * 4, table="", length="02" * 4,
    ),
    "four parts": one("a tensor of more than 3 parts", form="8300" * 3 + "0180"),
    "a mask over nothing": one("mask as part 1, the last", b"", form="0300", table=""),
    "an unknown form": one("form 99 found", form="6380"),
    "facts that it has not": one("7 facts, 0 arrays and 0 tables found", b"", form="0107" + "00" * 7, table=""),
    "a reference to itself": one("tensor 0 referred to", b"", form="7f00", table=""),
    "a reference as a second part": one("form 126 found", b"", form="83007e01", table=""),
    "a table of no type": one("table of type 6 found", table="0602"),
    "a table of 2^49 elements": one("at most 281474976710656 expected", table="028080808080808001"),
    "an array of 2^49 bytes": one(
        "at most 281474976710656 expected", form="0108", symbols="00", table="", length="8080808080808001"
    ),
    "as many symbols, spelled out": one("spelled out", form="0108", symbols="03", table="", length="08"),
    "a graph beyond the index": one("5 found, at most 1 expected", graph="05"),
    "no body": one("bodies of 8 bytes expected behind the index, 0 found", b""),
    "half a body": one("bodies of 8 bytes expected behind the index, 4 found", PAIR[:4]),
    "a body and a half": one("bodies of 8 bytes expected behind the index, 12 found", PAIR + PAIR[:4]),
    "a closed chunk that is open": one("chunks end at byte 18, but the index starts at byte 6", type="80"),
    "an open chunk that is closed": (seal(closed(PAIR), in_columns(columns())), "chunks end at byte 6, but .* byte 18"),
    "both": (seal(closed(PAIR), in_columns(columns(type="80"), PAIR)), "0 bytes expected behind the index, 8 found"),
    "another checksum": (seal(PAIR + bytes(4), in_columns(columns(type="80"))), "checksum of 'w' does not match"),
    "deflate cut short": (seal(b"", in_columns(columns())[:-4]), "does not inflate"),
    "deflate of noise": (seal(b"", b"\2" + b"\xff" * 9), "does not inflate"),
    "another dictionary": (seal(b"", b"\3" + in_columns(columns(), PAIR)[1:]), "index coding 3 found, at most 2"),
    "beyond the dictionary": (seal(b"", b"\2" + bytes.fromhex("0302f8ff0f00")), "does not inflate|found|expected"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "found"), ATTACKS.values(), ids=ATTACKS)
def test_columns(data, found, refused_by_both):
    refused_by_both(data, found)


def test_dimensions_are_counted_before_they_are_read(refused):
    data, found = one("524288 found, at most 32", shape="808020" + "01" * (1 << 19))
    refused(data, found, memory=16 * MB)


@pytest.mark.parametrize("length", range(len(columns())))
def test_columns_that_end_early(length, refused_by_both):
    refused_by_both(seal(b"", in_columns(columns()[:length], PAIR)), "expected|found|left")


def test_metadata_is_an_object(refused):
    for notes in (b"x", b"[]", b'{"a": NaN}'):
        data = seal(b"", in_columns(columns() + notes, PAIR))
        refused(data, "metadata that is not a JSON object", deepcomp.verify, deepcomp.inspect)
        with pytest.raises(ValueError):  # noqa: PT011
            decode(data)


def test_many_tensors_take_time_and_memory_in_proportion(tmp_path, bounded):
    names = list(map(str, range(20_000)))
    (tmp_path / "x.dcz").write_bytes(seal(b"", in_columns(vectors(*names))))
    with bounded(seconds=60):
        assert list(deepcomp.load_state_dict(tmp_path / "x.dcz")) == names
