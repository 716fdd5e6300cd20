"""Example inputs as people write them: `1x3x32x32`, `mask=1x64:bool`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model import ops
from deepcomp.model.data import Inputs

__all__ = ["parse_inputs"]

_MOST_ELEMENTS = 1 << 28  # their values do not matter, so that more have no use


def parse_inputs(specs: Sequence[str]) -> Inputs | None:
    """Tensors of given shapes and types: floats are random, always the same, all others zero.

    Parameters
    ----------
    specs : sequence of str
        `SHAPE`, `SHAPE:TYPE` or `NAME=…` each; all with a name, or none.

    Returns
    -------
    tuple or dict of tensors, or None where there are no specs

    Raises
    ------
    UsageError
        Naming the spec.
    """
    generator = torch.Generator().manual_seed(0)
    positional: list[Tensor] = []
    named: dict[str, Tensor] = {}
    for spec in specs:
        name, equals, rest = spec.rpartition("=")
        if name in named:
            raise UsageError(f"--input {spec!r}: {name!r} comes twice")
        if equals and not name.isidentifier():
            raise _unclear(spec)
        tensor = _tensor(spec, rest, generator)
        if equals:
            named[name] = tensor
        else:
            positional.append(tensor)
    if positional and named:
        raise UsageError("--input: either all inputs have names or none")
    return named or tuple(positional) or None


def _tensor(spec: str, rest: str, generator: torch.Generator) -> Tensor:
    """A tensor of the shape and type in `rest`, which is `spec` without its name."""
    shape, _, kind = rest.partition(":")
    dtype: Any = getattr(torch, kind or "float32", None)
    try:
        sizes = [int(size) for size in shape.split("x")]
    except ValueError:
        raise _unclear(spec) from None
    if dtype not in ops.DTYPES.values() or min(sizes) < 1:
        raise _unclear(spec)
    if math.prod(sizes) > _MOST_ELEMENTS:
        raise UsageError(f"--input {spec!r}: at most {_MOST_ELEMENTS} elements expected")
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    return torch.zeros(sizes, dtype=dtype)


def _unclear(spec: str) -> UsageError:
    return UsageError(f"--input {spec!r}: 1x3x32x32 or NAME=1x64:int64 expected")
