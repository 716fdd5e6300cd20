"""Dropout while training, lowered where pruning has already taken capacity away (Han et al. 2015, §3.2).

A layer with C connections of which K are left drops its inputs with D · √(K / C) instead of D
(eq. 1–2). That holds for the dropout layers a network has, each of which counts for the layer that
is called after it, and for the dropout a plan adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from deepcomp.errors import UsageError
from deepcomp.model.data import Inputs
from deepcomp.model.evaluate import call, evaluating
from deepcomp.network import matches

__all__ = ["adjusted_dropout"]


@contextmanager
def adjusted_dropout(
    module: nn.Module, densities: Mapping[str, float], shares: Mapping[str, float], inputs: Inputs
) -> Iterator[None]:
    """Within the block the module's dropout is as pruning asks, and the named layers drop inputs too.

    Parameters
    ----------
    module : nn.Module
    densities : mapping of str to float
        Share of connections left, by weight name (`fc1.weight`); 1 where a weight is not named.
    shares : mapping of str to float
        Layer patterns, and the share of inputs dropped before pruning.
    inputs : tensor, tuple or dict of tensors
        An example, to see which layer follows which dropout.

    Raises
    ------
    UsageError
        A pattern names no layer that is called.
    """
    names = {part: name for name, part in module.named_modules()}
    called = _calls(module, inputs)
    before: list[tuple[Any, float]] = []
    handles = []
    try:
        for part, following in _followed(called):
            before.append((part, part.p))
            part.p *= _factor(names[following], densities)
        for pattern, share in shares.items():
            hit = [part for part in dict.fromkeys(called) if _has_weight(part) and matches(names[part], pattern)]
            if not hit:
                why = "" if called else ": behind steps that change the operations the network has no layers to call"
                raise UsageError(f"dropout of {pattern!r}: no layer of that name is called{why}")
            for part in hit:
                handles.append(part.register_forward_pre_hook(_dropping(share * _factor(names[part], densities))))
        yield
    finally:
        for part, share in before:
            part.p = share
        for handle in handles:
            handle.remove()


def _calls(module: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The dropout layers and the layers with weights, in the order they are called."""
    seen: list[nn.Module] = []
    parts = [part for part in module.modules() if isinstance(part, _DropoutNd) or _has_weight(part)]
    handles = [part.register_forward_pre_hook(lambda part, _: seen.append(part)) for part in parts]
    try:
        with evaluating(module):
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _followed(called: list[nn.Module]) -> Iterator[tuple[Any, nn.Module]]:
    """Each dropout layer with the layer whose inputs it drops."""
    following: nn.Module | None = None
    found: dict[nn.Module, nn.Module] = {}
    for part in reversed(called):
        if isinstance(part, _DropoutNd):
            if following is not None:
                found[part] = following
        else:
            following = part
    yield from found.items()


def _has_weight(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1


def _factor(layer: str, densities: Mapping[str, float]) -> float:
    return math.sqrt(densities.get(f"{layer}.weight", 1.0))


def _dropping(share: float) -> Any:
    return lambda part, inputs: (F.dropout(inputs[0], share, part.training), *inputs[1:])
