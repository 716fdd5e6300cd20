"""Cross-layer equalisation: channels of one layer are rescaled until all have like ranges (Nagel et al. 2019, §4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.chains import Chain, chains
from deepcomp.model.clamps import Bounds, bounds, set_bounds
from deepcomp.model.edit import Edit
from deepcomp.model.layers import Axis, Layer, Layers, Skip
from deepcomp.network import Network, Statistics
from deepcomp.steps.step import Step

__all__ = ["Equalize"]

_DEAD = torch.finfo(torch.float32).eps  # a channel that is so small beside the largest contributes nothing


@dataclass
class Equalize(Step):
    """Scale the channels between two layers so that both use them alike: the network computes what it did.

    Channel i is divided by s_i where it is made (row of W1, bias, bounds of a clamp) and multiplied
    by it where it is read (column of W2). With r1 and r2 the largest magnitudes of row and column,
    s = √(r1/r2) makes both √(r1 r2) (Nagel et al. 2021, eq. 13–15). Layers that filter each channel by
    itself are equalised together with those on either side: all get the geometric mean of their
    ranges. Between the layers may lie what commutes with a scale: ReLU and its like, clamps
    (which get bounds of each channel's own), pooling, and views.

    Put this step behind `fold-bn` and before those that choose forms.

    Attributes
    ----------
    sweeps : int
        How often all pairs are gone through, at most; each changes the ranges its neighbours see.
    tolerance : float
        Sweeps end when no scale is further from 1 than this.
    """

    do: ClassVar[str] = "equalize"

    sweeps: int = 20
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise UsageError(f"equalize.sweeps = {self.sweeps}: 1 or more expected")
        if not self.tolerance >= 0:
            raise UsageError(f"equalize.tolerance = {self.tolerance}: 0 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        assert net.captured is not None
        edit = Edit(net.captured, net.tensors)
        chosen = {name for name, _ in net.weights(self.layers, self.skip)}
        links, skipped = _links(layers, edit, chosen)
        ranges, runs = _Ranges(links, edit), _runs(links)
        sweeps = 0
        while runs and sweeps < self.sweeps:
            sweeps += 1
            if max(ranges.equalize(run) for run in runs) <= self.tolerance:
                break
        if links:
            statistics = ranges.settle(layers, net.statistics)
            net.rewire(self.do, edit.finish(), edit.changed)
            net.statistics |= statistics
        pairs = {link.chain.first.weight: link.chain.second.weight for link in links}
        return {"equalized": pairs, "sweeps": sweeps, "skipped": skipped}


@dataclass
class _Link:
    """A chain, the clamps in it, and what the channels are divided by before and multiplied by behind it."""

    chain: Chain
    clamps: list[tuple[int, Axis, Bounds]]
    scale: Tensor

    def repeated(self, times: int) -> Tensor:
        return self.scale.repeat_interleave(times)


def _links(layers: Layers, edit: Edit, chosen: set[str]) -> tuple[list[_Link], dict[str, str]]:
    """All chains whose channels can be rescaled, in the order they run; and why others cannot."""
    found, skipped = chains(layers, chosen)
    links: list[_Link] = []
    for one in found:
        try:
            limits = [(place, axis, bounds(layers, edit, place, axis)) for place, axis in one.between]
        except Skip as skip:
            skipped[one.first.weight] = str(skip)
            continue
        clamps = [entry for entry in limits if any(bound is not None and bound.any() for bound in entry[2])]
        links.append(_Link(one, clamps, torch.ones(one.first.outputs, dtype=torch.float64)))
    return links, skipped


def _runs(links: Sequence[_Link]) -> list[list[_Link]]:
    """Links that are equalised together: those on either side of a layer that filters each channel by itself."""
    runs: list[list[_Link]] = []
    ends: dict[str, list[_Link]] = {}  # the run that ends in a layer
    for link in links:
        first, second = link.chain.first, link.chain.second
        run = ends.pop(first.weight, []) if first.depthwise else []
        if not run:
            runs.append(run)
        run.append(link)
        ends[second.weight] = run
    return runs


class _Ranges:
    """The largest magnitudes of the weights that links join, rescaled as these say."""

    def __init__(self, links: Sequence[_Link], edit: Edit) -> None:
        self.links, self.edit = links, edit
        self.before = {link.chain.second.weight: link for link in links}
        self.behind = {link.chain.first.weight: link for link in links}
        self.touched = {layer.weight: layer for link in links for layer in (link.chain.first, link.chain.second)}
        whole = {name: layer.blocks(edit.tensor(name).detach()) for name, layer in self.touched.items()}
        self.peaks = {name: blocks.abs().amax(3, keepdim=True) for name, blocks in whole.items()}

    def equalize(self, run: Sequence[_Link]) -> float:
        """Give the channels of a run their mean range; how far from 1 the furthest scale was."""
        first = run[0].chain.first
        found = [self.scaled(first, self.peaks[first.weight]).amax((2, 3)).reshape(-1)]
        for link in run:
            second = link.chain.second
            columns = self.scaled(second, self.peaks[second.weight]).amax((1, 3))
            found.append(columns.reshape(-1, link.chain.repeat).amax(1))
        ranges = torch.stack(found)
        alive = (ranges > _DEAD * ranges.amax(1, keepdim=True)).all(0)
        logs = torch.where(alive, ranges, 1.0).log()
        steps = (logs - logs.mean(0)).cumsum(0)[:-1].exp()
        for link, step in zip(run, steps, strict=True):
            link.scale *= step
        return float((steps - 1).abs().max())

    def scaled(self, layer: Layer, blocks: Tensor) -> Tensor:
        """Blocks of a layer, multiplied and divided as the links before and behind it say."""
        if layer.weight in self.before:
            link = self.before[layer.weight]
            blocks = blocks * layer.by_input(link.repeated(link.chain.repeat))
        if layer.weight in self.behind:
            blocks = blocks / layer.by_output(self.behind[layer.weight].scale)
        return blocks

    def settle(self, layers: Layers, known: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Change the weights, biases and clamps; what becomes of the statistics of the outputs."""
        for layer in self.touched.values():
            self.edit.set_blocks(layer, self.scaled(layer, self.edit.blocks(layer)))
        for link in self.links:
            first = link.chain.first
            if first.bias is not None:
                self.edit.set_bias(first, self.edit.bias(first) / link.scale)
            for place, axis, (low, high) in link.clamps:
                scale = link.repeated(axis.repeat)
                scaled = (None if low is None else low / scale, None if high is None else high / scale)
                set_bounds(layers, self.edit, place, axis, scaled, first.weight)
        ones = {name: torch.ones(layer.outputs, dtype=torch.float64) for name, layer in self.touched.items()}
        scales = ones | {name: link.scale for name, link in self.behind.items()}
        return {n: Statistics(known[n].mean / s, known[n].std / s) for n, s in scales.items() if n in known}
