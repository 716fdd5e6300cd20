"""The functions of `arithmetic`, `mixing` and `model`, compiled by numba.

Importing this module imports numba: callers ask `deepcomp.jit` first. Each function is compiled behind those
it calls, which it finds by their names, as it does in its module. All become part of `walk`, and none counts
references to the arrays (`_nrt`), which would take seven eighths of the time.
"""

from __future__ import annotations

import zlib
from types import FunctionType
from typing import Any

import numba

from deepcomp.entropy.context import arithmetic, mixing, model

__all__ = ["walk"]

_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}
_MODULES = (arithmetic, mixing, model)

_scope = {name: value for module in _MODULES for name, value in vars(module).items()}
_plain = [
    function
    for module in _MODULES
    for function in vars(module).values()
    if isinstance(function, FunctionType) and function.__module__ == module.__name__
]
# numba's cache would notice changes of one of the files only, so the name of what is kept there tells all of them
_told = [(plain.__code__.co_code, plain.__code__.co_consts, plain.__code__.co_names) for plain in _plain]
_numbers = [(name, value) for name, value in _scope.items() if isinstance(value, int)]
_version = zlib.crc32(repr((_told, _numbers)).encode())

for _function in _plain:
    _name = _function.__name__
    _copy = FunctionType(_function.__code__, _scope, _name)
    _copy.__module__, _copy.__qualname__ = __name__, f"{_name}_{_version:08x}"
    _whole = _name == "walk"
    _scope[_name] = numba.njit(cache=_whole, forceinline=not _whole, **_OPTIONS)(_copy)

walk = _scope["walk"]
