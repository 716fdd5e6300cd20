"""Outlier channel splitting: the channels with the largest numbers are halved and read twice (Zhao et al. 2019)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.calibration import Extremes
from deepcomp.errors import UsageError
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Stored, references
from deepcomp.model.layers import RECURRENT, Layer, Layers, Skip
from deepcomp.model.splits import Split, Splitter
from deepcomp.model.units import Units
from deepcomp.network import Network, per_layer
from deepcomp.steps.step import Step

__all__ = ["SplitChannels"]

_SPLITS, _WHAT = ("aware", "half"), ("weights", "activations")


@dataclass
class SplitChannels(Step):
    """Halve outliers instead of clipping them: the network computes what it did, with a few more channels.

    Of a layer with C input channels, ceil(ratio·C) times the channel with the largest weight is split into
    two of half its weights, both of which read what it read, through a gather right before the layer. The range of the
    weights shrinks, so that the same number of bits makes finer steps. A grouped convolution splits as many
    channels in each group. Hidden units of recurrent layers are split by copying them; see `model.units`.

    Put this step behind `fold-bn` and `equalize`, and before those that choose forms.

    Attributes
    ----------
    ratio : float or table
        Splits by input channel, 0 or more. A table gives it by layer pattern; layers it does not name stay as
        they are.
    split : {"aware", "half"}
        Whether the two halves of a weight, rounded to a grid, are to add up to the weight, rounded: then `quantize`
        moves one up and the other down by a quarter of a step.
    what : {"weights", "activations"}
        Whose outliers. For activations the inputs of a layer are halved and its weights copied, where the inputs
        have been largest on data.
    samples : int
        Training items to see activations on.
    hidden : bool
        Whether hidden units of recurrent layers are split too.
    """

    do: ClassVar[str] = "split-channels"

    ratio: float | dict[str, float] = 0.02
    split: str = "aware"
    what: str = "weights"
    samples: int = 512
    hidden: bool = True

    def __post_init__(self) -> None:
        for ratio in self.ratio.values() if isinstance(self.ratio, dict) else (self.ratio,):
            if not 0 <= ratio < math.inf:
                raise UsageError(f"split-channels.ratio = {ratio}: 0 or more expected")
        for key, value, known in (("split", self.split, _SPLITS), ("what", self.what, _WHAT)):
            if value not in known:
                raise UsageError(f"split-channels.{key} = {value!r}: {' or '.join(known)} expected")
        if self.samples < 1:
            raise UsageError(f"split-channels.samples = {self.samples}: 1 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        net.require(*self.ratio if isinstance(self.ratio, dict) else ())
        layers = net.layers(self.do)
        assert net.captured is not None
        splitter = Splitter(layers, Edit(net.captured, net.tensors), net.offsets)
        chosen = {name for name, _ in net.weights(self.layers, self.skip) if per_layer(self.ratio, name)}
        sites, skipped = self._sites(layers, chosen)
        peaks = self._seen(net, sites) if self.what == "activations" else [_weighed(splitter, site) for site in sites]
        gained: dict[str, int] = {}
        for site, found in zip(sites, peaks, strict=True):
            gained |= self._split_inputs(splitter, site, found)
        if self.hidden and self.what == "weights":
            for place in (place for place, node in enumerate(layers.graph.nodes) if node.op in RECURRENT):
                gained |= self._split_units(splitter, place, chosen, skipped)
        if gained:
            known = {name: found for name, found in net.statistics.items() if name in gained}
            net.rewire(self.do, splitter.edit.finish(), splitter.edit.changed)
            net.statistics |= known  # the outputs are what they were
            net.offsets |= splitter.offsets
        return {"split": gained, "skipped": {name: why for name, why in skipped.items() if name not in gained}}

    def _sites(self, layers: Layers, chosen: set[str]) -> tuple[list[list[Layer]], dict[str, str]]:
        """Layers whose inputs can be split, together those that must be split alike; and why others cannot."""
        everything = [layers.graph.outputs, *((node.args, node.kwargs) for node in layers.graph.nodes)]
        uses = Counter(layers.names[entry.index] for entry in references(everything) if isinstance(entry, Stored))
        found: list[list[Layer]] = []
        skipped: dict[str, str] = {}
        for site in _together(layers):
            names = {layer.weight for layer in site}
            if names.isdisjoint(chosen):
                continue
            try:
                if others := names - chosen:
                    raise Skip(f"{min(others)} beside it is not to be changed")
                self._check(layers, site, uses)
                found.append(site)
            except Skip as skip:
                skipped |= dict.fromkeys(sorted(names & chosen), str(skip))
        strangers = chosen - {layer.weight for layer in layers}
        return found, skipped | dict.fromkeys(sorted(strangers), "no layer has it for its weight")

    def _check(self, layers: Layers, site: Sequence[Layer], uses: Mapping[str, int]) -> None:
        """Make sure that the inputs of layers can be split.

        Raises
        ------
        Skip
            If not.
        """
        here = Counter(layer.weight for layer in site)
        for layer in site:
            if layer.kind == "embedding":
                raise Skip("an embedding has no input channels")
            if layer.reads is None:
                raise Skip("what it reads is no value of the network")
            if layer.groups == layer.inputs > 1:
                raise Skip("each of its groups has one input channel")
            if uses[layer.weight] > here[layer.weight]:
                raise Skip(f"its weight is used {uses[layer.weight]} times")
            readers = layers.readers(layer.reads.value)
            if self.what == "activations" and len(readers) > 1:
                raise Skip(f"what it reads is read by {' and '.join(readers)}")
        if len({(layer.axes, layer.groups) for layer in site}) > 1:
            raise Skip("its weight is used in different ways")

    def _seen(self, net: Network, sites: Sequence[Sequence[Layer]]) -> list[Tensor]:
        """The largest magnitude of each input channel on data, shape (groups, channels a group)."""
        axes = {layer.reads.value: layer.reads for site in sites for layer in site if layer.reads}
        extremes = {value: Extremes(f"input of {self.do}", axis.dim) for value, axis in axes.items()}
        for value, found in net.observe(self.do, extremes, self.samples):
            extremes[value].observe(found)

        def peaks(layer: Layer) -> Tensor:
            assert layer.reads is not None
            low, high = extremes[layer.reads.value].bounds
            return torch.maximum(-low, high).reshape(layer.groups, -1)

        return [torch.stack([peaks(layer) for layer in site]).amax(0) for site in sites]

    def _split_inputs(self, splitter: Splitter, site: Sequence[Layer], peaks: Tensor) -> dict[str, int]:
        """Split the channels that layers read; how many each weight gained."""
        groups, channels = peaks.shape
        times = self._times(site[0].weight, channels)
        split = Split.largest(peaks, times)
        inputs = self.what == "activations"
        splitter.gather(site, split, scaled=inputs)
        split = split.copied if inputs else split if self.split == "aware" else split.simple
        for layer in {layer.weight: layer for layer in site}.values():
            splitter.widen(layer, split)
        return {layer.weight: groups * times for layer in site}

    def _split_units(self, splitter: Splitter, place: int, chosen: set[str], skipped: dict[str, str]) -> dict[str, int]:
        """Split the hidden units of a recurrent operation; how many channels each weight gained."""
        matrices = splitter.layers.at(place)
        hidden = [layer.weight for layer in matrices if layer.reads is None and layer.weight in chosen]
        if not hidden:
            return {}
        try:
            if others := {layer.weight for layer in matrices} - chosen:
                raise Skip(f"{min(others)} beside it is not to be changed")
            units = Units(splitter.layers, place)
        except Skip as skip:
            skipped |= dict.fromkeys(hidden, str(skip))
            return {}
        return units.split(splitter, self._times(hidden[0], units.size), self.split == "aware")

    def _times(self, name: str, channels: int) -> int:
        """ceil(ratio·channels), of the ratio as it is written: 0.07 of 100 is 7."""
        return math.ceil(Decimal(str(per_layer(self.ratio, name))) * channels)


def _together(layers: Layers) -> list[list[Layer]]:
    """Layers that must be split alike: uses of one weight, and matrices of one recurrent operation's input."""
    found: dict[int | str, list[Layer]] = {}
    for layer in layers:
        joined = layer.kind in RECURRENT.values() and layer.reads is not None
        found.setdefault(layer.place if joined else layer.weight, []).append(layer)
    return list(found.values())


def _weighed(splitter: Splitter, site: Sequence[Layer]) -> Tensor:
    """The largest magnitude that each input channel is weighed with, shape (groups, channels a group)."""
    weights = [layer.blocks(splitter.edit.tensor(layer.weight).detach()) for layer in site]
    return torch.stack([blocks.abs().amax((1, 3)) for blocks in weights]).amax(0)
