"""High biases move on to the next layer (Nagel et al. 2019, §4.1.3; Nagel et al. 2021, eq. 16–18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.chains import Chain, chains
from deepcomp.model.clamps import bounds, set_bounds
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Node
from deepcomp.model.layers import Layers, Skip
from deepcomp.network import Network
from deepcomp.steps.step import Step

__all__ = ["AbsorbBias"]


@dataclass
class AbsorbBias(Step):
    """Let a layer's outputs be smaller by what nearly all of them exceed, and the next layer make up for it.

    b1 ← b1 − c and b2 ← b2 + W2 c (all taps added), with c = max(0, β − 3|γ|) for a channel of mean β and
    standard deviation |γ|, which 99.87 % of its values exceed. Such channels are what equalisation
    leaves behind; without the offset they need less range. Clamps between the layers move along.

    The network computes what it did wherever the outputs of the first layer are c or more, as long as
    no zeros are put beside them, as padding does: these do not carry c. The report says where.

    Attributes
    ----------
    by : {"statistics", "data"}
        Where c comes from: `Network.statistics`, which `fold-bn` records, or the least output of each
        channel on calibration inputs.
    samples : int
        Calibration inputs.
    exact : bool
        Leave layers alone that pad with zeros.
    """

    do: ClassVar[str] = "absorb-bias"

    by: str = "statistics"
    samples: int = 512
    exact: bool = False

    def __post_init__(self) -> None:
        if self.by not in ("statistics", "data"):
            raise UsageError(f"absorb-bias.by = {self.by!r}: statistics or data expected")
        if self.samples < 1:
            raise UsageError(f"absorb-bias.samples = {self.samples}: 1 or more expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        assert net.captured is not None
        edit = Edit(net.captured, net.tensors)
        chosen = {name for name, _ in net.weights(self.layers, self.skip)}
        found, skipped = chains(layers, chosen)
        floors = _least(net, found, self.samples) if self.by == "data" else _low(net)
        absorbed: dict[str, Tensor] = {}
        inexact: dict[str, str] = {}
        for one in found:
            name = one.first.weight
            try:
                padded = _padded(layers, one)
                if padded and self.exact:
                    raise Skip(padded)
                if name not in floors:
                    raise Skip("nothing is known of its outputs (fold-bn records it, data shows it)")
                absorbed[name] = _absorb(layers, edit, one, floors[name])
                inexact |= {name: padded} if padded else {}
            except Skip as skip:
                skipped[name] = str(skip)
        if absorbed:
            known = {name: net.statistics[name] for name in absorbed if name in net.statistics}
            net.rewire(self.do, edit.finish(), edit.changed)
            net.statistics |= {n: replace(entry, mean=entry.mean - absorbed[n]) for n, entry in known.items()}
        channels = {name: int(amount.count_nonzero()) for name, amount in absorbed.items()}
        return {"absorbed": channels, "inexact": inexact, "skipped": skipped}


def _low(net: Network) -> dict[str, Tensor]:
    """What nearly all outputs of each channel exceed, by the statistics that are known."""
    return {name: found.mean - 3 * found.std for name, found in net.statistics.items()}


def _least(net: Network, found: Sequence[Chain], samples: int) -> dict[str, Tensor]:
    """The least output of each channel of first layers on calibration inputs."""
    makers = {one.first.makes.value: one.first for one in found if one.first.makes is not None}
    least: dict[str, Tensor] = {}
    for value, outputs in net.observe(AbsorbBias.do, makers, samples):
        layer = makers[value]
        assert layer.makes is not None
        here = outputs.movedim(layer.makes.dim, 0).flatten(1).amin(1).double()
        least[layer.weight] = torch.minimum(here, least.get(layer.weight, here))
    return least


def _absorb(layers: Layers, edit: Edit, found: Chain, floor: Tensor) -> Tensor:
    """Move what is above zero of `floor` from the first layer's bias to the second's; how much that was."""
    first, second = found.first, found.second
    first.check_bias()
    second.check_bias()
    clamps = [(place, axis, *bounds(layers, edit, place, axis)) for place, axis in found.between]
    amount = floor
    for _, axis, low, high in clamps:
        if low is not None and (low > 0).any():
            raise Skip("what lies behind it clamps above zero")
        if high is not None:
            amount = torch.minimum(amount, high.reshape(-1, axis.repeat).amin(1))
    amount = amount.clamp_min(0)
    if not amount.any():
        raise Skip("all its channels go down to zero")
    for place, axis, low, high in clamps:
        if high is not None:
            moved = high - amount.repeat_interleave(axis.repeat)
            set_bounds(layers, edit, place, axis, (low, moved), first.weight)
    reads = second.by_input(amount.repeat_interleave(found.repeat))
    edit.set_bias(first, edit.bias(first) - amount)
    edit.set_bias(second, edit.bias(second) + (edit.blocks(second) * reads).sum((2, 3)).reshape(-1))
    return amount


def _padded(layers: Layers, found: Chain) -> str:
    """Where zeros come in beside what the first layer made; empty where they do not.

    Raises
    ------
    Skip
        If the second layer does not add up as many taps everywhere, or what lies between does not
        keep a constant.
    """
    if found.second.kind == "conv_transpose":
        raise Skip("the transposed convolution behind it adds more taps in some places than in others")
    nodes = [layers.graph.nodes[place] for place, _ in found.between]
    if any(node.arguments.get("divisor_override") for node in nodes):
        raise Skip("the pooling behind it divides by a number of its own")
    nodes.append(layers.graph.nodes[found.second.place])
    padded = [node.op.partition(".")[0] for node in nodes if _pads(node, found.second.shape[2:])]
    return f"the {padded[0]} behind it pads with zeros, which do not carry what is absorbed" if padded else ""


def _pads(node: Node, kernel: tuple[int, ...]) -> bool:
    """Whether an operation puts zeros beside its input; `kernel` is that of a convolution."""
    given = node.arguments
    if node.op.startswith("conv"):
        padding = given["padding"]
        return max(kernel) > 1 if padding == "same" else padding != "valid" and any(padding)
    if node.op.startswith("avg_pool"):
        return given["count_include_pad"] and any(given["padding"])
    return (
        node.op in ("pad", "constant_pad_nd") and given.get("mode", "constant") == "constant" and max(given["pad"]) > 0
    )
