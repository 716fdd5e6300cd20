"""Batches that move through a network in step: each waits at a value until all have come there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from deepcomp.model.graph import Graph, Value, references
from deepcomp.training.scratch import BUDGET, scratch

if TYPE_CHECKING:
    from deepcomp.runtime.interpreter import Interpreter

__all__ = ["Change", "in_step"]

Change: TypeAlias = Callable[[Tensor], Tensor]
"""What to go on with in place of a value."""


@torch.no_grad()
def in_step(
    module: Interpreter,
    graph: Graph,
    stops: Iterable[Value],
    batches: Sequence[Mapping[str, Tensor]],
    budget: int = BUDGET,
) -> Generator[list[Tensor], Change | None, None]:
    """What one value after the other holds, in all batches.

    The network runs once, however many values there are, and what it computes behind a value uses its weights as they
    are by then. What waits for that lies in memory as far as it goes, and in temporary files beyond.

    Parameters
    ----------
    module : Interpreter
    graph : Graph
        What it runs.
    stops : iterable of Value
    batches : sequence of mappings of str to Tensor
        Inputs.
    budget : int
        Bytes of float32 values that may wait in memory.

    Yields
    ------
    list of Tensor
        One a batch; of the stops in the order that the graph numbers them. If a function is sent back, the network goes
        on with what it makes of them.
    """
    halts = sorted({stop.index for stop in stops})
    waiting = _waiting(graph, halts)
    share = budget // max([1, *map(len, waiting.values())])
    change: Change | None = None
    kept = sorted({*halts, *(index for indices in waiting.values() for index in indices)})
    runs = [module.observe(map(Value, kept), **batch) for batch in batches]
    held: list[Any] = [None] * len(runs)
    for index in kept:
        room: Tensor | None = None
        for number, run in enumerate(runs):
            _, found = run.send(None if change is None else change(held[number]))
            if index >= len(graph.inputs) and _large(found, len(runs), share):
                room = scratch((len(runs), found.numel()), 0) if room is None else room
                aside = room[number, : found.numel()].view(found.shape)
                found.data = aside.copy_(found)  # of the tensor that the run itself holds
            held[number] = found
        change = (yield held) if index in halts else None


def _waiting(graph: Graph, halts: Sequence[int]) -> dict[int, set[int]]:
    """The values that are needed behind each halt, to get to the last one."""
    last, first = dict[int, int](), len(graph.inputs)
    for made, node in enumerate(graph.nodes[: max([first, *halts]) - first + 1], first):
        last |= {entry.index: made for entry in references((node.args, node.kwargs)) if isinstance(entry, Value)}
    waiting: dict[int, set[int]] = {halt: set() for halt in halts}
    for index, end in last.items():
        for halt in halts[bisect_left(halts, index) : bisect_left(halts, end)]:
            waiting[halt].add(index)
    return waiting


def _large(found: Any, batches: int, share: int) -> bool:
    return isinstance(found, Tensor) and found.dtype == torch.float32 and 4 * batches * found.numel() > share
