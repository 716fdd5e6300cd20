"""Two decoders of one text: both refuse the same hand-made files, and read the others as the same bits."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from build import (
    BOOL,
    C64,
    CODEBOOK,
    F32,
    RAW,
    SHIFTED,
    SIZES,
    Array,
    Part,
    Table,
    codebook,
    constant,
    file,
    fixed,
    grid,
    mask,
    planes,
    rows,
    tensor,
    words,
)
from independent_decoder import decode

import deepcomp
from deepcomp import jit
from deepcomp.errors import FormatError
from deepcomp.weights.dtypes import to_words

Agree = Callable[[bytes], bool]


@pytest.fixture
def agree(tmp_path: Path) -> Agree:
    """Whether both decoders read a file; fails where they differ in that, or in a bit."""

    def read(data: bytes) -> bool:
        path = tmp_path / "x.dcz"
        path.write_bytes(data)
        try:
            with jit.use(numba=False):
                found = {name: bytes(to_words(tensor)) for name, tensor in deepcomp.load_state_dict(path).items()}
        except FormatError:
            with pytest.raises(ValueError):  # noqa: PT011
                decode(data)
            return False
        assert {tensor.name: tensor.data for tensor in decode(data).tensors} == found
        return True

    return read


def test_words_lie_in_a_table_of_words_and_in_no_other(agree: Agree) -> None:
    for dtype, kind in itertools.product(range(20), range(6)):
        size = SIZES[dtype] // (2 if dtype >= C64 else 1)
        table = Table(kind, bytes(SIZES[dtype]))
        right = 1 << kind == size  # types 0 to 3 are as wide as their number says, 4 and 5 are no words
        assert agree(file(tensor("w", (1,), Part(RAW, (), (), (table,)), dtype=dtype))) == right
        book = tensor("w", (1,), Part(CODEBOOK, (), (Array(constant(0)),), (table,)), dtype=dtype)
        assert agree(file(book)) == (right and dtype < C64)


def test_only_narrower_floats_may_be_stored(agree: Agree) -> None:
    floats = range(4)
    for dtype, stored in itertools.product(range(20), range(-1, 21)):
        size = SIZES[stored] // (2 if stored >= C64 else 1) if stored in range(20) else 4
        table = Table({1: 0, 2: 1, 4: 2, 8: 3}[size], bytes(SIZES[stored] if stored in range(20) else 4))
        narrower = stored in floats and dtype in floats and SIZES[stored] < SIZES[dtype]
        record = tensor("w", (1,), Part(RAW, (stored,), (), (table,)), dtype=dtype)
        assert agree(file(record)) == (stored == dtype or narrower)


def test_blocks_of_a_grid_lie_within_the_tensor(agree: Agree) -> None:
    counts: dict[tuple[int, int, int], list[int]] = {}
    for axis, group, size, scales in itertools.product(range(-2, 3), range(-1, 5), range(-1, 5), range(7)):
        part = grid(fixed(2, 0, 1, 2, 2, 1, 0), *range(1, scales + 1), bits=2, axis=axis, group=group, size=size)
        if agree(file(tensor("w", (2, 3), part))):
            counts.setdefault((axis, group, size), []).append(scales)
    assert counts == {
        (-1, 1, 0): [1],
        (0, 1, 0): [2], (0, 1, 1): [6], (0, 1, 2): [4], (0, 1, 3): [2], (0, 2, 0): [1],
        (1, 1, 0): [3], (1, 1, 1): [6], (1, 1, 2): [3], (1, 2, 0): [2], (1, 3, 0): [1],
    }  # fmt: skip


def test_integers_and_zero_points_lie_on_the_grid(agree: Agree) -> None:
    for bits, symmetric in itertools.product((0, 1, 2, 16, 17), (0, 1, 2)):
        top = (1 << bits) - 1
        for q, lowest, zero in itertools.product((0, 1, top, top + 1), (-1, 0, 1), (0, top, top + 1)):
            part = grid(
                constant(q),
                0.5,
                bits=bits,
                symmetric=symmetric,
                lowest=lowest,
                zero_point=None if symmetric else constant(zero),
            )
            allowed = bits in (1, 2, 16) and symmetric < 2 and 0 <= q + lowest <= top - symmetric
            assert agree(file(tensor("w", (2,), part))) == (allowed and (symmetric == 1 or zero <= top))


def test_what_a_tensor_without_elements_or_of_complex_numbers_may_be(agree: Agree) -> None:
    forms = {
        "words": (words(),),
        "planes": (planes(0),),
        "codebook": (codebook(constant(0), 1),),
        "empty codebook": (codebook(constant(0)),),
        "mask": (mask(constant(0), 0), words()),
        "rows": (rows(constant(0), 0, 0), words()),
        "grid": (grid(constant(0), 1),),
        "shifted": (Part(SHIFTED, (), (Array(constant(0)),) * 5),),
    }
    for shape in ((0,), (0, 3), (3, 0)):
        found = {name for name, parts in forms.items() if agree(file(tensor("w", shape, *parts)))}
        assert found == {"words", "planes"}
    pair = words(1, 2)
    for parts in ((pair,), (mask(constant(0), 1), pair), (rows(constant(0), 1, 1), pair), (codebook(constant(0), 1),)):
        assert agree(file(tensor("w", (1,), *parts, dtype=C64))) == (parts == (pair,))


def test_a_mask_of_no_positions_lies_over_no_values(agree: Agree) -> None:
    nothing = mask(constant(0), 0)
    for over in (words(), planes(0), codebook(constant(0)), codebook(constant(0), 1), grid(constant(0), 1, lowest=99)):
        assert agree(file(tensor("w", (4,), nothing, over)))
    for over in (words(1), codebook(constant(0), 1, count=1), grid(constant(0))):
        assert not agree(file(tensor("w", (4,), nothing, over)))


def test_parts_nest_in_one_way(agree: Agree) -> None:
    forms = {
        "raw": words(1, 2, 3),
        "codebook": codebook(constant(0), 5),
        "mask": mask(constant(0), None),
        "rows": rows(constant(0), None, 3),
        "grid": grid(constant(1), 1),
        "shifted": Part(SHIFTED, (), (Array(constant(1)),) * 5),
    }
    orders = [order for depth in range(1, 4) for order in itertools.product(forms, repeat=depth)]
    found = {order for order in orders if agree(file(tensor("w", (3,), *(forms[name] for name in order))))}
    values = ("raw", "codebook", "grid")
    layers = [(), ("mask",), ("rows",), ("rows", "mask")]
    assert found == {(*above, last) for above in layers for last in values} | {("shifted",), ("rows", "shifted")}


def test_a_bool_is_0_or_1_used_or_not(agree: Agree) -> None:
    for value in range(4):
        shared = Part(CODEBOOK, (), (Array(constant(1)),), (Table(0, bytes([value, 1])),))
        repeated = rows(constant(1), None, 2), words(value, 1, kind="B")
        for parts in ((shared,), repeated):
            assert agree(file(tensor("w", (4,), *parts, dtype=BOOL))) == (value <= 1)


def test_shapes_end_at_2_to_the_62_bytes(agree: Agree) -> None:
    for size in (1 << 59, (1 << 60) - 1, 1 << 60, (1 << 60) + 1, 1 << 62):
        assert agree(file(tensor("w", (size, 0), words(), dtype=F32))) == (size <= 1 << 60)


def test_a_value_of_a_grid_is_rounded_as_the_text_says(agree: Agree) -> None:
    scales = [0.1, -0.1, 1e-45, 3e38, 65519.0, 65520.0, 0.0, -0.0, 2.0**-24, struct.unpack("<f", b"\1\0\0\0")[0]]
    for dtype, scale, bits in itertools.product(range(4), scales, (2, 16)):
        q = fixed(bits, *(0, 1, 2, (1 << bits) - 2))
        assert agree(file(tensor("w", (4,), grid(q, scale, bits=bits), dtype=dtype)))
