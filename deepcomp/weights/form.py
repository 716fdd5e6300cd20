"""What every form of a weight can do, and what it becomes on its way to the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from deepcomp import entropy
from deepcomp.errors import FormatError
from deepcomp.weights.dtypes import DType

__all__ = ["VALUES", "Form", "Packed", "Zeros", "count_of", "expect", "expect_words"]

Array = np.ndarray[Any, Any]
Zeros = Callable[..., Tensor]

VALUES = 2


@dataclass
class Packed:
    """A weight taken apart: integer symbols for the entropy coder, tables stored as they are.

    Attributes
    ----------
    code : int
        Which form it is (`Form.code`).
    symbols : dict of str to uint array
        What the entropy coder gets, by name, in the order of the file.
    tables : dict of str to array
        Small arrays that are stored verbatim, little-endian.
    facts : dict of str to int
        Whole numbers `unpack` needs.
    inner : Packed, optional
        What the form lies over: the values under a mask, the distinct rows.
    """

    code: int
    symbols: dict[str, Array] = field(default_factory=dict)
    tables: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    inner: Packed | None = None

    def parts(self) -> Iterator[Packed]:
        """It, and what it lies over, in the order of the file."""
        yield self
        if self.inner is not None:
            yield from self.inner.parts()


class Form(nn.Module, ABC):
    """How a weight is stored: trainable as a module, packable as symbols.

    `forward()` gives the dense weight, differentiably; `pack` and `unpack` are each other's
    inverse: `Form.unpack(form.pack(), shape, dtype)` gives the same dense weight to the bit.

    Attributes
    ----------
    shape : tuple of int
        Shape of what `forward()` returns.
    dtype : torch.dtype
        Element type of what `forward()` returns.
    code, name
        The form's number and name.
    symbols, tables, facts
        What `pack` may give, in the order of the file.
    layer : int
        0 rows, 1 a mask, 2 (`VALUES`) values. A form of a lower layer lies over one of a higher layer.
    work : int
        About the most bytes of memory that decoding takes for each symbol, besides the dense weight.
    """

    code: ClassVar[int]
    name: ClassVar[str]
    layer: ClassVar[int] = VALUES
    work: ClassVar[int]
    symbols: ClassVar[tuple[str, ...]] = ()
    tables: ClassVar[tuple[str, ...]] = ()
    facts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.dtype = dtype

    @property
    def unmasked(self) -> Form:
        """What gives the values: this form, or what it lies over as a mask."""
        return self

    @abstractmethod
    def forward(self) -> Tensor:
        """The dense weight, of shape `shape` and type `dtype`."""

    @abstractmethod
    def pack(self) -> Packed:
        """The symbols and tables this weight is made of."""

    def aligned(self) -> Packed | None:
        """`pack` for a coder that learns from what lies around a symbol; None where there is no such packing.

        It is of one form. The first array has one symbol for each element of the dense weight, and symbols are in
        the order of their values.
        """
        return None

    def among(self, positions: Tensor, shape: tuple[int, ...]) -> Form | None:
        """The values held, at these flat positions of a weight that is zero elsewhere; None where no one form does."""
        return None

    @classmethod
    @abstractmethod
    def unpack(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, at: Tensor | None = None) -> Self:
        """`pack` backwards.

        Parameters
        ----------
        packed : Packed
            From a file: nothing about it is trusted but that its arrays exist.
        shape : tuple of int
            Shape of the dense weight.
        dtype : torch.dtype
            Element type of the dense weight.
        at : int64 tensor, optional
            Under a mask: the flat positions of the values, in order; the form then holds these alone.

        Raises
        ------
        FormatError
            If the parts do not fit together.
        """

    @classmethod
    def restore(cls, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, zeros: Zeros) -> Tensor:
        """`unpack(…).dense(zeros)`, by a shorter way where there is one."""
        return cls.unpack(packed, shape, dtype).dense(zeros)

    def dense(self, zeros: Zeros = torch.zeros) -> Tensor:
        """The dense weight, detached; memory for it comes from `zeros(shape, dtype=)` where it must be filled."""
        return self.forward().detach()

    def cost(self) -> float:
        """Ideal size in bits of what `pack` hands on: order-0 entropy of the symbols, plus the tables."""
        return sum(
            sum(map(entropy.cost, part.symbols.values())) + 8 * sum(table.nbytes for table in part.tables.values())
            for part in self.pack().parts()
        )

    def size(self) -> int:
        """Bytes of what `pack` hands on, coded: what the weight takes in a file beside its line of the index."""
        return sum(
            sum(len(entropy.encode(array)) for array in part.symbols.values())
            + sum(table.nbytes for table in part.tables.values())
            for part in self.pack().parts()
        )


def count_of(shape: tuple[int, ...], at: Tensor | None) -> int:
    """How many values a form holds: all of the shape, or those at the mask's positions."""
    return int(np.prod(shape, dtype=np.int64)) if at is None else at.numel()


def expect(condition: bool, found: str) -> None:
    """Raise a `FormatError` saying what was found unless the condition holds."""
    if not condition:
        raise FormatError(found)


def expect_words(words: Array, kind: DType) -> None:
    """Insist on words of an element type; a bool is 0 or 1, as all that compute with it rely on."""
    if words.dtype != kind.word:  # numpy takes its time over the names of types
        raise FormatError(f"words as {words.dtype} found, {kind.word} expected")
    if kind.torch == torch.bool:
        largest = int(words.max(initial=0))
        expect(largest <= 1, f"a bool of {largest} found, 0 or 1 expected")
