"""A few levels times a scale: binary and ternary weights, powers of two and their sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from deepcomp.quantizer import SMALLEST_SCALE, Bounds
from deepcomp.weights.blocks import Blocks
from deepcomp.weights.dtypes import dtype_of
from deepcomp.weights.form import Form, Packed, count_of, expect
from deepcomp.weights.level_sets import LARGEST, level_set
from deepcomp.weights.ranges import least
from deepcomp.weights.scales import pack_scales, unpack_scales

__all__ = ["Scaled"]


class Scaled(Form):
    """A weight whose elements are levels of a small set times a scale.

        l = the level nearest to v / u        w = s·l

    v is the latent weight; ties go up, so that a binary 0 is positive. The unit u of a block stays what it was when
    the form was fitted: it says between which latent weights the thresholds lie, and training moves weights across
    them. The scale s is learnt: one a block, or with two sides one for levels from 0 up and one for those below
    (trained ternary quantisation, Zhu et al. 2017).

    Parameters
    ----------
    weight : Tensor
        The latent weight, trainable; of shape `blocks.shape`, or under a mask a vector of the values at positions
        `at`.
    scale : float32 tensor, shape (blocks.count, sides)
    unit : float32 tensor, shape (blocks.count,)
        Positive.
    levels : sequence of int
        Ascending, none twice, from −2¹⁶ to 2¹⁶; at least one.
    blocks : Blocks
        Which weights share a scale.
    """

    code = 7
    name = "scaled"
    work = 40
    symbols = ("q", "levels")
    tables = ("scale",)
    facts = ("sides", "axis", "group", "size", "lowest")

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        unit: Tensor,
        levels: Sequence[int],
        blocks: Blocks,
        at: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(tuple(weight.shape), dtype or weight.dtype)
        self.latent = nn.Parameter(weight.detach().to(torch.float32, copy=True))
        self.scale = nn.Parameter(scale.detach().clone())
        self.blocks = blocks
        self.unit: Tensor
        self.levels: Tensor
        self.at: Tensor | None
        self.register_buffer("unit", unit)
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))
        self.register_buffer("at", at)

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        weight: Tensor,
        levels: str,
        bits: int = 4,
        *,
        sides: int = 1,
        axis: int | None = 0,
        group: int = 1,
        size: int = 0,
        at: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Self:
        """The levels of a set for given weights, and the scales of least squared error for them.

        So a binary scale is mean |v|, and a ternary one the mean of those beyond the threshold 0.7 · mean |v|.

        Parameters
        ----------
        weight : Tensor
            The weights; under a mask the values at the flat positions `at` of a weight of `shape`.
        levels, bits : see `level_sets`
        sides : int
            1, or 2 for scales of their own below 0.
        axis, group, size : see `Blocks`

        Raises
        ------
        UsageError
            If there is no such set.
        """
        shape = shape or tuple(weight.shape)
        blocks = Blocks.within(shape, axis if len(shape) > 1 else None, group, size)
        form = cls(weight, torch.ones(blocks.count, sides), torch.ones(blocks.count), (0,), blocks, at)
        magnitudes = form.latent.abs().double()
        total, count = form._rows(magnitudes).sum(1), form._rows(torch.ones_like(magnitudes)).sum(1)
        mean = (total / count.clamp(min=1)).float().clamp(min=SMALLEST_SCALE)
        chosen = level_set(levels, bits, form.latent / form._spread(mean))
        form.levels = torch.tensor(chosen.levels, dtype=torch.float32)
        form.unit = form._best_unit() if chosen.unit is None else mean * chosen.unit
        scale = form._best_scale(form.latent.double(), form.taken()).float()
        form.scale.copy_(torch.where(scale > 0, scale, form.unit[:, None]))  # where no level but 0 is taken, say
        return form

    def _best_unit(self) -> Tensor:
        """The unit of least squared error, shape (blocks,), searched from where no weight is beyond the levels."""
        largest = self._rows(self.latent.abs()).amax(1)

        def unit(bound: Tensor) -> Tensor:
            return (bound / self.levels[-1]).clamp(min=SMALLEST_SCALE)

        def error(bounds: Bounds) -> Tensor:
            level = self._nearest(self.latent / self._spread(unit(bounds[1])))
            scale = self._best_scale(self.latent, level)
            return self._rows((self.latent - self._scale_of(scale, level) * level).square()).sum(1)

        return unit(least((-largest, largest), error, symmetric=True)[1])

    def _best_scale(self, values: Tensor, level: Tensor) -> Tensor:
        """The scales for which s·l is nearest to some values in least squares, shape (blocks, sides); 0 where l is."""
        level = level.to(values.dtype)
        sides = (level,) if self.scale.shape[1] == 1 else (level.clamp(min=0), level.clamp(max=0))
        # levels are whole: a sum of squares that is not 0 is at least 1
        found = [self._rows(side * values).sum(1) / self._rows(side * side).sum(1).clamp(min=1) for side in sides]
        return torch.stack(found, 1)

    def _rows(self, values: Tensor) -> Tensor:
        """Numbers in the shape of the weights held, one row a block; zeros where a mask has none."""
        if self.at is not None:
            values = values.new_zeros(math.prod(self.blocks.shape)).index_put((self.at,), values)
        return self.blocks.rows(values.reshape(self.blocks.shape), 0)

    def _spread(self, values: Tensor) -> Tensor:
        """One value a block, made to broadcast against the weights held."""
        return self.blocks.spread(values) if self.at is None else values[self.blocks.at(self.at)]

    def _scale_of(self, scale: Tensor, level: Tensor) -> Tensor:
        """The scale of each weight held, by the side that its level is on."""
        sides = [self._spread(side) for side in scale.unbind(1)]
        return sides[0] if len(sides) == 1 else torch.where(level < 0, sides[1], sides[0])

    def _nearest(self, steps: Tensor) -> Tensor:
        thresholds = (self.levels[1:] + self.levels[:-1]) / 2
        return self.levels[torch.bucketize(steps.contiguous(), thresholds, right=True)]

    @torch.no_grad()
    def taken(self) -> Tensor:
        """The levels taken, as whole float32 numbers in the shape of the weights held; without gradients."""
        return self._nearest(self.latent / self._spread(self.unit))

    def forward(self) -> Tensor:
        dense: Tensor = _Straight.apply(self.latent, self.scale, self)  # type: ignore[no-untyped-call]
        return dense.to(self.dtype)

    @torch.no_grad()
    def pack(self) -> Packed:
        used, q = np.unique(self.taken().numpy(), return_inverse=True)
        lowest = int(used.min(initial=0))
        symbols = {"q": _unsigned(q.reshape(-1)), "levels": _unsigned(used - lowest)}
        facts = {
            "sides": self.scale.shape[1],
            "axis": -1 if self.blocks.axis is None else self.blocks.axis,
            "group": self.blocks.group,
            "size": self.blocks.size,
            "lowest": lowest,
        }
        return Packed(self.code, symbols, {"scale": pack_scales(self.scale.detach().numpy().reshape(-1))}, facts)

    def aligned(self) -> Packed | None:
        return self.pack() if self.at is None else None

    @torch.no_grad()
    def among(self, positions: Tensor, shape: tuple[int, ...]) -> Self | None:
        if not bool((self.scale > 0).all()):  # a zero would come out as -0
            return None
        dense = torch.zeros(math.prod(shape)).index_put_((positions,), self.taken()).reshape(shape)
        levels = sorted({0, *self.levels.int().tolist()})
        return type(self)(dense, self.scale, torch.ones_like(self.unit), levels, self.blocks, dtype=self.dtype)

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        facts = packed.facts
        sides, axis, group, size = facts["sides"], facts["axis"], facts["group"], facts["size"]
        expect(sides in (1, 2), f"{sides} sides found, 1 or 2 expected")
        expect(dtype.is_floating_point and dtype.itemsize > 1, f"scaled levels of {dtype_of(dtype).name}")
        blocks = Blocks(shape, None if axis == -1 else axis, group, size)
        expect(blocks.fits, f"axis {axis}, group {group}, size {size} found in a weight of {shape}")
        q, count = packed.symbols["q"], count_of(shape, at)
        expect(len(q) == count, f"{len(q)} levels taken, {count} expected")
        levels = _unpack_levels(packed.symbols["levels"], facts["lowest"])
        largest = int(q.max(initial=0))
        expect(not count or largest < len(levels), f"level {largest} taken of {len(levels)}")
        scale = torch.from_numpy(unpack_scales(packed.tables["scale"]))
        expect(len(scale) == sides * blocks.count, f"{len(scale)} scales found, {sides * blocks.count} expected")
        # The file does not say where the thresholds were: latent weights are levels, in a unit of 1.
        held = torch.from_numpy(levels[q]).reshape(shape if at is None else (count,))
        known = levels.astype(int).tolist() or [0]
        return cls(held, scale.reshape(-1, sides), torch.ones(blocks.count), known, blocks, at, dtype)


def _unsigned(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8 if values.max(initial=0) < 1 << 8 else np.uint32)


def _unpack_levels(symbols: np.ndarray, lowest: int) -> np.ndarray:
    """The levels, float32, ascending."""
    expect(bool((symbols[1:] > symbols[:-1]).all()), "levels that do not ascend")
    if len(symbols):
        ends = (int(symbols[0]) + lowest, int(symbols[-1]) + lowest)
        expect(ends[0] >= -LARGEST and ends[1] <= LARGEST, f"levels {ends[0]} to {ends[1]} found, ±{LARGEST} at most")
        symbols, lowest = symbols - symbols[0], ends[0]  # small whatever `lowest` was: float32 holds them
    return symbols.astype(np.float32) + np.float32(lowest if len(symbols) else 0)


class _Straight(torch.autograd.Function):
    """w = s·l with the level l as if it were v/u (the straight-through estimator), but what is out goes no further.

    Out is what lies more than half a step beyond the ends: it gets gradients that bring it back and no others, as if
    latent weights were clipped there (Courbariaux et al. 2015).

    What autograd would give for a scale, Σ l·∂w over its weights, is divided by Σ l²: that is the step nearest to those
    of the weights themselves, in least squares. So a scale learns as fast as they do, however many share it and however
    levels are numbered; Esser et al. 2020 divide by √(n·top) to this end.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, form: Scaled) -> Tensor:
        level = form.taken()
        ctx.form = form
        ctx.save_for_backward(latent, scale, level)
        return form._scale_of(scale, level) * level

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        latent, scale, level = ctx.saved_tensors
        form, wanted = ctx.form, ctx.needs_input_grad
        unit, levels = form._spread(form.unit), form.levels
        half = (levels[-1] - levels[0]) / (2 * max(len(levels) - 1, 1))
        steps = latent / unit
        out = steps - steps.clamp(levels[0] - half, levels[-1] + half)
        through = slope * form._scale_of(scale, level) / unit
        return (
            torch.where(through * out < 0, 0, through) if wanted[0] else None,
            form._best_scale(slope, level) if wanted[1] else None,
            None,
        )
