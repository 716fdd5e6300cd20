"""Bits by layer: as many where they matter as a size allows (Hubara et al. 2020, §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from deepcomp.allocation import Choice, Infeasible, cheapest, mildest
from deepcomp.curvature import divergence
from deepcomp.errors import UsageError
from deepcomp.model.data import METRICS
from deepcomp.model.evaluate import call
from deepcomp.model.uses import uses
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.weights import Form, Grid, Mask
from deepcomp.weights.grid import check

__all__ = ["Allocate"]


@dataclass
class Allocate(Step):
    """Give each layer's weights a grid of its own number of bits, so that the outputs move least within a size.

    What a layer loses with k bits is how much further the outputs move when it alone has k and all others `base`. These
    losses are taken to add up, and an integer programme chooses (`allocation.programme`). A layer's size is that of its
    integers entropy-coded, and its scales: what `quantize` would make of it, one scale a channel. The report holds what
    was predicted of the chosen bits and what they are measured to do.

    Put this step behind `fold-bn`; `adaround` or `quantize-feedback` behind it find better integers on the grids.

    Attributes
    ----------
    share : float
        The size of the weights, of what they take as 32-bit floats.
    divergence : float, optional
        How far the outputs may move, in nats of KL divergence an item, predicted; the smallest size that keeps it is
        taken then, and `share` does not count.
    fewest, most, apart : int
        Numbers of bits to choose from: from `fewest` to `most`, so far apart.
    base : int
        Bits of the other layers while one is judged.
    range : str
        How ranges are set; see `quantize`.
    samples : int
        Calibration inputs.
    """

    do: ClassVar[str] = "allocate"

    share: float = 0.125
    divergence: float | None = None
    fewest: int = 2
    most: int = 8
    apart: int = 1
    base: int = 8
    range: str = "mse"
    samples: int = 256

    def __post_init__(self) -> None:
        try:
            for bits in (self.fewest, self.most, self.base):
                check(bits, True, self.range)
        except UsageError as error:
            raise UsageError(f"allocate: {error}") from None
        for key in ("apart", "samples"):
            if getattr(self, key) < 1:
                raise UsageError(f"allocate.{key} = {getattr(self, key)}: 1 or more expected")
        if self.fewest > self.most:
            raise UsageError(f"allocate.fewest = {self.fewest}: at most most = {self.most} expected")
        if not self.share > 0:
            raise UsageError(f"allocate.share = {self.share}: more than 0 expected")

    def run(self, net: Network) -> dict[str, Any]:
        net.layers(self.do)
        grids = self._grids(net)
        bench = _Bench(net, {name: by_bits[self.base] for name, by_bits in grids.items()}, self.samples)
        alone = [{name: form} for name, by_bits in grids.items() for form in by_bits.values()]
        base, *moved = bench.divergences([{}, *alone])
        losses = iter(max(loss - base, 0.0) for loss in moved)
        choices = {
            name: [Choice(bits, next(losses), form.cost() / 8) for bits, form in by_bits.items()]
            for name, by_bits in grids.items()
        }
        offered = {n: [c for c in found if c.bits in self._widths] for n, found in choices.items()}
        chosen = self._choose(offered, 4 * sum(net.tensors[name].numel() for name in grids), base)
        forms = {name: grids[name][choice.bits] for name, choice in chosen.items()}
        for name, form in forms.items():
            net.store(name, form)
        return {
            "bits": {name: choice.bits for name, choice in chosen.items()},
            "bytes": round(sum(choice.size for choice in chosen.values())),
            "divergence": {
                "predicted": base + sum(choice.loss for choice in chosen.values()),
                "measured": bench.divergences([forms])[0],
            },
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

    def _choose(self, choices: dict[str, list[Choice]], whole: int, base: float) -> dict[str, Choice]:
        """The best choices; `whole` are the bytes of all weights as 32-bit floats.

        Raises
        ------
        UsageError
            If there are none, naming the nearest setting for which there are.
        """
        try:
            if self.divergence is not None:
                return cheapest(choices, self.divergence - base)
            return mildest(choices, self.share * whole)
        except Infeasible as found:
            if self.divergence is not None:
                least = found.nearest + base
                raise UsageError(f"allocate.divergence = {self.divergence}: {least:.4g} is the least") from None
            raise UsageError(f"allocate.share = {self.share}: {found.nearest / whole:.4g} is the least") from None


class _Bench:
    """How far a network's outputs move where its weights have other forms.

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
        self._net, self._base, self._samples = net, base, samples
        self._original, self._changed = net.interpreter(formed=True), net.interpreter(formed=True)
        self._set(base)

    @torch.no_grad()
    def divergences(self, policies: Sequence[Mapping[str, Form]]) -> list[float]:
        """The mean divergence of the outputs for each of some policies, in nats an item."""
        data = self._net.data
        labels = data is not None and data.metric in METRICS
        sums, items = [0.0] * len(policies), 0
        for inputs in self._net.inputs(Allocate.do, self._samples):
            before = call(self._original, inputs)
            items += len(next(iter(inputs.values())))
            for place, policy in enumerate(policies):
                self._set(policy)
                sums[place] += divergence(before, call(self._changed, inputs), labels)
                self._set({name: self._base[name] for name in policy})
            if self._net.progress:
                self._net.progress(Allocate.do, min(items, self._samples), self._samples)
        return [total / items for total in sums]

    def _set(self, forms: Mapping[str, Form]) -> None:
        for name, form in forms.items():
            self._changed.get_parameter(name).data.copy_(form.dense())
