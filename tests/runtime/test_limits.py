"""Bounds on the size of results: never below what an operation makes, and not far above."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcomp.model import ops
from deepcomp.runtime import limits


def f(*shape: int) -> Tensor:
    return torch.randn(shape)


def i(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape)


# Calls whose bound is exact, and calls whose bound may be a few times the result.
EXACT: list[tuple[Any, ...]] = [
    ("add.Tensor", f(5, 1, 3), f(4, 1)),
    ("relu", f(3, 4)),
    ("linear", f(5, 7, 8), f(6, 8), f(6)),
    ("bilinear", f(5, 4), f(5, 3), f(2, 4, 3)),
    ("conv1d", f(2, 4, 16), f(6, 4, 3), f(6), (2,), (1,)),
    ("conv2d", f(2, 4, 17, 16), f(6, 2, 3, 3), None, (2, 1), (1, 0), (2, 2), 2),
    ("conv2d", f(4, 16, 16), f(6, 4, 3, 3)),
    ("conv2d", f(1, 3, 224, 224), f(8, 3, 16, 16), None, (16, 16)),
    ("conv2d.padding", f(2, 4, 8, 8), f(6, 4, 3, 3), None, (1, 1), "same"),
    ("conv2d.padding", f(2, 4, 8, 8), f(6, 4, 3, 3), None, (1, 1), "valid"),
    ("conv3d", f(1, 2, 5, 5, 5), f(3, 2, 2, 2, 2)),
    ("conv_transpose2d.input", f(2, 4, 8, 8), f(4, 6, 2, 2), None, (2, 2), (0, 0), (1, 1)),
    ("convolution", f(2, 4, 8, 8), f(4, 6, 3, 3), None, (2, 2), (0, 0), (1, 1), True, (1, 1), 1),
    ("batch_norm", f(2, 300, 3), f(300), f(300), f(300), f(300).abs(), False, 0.1, 1e-5, True),
    ("group_norm", f(2, 8, 4), 2, f(8), f(8)),
    ("prelu", f(2, 9, 3), f(9)),
    ("matmul", f(5, 1, 3, 4), f(2, 4, 6)),
    ("matmul", f(4), f(2, 4, 6)),
    ("mm", f(3, 4), f(4, 5)),
    ("bmm", f(2, 3, 4), f(2, 4, 5)),
    ("addmm", f(5), f(3, 4), f(4, 5)),
    ("mv", f(3, 4), f(4)),
    ("outer", f(3), f(5)),
    ("inner", f(3, 4), f(5, 4)),
    ("tensordot", f(3, 4), f(4, 5), (1,), (0,)),
    ("einsum", "bhqd,bhkd->bhqk", (f(2, 3, 5, 4), f(2, 3, 6, 4))),
    ("einsum", "...ij,...jk->...ik", (f(2, 3, 5, 4), f(3, 4, 6))),
    ("cdist", f(2, 5, 4), f(6, 4)),
    ("scaled_dot_product_attention", f(2, 4, 6, 8), f(2, 4, 7, 8), f(2, 4, 7, 9)),
    ("embedding", f(10, 8), i(3, 4)),
    ("one_hot", i(3, 4), 7),
    ("gather", f(8, 8), 1, i(8, 4)),
    ("index_select", f(8, 9), 1, i(4)),
    ("index_select", f(8, 9), -1, i(4)),
    ("index.Tensor", f(8, 9, 5), (i(3, 1), i(4))),
    ("index.Tensor", f(8, 9, 5), (None, i(3))),
    ("index.Tensor", f(8, 9), (torch.ones(8, 9, dtype=torch.bool),)),
    ("masked_scatter", f(8, 1), f(8, 8) > 0, f(64)),
    ("cat", (f(3, 4), f(2, 4))),
    ("stack", (f(3, 4), f(3, 4))),
    ("meshgrid", (f(3), f(4))),
    ("expand", f(3, 1, 5), (7, -1, 6, 5)),
    ("repeat", f(3, 4), (2, 2, 3)),
    ("tile", f(3, 4), (2,)),
    ("repeat_interleave.self_int", f(3, 4), 3, 0),
    ("pad", f(2, 4, 8), (1, 2, 0, 1)),
    ("pad", f(2, 4, 8), (-1, -2)),
    ("reflection_pad2d", f(2, 4, 8, 8), (1, 2, 3, 0)),
    ("upsample_nearest2d.vec", f(2, 4, 8, 8), (16, 9), None),
    ("upsample_bilinear2d.vec", f(2, 4, 8, 8), None, False, (2.0, 1.5)),
    ("adaptive_avg_pool2d", f(2, 4, 8, 8), (3, 20)),
    ("adaptive_avg_pool1d", f(4, 8), (30,)),
    ("max_unpool2d", f(2, 4, 4, 4), i(2, 4, 4, 4), (8, 8)),
    ("affine_grid_generator", f(2, 2, 3), (2, 7, 5, 6), False),
    ("affine_grid_generator", f(2, 3, 4), (2, 1, 4, 5, 6), False),
    ("im2col", f(2, 4, 8, 8), (2, 3), (1, 1), (0, 1), (1, 2)),
    ("col2im", f(2, 16, 49), (8, 8), (2, 2), (1, 1), (0, 0), (1, 1)),
    ("zeros", (3, 4)),
    ("full", (3, 4), 1.0),
    ("new_zeros", f(9), (3, 4)),
    ("eye", 5),
    ("linspace", 0, 1, 9),
    ("reshape_as", f(4, 6), f(8, 3)),
]
LOOSE: list[tuple[Any, ...]] = [
    ("diff", f(4, 6), 1, -1, f(4, 1)),
    ("unfold", f(4, 8), 1, 2, 2),
    ("grid_sampler", f(2, 4, 8, 8), f(2, 5, 6, 2), 0, 0, False),
    ("arange", 10),
    ("arange.start_step", 10, -3, -2),
    ("diag_embed", f(4, 5), 1),
    ("diag", f(5), -2),
    ("lstm.input", f(5, 2, 8), (f(1, 2, 4),) * 2, (f(16, 8), f(16, 4)), False, 1, 0.0, False, False, False),
    ("gru.input", f(5, 2, 8), f(2, 2, 4), (f(12, 8), f(12, 4)) * 2, False, 1, 0.0, False, True, False),
    ("sum.dim_IntList", f(4, 0, 5), (1,)),
    ("topk", f(4, 8), 3),
    ("addbmm", f(3, 5), f(2, 3, 4), f(2, 4, 5)),
    ("searchsorted.Tensor", torch.arange(8.0), f(5)),
    ("max_pool2d", f(2, 3, 4, 4), (2, 2), (1, 1), (1, 1)),
    ("max_pool1d_with_indices", f(3, 8), (4,), (1,), (2,)),
    ("avg_pool3d", f(1, 1, 2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ("sort", f(4, 6)),
]  # fmt: skip


def bound(name: str, args: tuple[Any, ...]) -> int:
    parameters = ops.find(name).parameters
    call = {parameter.name: parameter.default for parameter in parameters}
    return limits.largest(name, call | dict(zip([p.name for p in parameters], args, strict=False)))


def made(name: str, args: tuple[Any, ...]) -> int:
    result = ops.find(name).call(*args)
    return max(tensor.numel() for tensor in (result if isinstance(result, tuple | list) else [result]))


@pytest.mark.parametrize("call", EXACT, ids=lambda call: call[0])
def test_most_bounds_are_exact(call: tuple[Any, ...]) -> None:
    name, *args = call
    assert bound(name, tuple(args)) == made(name, tuple(args))


@pytest.mark.parametrize("call", LOOSE, ids=lambda call: call[0])
def test_other_bounds_are_above_and_near(call: tuple[Any, ...]) -> None:
    name, *args = call
    assert made(name, tuple(args)) <= bound(name, tuple(args)) <= 16 * made(name, tuple(args)) + 16


def emptied(value: Any) -> Iterator[Any]:
    """Like the value, but with one dimension of a tensor empty or one number 0: each of them in turn."""
    if isinstance(value, Tensor):
        yield from (value.narrow(dim, 0, 0) for dim in range(value.ndim))
    elif isinstance(value, tuple | list):
        yield from ((*value[:at], less, *value[at + 1 :]) for at, item in enumerate(value) for less in emptied(item))
    elif type(value) is int:
        yield 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", EXACT + LOOSE, ids=lambda call: call[0])
def test_no_bound_is_below_the_result_where_a_dimension_is_empty(call: tuple[Any, ...]) -> None:
    name, *args = call
    for fewer in emptied(tuple(args)):
        try:
            limits.check_recurrent(ops.find(name), fewer)
            found = made(name, fewer)
        except (RuntimeError, ValueError, IndexError):
            continue  # no call that works
        assert found <= bound(name, fewer)


@pytest.mark.parametrize(
    "call",
    [
        ("chunk", f(0, 3), 5),
        ("chunk", f(3, 0), 5, 1),
        ("chunk", f(3, 0), 5),
        ("split.Tensor", f(0), 0),
        ("split.Tensor", f(7, 0), 2),
        ("split_with_sizes", f(0), (0, 0, 0)),
        ("tensor_split.sections", f(0), 4),
        ("tensor_split.indices", f(0), (0, 3)),
        ("unbind.int", f(9, 0)),
        ("unbind.int", f(0, 9)),
    ],
    ids=lambda call: call[0],
)
def test_pieces_of_nothing_count_for_the_memory_they_take(call: tuple[Any, ...]) -> None:
    name, *args = call
    assert bound(name, tuple(args)) >= len(ops.find(name).call(*args)) * limits._EMPTY


def test_every_rule_is_for_an_operation_of_the_list() -> None:
    assert limits._RULES.keys() <= ops.CODES.keys()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("unbind.int", (torch.empty(1).expand(1 << 30),)),
        ("split.Tensor", (torch.empty(1).expand(1 << 30), 1)),
        ("tensor_split.sections", (f(3), 1 << 30)),
        ("meshgrid", ((f(1 << 10),) * 4,)),
        ("add.Tensor", (torch.empty(1, 1).expand(1 << 20, 1), torch.empty(1, 1).expand(1, 1 << 20))),
        ("einsum", ("a,b,c->abc", (f(1 << 12), f(1 << 12), f(1 << 12)))),
        ("one_hot", (i(3), -1)),  # as many classes as the values say
        ("chunk", (f(0), 1 << 30)),
        ("tensor_split.sections", (f(0, 3), 1 << 30)),
        ("sum.dim_IntList", (f(0, 1 << 40), (0,))),
        ("adaptive_avg_pool2d", (f(0, 3, 8, 8), (1 << 16, 1 << 16))),
        ("upsample_nearest2d.vec", (f(0, 3, 8, 8), (1 << 16, 1 << 16), None)),
        ("max_unpool2d", (f(0, 3, 8, 8), i(0, 3, 8, 8), (1 << 16, 1 << 16))),
        ("mm", (f(1 << 16, 0), f(0, 1 << 16))),
        ("linear", (f(1 << 16, 0), f(1 << 16, 0))),
        ("einsum", ("ij,jk->ik", (f(1 << 16, 0), f(0, 1 << 16)))),
        ("tensordot", (f(1 << 16, 0), f(0, 1 << 16), (1,), (0,))),
        ("cdist", (f(1 << 16, 0), f(1 << 16, 0))),
    ],
)
def test_calls_that_would_fill_the_memory_are_refused(name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"a result of \d+ elements, at most 2147483648 allowed"):
        limits.check_size(ops.find(name), args, {}, 1 << 31)
