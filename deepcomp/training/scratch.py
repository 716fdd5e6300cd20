"""Room for numbers that are many but only needed for a while: in memory, or in a temporary file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepcomp.errors import InputError

__all__ = ["BUDGET", "Pool", "scratch"]

BUDGET = 1 << 30  # bytes


def scratch(shape: Sequence[int], budget: int = BUDGET) -> Tensor:
    """A float32 tensor of any content.

    Parameters
    ----------
    shape : sequence of int
    budget : int
        Bytes it may take in memory. A larger one lies in a file that is mapped into memory, in the folder for temporary
        ones (`$TMPDIR`). The file has no name, and its room is free again when the tensor is gone.

    Raises
    ------
    InputError
        If there is no room for the file.
    """
    size = 4 * math.prod(shape)
    if size <= budget:
        return torch.empty(*shape)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would show only when the tensor is written to
        except OSError as error:
            raise InputError(f"a temporary file of {size} bytes in {tempfile.gettempdir()}: {error.strerror}") from None
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=tuple(shape)))


class Pool:
    """Rows of numbers that come batch by batch; see `scratch`.

    Parameters
    ----------
    most : int
        Rows there will be at most.
    budget : int
    """

    def __init__(self, most: int, budget: int = BUDGET) -> None:
        self._most, self._budget = most, budget
        self._room: Tensor | None = None
        self._filled = 0

    def add(self, rows: Tensor) -> None:
        """Take in some more, of a shape (n, …) that all have but for n."""
        if self._room is None:
            self._room = scratch((self._most, *rows.shape[1:]), self._budget)
        self._room[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    @property
    def rows(self) -> Tensor:
        """All there are so far, float32."""
        return torch.empty(0) if self._room is None else self._room[: self._filled]
