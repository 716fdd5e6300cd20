"""Layers in integers: exact sums of int8 × int8 in int32, with biases of 32 bits (Jacob et al. 2018, §2.4).

The scale of a sum is that of the input times that of the weights, but for some output channels: where 32 bits at that
scale are too few for the bias (weights that are all but zero), or where rounding the bias to that scale would show
behind some quantiser of the network. Their scales are multiplied by powers of two, and their sums rescaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcomp.runtime.call import Call, Made, Rule
from deepcomp.runtime.fixed_point import MOST
from deepcomp.runtime.levels import Levels, Rescale
from deepcomp.runtime.products import Convolution, Matrix, each, matrices
from deepcomp.runtime.whole import Unfit, Whole

__all__ = ["WEIGHTED"]

_LONGEST = 1 << 16  # products in a sum
_GROUPS = 1 << 16  # each costs a matrix of its own, or a share in one
_ROOM = MOST - 1024  # of a sum with its bias, before either is rounded


@dataclass(frozen=True, eq=False)
class _Layer:
    """A product with a weight, and a bias: called like the operation, with integers as its input.

    `product` gives sums of weights times integers, channels last; `offset` lets the integers count from their zero.
    The bias comes behind the rescaling; where there is none, it is part of the offset.
    """

    product: Callable[[Tensor], Tensor]
    offset: Tensor
    rescale: Rescale | None
    bias: Tensor
    levels: Levels
    operand: int

    def __call__(self, *operands: Any, **_: Any) -> Tensor:
        out = self.product(operands[self.operand])
        out += self.offset
        if self.rescale is not None:
            out = self.rescale(out) + self.bias
        return out.movedim(-1, self.levels.axis).to(self.levels.dtype)


def _linear(call: Call) -> Made:
    return _dense(call, "input", "weight", "bias", transposed=True)


def _matmul(call: Call) -> Made:
    return _dense(call, "self", "other" if "other" in call.given else "mat2")


def _addmm(call: Call) -> Made:
    if call.given["alpha"] != 1 or call.given["beta"] != 1:
        raise Unfit("its terms are scaled")
    return _dense(call, "mat1", "mat2", "self", operand=1)


def _dense(call: Call, read: str, weight: str, bias: str = "", *, transposed: bool = False, operand: int = 0) -> Made:
    """A layer of a matrix, by the names of its arguments."""
    levels, found = call.quantized(call.given[read]), call.whole(call.given[weight])
    if found.numbers.ndim != 2:
        raise Unfit("its weight is no matrix")
    blocks = found.change(lambda matrix: matrix.t()[None] if transposed else matrix[None])
    product = Matrix.of(blocks.numbers[0], levels.dtype == torch.int8)
    return _layer(call, levels, blocks, bias, product, -1, operand)


def _convolution(call: Call) -> Made:
    given, levels = call.given, call.quantized(call.given["input"])
    weight, groups = call.whole(given["weight"]), given["groups"]
    kernel = tuple(weight.numbers.shape[2:])
    count, taps = len(kernel), math.prod(kernel)
    if groups > _GROUPS:
        raise Unfit(f"it has more than {_GROUPS} groups")
    transposed = given.get("transposed", "output_padding" in given)

    def arrange(tensor: Tensor) -> Tensor:
        """(groups, taps, inputs of a group, outputs of a group)"""
        if transposed:
            tensor = tensor.flip(list(range(2, 2 + count)))
            return tensor.reshape(groups, -1, tensor.shape[1], taps).permute(0, 3, 1, 2)
        return tensor.reshape(groups, -1, tensor.shape[1], taps).permute(0, 3, 2, 1)

    blocks = weight.change(arrange)
    steps, once = each(given["stride"], count), (1,) * count
    product = Convolution(
        matrices(blocks.numbers, levels.dtype == torch.int8),
        kernel,
        stride=once if transposed else steps,
        dilation=each(given["dilation"], count),
        spread=steps if transposed else once,
        padding=_padding(given, kernel, transposed),
        zero=levels.zero,
    )
    return _layer(call, levels, blocks.change(lambda tensor: tensor.flatten(1, 2)), "bias", product, -1 - count)


def _padding(given: dict[str, Any], kernel: tuple[int, ...], transposed: bool) -> tuple[tuple[int, int], ...]:
    """What comes before and behind the input of a convolution, or between the lines of a transposed one."""
    count = len(kernel)
    over = [far * (taps - 1) for far, taps in zip(each(given["dilation"], count), kernel, strict=True)]
    if given["padding"] == "same":
        return tuple((size // 2, size - size // 2) for size in over)
    pads = (0,) * count if given["padding"] == "valid" else each(given["padding"], count)
    if not transposed:
        return tuple((pad, pad) for pad in pads)
    more = each(given["output_padding"], count)
    return tuple((size - pad, size - pad + extra) for size, pad, extra in zip(over, pads, more, strict=True))


def _layer(
    call: Call,
    levels: Levels,
    weight: Whole,
    bias: str,
    product: Callable[[Tensor], Tensor],
    axis: int,
    operand: int = 0,
) -> Made:
    """A layer and the levels of what it makes.

    Parameters
    ----------
    call : Call
    levels : Levels
        Of the input.
    weight : Whole
        As (groups, inputs of a group, outputs of a group); taps count as inputs.
    bias : str
        The name of the argument, empty for none.
    product : callable
    axis : int
        Of the output's channels, counted from the last dimension.
    operand : int
        Which argument is the input.

    Raises
    ------
    Unfit
        If an output channel has several scales, or its sums may leave 32 bits.
    """
    scale, numbers = weight.scale.amax(1), weight.numbers
    if not torch.equal(scale, weight.scale.amin(1)):
        raise Unfit("its weight has several scales in an output channel")
    sizes = numbers.abs().sum(1).reshape(-1).double()
    if numbers.shape[1] > _LONGEST or sizes.max() * (abs(levels.zero) + max(-levels.low, levels.high)) > MOST:
        raise Unfit("its sums may leave 32 bits")
    exact = scale.reshape(-1).double() * levels.scale
    added = call.bias(call.given.get(bias), len(exact))
    fits = ((sizes * levels.wide + added.abs() / exact) / _ROOM).log2().ceil()
    power = torch.maximum(fits, (call.fine / exact).log2().floor().clamp(max=0))
    step = exact * torch.exp2(power)
    bound = int((sizes * levels.wide * torch.exp2(-power) + added.abs() / step).max()) + 2
    made = Levels(step[0] if bool((step == step[0]).all()) else step, 0, -bound, bound, axis)
    offset, whole = (-levels.zero * numbers.sum(1).reshape(-1)).int(), (added / step).round().int()
    if not power.any():
        return _Layer(product, offset + whole, None, whole, made, operand), made
    rescale = Rescale(Levels(exact, 0, -MOST, MOST), Levels(step, 0, -MOST, MOST))
    return _Layer(product, offset, rescale, whole, made, operand), made


_CONVOLUTIONS = """conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution"""
WEIGHTED: dict[str, Rule] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    **dict.fromkeys(_CONVOLUTIONS.split(), _convolution),
}
