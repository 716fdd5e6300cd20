"""Weights tuned one after the other on calibration inputs, and judged on others (Hubara et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from deepcomp.errors import InputError, UsageError
from deepcomp.model.capture import Captured
from deepcomp.model.layers import Layer, Layers
from deepcomp.network import Network
from deepcomp.training.reconstruction import Examples
from deepcomp.training.side_by_side import Pairs, SideBySide
from deepcomp.training.tuning import Rates, Settled, tune
from deepcomp.weights import Form, Raw

__all__ = ["OneByOne", "Outcome", "Pace", "Pupil"]

_SIZE = 64  # items a batch, at most


@dataclass(frozen=True)
class Pace:
    """How long each weight is tuned, and on how much.

    Attributes
    ----------
    samples : int
        Calibration inputs.
    rates : Rates
    sequential : bool
        Whether layers learn on what those before them, tuned, give; if not, on what the original network gives.
    rows : int
        Positions of outputs to learn a weight from, drawn from all samples, about as many of each batch.
    batch : int
        Of these an iteration.
    iterations : int
    held_out : float
        The share of samples that weights are judged by and do not learn from.
    """

    samples: int
    rates: Rates
    sequential: bool
    rows: int = 32768
    batch: int = 512
    iterations: int = 1000
    held_out: float = 0.125


@dataclass(frozen=True)
class Outcome:
    """What tuning has found.

    Attributes
    ----------
    state : Settled
        The best on inputs held out; the one before tuning if none is better.
    before, after : float
        The errors of the outputs on inputs held out: see `Examples.error`.
    """

    state: Settled
    before: float
    after: float

    @property
    def better(self) -> bool:
        """Whether something better has been found."""
        return self.after < self.before


class OneByOne:
    """The weights of a network in the order they are used, each ready to be tuned.

    Parameters
    ----------
    what : str
        Who asks, for errors.
    net : Network
        With data. It gets what `Pupil.keep` hands it.
    layers : Layers
        Of this network.
    sites : mapping of str to sequence of Layer
        All the layers of each weight; see `check_sites`.
    pace : Pace

    Attributes
    ----------
    fixed : dict of str to str
        Why the range of an input stays, by the weight.

    Raises
    ------
    UsageError
        If there is no data.
    InputError
        If there is too little of it to hold some out.
    """

    def __init__(
        self, what: str, net: Network, layers: Layers, sites: Mapping[str, Sequence[Layer]], pace: Pace
    ) -> None:
        self.what, self.net, self.layers, self.sites, self.pace = what, net, layers, sites, pace
        batches, self._learning = _draw(what, net, pace)
        self._held = len(batches) - self._learning
        chosen = [layer for here in sites.values() for layer in here]
        self.pair = SideBySide(net, layers, chosen, batches, pace.sequential, pace.rates.inputs > 0)
        self.generator = torch.Generator().manual_seed(net.seed)
        self.fixed = {layer.weight: reason for layer, reason in self.pair.fixed.items()}

    def walk(self) -> Iterator[Pupil]:
        """The weights; what is kept of one is what layers behind it see, if they learn in sequence."""
        done = set[str]()
        for layer, pairs in self.pair.walk():
            if layer.weight not in done:
                if self.net.progress:
                    self.net.progress(f"{self.what} {layer.weight}", len(done), len(self.sites))
                done.add(layer.weight)
                yield Pupil(self, layer.weight, *self._examples(layer, pairs))

    def captured(self) -> Captured:
        """The network's operations, with ranges of inputs as they are now."""
        return self.pair.captured()

    def _examples(self, layer: Layer, pairs: Pairs) -> tuple[Examples, Examples]:
        """Of all layers of a weight, the first of which has come: examples to learn from, and others to judge by."""
        sites = self.sites[layer.weight]
        share = -(-self.pace.rows // (self._learning * len(sites)))
        learnt, held = (Examples(self.net, self.layers, sites, count * share) for count in (self._learning, self._held))
        others = (entry for entry in self.pair.walk() if entry[0] in sites)
        for site, seen in [(layer, pairs)] if len(sites) == 1 else islice(others, len(sites)):
            for number, (before, after) in enumerate(seen):
                into = learnt if number < self._learning else held
                into.draw(sites.index(site), before, after, share, self.generator)
        for examples in (learnt, held):
            examples.check(self.what)
        return learnt, held


class Pupil:
    """A weight with what its layers read and what they are to make of it.

    Attributes
    ----------
    name : str
    """

    def __init__(self, job: OneByOne, name: str, learnt: Examples, held: Examples) -> None:
        self.name = name
        self._job, self._learnt, self._held, self._sites = job, learnt, held, job.sites[name]

    def tune(self, form: Form) -> Outcome:
        """The best that the weight can be, starting from a form: a `Grid`, or a `Mask` over one."""
        pace, now = self._job.pace, self._settled(form)
        free = self._free(now) if pace.rates.biases else []
        best, before = now, self._held.error(now.make)
        error = before
        for state in tune(now, free, self._learnt, pace.rates, pace.batch, pace.iterations, self._job.generator):
            if (found := self._held.error(state.make)) < error:
                best, error = state, found
        return Outcome(best, before, error)

    def keep(self, state: Settled) -> None:
        """Let the network have what has been found, and the layers further on see it."""
        job = self._job
        changed = {name: state.biases[name] for name in self._free(state)} if job.pace.rates.biases else {}
        for tensor, form in {self.name: state.form, **changed}.items():
            job.net.store(tensor, form)
            job.pair.put(tensor, form)
        for site, grid in zip(state.sites, state.inputs, strict=True):
            if grid is not None:
                job.pair.grids[site] = grid

    def _settled(self, form: Form) -> Settled:
        """What the layers are now."""
        net, biases = self._job.net, [site.bias for site in self._sites if site.bias is not None]
        forms: dict[str, Form] = {bias: net.form(bias) or Raw(net.tensors[bias]) for bias in biases}
        return Settled(self._sites, form, forms, [self._job.pair.grids.get(site) for site in self._sites])

    def _free(self, settled: Settled) -> list[str]:
        """The biases that no layers but these use, one number a channel."""
        taken = {layer.bias for layer in self._job.layers if layer not in settled.sites}
        shape = (settled.sites[0].outputs,)
        return [
            name
            for name, form in settled.biases.items()
            if name not in taken and isinstance(form, Raw) and form.shape == shape
        ]


def _draw(what: str, net: Network, pace: Pace) -> tuple[list[dict[str, Tensor]], int]:
    """Calibration inputs in batches, and how many of these are to learn from; the others are held out."""
    if net.data is None:
        raise UsageError(f"{what}: needs data to calibrate on (--data)")
    items = min(pace.samples, len(net.data.train))
    if items < 2:
        raise InputError(f"{what}: {items} calibration input found, 2 or more expected: some are held out")
    held = min(max(round(pace.held_out * items), 1), items - 1)
    size = min(_SIZE, held, items - held)
    batches = list(net.inputs(what, items, size))
    return batches, len(batches) - -(-held // size)
