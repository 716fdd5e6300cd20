"""The command on hostile files: one harmless line for each name, and one for what cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from build import C64, F64, METADATA, RAW, TIED, Array, Part, Record, constant, file, reference, tensor, words
from safetensors import safe_open

from deepcomp import cli

Run = Callable[..., str]
C128 = 19

NAMES = {
    "a newline": "a\nb",
    "other line ends": "a\r\v\f\x1c\x85\u2028\u2029b",
    "a line of the command's own": "w\nx.dcz: ok, 1 tensors, 1 bytes, every checksum right",
    "terminal escapes": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "a backspace": "good\b\b\b\bevil",
    "a null": "a\0b",
    "text from right to left": "\u202egpj.exe",
    "nothing to see": "\u200b\u2060\ufeff",
    "many bytes": "x" * 65536,
    "many escapes": "\x1b" * 65536,
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in an empty folder; gives what it prints, which must be harmless and of short lines."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str, code: int = 0) -> str:
        assert cli.main(args) == code
        captured = capsys.readouterr()
        lines = (captured.err if code else captured.out).split("\n")
        assert all(line.isprintable() for line in lines), lines
        assert max(map(len, lines)) < 1000
        return "\n".join(lines)

    return call


def hostile(name: str) -> bytes:
    """A file in which everything that has a name has this one."""
    pair = tensor(name, (2,), words(1, 2))
    return file(
        pair, reference(f"{name}2"[-65536:], (2,), 0, TIED), Record(METADATA, "", b'{"recipe": "\\u001b[2J\\n"}')
    )


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_are_printed_as_one_harmless_line(name: str, run: Run, tmp_path: Path) -> None:
    lines = {}
    for title, given in (("plain", "w"), ("hostile", name)):
        (tmp_path / "x.dcz").write_bytes(hostile(given))
        shown = [run("inspect", "x.dcz"), run("verify", "x.dcz"), run("verify", "x.dcz", "--against", "x.dcz")]
        lines[title] = [text.count("\n") for text in shown]
        assert "2 tensors" in shown[1]
        assert shown[2].count("identical") == 2
    assert lines["hostile"] == lines["plain"]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_in_errors_are_one_harmless_line(name: str, run: Run, tmp_path: Path) -> None:
    double = Part(RAW, (), (Array(constant(0)),) * 8)
    (tmp_path / "plain.dcz").write_bytes(hostile("w"))
    (tmp_path / "x.dcz").write_bytes(hostile(name))
    (tmp_path / "single.dcz").write_bytes(file(tensor(name, (2,), words(1, 2))))
    (tmp_path / "double.dcz").write_bytes(file(tensor(name, (2,), double, dtype=F64)))
    (tmp_path / "broken.dcz").write_bytes(file(tensor(name, (2,), words(1))))
    for args in (("x.dcz", "--against", "plain.dcz"), ("double.dcz", "--against", "single.dcz"), ("broken.dcz",)):
        assert run("verify", *args, code=3).count("\n") == 1
    assert run("decompress", "broken.dcz", "-o", "y.safetensors", code=1).count("\n") == 1
    assert run("evaluate", "x.dcz", "--data", "digits", code=2).count("\n") == 1


def test_what_safetensors_cannot_hold_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "wide.dcz").write_bytes(file(tensor("wide", (1,), words(1, 2, kind="d"), dtype=C128)))
    (tmp_path / "taken.dcz").write_bytes(file(tensor("__metadata__", (2,), words(1, 2))))
    for name, found in (("wide.dcz", "wide: torch.complex128"), ("taken.dcz", "__metadata__: torch.float32")):
        shown = run("decompress", name, "-o", "out.safetensors", code=1)
        assert shown == f"deepcomp: {found} under this name is nothing a safetensors file can hold\n"
        assert not (tmp_path / "out.safetensors").exists()


def test_what_safetensors_can_hold_is_written(run: Run, tmp_path: Path) -> None:
    number, double = (
        tensor("complex", (1,), words(1, 2), dtype=C64),
        tensor("double", (1,), words(1, kind="d"), dtype=F64),
    )
    (tmp_path / "x.dcz").write_bytes(file(number, double))
    run("decompress", "x.dcz", "-o", "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert found.get_tensor("complex").tolist() == [1 + 2j]
        assert found.get_tensor("double").dtype == torch.float64
