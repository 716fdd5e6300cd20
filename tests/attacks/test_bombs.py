"""Small files that ask for much memory or time: refused, or read in proportion to what the limits allow."""

from __future__ import annotations

import contextlib

import pytest
from build import (
    F16,
    RAW,
    SAME,
    U8,
    Array,
    Part,
    chunks,
    codebook,
    constant,
    deflated,
    file,
    grid,
    mask,
    plain,
    planes,
    reference,
    rows,
    seal,
    tensor,
    words,
)

import deepcomp
from deepcomp.errors import FormatError

MB, GB, TB = 1 << 20, 1 << 30, 1 << 40

BOMBS = {
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
        file(tensor("w", (TB, 2), rows(constant(0), TB, 1), words(1, 2))),
        "8796093022208 dense bytes declared",
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


@pytest.mark.parametrize(("data", "found"), BOMBS.values(), ids=BOMBS)
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
    "rows": (
        rows(constant(0), N // 4, N // 4 - 1), Part(RAW, (), (Array(constant(1), N - 4), *[Array(constant(1))] * 3))
    ),
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
        assert entry.work < 96 * N
        allowed = entry.nbytes + entry.work + opened.reader.size + 16 * MB
        with bounded(allowed), contextlib.suppress(FormatError):  # of the large symbols, once they are there
            opened.get_tensor("w")


def test_many_tied_tensors_take_time_in_proportion(tmp_path, bounded):
    number = 20_000  # work for each that grows with their number would take minutes
    names = [reference(str(i), (2,), 0) for i in range(number)]
    first = tensor("first", (2,), words(1, 2))
    (tmp_path / "x.dcz").write_bytes(seal(chunks([first]), deflated(plain([first, *names])[1:])))
    with bounded(seconds=60):
        assert len(deepcomp.load_state_dict(tmp_path / "x.dcz")) == number + 1
