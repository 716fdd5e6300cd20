"""The exam of `docs/format.md`: a decoder written from it alone reads the golden files, and refuses damaged ones.

It refuses what deepcomp refuses too; `attacks/test_both_decoders.py` compares the two further.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from independent_decoder import decode

import deepcomp
from deepcomp.errors import FormatError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.dcz"))
NAMES = [path.stem for path in GOLDEN]


def golden(name: str) -> bytes:
    return next(path for path in GOLDEN if path.stem == name).read_bytes()


def sealed(chunks: bytes, index: bytes, header: bytes = b"\x93DCZ\x01\x00") -> bytes:
    """A file with a trailer that fits: what is wrong with it is not the checksums."""
    data = header + chunks + index + len(index).to_bytes(4, "little")
    data += hashlib.sha256(data).digest()
    return data + zlib.crc32(header + data[len(header) + len(chunks) :]).to_bytes(4, "little")


def references(value: Any) -> Iterator[tuple[str, int]]:
    """The tensors and values in what the decoder gives for a graph."""
    if isinstance(value, list) and len(value) == 2 and value[0] in ("tensor", "value"):
        yield value[0], value[1]
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_there_are_golden_files():
    assert {"tiny-1.0", "nothing-1.0", "forms-1.0", "conv-1.0", "lstm-1.0", "context-1.0", "columns-1.1"} <= set(NAMES)


@pytest.mark.parametrize("path", GOLDEN, ids=NAMES)
def test_golden_file(path: Path):
    file, expected = decode(path.read_bytes()), json.loads(path.with_suffix(".json").read_text())
    found = {t.name: [f"torch.{t.dtype}", t.shape, hashlib.sha256(t.data).hexdigest()] for t in file.tensors}
    stored = {t.name for t in file.tensors if t.role != "constant"}
    assert {name: found[name] for name in found.keys() & expected["tensors"].keys()} == expected["tensors"]
    assert stored <= expected["tensors"].keys()
    if "inputs" in expected:
        inputs, nodes, outputs = file.graph
        assert inputs
        assert nodes
        seen = set()
        for place, node in enumerate([*nodes, outputs]):
            for kind, number in references(node):
                assert number < (len(file.tensors) if kind == "tensor" else len(inputs) + place)
                seen.add(kind)
        assert seen == {"tensor", "value"}
        assert list(references(outputs))
    else:
        assert file.graph is None


def test_a_small_file():
    (tensor,), metadata, graph = decode(golden("tiny-1.0"))
    assert (tensor.name, tensor.role, tensor.dtype, tensor.shape) == ("w", "parameter", "float32", [2])
    assert tensor.data.hex() == "0000803f00000040"
    assert (metadata, graph) == ({"golden": "tiny"}, None)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_refused(name: str):
    data = golden(name)
    for place in {*range(0, len(data), len(data) // 40 + 1), *range(len(data) - 40, len(data))} - {5}:
        with pytest.raises(ValueError, match=r"CRC-32|SHA-256|version|index"):
            decode(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_refused(name: str):
    data = golden(name)
    for length in {0, 5, 6, 45, *range(0, len(data), len(data) // 40 + 1), len(data) - 1}:
        with pytest.raises(ValueError, match=r"CRC-32|SHA-256|version|index"):
            decode(data[:length])
    with pytest.raises(ValueError, match=r"CRC-32|SHA-256|index"):
        decode(data + b"\0")


ONE = "0000803f"  # as a binary32
BODY = bytes.fromhex("0000803f 00000040")
CHUNK = BODY + zlib.crc32(BODY).to_bytes(4, "little")
HEAD = bytes.fromhex("00 0102 01 80 0202")  # float32, a parameter; [2]; raw, a table of two u32


def one(head: bytes, kind: int = 1, size: int = 8) -> bytes:
    """An index of one record, named w."""
    return bytes([0, 1, kind, 1]) + b"w" + bytes([len(head)]) + head + bytes([size])


def tensor(head: str, body: str) -> tuple[bytes, bytes]:
    """Chunks and index of a file of one tensor, head and body in hexadecimal."""
    raw = bytes.fromhex(body)
    return raw + zlib.crc32(raw).to_bytes(4, "little") * bool(raw), one(bytes.fromhex(head), size=len(raw))


def grid(facts: str, zero_point: str = "", scales: int = 1) -> tuple[bytes, bytes]:
    """A grid over float32 [2, 3] with these facts, whose integers are all 0."""
    arrays = f"96 {facts} 0002 0202" if zero_point else f"8e {facts} 0002"
    return tensor(f"00 020203 05 {arrays} 04 {scales:02x}", f"0000 {zero_point} {ONE * scales}")


def graph(content: str) -> tuple[bytes, bytes]:
    """A file of nothing but this graph, which refers to no tensors."""
    head = bytes.fromhex("00" + content)
    return b"", bytes([0, 1, 3, 0, len(head)]) + head + b"\0"


def test_a_sealed_file_is_read():
    assert decode(sealed(CHUNK, one(HEAD))).tensors[0].data == BODY
    assert decode(sealed(b"", b"\0\0")).tensors == []
    assert decode(sealed(CHUNK, one(HEAD), b"\x93DCZ\x01\x09")).tensors[0].data == BODY
    node = graph("00 01 8501 00 00")  # of operation 133; it is the output
    assert decode(sealed(*node)).graph == [[], [[133, [], []]], ["value", 0]]


RIGHT = {
    "words of an own type": tensor("00 0102 01 80 0202", ONE * 2),
    "words of a narrower type": tensor("0c 0101 01 81 00 0201", ONE),
    "a codebook": tensor("00 0102 02 88 0002 0201", f"0000 {ONE}"),
    "a grid of one block": grid("04 02 01 02 00 00"),
    "a grid of two blocks a channel": grid("04 02 00 02 04 00", scales=4),
    "a grid whose scale is a byte": tensor("00 020203 05 8e 04 02 01 02 00 00 0002 00 01", "0000 7f"),
    "a grid whose scale is a half": tensor("00 020203 05 8e 04 02 01 02 00 00 0002 01 01", "0000 013e"),
    "a grid with a zero-point": grid("04 00 01 02 00 00", "0003"),
    "an input that is the output": graph("01 0178 00 0102 00 00"),
}
WRONG = {
    "a greater major version": (CHUNK, one(HEAD), b"\x93DCZ\x02\x00"),
    "a byte between chunks and index": (CHUNK + b"\0", one(HEAD)),
    "a chunk of another checksum": (BODY + b"\0\0\0\0", one(HEAD)),
    "a last record that does not close its chunk": (BODY, one(HEAD, kind=0)),
    "an unknown kind of record": (CHUNK, one(HEAD, kind=7)),
    "something behind the last record": (CHUNK, one(HEAD) + b"\0"),
    "something behind a head": (CHUNK, one(HEAD + b"\0")),
    "a body longer than the head says": (BODY[:4] + CHUNK, one(HEAD, size=12)),
    "a varint with a spare byte": (CHUNK, one(bytes.fromhex("00 01 8200 01 80 0202"))),
    "an unknown element type": (CHUNK, one(b"\x50" + HEAD[1:])),
    "an unknown role": (CHUNK, one(b"\x03" + HEAD[1:])),
    "another number of elements": (CHUNK, one(bytes.fromhex("00 0103 01 80 0202"))),
    "words of another width": (CHUNK, one(bytes.fromhex("00 0102 01 80 0301"))),
    "a form that is not there": (CHUNK, one(bytes.fromhex("00 0102 06 80 0202"))),
    "a mask with no values": (CHUNK, one(bytes.fromhex("00 0102 03 80 0202"))),
    "a reference to itself": (b"", one(bytes.fromhex("00 0102 7f 00"), size=0)),
    "more than the limit": (b"", one(bytes.fromhex("00 0501ffff03ffff03ffff03ffff03 01 80 0200"), size=0)),
    "a graph of an unknown operation": graph("00 01 8601 00 00"),
    "words in a table of binary32": tensor("00 0102 01 80 0402", ONE * 2),
    "words in a table of signed bytes": tensor("20 0102 01 80 0502", "0000"),
    "a codebook in a table of binary32": tensor("00 0102 02 88 0002 0401", f"0000 {ONE}"),
    "a grid whose scale is an infinite half": tensor("00 020203 05 8e 04 02 01 02 00 00 0002 01 01", "0000 007c"),
    "words of a wider type": tensor("04 0101 01 81 00 0201", ONE),
    "words of another type of that width": tensor("04 0101 01 81 04 0101", "803f"),
    "words of integers": tensor("00 0101 01 81 10 0001", "01"),
    "a group without an axis": grid("04 02 01 04 00 00"),
    "a block without an axis": grid("04 02 01 02 02 00"),
    "a group of no channels": grid("04 02 00 00 00 00"),
    "a group beyond the dimension": grid("04 02 00 06 00 00"),
    "a block beyond the channel": grid("04 02 00 02 08 00", scales=2),
    "a block of -1": grid("04 02 00 02 01 00", scales=2),
    "groups and blocks": grid("04 02 00 04 02 00", scales=6),
    "a zero-point beyond the grid": grid("04 00 01 02 00 00", "0004"),
    "a codebook of a tensor without elements": tensor("00 0100 02 88 0002 0201", f"0000 {ONE}"),
    "a codebook without entries": tensor("00 0102 02 88 0002 0200", "0000"),
    "a bool of 2 that nothing uses": tensor("30 0102 02 88 0002 0002", "0000 0002"),
    "no elements, of 2^63 slices": tensor("00 0200ffffffffffffffff7f 01 80 0200", ""),
    "an input without a name": graph("01 00 00 0102 00 00"),
    "an input of a name that is none": graph("01 012d 00 0102 00 00"),
    "two inputs of one name": graph("02 0178 00 0102 0178 00 0102 00 00"),
    "an input of 17 dimensions": graph(f"01 0178 00 11 {'02' * 17} 00 00"),
    "a number times 10^401": graph("01 0178 00 0102 00 9f32 02"),
    "two outputs of one name": graph("01 0178 00 0102 00 2c 02 0178 00 0178 00"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_the_text_does_not_allow_is_refused_by_both(wrong: str, tmp_path: Path):
    (tmp_path / "x.dcz").write_bytes(sealed(*WRONG[wrong]))
    with pytest.raises(ValueError):  # noqa: PT011
        decode(sealed(*WRONG[wrong]))
    with pytest.raises(FormatError):
        deepcomp.verify(tmp_path / "x.dcz")


@pytest.mark.parametrize("right", RIGHT)
def test_what_is_wrong_there_is_that_alone(right: str, tmp_path: Path):
    (tmp_path / "x.dcz").write_bytes(sealed(*RIGHT[right]))
    deepcomp.verify(tmp_path / "x.dcz")
    decode(sealed(*RIGHT[right]))


def test_a_scale_of_binary16_is_that_number_to_both(tmp_path: Path):
    (tmp_path / "x.dcz").write_bytes(sealed(*RIGHT["a grid whose scale is a half"]))
    wanted = -(1.5 + 2**-10)  # 3e01; the integers are one below the middle
    found = deepcomp.load_state_dict(tmp_path / "x.dcz")["w"]
    assert found.flatten().tolist() == [wanted] * 6
    assert decode((tmp_path / "x.dcz").read_bytes()).tensors[0].data == found.numpy().tobytes()
