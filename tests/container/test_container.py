"""The file as bytes: what is written is read back, and nothing damaged passes for whole."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import wire
from deepcomp.container import Reader, Record, Writer, layout, writer
from deepcomp.container.dictionaries import IN_COLUMNS, LISTED
from deepcomp.container.layout import CHUNK, HEADER, TRAILER, pack_index, unpack_index
from deepcomp.container.record import GRAPH, METADATA, TENSOR
from deepcomp.errors import FormatError, InputError, UsageError

BODIES = [b"", b"a" * 3, b"b" * CHUNK, b"c" * 10, b"", b"d" * (3 * CHUNK), b"e"]


def vector(size):
    """The head of a tensor of so many bytes, stored as they are."""
    return b"\x20\x01" + wire.varint(size) + b"\x01\x80\x00" + wire.varint(size)


@pytest.fixture
def file(tmp_path):
    with Writer(tmp_path / "x.dcz") as writer:
        for i, body in enumerate(BODIES):
            writer.add(TENSOR, f"name{i}", vector(len(body)), [body[:2], body[2:]])
        writer.add(GRAPH, "", b"graph")
        writer.add(METADATA, "", b"{}")
    return tmp_path / "x.dcz"


def test_every_record_comes_back_in_any_order(file):
    with Reader(file) as reader:
        tensors = [(TENSOR, f"name{i}", vector(len(body))) for i, body in enumerate(BODIES)]
        assert [(r.kind, r.name, r.head) for r in reader.records] == [
            *tensors,
            (GRAPH, "", b"graph"),
            (METADATA, "", b"{}"),
        ]
        for i in (5, 1, 6, 0, 3, 2, 4, 4):
            assert bytes(reader.body(reader.records[i])) == BODIES[i]
        reader.check()


def test_all_bytes_are_accounted_for(file):
    with Reader(file) as reader:
        bodies = sum(record.length for record in reader.records)
        assert HEADER.size + bodies + reader.checksum_bytes + reader.index_size + TRAILER.size == file.stat().st_size


def test_a_large_record_stands_in_a_chunk_of_its_own(file):
    with Reader(file) as reader:
        large = reader.records[5]
        assert large.offset == 0
        assert large.last
        assert all(record.chunk != large.chunk for record in reader.records if record is not large)


def test_one_record_is_read_without_the_others(file):
    raw = bytearray(file.read_bytes())
    raw[HEADER.size] ^= 1  # the first body
    file.write_bytes(raw)
    with Reader(file) as reader:
        assert bytes(reader.body(reader.records[5])) == BODIES[5]
        with pytest.raises(FormatError, match="checksum of 'name1'"):
            reader.body(reader.records[1])
        with pytest.raises(FormatError):
            reader.check()


def test_every_single_byte_change_is_detected(file):
    raw = file.read_bytes()
    for place in [*range(40), *range(40, len(raw) - 400, 97), *range(len(raw) - 400, len(raw))]:
        damaged = bytearray(raw)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(FormatError), Reader(file) as reader:
            reader.check()


def test_every_truncation_and_extension_is_detected(file):
    raw = file.read_bytes()
    for length in [*range(0, 100), *range(100, len(raw), 113), *range(len(raw) - 100, len(raw))]:
        file.write_bytes(raw[:length])
        with pytest.raises(FormatError):
            Reader(file)
    file.write_bytes(raw + b"\0")
    with pytest.raises(FormatError):
        Reader(file)


def test_newer_major_version_is_refused_by_name(file):
    raw = bytearray(file.read_bytes())
    raw[4] = 2
    file.write_bytes(raw)
    with pytest.raises(FormatError, match=r"format 2\.1 found"):
        Reader(file)


numbers = st.integers(0, 200) | st.integers(0, 2**40)


@st.composite
def heads(draw):
    """A head of any parts, and the bytes of its body."""
    body, shape = 0, draw(st.lists(numbers, max_size=4))
    out = bytes([draw(st.integers(0, 79)), len(shape)]) + b"".join(map(wire.varint, shape))
    if draw(st.booleans()):
        return out + bytes([draw(st.sampled_from([0x7E, 0x7F]))]) + wire.varint(draw(numbers)), 0
    for more in [True] * draw(st.integers(0, 2)) + [False]:
        facts = draw(st.lists(numbers, max_size=7))
        arrays, tables = draw(st.lists(st.tuples(numbers, numbers), max_size=5)), draw(st.booleans())
        out += bytes([draw(st.integers(1, 9)) | more << 7, len(facts) | len(arrays) << 3 | tables << 7])
        out += b"".join(map(wire.varint, facts))
        for count, length in arrays:
            out, body = out + wire.varint(count) + wire.varint(length), body + length
        if tables:
            kind, count = draw(st.integers(0, 5)), draw(numbers)
            out, body = out + bytes([kind]) + wire.varint(count), body + (1, 2, 4, 8, 4, 1)[kind] * count
    return out, body


@given(
    st.lists(st.tuples(st.text(max_size=12), heads(), st.booleans()), max_size=9, unique_by=lambda row: row[0]),
    st.binary(max_size=9),
    st.binary(max_size=9),
)
@settings(max_examples=60)
def test_index_round_trip(rows, graph, metadata):
    records = [Record(TENSOR, name, head, length, last) for name, (head, length), last in rows]
    records += [Record(kind, "", head, 0, False) for kind, head in ((GRAPH, graph), (METADATA, metadata)) if head]
    end, inside = HEADER.size, 0
    for record in records:
        inside += record.length
        if record.last:
            end, inside = end + inside + 4 * (inside > 0), 0
    raw = pack_index(records)
    behind = bytes(min(inside, 1 << 16))
    if inside > len(behind):
        with pytest.raises(FormatError, match="behind the index"):
            unpack_index(raw + behind, end, "x")
    else:
        back, found = unpack_index(raw + behind, end, "x")
        assert found == behind
        for one, two in zip(back, records, strict=True):
            assert (one.kind, one.name, one.head, one.length, one.last) == (
                two.kind, two.name, two.head, two.length, two.last
            )  # fmt: skip


@pytest.mark.parametrize(("dictionary", "size", "crc"), [(LISTED, 569, 0x198EE9C4), (IN_COLUMNS, 1662, 0x4B6A240A)])
def test_dictionaries_never_change(dictionary, size, crc):
    assert (len(dictionary), zlib.crc32(dictionary)) == (size, crc)


def test_small_bodies_stand_behind_the_index_without_a_checksum_of_their_own(tmp_path):
    with Writer(tmp_path / "x.dcz") as writer:
        writer.add(TENSOR, "a", vector(3), [b"abc"])
        writer.add(TENSOR, "b", vector(2), [b"de"])
    with Reader(tmp_path / "x.dcz") as reader:
        assert reader.checksum_bytes == 0
        assert [bytes(reader.body(record)) for record in reader.records] == [b"abc", b"de"]
        assert [reader.offset(record) for record in reader.records] == [
            (tmp_path / "x.dcz").read_bytes().index(body) for body in (b"abc", b"de")
        ]


def listed(name, length, last=True):
    """One record of format 1.0, with an empty head."""
    return wire.varint(last) + wire.text(name) + b"\0" + wire.varint(length)


def test_index_bomb_is_refused_before_it_unfolds(monkeypatch):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeeze.compress(bytes(1 << 24)) + squeeze.flush()
    for declared in (10, 1 << 24, 1 << 40):
        with pytest.raises(FormatError):
            unpack_index(b"\x01" + wire.varint(declared) + bomb, HEADER.size, "x")
    monkeypatch.setattr(layout, "INDEX_LIMIT", (1 << 24) - 1)
    with pytest.raises(FormatError, match="does not inflate to 16777215 bytes at most"):
        unpack_index(b"\x02" + bomb, HEADER.size, "x")


def test_two_records_of_one_name_are_refused():
    twice = [Record(TENSOR, "a", vector(0), 0), Record(TENSOR, "a", vector(0), 0)]
    for index in (pack_index(twice), b"\0\2" + 2 * listed("a", 0)):
        with pytest.raises(FormatError, match="second record named 'a'"):
            unpack_index(index, HEADER.size, "x")


def test_lengths_that_do_not_tile_the_file_are_refused():
    for wrong in (5, 1 << 47):
        for index in (pack_index([Record(TENSOR, "a", vector(wrong), wrong)]), b"\0\1" + listed("a", wrong)):
            with pytest.raises(FormatError, match="chunks end at"):
                unpack_index(index, HEADER.size + 8, "x")


def test_a_list_of_format_1_0_does_not_end_within_a_chunk():
    with pytest.raises(FormatError, match="ends within a chunk"):
        unpack_index(b"\0\1" + listed("a", 0, last=False), HEADER.size, "x")


def test_existing_target_needs_force_and_failure_keeps_it(tmp_path):
    target = tmp_path / "x.dcz"
    target.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"), Writer(target):
        pass
    with pytest.raises(ZeroDivisionError), Writer(target, force=True) as writer:
        writer.add(TENSOR, "a", vector(3), (bytes([1 // 0]) for _ in range(3)))
    assert target.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["x.dcz"]


def write(path):
    with Writer(path, force=True) as file:
        file.add(TENSOR, "new", vector(3), [b"new"])


@pytest.mark.parametrize("put", [write, lambda path: writer.place(path, b"new", force=True)])
def test_a_link_is_followed(put, tmp_path):
    (tmp_path / "folder").mkdir()
    for name, content in (("old", b"old"), ("folder/old", b"old"), ("folder/none", None)):
        if content:
            (tmp_path / name).write_bytes(content)
        link = tmp_path / f"to {name.replace('/', ' ')}"
        link.symlink_to(tmp_path / name)
        put(link)
        assert link.is_symlink()
        assert b"new" in (tmp_path / name).read_bytes()
    assert not [path for path in tmp_path.rglob("*.part")]


@pytest.mark.parametrize("put", [write, lambda path: writer.place(path, b"new", force=True)])
def test_what_is_no_regular_file_is_never_replaced(put, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "/dev/null"):
        with pytest.raises(InputError, match="a regular file expected"):
            put(path)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_target_is_nothing_that_is_read_or_written_too_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("in")
    for path in ("in", "./in", "link", tmp_path / "in"):
        with pytest.raises(UsageError, match="another name expected"):
            writer.check_target(Path(path), True, [Path("other"), Path("in")])
    with pytest.raises(UsageError, match="another name expected"):
        writer.check_target(Path("new"), True, [Path("./new")])
    writer.check_target(Path("new"), True, [Path("in")])


def test_target_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "x.dcz"
    with pytest.raises(InputError, match="exists already"), Writer(target):
        target.write_bytes(b"precious")
    assert target.read_bytes() == b"precious"


def test_kill_never_leaves_a_partial_target(tmp_path):
    target = tmp_path / "x.dcz"
    code = textwrap.dedent(f"""
        import sys
        from deepcomp.container import Writer
        n = 0
        while True:
            n += 1
            with Writer({str(target)!r}, force=True) as writer:
                for i in range(20):
                    writer.add(0, str(i), {vector(50_000)!r}, [bytes([n % 251]) * 50_000])
            if n == 1: print("ready", flush=True)
    """)
    for delay in (0.0, 0.003, 0.011, 0.02, 0.033):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Reader(target) as reader:
            reader.check()
            assert len(reader.records) == 20


def test_wire_numbers_round_trip_and_refuse_needless_bytes():
    for n in (0, 1, 127, 128, 300, 2**32, 2**64 - 1):
        assert wire.Cursor(wire.varint(n)).varint() == n
    for n in (0, -1, 1, -(2**40), 2**40):
        assert wire.Cursor(wire.zigzag(n)).zigzag() == n
    with pytest.raises(FormatError, match="needless"):
        wire.Cursor(b"\x80\x00").varint()
    with pytest.raises(FormatError, match="at byte 12"):
        wire.Cursor(b"\x80", offset=11).varint()
