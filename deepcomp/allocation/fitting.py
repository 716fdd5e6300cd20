"""Choices that keep the size of a whole file, which is known only once it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from deepcomp.allocation.programme import Choice, Infeasible, mildest

__all__ = ["fitting"]


def fitting(
    layers: Mapping[str, Sequence[Choice]], size: int, write: Callable[[Mapping[str, Choice]], int]
) -> dict[str, Choice]:
    """The choices that together lose least, of those whose file has at most so many bytes.

    What a file holds beside the layers hardly depends on what these are given, so that one written file tells how
    much is left for them. By how much the next one is too large, if it is, they get less.

    Parameters
    ----------
    layers : mapping of str to sequence of Choice
        See `mildest`; sizes are bytes.
    size : int
        Bytes of the whole file.
    write : callable
        The bytes of the file with some choices.

    Raises
    ------
    Infeasible
        If the smallest choices make a larger file.
    """
    smallest = {name: min(choices, key=lambda choice: (choice.size, choice.loss)) for name, choices in layers.items()}
    nearest, least = write(smallest), math.fsum(choice.size for choice in smallest.values())
    if nearest > size:
        raise Infeasible(size, nearest)
    budget = least + size - nearest
    while budget > least:
        chosen = mildest(layers, budget)
        over = write(chosen) - size
        if over <= 0:
            return chosen
        budget -= over
    return smallest
