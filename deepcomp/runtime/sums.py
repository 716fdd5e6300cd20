"""Sums and averages of integers, and values joined: on levels on which they are exact, or hardly off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepcomp.model import ops
from deepcomp.runtime.call import Call, Made, Rule, Work
from deepcomp.runtime.fixed_point import MOST, Multiplier
from deepcomp.runtime.levels import Levels, Rescale, common
from deepcomp.runtime.products import channels_last, each, pad, windows
from deepcomp.runtime.whole import Unfit

__all__ = ["SUMS"]

_BITS = 30  # of an average


# --- several values --------------------------------------------------------------------------------------------------


def _added(sign: int) -> Rule:
    """A rule for the sum of two values, or their difference."""

    def rule(call: Call) -> Made:
        levels = [call.coded(call.given[name]) for name in ("self", "other")]
        if call.given["alpha"] != 1:
            raise Unfit("its second operand is scaled")
        joint = common(levels, terms=2)
        made = replace(joint, low=2 * joint.low, high=2 * joint.high)
        return _Sum(Rescale(levels[0], joint), Rescale(levels[1], joint), sign), made

    return rule


@dataclass(frozen=True)
class _Sum:
    left: Work
    right: Work
    sign: int

    def __call__(self, left: Tensor, right: Tensor, **_: Any) -> Tensor:
        return torch.add(self.left(left), self.right(right), alpha=self.sign)


def _joined(call: Call) -> Made:
    values, operation = call.given["tensors"], ops.find(call.node.op)
    if not isinstance(values, tuple):
        raise Unfit("it joins the items of a list")
    levels = [call.coded(value) for value in values]
    first = levels[0]
    if all(not entry.scale.ndim and (entry.scale, entry.zero) == (first.scale, first.zero) for entry in levels):
        made = replace(first, low=min(entry.low for entry in levels), high=max(entry.high for entry in levels))
        return _Join(operation, [partial(Tensor.to, dtype=made.dtype)] * len(levels)), made
    made = common(levels)
    return _Join(operation, [Rescale(entry, made) for entry in levels]), made


@dataclass(frozen=True)
class _Join:
    operation: ops.Operation
    work: Sequence[Work]

    def __call__(self, parts: Sequence[Tensor], *where: Any) -> Any:
        return self.operation.call([work(part) for work, part in zip(self.work, parts, strict=True)], *where)


# --- averages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Average:
    """Sums of integers, multiplied to become averages on levels that are finer by some powers of two."""

    levels: Levels
    finer: int
    add: Work
    count: Work

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        terms = self.count(x)
        if int(terms.max()) * self.levels.wide > MOST:
            raise ValueError(f"a sum of {int(terms.max())} integers of up to {self.levels.wide}, beyond 32 bits")
        factor = Multiplier.of((1 << self.finer) / terms.double())
        return factor.apply(self.add(x.int() - self.levels.zero), factor.offset(0, 0)).int()


def _average(call: Call, add: Work, count: Work) -> Made:
    levels = call.quantized(call.given["self"])
    finer = _BITS - levels.wide.bit_length()
    bound = levels.wide << finer
    return _Average(levels, finer, add, count), Levels(levels.scale / (1 << finer), 0, -bound, bound)


def _over_dimensions(call: Call) -> Made:
    dims = tuple(call.given["dim"] or ())
    if not dims or call.given["dtype"] not in (None, torch.float32):
        raise Unfit("it averages everything, or as another type")
    return _average(call, partial(_sum, dims, call.given["keepdim"]), partial(_sizes, dims))


def _over_all_places(call: Call) -> Made:
    count = int(call.node.op[len("adaptive_avg_pool")])
    if set(call.given["output_size"]) != {1}:
        raise Unfit("its windows may differ in size")
    dims = tuple(range(-count, 0))
    return _average(call, partial(_sum, dims, True), partial(_sizes, dims))


def _over_windows(call: Call) -> Made:
    given, count = call.given, int(call.node.op[len("avg_pool")])
    if given["ceil_mode"] or given.get("divisor_override") is not None:
        raise Unfit("it rounds the number of its windows up, or divides by another number")
    kernel, padding = each(given["kernel_size"], count), each(given["padding"], count)
    stride = each(given["stride"], count) if given["stride"] else kernel
    add = partial(_sum_windows, kernel, stride, padding)
    return _average(call, add, partial(_places, add, kernel, padded=given["count_include_pad"]))


def _sum(dims: tuple[int, ...], keepdim: bool, x: Tensor) -> Tensor:
    return x.sum(dims, keepdim, dtype=torch.int32)


def _sizes(dims: tuple[int, ...], x: Tensor) -> Tensor:
    return torch.tensor(math.prod([x.shape[dim] for dim in dims]))


def _sum_windows(kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], x: Tensor) -> Tensor:
    count = len(kernel)
    around = pad(channels_last(x, count), [(size, size) for size in padding], 0)
    sums = windows(around, kernel, stride, (1,) * count).sum(tuple(range(1 + count, 1 + 2 * count)), dtype=torch.int32)
    return sums.movedim(-1, 1).reshape(*x.shape[:-count], *sums.shape[1:-1])


def _places(add: Work, kernel: tuple[int, ...], x: Tensor, padded: bool) -> Tensor:
    """How many numbers each window averages; without those of the padding they differ."""
    return (
        torch.tensor(math.prod(kernel)) if padded else add(x.new_ones(1, *x.shape[-len(kernel) :], dtype=torch.int32))
    )


SUMS: dict[str, Rule] = {
    "add.Tensor": _added(1),
    "sub.Tensor": _added(-1),
    "mean.dim": _over_dimensions,
    **dict.fromkeys(["cat", "stack", "hstack", "vstack", "dstack"], _joined),
    **dict.fromkeys(["avg_pool1d", "avg_pool2d", "avg_pool3d"], _over_windows),
    **dict.fromkeys(["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"], _over_all_places),
}
