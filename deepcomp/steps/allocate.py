"""Bits by layer: as many where they matter as a budget allows (Hubara et al. 2020, §4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Context
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from deepcomp.allocation import Choice, Infeasible, cheapest, fitting, mildest
from deepcomp.curvature import divergence
from deepcomp.errors import InfeasibleError, UsageError
from deepcomp.model.data import METRICS
from deepcomp.model.evaluate import call, leading
from deepcomp.model.graph import Stored, references
from deepcomp.model.layers import Layer, Layers, Skip
from deepcomp.model.macs import Work, works
from deepcomp.model.uses import uses
from deepcomp.network import Network
from deepcomp.sizes import parse_size
from deepcomp.steps.step import Step
from deepcomp.training.one_by_one import OneByOne, Pace
from deepcomp.training.reconstruction import check_sites
from deepcomp.training.tuning import Rates
from deepcomp.weights import Form, Grid, Mask
from deepcomp.weights.grid import check

__all__ = ["Allocate"]

_Choices: TypeAlias = dict[str, list[Choice]]
_BUDGETS = ("size", "bops", "divergence")


@dataclass
class Allocate(Step):
    """Give each layer's weights a grid of its own number of bits, so that the outputs move least within a budget.

    What a layer loses with k bits is how much further the outputs move when it alone has k and all others `base`. These
    losses are taken to add up, and an integer programme chooses (`allocation.programme`). A layer's size is what it
    takes in a file, its integers entropy-coded, with one scale a channel. The report holds what was measured of each
    choice, and how far the outputs move with those taken, as predicted and as measured.

    What nearest rounding loses with few bits says little of what is left when integers are chosen with care: where
    `adaquant` follows, each choice had better be tuned, too, before it is judged (`tuned`).

    Put this step behind `fold-bn`; `adaround` or `quantize-feedback` behind it find better integers on the grids.

    Attributes
    ----------
    share : float
        The size of the weights, of what they take as 32-bit floats. It does not count where one of the others is given.
    size : int or str, optional
        Bytes of the whole file, as it would be without further steps; or a text such as `100kB`.
    bops : float, optional
        Bit operations (multiply-accumulates × bits of the weight × bits of the activation), of what 8 bits for both
        would take. Activations without a quantiser have 32.
    divergence : float, optional
        How far the outputs may move, in nats of KL divergence an item, predicted; the smallest size that keeps it is
        taken.
    fewest, most, apart : int
        Numbers of bits to choose from: from `fewest` to `most`, so far apart.
    base : int
        Bits of the other layers while one is judged.
    range : str
        How ranges are set; see `quantize`. Clipping pays less than it does where each integer takes as many bits.
    samples : int
        Calibration inputs.
    tuned : int
        Iterations that each choice of a weight is tuned for, on the original network's inputs, before its loss and
        its size are measured: as `adaquant` does it, weights and their ranges alone. 0: they are rounded to nearest,
        as are always those of weights that have a form already, or are used where it cannot be seen what for.
    """

    do: ClassVar[str] = "allocate"

    share: float = 0.125
    size: int | str | None = None
    bops: float | None = None
    divergence: float | None = None
    fewest: int = 2
    most: int = 8
    apart: int = 1
    base: int = 8
    range: str = "min-max"
    samples: int = 128
    tuned: int = 0

    def __post_init__(self) -> None:
        try:
            for bits in (self.fewest, self.most, self.base):
                check(bits, True, self.range)
            self._bytes = parse_size(str(self.size)) if self.size is not None else None
        except UsageError as error:
            raise UsageError(f"allocate: {error}") from None
        for key in ("apart", "samples"):
            if getattr(self, key) < 1:
                raise UsageError(f"allocate.{key} = {getattr(self, key)}: 1 or more expected")
        if self.tuned < 0:
            raise UsageError(f"allocate.tuned = {self.tuned}: 0 or more expected")
        if self.fewest > self.most:
            raise UsageError(f"allocate.fewest = {self.fewest}: at most most = {self.most} expected")
        for key in ("share", "bops"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise UsageError(f"allocate.{key} = {getattr(self, key)}: more than 0 expected")
        if len(given := [key for key in _BUDGETS if getattr(self, key) is not None]) > 1:
            raise UsageError(f"allocate.{given[0]} and {given[1]}: one of the two expected")

    def run(self, net: Network) -> dict[str, Any]:
        layers, grids = net.layers(self.do), self._grids(net)
        if self.tuned:
            self._tune(net, layers, grids)
        bench = _Bench(net, {name: by_bits[self.base] for name, by_bits in grids.items()}, self.samples)
        base, losses = bench.alone(grids)
        choices = {
            name: [Choice(bits, losses[name][bits], by_bits[bits].size()) for bits in self._widths]
            for name, by_bits in grids.items()
        }
        chosen = self._choose(choices, base, self._cost(net, layers, grids), partial(_written, net, grids))
        forms = _forms(grids, chosen)
        net.forms |= forms
        return {
            "bits": {name: choice.bits for name, choice in chosen.items()},
            "bytes": round(sum(choice.size for choice in chosen.values())),
            "predicted_divergence": base + sum(choice.loss for choice in chosen.values()),
            "divergence": bench.together(forms),
            "choices": {name: [asdict(choice) for choice in found] for name, found in choices.items()},
        }

    @property
    def _widths(self) -> list[int]:
        return list(range(self.fewest, self.most + 1, self.apart))

    def _grids(self, net: Network) -> dict[str, dict[int, Form]]:
        """Each weight with each number of bits."""
        assert net.captured is not None
        used = uses(net.captured, net.tied)
        found: dict[str, dict[int, Form]] = {}
        for name, _ in net.weights(self.layers, self.skip):
            axis = used[name][0].axis if name in used else 0
            found[name] = {bits: self._grid(net, name, axis, bits) for bits in sorted({*self._widths, self.base})}
        return found

    def _grid(self, net: Network, name: str, axis: int, bits: int) -> Form:
        form = net.form(name)
        if not isinstance(form, Mask):
            weight = net.tensors[name] if form is None else form.dense()
            return Grid.fit(weight, bits, axis=axis, range=self.range)
        values, at = form.inner.dense().reshape(-1), form.positions
        return Mask(at, Grid.fit(values, bits, axis=axis, range=self.range, at=at, shape=form.shape), form.shape)

    def _tune(self, net: Network, layers: Layers, grids: dict[str, dict[int, Form]]) -> None:
        """Let each form be the best of its number of bits."""
        sites: dict[str, list[Layer]] = {name: [] for name in grids}
        for layer in layers:
            if layer.weight in sites:
                sites[layer.weight].append(layer)
        rates = Rates(inputs=0.0, biases=0.0)
        pace = Pace(self.samples, rates, sequential=False, iterations=self.tuned)
        seen = {name: here for name, here in sites.items() if net.form(name) is None and _seen(here)}
        for weight in OneByOne(self.do, net, layers, seen, pace).walk():
            for bits, form in grids[weight.name].items():
                grids[weight.name][bits] = weight.tune(form).state.form

    def _cost(self, net: Network, layers: Layers, names: Collection[str]) -> Callable[[str, Choice], float]:
        """What a choice of a weight takes, as a share: of bit operations if these are limited, else of bytes."""
        if self.bops is None:
            whole = 4 * sum(net.tensors[name].numel() for name in names)
            return lambda _, choice: choice.size / whole
        work = works(layers)
        eight = 64 * sum(work[name].macs for name in names if name in work) or 1
        return lambda name, choice: choice.bits * work.get(name, Work()).bits / eight

    def _choose(
        self,
        choices: _Choices,
        base: float,
        cost: Callable[[str, Choice], float],
        write: Callable[[Mapping[str, Choice]], int],
    ) -> dict[str, Choice]:
        """The best choices within the budget.

        Parameters
        ----------
        base : float
            The divergence that losses come on top of.
        cost : callable
            See `_cost`.
        write : callable
            Bytes of the file with some choices.

        Raises
        ------
        InfeasibleError
            If there are none, with the nearest setting for which there are.
        """
        key = next((key for key in _BUDGETS if getattr(self, key) is not None), "share")
        try:
            if self._bytes is not None:
                return fitting(choices, self._bytes, write)
            if self.divergence is not None:
                return cheapest(choices, self.divergence - base)
            return _mildest(choices, getattr(self, key), cost)
        except Infeasible as found:
            nearest = found.nearest if key == "size" else _up(found.nearest + (base if key == "divergence" else 0))
            raise InfeasibleError(f"{self.do}.{key}", getattr(self, key), nearest) from None


class _Bench:
    """How far a network's outputs move where weights have other forms, in nats of KL divergence an item.

    Parameters
    ----------
    net : Network
        The network outputs are compared with.
    base : mapping of str to Form
        Forms of weights where nothing else is said.
    samples : int
        Calibration inputs.
    """

    def __init__(self, net: Network, base: Mapping[str, Form], samples: int) -> None:
        self._net, self._base = net, base
        self._batches = list(net.inputs(Allocate.do, samples))
        self._items = sum(len(next(iter(inputs.values()))) for inputs in self._batches)
        self._original, self._changed = net.interpreter(formed=True), net.interpreter(formed=True)
        self._tensors = dict([*self._changed.named_parameters(), *self._changed.named_buffers()])
        self._labels = net.data is not None and net.data.metric in METRICS

    @torch.no_grad()
    def alone(self, forms: Mapping[str, Mapping[int, Form]]) -> tuple[float, dict[str, dict[int, float]]]:
        """The divergence with all weights as in `base`, and how much is added by each form of one weight alone.

        What comes before the first use of a weight is computed once for all its forms.
        """
        self._set(self._base)
        places, base = self._first_uses(forms), 0.0
        added = {name: dict.fromkeys(by_bits, 0.0) for name, by_bits in forms.items()}
        for number, inputs in enumerate(self._batches):
            before = call(self._original, inputs)
            whole = self._moved(before, call(self._changed, inputs))
            base += whole
            for done, (place, rest) in enumerate(self._changed.forks(places, **inputs), number * len(places)):
                for name in places[place]:
                    for bits, form in forms[name].items():
                        if form is not self._base[name]:
                            self._set({name: form})
                            added[name][bits] += self._moved(before, leading(rest(), Allocate.do)) - whole
                    self._set({name: self._base[name]})
                if self._net.progress:
                    self._net.progress(Allocate.do, done, len(places) * len(self._batches))
        return base / self._items, {
            name: {bits: max(loss, 0.0) / self._items for bits, loss in losses.items()}
            for name, losses in added.items()
        }

    @torch.no_grad()
    def together(self, forms: Mapping[str, Form]) -> float:
        """The divergence with all weights in other forms."""
        self._set(forms)
        pairs = ((call(self._original, inputs), call(self._changed, inputs)) for inputs in self._batches)
        return sum(self._moved(*pair) for pair in pairs) / self._items

    def _moved(self, before: Tensor, after: Tensor) -> float:
        return divergence(before, after, self._labels)

    def _set(self, forms: Mapping[str, Form]) -> None:
        for name, form in forms.items():
            self._tensors[name].data = form.dense()

    def _first_uses(self, weights: Collection[str]) -> dict[int, list[str]]:
        """Weights by the place of the first node that uses them."""
        assert self._net.captured is not None
        names = [self._net.tied.get(name, name) for name in self._net.captured.names]
        found, left = defaultdict[int, list[str]](list), set(weights)
        for place, node in enumerate(self._net.captured.graph.nodes):
            for entry in references((node.args, node.kwargs)):
                if isinstance(entry, Stored) and (name := names[entry.index]) in left:
                    found[place].append(name)
                    left.remove(name)
        return found


def _forms(grids: Mapping[str, Mapping[int, Form]], chosen: Mapping[str, Choice]) -> dict[str, Form]:
    return {name: grids[name][choice.bits] for name, choice in chosen.items()}


def _seen(sites: Sequence[Layer]) -> bool:
    """Whether it can be seen what all layers of a weight make of it."""
    try:
        check_sites(sites)
    except Skip:
        return False
    return True


def _written(net: Network, grids: Mapping[str, Mapping[int, Form]], chosen: Mapping[str, Choice]) -> int:
    """The bytes of the file with some choices."""
    if net.measure is None:
        raise UsageError("allocate.size: no file is written here, another budget expected")
    return net.measure(replace(net, forms=net.forms | _forms(grids, chosen)))


def _mildest(choices: _Choices, budget: float, cost: Callable[[str, Choice], float]) -> dict[str, Choice]:
    """The choices that lose least, of those that keep a budget of something else than size."""
    priced = {name: [replace(choice, size=cost(name, choice)) for choice in found] for name, found in choices.items()}
    taken = mildest(priced, budget)
    return {name: found[priced[name].index(taken[name])] for name, found in choices.items()}


def _up(number: float) -> float:
    """A number rounded up to four digits."""
    return float(Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(number))
