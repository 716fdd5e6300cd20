"""Channels that are split in halves, and how the network is changed so that it computes what it did.

Whoever reads a split channel reads it twice, from a gather put right before it: so it does not matter where the
channel comes from and who else reads it (Zhao et al. 2019, §3).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepcomp.model.edit import Edit
from deepcomp.model.layers import SINGLE, Layer, Layers

__all__ = ["Split", "Splitter"]


@dataclass(frozen=True)
class Split:
    """The channels that there are after a split: those there were, and copies behind them, in each group.

    Attributes
    ----------
    source : int64 tensor, shape (groups, channels a group)
        Which channel of its group each of them was.
    share : float64 tensor of that shape
        Which part of it each of them is, a power of two; those of one channel add up to 1.
    offset : float64 tensor of that shape
        Fractions of a step that make the parts, rounded, add up to the whole, rounded: see `largest`.
    """

    source: Tensor
    share: Tensor
    offset: Tensor

    @classmethod
    def largest(cls, peaks: Tensor, times: int) -> Split:
        """Halve the channel with the largest magnitude, so many times in each group; of equal ones the first.

        A weight of u steps is split into (u − ½)/2, which stays, and (u + ½)/2, which goes to the copy: rounded
        half up they add up to u rounded half up (quantisation-aware splitting). Split again and again, u becomes
        u·share + offset.

        Parameters
        ----------
        peaks : float tensor, shape (groups, channels a group)
        times : int
        """
        source, share, offset = zip(*(_halved(group, times) for group in peaks.tolist()), strict=True)
        numbers = (torch.tensor(part, dtype=torch.float64) for part in (share, offset))
        return cls(torch.tensor(source), *numbers)

    @property
    def index(self) -> Tensor:
        """Which channel of all groups each of them was, int64 of shape (groups × channels a group,)."""
        groups, _ = self.source.shape
        channels = int(self.source.amax()) + 1
        return (self.source + channels * torch.arange(groups)[:, None]).reshape(-1)

    @property
    def joined(self) -> Split:
        """The same channels as one group."""
        return Split(self.index[None], self.share.reshape(1, -1), self.offset.reshape(1, -1))

    def group(self, number: int) -> Split:
        """One of the groups."""
        return Split(*(part[number : number + 1] for part in (self.source, self.share, self.offset)))

    @property
    def simple(self) -> Split:
        """The same, into plain halves."""
        return replace(self, offset=torch.zeros_like(self.offset))

    @property
    def copied(self) -> Split:
        """The same channels, each of them whole."""
        return replace(self.simple, share=torch.ones_like(self.share))


def _halved(peaks: Sequence[float], times: int) -> tuple[list[int], list[float], list[float]]:
    """Source, share and offset of the channels of one group."""
    count = len(peaks)
    source, share, offset = [*range(count)], [1.0] * count, [0.0] * count
    heap = [(-peak, channel) for channel, peak in enumerate(peaks)]
    heapq.heapify(heap)
    for copy in range(count, count + times):
        peak, channel = heap[0]
        heapq.heapreplace(heap, (peak / 2, channel))
        heapq.heappush(heap, (peak / 2, copy))
        share[channel] /= 2
        offset[channel] /= 2
        source.append(source[channel])
        share.append(share[channel])
        offset.append(offset[channel] + 0.25)
        offset[channel] -= 0.25
    return source, share, offset


class Splitter:
    """A captured network whose channels are being split.

    Parameters
    ----------
    layers : Layers
    edit : Edit
    offsets : mapping of str to Tensor
        As `Network.offsets`.

    Attributes
    ----------
    offsets : dict of str to Tensor
        What they have become: float32, each expanded to the shape of its weight.
    """

    def __init__(self, layers: Layers, edit: Edit, offsets: Mapping[str, Tensor]) -> None:
        self.layers, self.edit, self.offsets = layers, edit, dict(offsets)

    def gather(self, sites: Sequence[Layer], split: Split, scaled: bool = False) -> None:
        """Let layers read the channels of a split, right before them.

        Parameters
        ----------
        sites : sequence of Layer
            Places that read their channels in the same order.
        scaled : bool
            Whether they read of each channel its share only.
        """
        weight = sites[0].weight
        index = self.edit.constant(self.edit.beside(weight, "channels"), split.index)
        for reads, place in dict.fromkeys((layer.reads, layer.place) for layer in sites):
            assert reads is not None
            value = self.edit.add("index_select", {"self": reads.value, "dim": reads.dim, "index": index})
            if scaled:
                shape = [-1 if dim == reads.dim else 1 for dim in range(len(self.layers.shape(reads.value)))]
                share = split.share.reshape(shape).to(self.edit.tensor(weight).dtype)
                shares = self.edit.constant(self.edit.beside(weight, "shares"), share)
                value = self.edit.add("mul.Tensor", {"self": value, "other": shares})
            op = self.layers.graph.nodes[place].op
            self.edit.change(place, **{SINGLE[op][1] if op in SINGLE else "input": value})

    def widen(self, layer: Layer, split: Split) -> None:
        """Give a layer's weight, as the layer describes it, the channels of a split to read."""
        channels = split.source[:, None, :, None]

        def gathered(tensor: Tensor) -> Tensor:
            return torch.take_along_dim(layer.blocks(tensor), channels, 2)

        sizes = list(layer.shape)
        sizes[layer.axes[1]] = math.prod(split.source.shape) // (layer.inputs // sizes[layer.axes[1]])
        wide = replace(layer, shape=tuple(sizes))
        weight, before = self.edit.tensor(layer.weight).detach(), self.offsets.get(layer.weight)
        share = layer.by_input(split.share)
        blocks = gathered(weight) * share.to(weight.dtype)
        self.edit.set_blocks(wide, blocks)
        offset = layer.by_input(split.offset) + (0 if before is None else gathered(before.expand(layer.shape)) * share)
        if offset.any():
            self.offsets[layer.weight] = wide.unblocked(offset.float().expand(blocks.shape))

    def copy_rows(self, name: str, gates: int, source: Tensor) -> None:
        """Copy the rows of hidden units in a matrix or bias that has them for each gate."""

        def gathered(tensor: Tensor) -> Tensor:
            return tensor.reshape(gates, -1, *tensor.shape[1:]).index_select(1, source).flatten(0, 1)

        tensor, offset = self.edit.tensor(name).detach(), self.offsets.get(name)
        self.edit.store(name, gathered(tensor))
        if offset is not None:
            self.offsets[name] = gathered(offset.expand(tensor.shape))
