"""Two networks on the same data, value by value: one as it was, one that is being changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from deepcomp.model.graph import Value
from deepcomp.runtime.interpreter import Interpreter

__all__ = ["alongside"]


@torch.no_grad()
def alongside(
    first: Interpreter, second: Interpreter, values: Iterable[Value], inputs: Sequence[Mapping[str, Tensor]]
) -> Iterator[tuple[Value, list[tuple[Tensor, Tensor]]]]:
    """What some values hold in both networks, all batches of a value before the next one is computed.

    So weights may be changed meanwhile: what is computed behind a value uses them as they are then. Each network
    runs once, however many values there are; memory holds what all batches of both still need.

    Parameters
    ----------
    first, second : Interpreter
        Of one graph.
    values : iterable of Value
    inputs : sequence of mappings of str to Tensor
        Batches.

    Yields
    ------
    Value, and a pair of tensors for each batch
        In the order they are computed.
    """
    wanted = list(values)
    runs = [network.observe(wanted, **batch) for batch in inputs for network in (first, second)]
    for found in zip(*runs, strict=True):
        held = [tensor for _, tensor in found]
        yield found[0][0], list(zip(held[::2], held[1::2], strict=True))
