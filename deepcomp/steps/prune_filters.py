"""Filter pruning: whole filters and neurons leave the network (Li et al. 2017; Liu et al. 2017)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from deepcomp.entry import ROLES
from deepcomp.errors import UsageError
from deepcomp.model.capture import Captured
from deepcomp.model.channels import FILTER, SCALE, Channels, Group
from deepcomp.network import Network, per_layer
from deepcomp.steps.step import Step

__all__ = ["PruneFilters"]

Scores: TypeAlias = npt.NDArray[np.float64]
_RANKS, _PER = ("l1", "bn-scale"), ("layer", "network")


@dataclass
class PruneFilters(Step):
    """Take the least filters out, with everything that reads them: the network that is left is dense and smaller.

    A filter is a convolution's, a row of a linear layer, or a column of an embedding. Filters whose
    results are added go together, as the channels of a residual network do, and are ranked
    together. At least one filter of each layer stays. Put this step before those that choose forms.

    Attributes
    ----------
    density : float or table
        Share of filters kept, 0 to 1, or by layer pattern; layers that a table does not name keep all. Filters that go
        together keep the share of the first of their layers that it names.
    rank : {"l1", "bn-scale"}
        What makes a filter great: the L1 norm of its weights (Li et al. 2017, §3.1), or the
        magnitude of the batch norm's γ behind it (Liu et al. 2017, §3).
    per : {"layer", "network"}
        Whether each layer keeps that share, or all layers together, by one threshold. L1 norms are
        then taken relative to the mean of their layer, whose size they depend on.
    multiple : int
        Filters kept in a group are rounded to the nearest multiple of this, as far as there are so many.
    """

    do: ClassVar[str] = "prune-filters"

    density: float | dict[str, float] = 0.7
    rank: str = "l1"
    per: str = "layer"
    multiple: int = 1

    def __post_init__(self) -> None:
        for density in self.density.values() if isinstance(self.density, dict) else (self.density,):
            if not 0 <= density <= 1:
                raise UsageError(f"prune-filters.density = {density}: 0 to 1 expected")
        if self.rank not in _RANKS:
            raise UsageError(f"prune-filters.rank = {self.rank!r}: one of {', '.join(_RANKS)} expected")
        if self.per not in _PER:
            raise UsageError(f"prune-filters.per = {self.per!r}: layer or network expected")
        if self.per == "network" and isinstance(self.density, dict):
            raise UsageError("prune-filters.per = 'network': one density expected, a table found")
        if self.multiple < 1:
            raise UsageError(f"prune-filters.multiple = {self.multiple}: 1 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        channels = net.channels(self.do)
        net.require(*self.density if isinstance(self.density, dict) else ())
        groups, skipped = self._choose(channels, [name for name, _ in net.weights(self.layers, self.skip)])
        scores = [self._scores(net, group) for group in groups]
        best = [np.argsort(-score, kind="stable") for score in scores]
        kept = self._counts(groups, scores)
        gone = [group.channels[order[count:]] for group, order, count in zip(groups, best, kept, strict=True)]
        before = _sizes(net, channels)
        if any(map(len, gone)):
            graph, smaller = channels.without(np.concatenate(gone), net.tensors)
            assert net.captured is not None
            net.rewire(self.do, Captured(graph, net.captured.names, net.captured.constants), smaller)
        after = _sizes(net, channels)
        return {**after, **{f"{what}_before": count for what, count in before.items()}, "skipped": skipped}

    def _choose(self, channels: Channels, names: Collection[str]) -> tuple[list[Group], dict[str, str]]:
        """The groups to prune, and why the other weights among `names` keep all their filters."""
        groups, skipped = [], {name: channels.staying.get(name, "no operation uses it") for name in names}
        for group in channels.groups:
            makers = [place.tensor for place in group.by_role(FILTER)]
            spared = [name for name in makers if name not in names]
            if spared:
                skipped |= dict.fromkeys(makers, f"tied to {spared[0]}, which is not to be pruned")
            elif self.rank == "bn-scale" and not group.by_role(SCALE):
                skipped |= dict.fromkeys(makers, "no batch norm scales its filters")
            else:
                groups.append(group)
        pruned = {place.tensor for group in groups for place in group.by_role(FILTER)}
        return groups, {name: why for name, why in skipped.items() if name in names and name not in pruned}

    def _scores(self, net: Network, group: Group) -> Scores:
        """How great each channel of a group is."""
        places = group.by_role(FILTER if self.rank == "l1" else SCALE)
        norms = [_norms(net.tensors[place.tensor], place.axis)[place.indices] for place in places]
        score: Scores = np.concatenate(norms, axis=1).mean(1)
        relative = self.rank == "l1" and self.per == "network"
        return score / (score.mean() or 1.0) if relative else score

    def _counts(self, groups: Sequence[Group], scores: Sequence[Scores]) -> list[int]:
        """How many channels of each group stay."""
        sizes = [len(score) for score in scores]
        if self.per == "network" and scores:
            assert not isinstance(self.density, dict)
            best = np.argsort(-np.concatenate(scores), kind="stable")[: round(self.density * sum(sizes))]
            counts = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[best], minlength=len(sizes)).tolist()
        else:
            counts = [round(self._density(group) * size) for group, size in zip(groups, sizes, strict=True)]
        rounded = [max(round(count / self.multiple), 1) * self.multiple for count in counts]
        return [min(count, size) for count, size in zip(rounded, sizes, strict=True)]

    def _density(self, group: Group) -> float:
        """The share of a group's channels that stays."""
        shares = (per_layer(self.density, place.tensor) for place in group.by_role(FILTER))
        return next((share for share in shares if share is not None), 1.0)


def _norms(weight: Tensor, axis: int) -> Scores:
    """The L1 norm of each slice of a weight along an axis."""
    norms: Scores = weight.detach().double().abs().movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1).numpy()
    return norms


def _sizes(net: Network, channels: Channels) -> dict[str, int]:
    """Filters and weights of the whole network."""
    own = [name for name in net.tensors if name not in net.tied and ROLES[net.roles.get(name, 0)] == "parameter"]
    return {
        "filters": sum(net.tensors[name].shape[axis] for name, axis in channels.filters),
        "weights": sum(net.tensors[name].numel() for name in own),
    }
