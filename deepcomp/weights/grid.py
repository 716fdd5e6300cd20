"""Uniform grid: w = s·(q − z) with b-bit integers q (Nagel et al. 2021, eq. 4–9)."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from deepcomp.errors import UsageError
from deepcomp.quantizer import Bounds, Quantizer, half_up
from deepcomp.weights.blocks import Blocks
from deepcomp.weights.dtypes import dtype_of
from deepcomp.weights.form import Form, Packed, Zeros, count_of, expect
from deepcomp.weights.ranges import RANGES, Values, range_of
from deepcomp.weights.scales import pack_scales, unpack_scales

__all__ = ["Grid", "check", "grid_of"]


class Grid(Form):
    """A weight on a uniform grid, one scale and zero-point a block, ties rounded up.

    Integers run from 0 to 2^b − 1; a symmetric grid has its zero-point fixed in the middle and
    leaves out the lowest integer, so that it reaches equally far both ways (its integers run to
    2^b − 2 and the zero-point is 2^(b−1) − 1).

    Parameters
    ----------
    weight : Tensor
        The latent weight, trainable; of shape `blocks.shape`, or under a mask a vector of the
        values at positions `at`.
    scale : float32 tensor, shape (blocks.count,)
    zero_point : float32 tensor, shape (blocks.count,)
        Whole numbers; trained as real ones with straight-through rounding.
    bits : int
        1 to 16; a symmetric grid needs 2.
    blocks : Blocks
        Which weights share a scale.
    """

    code = 5
    name = "grid"
    work = 32
    symbols = ("q", "zero_point")
    tables = ("scale",)
    facts = ("bits", "symmetric", "axis", "group", "size", "lowest")

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        symmetric: bool,
        blocks: Blocks,
        at: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(tuple(weight.shape), dtype or weight.dtype)
        self.latent = nn.Parameter(weight.detach().float())
        self.scale = nn.Parameter(scale.float())
        self.zero_point = nn.Parameter(zero_point.float(), requires_grad=not symmetric)
        self.bits, self.symmetric, self.blocks = bits, symmetric, blocks
        self.quantizer = Quantizer(bits, symmetric, rounding=half_up)
        self._on_grid = False  # whether the latent weight is known to lie on the grid
        self.at: Tensor | None
        self.register_buffer("at", at)

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        bits: int,
        *,
        symmetric: bool = True,
        axis: int | None = 0,
        group: int = 1,
        size: int = 0,
        range: str = "min-max",
        percentile: float = 0.01,
        bounds: Bounds | None = None,
        offset: Tensor | None = None,
        power_of_two: bool = False,
        at: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Self:
        """A grid for given weights.

        Parameters
        ----------
        weight : Tensor
            The weights; under a mask the values at the flat positions `at` of a weight of `shape`.
        bits : int
            1 to 16.
        axis, group, size : see `Blocks`
        range : {"min-max", "percentile", "mse", "aciq", "kl", "lsq"}
        percentile : float
            Percent of the weights left outside at either end, for `range="percentile"`.
        bounds : pair of float tensors, shape (blocks,)
            The ranges themselves instead of a way to find them: weights beyond are clipped.
        offset : float tensor, optional
            Fractions of a step that are added to the weights once their scales are known; broadcasts against `shape`.
        power_of_two : bool
            Round scales up to powers of two.

        Raises
        ------
        UsageError
            If the settings contradict each other.
        """
        shape = shape or tuple(weight.shape)
        check(bits, symmetric, range)
        if group < 1 or size < 0 or (group > 1 and size):
            raise UsageError(
                f"group = {group}, size = {size}: a group of channels or blocks within a channel, not both"
            )
        blocks = Blocks.within(shape, axis if len(shape) > 1 else None, group, size)
        values = weight.detach().float()
        dense = (
            values
            if at is None
            else torch.full(shape, float("nan")).index_put_(tuple(torch.unravel_index(at, shape)), values)
        )
        rows = blocks.rows(dense, float("nan"))

        quantizer = Quantizer(bits, symmetric, power_of_two, half_up)
        scale, zero_point = quantizer.parameters(*(bounds or range_of(Values(rows), quantizer, range, percentile)))
        grid = cls(values, scale, zero_point, bits, symmetric, blocks, at, weight.dtype)
        if offset is not None:
            spread = offset.expand(shape)
            grid.latent.data = values + grid.spread(scale) * (spread if at is None else spread.reshape(-1)[at])
        return grid

    def spread(self, values: Tensor) -> Tensor:
        """One value a block, made to broadcast against the weights held."""
        return self.blocks.spread(values) if self.at is None else values[self.blocks.at(self.at)]

    def integers(self) -> Tensor:
        """The integers q, as whole float32 numbers in the shape of the weights held; without gradients."""
        return self.quantizer.integers(self.latent, self.spread(self.scale), self.spread(self.zero_point))

    def offsets(self) -> Tensor:
        """q − z, as whole float32 numbers in the shape of the weights held; without gradients."""
        return self.integers() - self.spread(self.quantizer.whole(self.zero_point))

    def laid_out(self, values: Tensor) -> Tensor:
        """Values in the shape of the weights held, as a dense weight; zeros where a mask has none."""
        if self.at is None:
            return values
        flat = values.new_zeros(math.prod(self.blocks.shape))
        return flat.index_put((self.at,), values).reshape(self.blocks.shape)

    def forward(self) -> Tensor:
        dense = self.quantizer.simulate(self.latent, self.spread(self.scale), self.spread(self.zero_point))
        return dense.to(self.dtype)

    @torch.no_grad()
    def pack(self) -> Packed:
        q = self.integers().reshape(-1)
        lowest = int(q.min()) if q.numel() else 0  # symbols count from the lowest integer in use
        symbols = {"q": _unsigned((q - lowest).numpy(), self.bits)}
        if not self.symmetric:
            symbols["zero_point"] = _unsigned(self.quantizer.whole(self.zero_point).numpy(), self.bits)
        facts = {
            "bits": self.bits,
            "symmetric": int(self.symmetric),
            "axis": -1 if self.blocks.axis is None else self.blocks.axis,
            "group": self.blocks.group,
            "size": self.blocks.size,
            "lowest": lowest,
        }
        return Packed(self.code, symbols, {"scale": pack_scales(self.scale.detach().numpy())}, facts)

    def aligned(self) -> Packed | None:
        return self.pack() if self.at is None else None

    def among(self, positions: Tensor, shape: tuple[int, ...]) -> Self | None:
        if not bool((self.scale > 0).all()):  # a zero would come out as -0
            return None
        dense = torch.zeros(math.prod(shape)).index_put_((positions,), self.latent.detach()).reshape(shape)
        return type(self)(
            dense,
            self.scale.detach(),
            self.zero_point.detach(),
            self.bits,
            self.symmetric,
            self.blocks,
            dtype=self.dtype,
        )

    @classmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        facts = packed.facts
        bits, symmetric, axis, lowest = facts["bits"], bool(facts["symmetric"]), facts["axis"], facts["lowest"]
        expect(1 <= bits <= 16, f"{bits} bits found, 1 to 16 expected")
        expect(facts["symmetric"] in (0, 1), f"symmetric = {facts['symmetric']} found, 0 or 1 expected")
        expect(dtype.is_floating_point and dtype.itemsize > 1, f"a grid of {dtype_of(dtype).name}")
        quantizer = Quantizer(bits, symmetric)
        blocks = Blocks(shape, None if axis == -1 else axis, facts["group"], facts["size"])
        expect(blocks.fits, f"axis {axis}, group {blocks.group}, size {blocks.size} found on a grid of {shape}")
        q, count = packed.symbols["q"], count_of(shape, at)
        expect(len(q) == count, f"{len(q)} integers found, {count} expected")
        scale = torch.from_numpy(unpack_scales(packed.tables["scale"]))
        expect(len(scale) == blocks.count, f"{len(scale)} scales found, {blocks.count} expected")
        if symmetric:
            expect("zero_point" not in packed.symbols, "a symmetric grid with zero-points")
            zero_point = torch.full((blocks.count,), float(quantizer.top // 2))
        else:
            expect("zero_point" in packed.symbols, "an asymmetric grid without zero-points")
            points = packed.symbols["zero_point"]
            expect(len(points) == blocks.count, f"{len(points)} zero-points found, {blocks.count} expected")
            highest = int(points.max(initial=0))
            expect(highest <= quantizer.top, f"zero-point {highest} found on a grid of {bits} bits")
            zero_point = torch.from_numpy(points.astype(np.float32))
        if count:
            span = (int(q.min()) + lowest, int(q.max()) + lowest)
            expect(span[0] >= 0 and span[1] <= quantizer.top, f"integers {span} found on a grid of {bits} bits")
            q, lowest = q - q.min(), span[0]  # small whatever `lowest` was: float32 holds them
        integers = torch.from_numpy(q.astype(np.float32)).add_(lowest)
        held = integers.reshape(shape if at is None else (count,))
        form = cls(held, scale, zero_point, bits, symmetric, blocks, at, dtype)
        with torch.no_grad():
            form.latent.sub_(form.spread(zero_point)).mul_(form.spread(scale))
        form._on_grid = True
        return form

    def dense(self, zeros: Zeros = torch.zeros) -> Tensor:
        return self.latent.detach().to(self.dtype) if self._on_grid else super().dense(zeros)


def grid_of(form: Form | None) -> Grid | None:
    """The grid that a weight, or what a mask leaves of it, lies on; None where it lies on none."""
    values = form.unmasked if form is not None else None
    return values if isinstance(values, Grid) else None


def check(bits: int, symmetric: bool, range: str) -> None:
    """Insist that there is such a grid, whatever the weights.

    Raises
    ------
    UsageError
        Naming the setting.
    """
    least, kind = (2, "a symmetric") if symmetric else (1, "an asymmetric")
    if not least <= bits <= 16:
        raise UsageError(f"bits = {bits}: {least} to 16 expected of {kind} grid")
    if range not in RANGES:
        raise UsageError(f"range = {range!r}: one of {', '.join(RANGES)} expected")


def _unsigned(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(np.uint8 if bits <= 8 else np.uint16)
