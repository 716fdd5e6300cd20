"""Integers folded around a centre: 0, 1, −1, 2, −2, … beside it become 2, 1, 4, 3, …, and the centre 0.

Tokens (`tokens`) keep small values whole and leave the low bits of large ones as they are. Where most values lie around
a large one, as the integers of a grid of more than 8 bits do, they are folded first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcomp.wire import Cursor

__all__ = ["centre", "fold", "unfold"]

_LARGEST = (1 << 32) - 1


def centre(values: NDArray[np.unsignedinteger]) -> int:
    """The value around which the others lie: the median."""
    return int(np.partition(values, len(values) // 2)[len(values) // 2])


def fold(values: NDArray[np.unsignedinteger], around: int) -> NDArray[np.uint32] | None:
    """Twice the distance above the centre, once less than that below; None where this takes more than 32 bits."""
    distance = values.astype(np.int64) - around
    folded = np.where(distance < 0, -2 * distance - 1, 2 * distance)
    return folded.astype(np.uint32) if folded.max(initial=0) <= _LARGEST else None


def unfold(
    folded: NDArray[np.unsignedinteger], around: int, cursor: Cursor
) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]:
    """`fold` backwards, in the smallest type that holds the values.

    Raises
    ------
    FormatError
        If a value would be negative, or of more than 32 bits.
    """
    odd = folded.astype(np.int64)
    values = odd >> 1  # in place from here on: a hostile file may hold many
    odd &= 1
    values ^= np.negative(odd, out=odd)
    values += around
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    if least < 0 or most > _LARGEST:
        cursor.fail(f"values from {least} to {most} around {around}, 0 to {_LARGEST} expected,")
    if most < 1 << 8:
        return values.astype(np.uint8)
    return values.astype(np.uint16) if most < 1 << 16 else values.astype(np.uint32)
