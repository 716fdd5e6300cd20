"""What operations do with integers: those that quantise, move, select or bound numbers, and the list of them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcomp.model import ops
from deepcomp.model.quantizers import STATIC
from deepcomp.quantizer import Quantizer
from deepcomp.runtime.call import Call, First, Made, Rule, Work
from deepcomp.runtime.levels import Levels, Rescale, common, single
from deepcomp.runtime.sums import SUMS
from deepcomp.runtime.weighted import WEIGHTED
from deepcomp.runtime.whole import Unfit

__all__ = ["RULES"]


def _quantized(call: Call) -> Made:
    scale, zero_point, bits, symmetric = (call.given[name] for name in ("scale", "zero_point", "bits", "symmetric"))
    levels = Levels.of_quantizer(scale, zero_point, bits, symmetric)
    if call.given["self"] in call.levels:
        return First([Rescale(call.coded(call.given["self"]), levels)]), levels
    step, zero = (torch.tensor(number, dtype=torch.float32) for number in (scale, zero_point))
    return First([partial(_integers, Quantizer(bits, symmetric), step, zero, levels)]), levels


def _integers(quantizer: Quantizer, scale: Tensor, zero_point: Tensor, levels: Levels, x: Tensor) -> Tensor:
    """Those of floating-point numbers, to the bit as the simulation has them."""
    return (quantizer.integers(x, scale, zero_point) + (levels.zero - zero_point)).to(levels.dtype)


# --- moving and selecting --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moved:
    """The operation itself, by way of another type that holds the integers where it does not do theirs."""

    operation: ops.Operation
    through: torch.dtype | None = None
    before: Sequence[Work] = ()

    def __call__(self, x: Any, *operands: Any, **options: Any) -> Any:
        for work in self.before:
            x = work(x)
        if self.through is None:
            return self.operation.call(x, *operands, **options)
        return self.operation.call(x.to(self.through), *operands, **options).to(x.dtype)


def _moved(call: Call, through: torch.dtype | None = None) -> Made:
    before, levels = single(call.coded(call.node.args[0]))
    return _Moved(ops.find(call.node.op), through, before), levels


def _sized(call: Call) -> Made:
    return _Moved(ops.find(call.node.op)), None


def _largest(call: Call, through: torch.dtype) -> Made:
    """Of each window, channel by channel, so that each channel may have its own scale."""
    return _Moved(ops.find(call.node.op), through), call.coded(call.given["self"])


def _padded(call: Call) -> Made:
    if call.given.get("mode", "constant") != "constant":
        return _moved(call)
    if call.given["value"] not in (None, 0):
        raise Unfit(f"it pads with {call.given['value']}")
    before, levels = single(call.coded(call.given["self"]))
    made = replace(levels, low=min(levels.low, levels.zero), high=max(levels.high, levels.zero))
    return _Padded(before, levels.zero), made


@dataclass(frozen=True)
class _Padded:
    before: Sequence[Work]
    zero: int

    def __call__(self, x: Tensor, around: Sequence[int], *_: Any) -> Tensor:
        for work in self.before:
            x = work(x)
        return F.pad(x, list(around), value=self.zero)


def _converted(call: Call) -> Made:
    if call.given["dtype"] != torch.float32:
        raise Unfit(f"it makes {str(call.given['dtype']).removeprefix('torch.')} of what it reads")
    return First([]), call.coded(call.given["self"])


# --- bounds ----------------------------------------------------------------------------------------------------------


def _bounded(low: str | float, high: str | float) -> Rule:
    """A rule for an operation that bounds numbers; bounds are numbers, or the names of arguments."""

    def rule(call: Call) -> Made:
        found = [call.given[bound] if isinstance(bound, str) else bound for bound in (low, high)]
        bounds = [end if bound is None else bound for bound, end in zip(found, (-math.inf, math.inf), strict=True)]
        levels = call.coded(call.given["self"])
        if not all(isinstance(bound, int | float) for bound in bounds):
            raise Unfit("its bounds are computed")
        if not (bounds[0] <= 0 <= bounds[1] and levels.low <= levels.zero <= levels.high):
            raise Unfit("0 lies beyond its bounds")
        before: list[Work] = []
        if not {0, -math.inf, math.inf}.issuperset(bounds) and float(levels.scale.max()) > call.fine:
            joint = common([levels])  # bounds are rounded too
            before, levels = [Rescale(levels, joint)], joint
        lowest, highest = levels.encode(bounds[0]), levels.encode(bounds[1])
        made = replace(levels, low=int(lowest.min()), high=int(highest.max()))
        ends = (lowest, highest) if levels.scale.ndim else (made.low, made.high)
        return First([*before, partial(_clamped, ends, made.dtype)]), made

    return rule


def _clamped(ends: tuple[Any, Any], dtype: torch.dtype, x: Tensor) -> Tensor:
    return x.clamp(*ends).to(dtype)


_MOVES: dict[Rule, str] = {
    _padded: "pad constant_pad_nd",
    partial(_largest, through=torch.int32): "max_pool2d max_pool3d",  # which count places in the type of the numbers
    partial(_largest, through=torch.float64): "max_pool1d",
    partial(_moved, through=torch.float64): """upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec
        _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec""",
    _moved: """getitem reshape flatten.using_ints transpose.int permute slice.Tensor select.int unsqueeze squeeze
        squeeze.dim squeeze.dims expand split.Tensor chunk index.Tensor unbind.int split_with_sizes repeat t expand_as
        gather index_select unflatten.int broadcast_to tile repeat_interleave.self_int narrow movedim.int
        movedim.intlist swapaxes unfold flip roll rot90 diagonal tensor_split.sections tensor_split.indices numpy_T mT
        reshape_as take_along_dim amax amin pixel_shuffle pixel_unshuffle channel_shuffle reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d""",
}
RULES: dict[str, Rule] = {
    **WEIGHTED,
    **SUMS,
    STATIC: _quantized,
    "sym_size.int": _sized,
    "to.dtype": _converted,
    "relu": _bounded(0, math.inf),
    "relu6": _bounded(0, 6),
    "hardtanh": _bounded("min_val", "max_val"),
    "clamp": _bounded("min", "max"),
    "clamp_min": _bounded("min", math.inf),
    "clamp_max": _bounded(-math.inf, "max"),
    **{name: rule for rule, names in _MOVES.items() for name in names.split()},
}
