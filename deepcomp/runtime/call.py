"""One call of an operation while a network is prepared for integers, and what is known of it before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepcomp.model.graph import Node, Stored, Value
from deepcomp.runtime.levels import WIDEST, Levels
from deepcomp.runtime.whole import Unfit, Whole, whole
from deepcomp.weights import Form

__all__ = ["Call", "First", "Made", "Rule", "Work"]

Work = Callable[[Tensor], Tensor]
Made = tuple[Callable[..., Any], Levels | None]  # what runs, called like the operation; None: it makes no integers
Rule = Callable[["Call"], Made]  # raises `Unfit` where there is no such thing


@dataclass(frozen=True)
class Call:
    """A node, and what it reads.

    Attributes
    ----------
    node : Node
    levels : mapping of Value to Levels
        Of those values that are integers.
    fine : float
        A step that is small beside those of all static quantisers of the network.
    tensor, form : callable
        What a tensor is, and what it is stored as, by its number.
    """

    node: Node
    levels: Mapping[Value, Levels]
    fine: float
    tensor: Callable[[int], Tensor]
    form: Callable[[int], Form]

    @cached_property
    def given(self) -> dict[str, Any]:
        """The node's arguments by parameter name, defaults filled in."""
        return self.node.arguments

    def coded(self, value: Any) -> Levels:
        """The levels of a value.

        Raises
        ------
        Unfit
            If it is not made of integers.
        """
        if not isinstance(value, Value) or value not in self.levels:
            raise Unfit("what it reads is not quantised")
        return self.levels[value]

    def quantized(self, value: Any) -> Levels:
        """The levels of a value that a quantiser made, or that was moved or selected from one.

        Raises
        ------
        Unfit
            If it is anything else.
        """
        levels = self.coded(value)
        if levels.scale.ndim or levels.wide > WIDEST:
            raise Unfit("there is no quantiser before it")
        return levels

    def whole(self, weight: Any) -> Whole:
        """A weight as integers.

        Raises
        ------
        Unfit
            If it is computed, or on no grid.
        """
        if not isinstance(weight, Stored):
            raise Unfit("its weight is computed")
        return whole(self.form(weight.index))

    def bias(self, bias: Any, size: int) -> Tensor:
        """A bias as float64 of shape (size,), zeros where there is none.

        Raises
        ------
        Unfit
            If it is computed, or not one finite number an output.
        """
        if bias is None:
            return torch.zeros(size, dtype=torch.float64)
        if not isinstance(bias, Stored):
            raise Unfit("its bias is computed")
        found = self.tensor(bias.index).detach().double()
        if found.numel() != size or found.shape[-1] != size or not bool(found.isfinite().all()):
            raise Unfit(f"its bias is not {size} finite numbers")
        return found.reshape(size)


@dataclass(frozen=True)
class First:
    """Runs in the place of an operation: work on its first operand, whatever the others are."""

    work: Sequence[Work]

    def __call__(self, x: Any, *_: Any, **__: Any) -> Tensor:
        for work in self.work:
            x = work(x)
        return x  # type: ignore[no-any-return]
