"""Uniform quantisation of activations (Nagel et al. 2021, §2.3 and 3.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.calibration import Distribution, cross_entropy
from deepcomp.errors import UsageError
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Value, references
from deepcomp.model.intervals import Interval, intervals
from deepcomp.model.layers import Layers
from deepcomp.model.placement import Site, placement
from deepcomp.model.quantizers import DYNAMIC, STATIC, quantizers
from deepcomp.network import Network, matches, per_layer
from deepcomp.quantizer import MOST_BITS, Bounds, Quantizer
from deepcomp.steps.step import Step
from deepcomp.weights.ranges import RANGES

__all__ = ["QuantizeActivations"]

_METRICS = ("accuracy", "perplexity")  # that take the network's output for logits
_MOST_LOGITS = 1 << 22  # numbers looked at


@dataclass
class QuantizeActivations(Step):
    """Put quantisers of activations among the operations, where `model.placement` says.

    A static quantiser has a grid of its own, set here: from what the network, with the weights it has by now, holds on
    calibration inputs, no activation quantised. Without data grids follow from `Network.statistics`, and places of
    which these say nothing get no quantiser. A dynamic quantiser takes its grid from each batch it sees.

    `layers` and `skip` choose among the names of places: the input, the module of a layer, or `MODULE/OPERATION` for
    what is done behind it (`layer1.0.conv2/add`); the report lists them.

    Attributes
    ----------
    bits : int or table
        2 to 16. A table gives the number by name pattern, and places it does not name get no quantiser.
    ends : int
        Bits of the network's inputs and outputs; 0: as the others.
    symmetric : bool
        Zero-point in the middle, as few activations ask for, or where the range says.
    range : {"mse", "min-max", "percentile", "aciq", "kl", "lsq", "batch-norm"}
        How ranges are set; what lies outside is clipped. See `weights.ranges`; `batch-norm` is the one without data.
    percentile : float
        Percent of numbers left outside the range at either end, for `range = "percentile"`.
    alpha : float
        How many standard deviations a range reaches, for `range = "batch-norm"`.
    logits : str
        `cross-entropy`, or a range as above: how that of the network's output is set where the data's metric takes
        it for logits.
    samples : int
        Calibration inputs.
    dynamic : {"", "tensor", "token"}
        Whether quantisers are dynamic, with a grid for all of what they see or for each vector along the last
        dimension.
    """

    do: ClassVar[str] = "quantize-activations"

    bits: int | dict[str, int] = 8
    ends: int = 0
    symmetric: bool = False
    range: str = "mse"
    percentile: float = 0.01
    alpha: float = 6.0
    logits: str = "cross-entropy"
    samples: int = 512
    dynamic: str = ""

    def __post_init__(self) -> None:
        for bits in (*(self.bits.values() if isinstance(self.bits, dict) else (self.bits,)), self.ends or 8):
            self._check(2 <= bits <= MOST_BITS, f"bits = {bits}", f"2 to {MOST_BITS}")
        self._choose("range", (*RANGES, "batch-norm"))
        self._choose("logits", (*RANGES, "cross-entropy"))
        self._choose("dynamic", ("", "tensor", "token"))
        self._check(0 <= self.percentile < 50, f"percentile = {self.percentile}", "0 to below 50")
        self._check(self.alpha > 0, f"alpha = {self.alpha}", "more than 0")
        self._check(self.samples >= 1, f"samples = {self.samples}", "1 or more")

    def _choose(self, key: str, choices: Iterable[str]) -> None:
        found = getattr(self, key)
        self._check(found in choices, f"{key} = {found!r}", f"one of {', '.join(map(repr, choices))}")

    def _check(self, right: bool, found: str, expected: str) -> None:
        if not right:
            raise UsageError(f"{self.do}.{found}: {expected} expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers = net.layers(self.do)
        assert net.captured is not None
        if quantizers(layers.graph):
            raise UsageError(f"{self.do}: the network has quantisers of activations already")
        sites, skipped = placement(layers, net.captured.names)
        grids, left = self._grids(sites)
        settings: dict[str, dict[str, Any]]
        if self.dynamic:
            settings = {grid.name: {"per": self.dynamic} for grid in grids}
        else:
            ranges = self._derived(net, layers, grids) if self.range == "batch-norm" else self._observed(net, grids)
            settings = {grid.name: grid.literals(ranges[grid.name]) for grid in grids if grid.name in ranges}
        edit, rows = Edit(net.captured, net.tensors), {}
        for grid in grids:
            for site in grid.sites:
                if setting := settings.get(grid.name):
                    arguments = {"bits": grid.quantizer.bits, "symmetric": self.symmetric, **setting}
                    quantized = edit.add(DYNAMIC if self.dynamic else STATIC, {"self": site.value, **arguments})
                    edit.bypass(site.value, quantized)
                    rows[site.name] = grid.said(setting)
                else:
                    left[site.name] = "nothing is known of it without data"
        net.rewire(self.do, edit.finish(), {})
        return {"sites": rows, "skipped": skipped | left}

    def _grids(self, sites: Sequence[Site]) -> tuple[list[_Grid], dict[str, str]]:
        """The sites to quantise by the grid they share, and why others are left out."""
        for patterns in (self.layers, *(self.bits if isinstance(self.bits, dict) else ())):
            if sites and not any(matches(site.name, patterns) for site in sites):
                names = ", ".join(site.name for site in sites[:3])
                raise UsageError(f"{self.do}: {patterns!r} names no place for a quantiser; such are {names}")
        shared: dict[tuple[int, int], list[Site]] = defaultdict(list)
        left = {}
        for site in sites:
            end = site.input or site.output
            bits = self.ends if self.ends and end else per_layer(self.bits, site.name)
            if bits is None or not matches(site.name, self.layers) or matches(site.name, self.skip):
                left[site.name] = "it was not chosen"
            else:
                shared[site.grid, bits].append(site)
        return [_Grid(group, Quantizer(bits, self.symmetric)) for (_, bits), group in shared.items()], left

    def _observed(self, net: Network, grids: Sequence[_Grid]) -> dict[str, Bounds]:
        """Ranges by the name of the grid: of what its sites see on calibration inputs."""
        seen = {site.value: grid for grid in grids for site in grid.setting}
        observers = {grid.name: Distribution(grid.name) for grid in grids}
        judged, logits = _judged(net), _Logits()
        for value, held in net.observe(self.do, seen, self.samples, formed=True):
            observers[seen[value].name].observe(held)
            if value == judged:
                logits.observe(held)

        def bounds(grid: _Grid) -> Bounds:
            alone = [site.value for site in grid.sites] == [judged]
            if alone and self.logits == "cross-entropy":
                return cross_entropy(torch.cat(logits.rows), grid.quantizer, grid.name)
            return observers[grid.name].range(grid.quantizer, self.logits if alone else self.range, self.percentile)

        return {grid.name: bounds(grid) for grid in grids}

    def _derived(self, net: Network, layers: Layers, grids: Sequence[_Grid]) -> dict[str, Bounds]:
        """Ranges by the name of the grid, of those that follow from the statistics of layers."""
        known: dict[Value, Interval] = {}
        for layer in layers:
            if layer.makes is not None and layer.weight in net.statistics:
                found, axis = net.statistics[layer.weight], layer.makes
                shape = [-1 if dim == axis.dim else 1 for dim in range(len(layers.shape(axis.value)))]
                mean, reach = found.mean.reshape(shape), self.alpha * found.std.reshape(shape)
                known[axis.value] = mean - reach, mean + reach
        ends = intervals(layers, net.tensors, known)
        ranges: dict[str, Bounds] = {}
        for grid in grids:
            if all(site.value in ends for site in grid.setting):
                lows, highs = zip(*(ends[site.value] for site in grid.setting), strict=True)
                ranges[grid.name] = min(low.amin() for low in lows), max(high.amax() for high in highs)
        return ranges


@dataclass(frozen=True)
class _Grid:
    """Places that share a grid."""

    sites: list[Site]
    quantizer: Quantizer

    @property
    def name(self) -> str:
        return self.sites[0].name

    @property
    def setting(self) -> list[Site]:
        """Those whose numbers set the range."""
        return [site for site in self.sites if not site.average] or self.sites

    def literals(self, bounds: Bounds) -> dict[str, Any]:
        """Scale and zero-point as the graph holds them: the scale rounded up to four digits, which take few bytes."""
        low, high = (end.double().reshape(()) for end in bounds)
        exact, zero_point = self.quantizer.parameters(low, high)
        scale = float(Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(exact.item()))
        if not self.quantizer.symmetric:
            zero_point = self.quantizer.whole(-low.clamp(max=0) / torch.tensor(scale, dtype=torch.float32))
        return {"scale": scale, "zero_point": int(zero_point)}

    def said(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """What the report says of a place: of a static quantiser the ends of the grid, too."""
        ends = {}
        if "scale" in setting:
            lowest = -setting["zero_point"]
            ends = {"low": setting["scale"] * lowest, "high": setting["scale"] * (lowest + self.quantizer.top)}
        return {"bits": self.quantizer.bits, **ends, **setting}


class _Logits:
    """The first logits that pass by, as rows; not all, which may be as many as a vocabulary has words."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def observe(self, held: Tensor) -> None:
        rows = held.reshape(-1, held.shape[-1])
        room = max(_MOST_LOGITS // rows.shape[1], 1) - sum(map(len, self.rows))
        self.rows.append(rows[: max(room, 0)])


def _judged(net: Network) -> Value | None:
    """The output that the metric takes for logits, as `model.evaluate` chooses; None where it does not."""
    if net.data is None or net.data.metric not in _METRICS:
        return None
    assert net.captured is not None
    outputs: Any = net.captured.graph.outputs
    if isinstance(outputs, dict):
        outputs = outputs["logits"] if "logits" in outputs else list(outputs.values())
    return next((entry for entry in references(outputs) if isinstance(entry, Value)), None)
