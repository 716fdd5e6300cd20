"""The hidden units of recurrent operations, and how they are split.

A unit is copied whole, with all its gates: the copy computes what the unit does, and those who read the unit read
a part from each. That is the same as a gather of the hidden state at every step (Zhao et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcomp.model.graph import Argument, Node, Value
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.splits import Split, Splitter

__all__ = ["Units"]


@dataclass(frozen=True)
class _Cell:
    """The two matrices of one layer and direction: of its input, and of its own state."""

    reads: Layer
    recurs: Layer


class Units:
    """The hidden units of a recurrent operation: as many in each of its layers and directions.

    Parameters
    ----------
    layers : Layers
    place : int
        Of the operation.

    Raises
    ------
    Skip
        If its state is projected, a weight is computed or used elsewhere too, or its results are not taken apart.
    """

    def __init__(self, layers: Layers, place: int) -> None:
        self.layers, self.place, matrices = layers, place, layers.at(place)
        given = self.node.arguments
        self.ways = 2 if given["bidirectional"] else 1
        count = given["num_layers"] * self.ways
        if len(given["params"]) != count * (4 if given["has_biases"] else 2):
            raise Skip("its hidden state is projected")
        if len(matrices) != 2 * count:
            raise Skip("some of its weights are computed")
        for layer in matrices:
            layers.check_own(layer)
        if set(layers.readers(layers.value(place))) - {"getitem"}:
            raise Skip("its results are not taken apart")
        cells = [_Cell(*pair) for pair in zip(matrices[::2], matrices[1::2], strict=True)]
        self.stages = [cells[start : start + self.ways] for start in range(0, count, self.ways)]
        self.size = cells[0].recurs.inputs
        self.gates = cells[0].recurs.outputs // self.size

    @property
    def node(self) -> Node:
        return self.layers.graph.nodes[self.place]

    def split(self, splitter: Splitter, times: int, aware: bool) -> dict[str, int]:
        """Split so many units of each layer and direction, those that are read with the largest weights.

        Returns
        -------
        dict of str to int
            How many channels each matrix gained.
        """
        splits = [Split.largest(peaks, times) for peaks in self._peaks(splitter)]
        splits = splits if aware else [split.simple for split in splits]
        gained: dict[str, int] = {}
        for stage, following, split in zip(self.stages, [*self.stages[1:], []], splits, strict=True):
            for way, cell in enumerate(stage):
                splitter.widen(cell.recurs, split.group(way))
                gained[cell.recurs.weight] = times
            for cell in following:
                splitter.widen(cell.reads, split.joined)
                gained[cell.reads.weight] = times * self.ways
        for stage, split in zip(self.stages, splits, strict=True):
            for cell, source in zip(stage, split.source, strict=True):
                for layer in (cell.reads, cell.recurs):
                    for name in filter(None, (layer.weight, layer.bias)):
                        splitter.copy_rows(name, self.gates, source)
        self._widen_states(splitter, torch.cat([split.source for split in splits]))
        self._narrow_results(splitter, self.size + times)
        return gained

    def _peaks(self, splitter: Splitter) -> Iterator[Tensor]:
        """The largest weight each unit is read with, shape (directions, units), layer after layer."""

        def columns(layer: Layer) -> Tensor:
            return splitter.edit.tensor(layer.weight).detach().abs().amax(0).reshape(-1, self.size)

        for stage, following in zip(self.stages, [*self.stages[1:], []], strict=True):
            own = torch.cat([columns(cell.recurs) for cell in stage])
            yield torch.stack([own, *(columns(cell.reads) for cell in following)]).amax(0)

    def _widen_states(self, splitter: Splitter, source: Tensor) -> None:
        """Gather the initial states; `source` has a row for each layer and direction."""
        index = splitter.edit.constant(splitter.edit.beside(self.stages[0][0].recurs.weight, "units"), source[:, None])

        def widened(state: Argument) -> Value:
            return splitter.edit.add("take_along_dim", {"self": state, "indices": index, "dim": 2})

        states = self.node.arguments["hx"]
        found = tuple(map(widened, states)) if isinstance(states, tuple) else widened(states)
        splitter.edit.change(self.place, hx=found)

    def _narrow_results(self, splitter: Splitter, size: int) -> None:
        """Give those who read the results the units that there were; of these, `size` there are now."""
        edit, results = splitter.edit, self.layers.value(self.place)
        for place, node in enumerate(self.layers.graph.nodes):
            if node.op != "getitem" or node.args[0] != results:
                continue
            value = edit.add("getitem", {"results": results, "index": node.args[1]})
            if node.args[1] == 0 and self.ways > 1:  # directions side by side
                kept = torch.cat([way * size + torch.arange(self.size) for way in range(self.ways)])
                name = edit.beside(self.stages[0][0].recurs.weight, "kept")
                arguments: dict[str, Argument] = {"self": value, "dim": 2, "index": edit.constant(name, kept)}
                edit.bypass(self.layers.value(place), edit.add("index_select", arguments))
            else:
                arguments = {"self": value, "dim": 2, "end": self.size}
                edit.bypass(self.layers.value(place), edit.add("slice.Tensor", arguments))
