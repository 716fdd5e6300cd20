"""Numba or numpy: which of two kernels with the same result does the work at hand.

Loading numba costs a process about a second, and then runs 10 to 50 times faster than numpy.
Whether that pays is not known in advance, so it is decided as one decides between renting and
buying skis: numpy works until it has spent about what numba would have cost, then numba is
loaded. A process thus never takes more than about twice the time of the better choice.

`DEEPCOMP_JIT` set to `numba` or `numpy` (or `use()`) overrides the choice.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["available", "pays", "use"]

PRICE = 1.0  # seconds: import numba and load its cached kernels

_spent = 0.0
_bought = False
_forced: bool | None = {"numba": True, "numpy": False}.get(os.environ.get("DEEPCOMP_JIT", ""))


def available() -> bool:
    """Whether numba is installed."""
    return "numba" in sys.modules or importlib.util.find_spec("numba") is not None


def pays(seconds: float) -> bool:
    """Whether numba should do a piece of work that takes numpy about `seconds`."""
    global _spent, _bought
    if _forced is not None:
        return _forced and available()
    if not _bought:
        _spent += seconds
        _bought = _spent > PRICE and available()
    return _bought


@contextmanager
def use(numba: bool) -> Iterator[None]:
    """Force numba (True) or numpy (False) within a block."""
    global _forced
    before, _forced = _forced, numba
    try:
        yield
    finally:
        _forced = before
