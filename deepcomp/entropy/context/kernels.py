"""The functions of `model`, compiled by numba.

Importing this module imports numba: callers ask `deepcomp.jit` first. Each function is compiled behind those
it calls, which it finds by their names, as it does in `model`. All become part of `walk`, and none counts
references to the arrays (`_nrt`), which would take seven eighths of the time.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numba

from deepcomp.entropy.context import model

__all__ = ["walk"]

_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}

_scope = dict(vars(model))
for _name, _plain in vars(model).items():
    if isinstance(_plain, FunctionType):
        _function = FunctionType(_plain.__code__, _scope, _name)
        _function.__module__, _function.__qualname__ = __name__, _name
        _whole = _name == "walk"
        _scope[_name] = numba.njit(cache=_whole, forceinline=not _whole, **_OPTIONS)(_function)

walk = _scope["walk"]
