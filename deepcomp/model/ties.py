"""Which channels stay or go together: a union-find with reasons why some must stay."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Ids", "Ties"]

Ids: TypeAlias = npt.NDArray[np.int64]
"""Channels along one axis of a tensor, by their numbers; one may come several times."""


class Ties:
    """Channels by number, each free or frozen, and tied to others."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}  # why, of the first of those tied together

    def new(self, count: int) -> Ids:
        """Channels not seen before."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def fixed(self, count: int, why: str) -> Ids:
        """An axis of a given size that is not made of channels."""
        one = self.new(1)
        self.freeze(one, why)
        return np.repeat(one, count)

    def unite(self, left: Ids, right: Ids) -> None:
        """Tie the channels of two axes one by one."""
        for one, other in dict.fromkeys(zip(left.tolist(), right.tolist(), strict=True)):
            low, high = sorted((self._first(one), self._first(other)))
            if low != high:
                self._parent[high] = low
                if high in self._frozen:
                    self._frozen.setdefault(low, self._frozen.pop(high))

    def freeze(self, ids: Ids, why: str) -> None:
        """Let channels stay; of several reasons the first is remembered."""
        for number in dict.fromkeys(ids.tolist()):
            self._frozen.setdefault(self._first(number), why)

    def why(self, number: int) -> str | None:
        """Why a channel must stay; None where it is free to go."""
        return self._frozen.get(self._first(number))

    def free(self, ids: Ids) -> bool:
        """Whether any of the channels may go."""
        return any(self.why(number) is None for number in dict.fromkeys(ids.tolist()))

    def firsts(self, ids: Ids) -> Ids:
        """For each channel the first of those it is tied to, which stands for all of them."""
        return np.array([self._first(number) for number in ids.tolist()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._parent)

    def _first(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number
