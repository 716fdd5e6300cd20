"""Integer products against numpy's in 64 bits, by the kernel of the processor and without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepcomp.runtime import products
from deepcomp.runtime.products import Convolution, Matrix, has_kernel, matrices, windows


def integers(seed: int, low: int, high: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, dtype=torch.int32, generator=generator)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(
    ("low", "high", "weights"),
    [
        (-128, 127, (-128, 127)),
        (-128, 127, (-255, 0)),
        (-128, 127, (0, 255)),
        (-128, 127, (-300, 300)),
        (0, 65535, (-8, 7)),
    ],
)
def test_a_matrix_multiplies_exactly(
    kernel: bool, low: int, high: int, weights: tuple[int, int], monkeypatch: Any
) -> None:
    monkeypatch.setattr(products, "has_kernel", lambda: kernel)
    narrow = low == -128
    for seed, (rows, inputs, outputs) in enumerate([(1, 1, 1), (7, 33, 5), (64, 300, 17), (0, 3, 2)]):
        x, w = integers(seed, low, high, rows, inputs), integers(seed + 9, *weights, inputs, outputs)
        matrix = Matrix.of(w, narrow)
        found = matrix(x.to(torch.int8) if narrow else x)
        assert found.dtype == torch.int32
        assert np.array_equal(found.numpy(), x.numpy().astype(np.int64) @ w.numpy().astype(np.int64))
        fits = narrow and kernel and bool((w.amax(0) - w.amin(0) <= 255).all())
        assert (matrix.columns.dtype == torch.int8) == fits


@pytest.mark.skipif(not has_kernel(), reason="int8 products saturate on this processor")
def test_the_kernel_adds_up_the_largest_products_without_saturating() -> None:
    for x, w in [(-128, -128), (-128, 127), (127, 127)]:
        rows, column = torch.full((1, 60000), x, dtype=torch.int8), torch.full((60000, 1), w, dtype=torch.int32)
        assert int(Matrix.of(column, narrow=True)(rows)) == 60000 * x * w


def test_columns_of_nine_bits_reach_the_kernel_too() -> None:
    w = torch.tensor([[-255, 0, 255, 3], [0, 127, 1, -128]], dtype=torch.int32)
    x = torch.tensor([[-128, 127], [127, 127], [-128, -128]], dtype=torch.int8)
    matrix = Matrix.of(w, narrow=True)
    assert (matrix.centres is not None) == has_kernel()
    assert torch.equal(matrix(x), x.int() @ w)


@st.composite
def settings(draw: Any) -> dict[str, Any]:
    """Of a convolution that has an output."""
    count = draw(st.integers(1, 3))
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    if draw(st.booleans()):
        groups, inputs, outputs = draw(st.sampled_from([7, 40])), 1, draw(st.integers(1, 2))
    each = st.tuples(*[st.integers(1, 3)] * count)
    return {
        "count": count,
        "sizes": draw(st.tuples(*[st.integers(5, 8)] * count)),
        "channels": (groups, inputs, outputs),
        "kernel": draw(each),
        "stride": draw(each),
        "dilation": draw(st.tuples(*[st.integers(1, 2)] * count)),
        "padding": draw(st.tuples(*[st.integers(0, 2)] * count)),
        "zero": draw(st.integers(-128, 127)),
        "batch": draw(st.integers(0, 3)),
        "seed": draw(st.integers(0, 1000)),
    }


@given(settings())
def test_a_convolution_adds_up_exactly(s: dict[str, Any]) -> None:
    (groups, inputs, outputs), count = s["channels"], s["count"]
    x = integers(s["seed"], -128, 127, s["batch"], groups * inputs, *s["sizes"])
    w = integers(s["seed"] + 1, -127, 127, groups * outputs, inputs, *s["kernel"])
    blocks = w.reshape(groups, outputs, inputs, -1).permute(0, 3, 2, 1)
    pads = tuple((pad, pad) for pad in s["padding"])
    once = (1,) * count
    convolution = Convolution(matrices(blocks, True), s["kernel"], s["stride"], s["dilation"], once, pads, s["zero"])
    found = convolution(x.to(torch.int8)).movedim(-1, 1)
    around = F.pad(x, [size for pair in reversed(pads) for size in pair], value=s["zero"])
    operation = getattr(F, f"conv{count}d")
    wanted = operation(around.double(), w.double(), None, s["stride"], 0, s["dilation"], groups)
    assert found.dtype == torch.int32
    assert torch.equal(found.double(), wanted)


def test_windows_are_laid_out_few_at_a_time_without_changing_the_sums(monkeypatch: Any) -> None:
    x, w = integers(0, -128, 127, 3, 4, 6, 7).to(torch.int8), integers(1, -127, 127, 5, 4, 3, 3)
    blocks = w.reshape(1, 5, 4, 9).permute(0, 3, 2, 1)
    ones = (1, 1)
    convolution = Convolution(matrices(blocks, True), (3, 3), ones, ones, ones, ((1, 1), (1, 1)), 7)
    whole = convolution(x)
    for most in (1, 40, 300, 2000):
        monkeypatch.setattr(products, "_LAID_OUT", most)
        assert torch.equal(convolution(x), whole)


def test_what_comes_without_a_batch_or_with_several_dimensions_of_it_keeps_them() -> None:
    x, w, ones = integers(0, -128, 127, 2, 3, 4, 6, 7).to(torch.int8), integers(1, -127, 127, 5, 4, 2, 2), (1, 1)
    blocks = w.reshape(1, 5, 4, 4).permute(0, 3, 2, 1)
    convolution = Convolution(matrices(blocks, True), (2, 2), ones, ones, ones, ((0, 0), (1, 0)), -9)
    assert convolution(x).shape == (2, 3, 5, 7, 5)
    assert torch.equal(convolution(x)[1, 2], convolution(x[1, 2]))


def test_padding_beyond_the_memory_is_refused_before_it_is_taken() -> None:
    ones, w = (1, 1), torch.ones(1, 1, 1, 1, dtype=torch.int32)
    for padding, spread in [((1 << 40, 0), ones), ((0, 0), (1 << 40, 1))]:
        stretched = Convolution(matrices(w, True), ones, ones, ones, spread, (padding, (0, 0)), 0)
        with pytest.raises(ValueError, match="elements with its padding"):
            stretched(torch.zeros(1, 1, 2, 2, dtype=torch.int8))


def test_a_kernel_larger_than_its_input_is_refused() -> None:
    with pytest.raises(ValueError, match="a kernel of"):
        windows(torch.zeros(1, 2, 1), (3,), (1,), (1,))
