"""Which layers bear pruning: each one pruned alone, and the quality that is left (Han et al. 2015, §3.1, fig. 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor
from torch.utils.data import TensorDataset

from deepcomp.errors import UsageError
from deepcomp.model.data import MapStyle, batches
from deepcomp.network import Network
from deepcomp.training.loop import split, validate
from deepcomp.training.losses import loss_function
from deepcomp.training.trainee import Trainee
from deepcomp.weights import Form

__all__ = ["Scan", "allowed", "better_is_more", "scan"]

DENSITIES = (0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02)
ITEMS = 1000  # held-out items it is judged by

Scan: TypeAlias = dict[str, list[tuple[float, float]]]
"""For each weight the quality at each density, from dense to sparse; the first entry is the whole network."""


def scan(net: Network, weights: Mapping[str, Tensor], prune: Callable[[Tensor, float], Form]) -> Scan:
    """Measure the network with one weight pruned at a time.

    Parameters
    ----------
    net : Network
        With a module and data; it is left as it is.
    weights : mapping of str to Tensor
        What to prune, one after the other.
    prune : callable
        Makes the form of a weight at a density.

    Returns
    -------
    Scan
        The metric on held-out training items, or the loss where there is no metric.
    """
    if net.data is None or net.module is None:
        raise UsageError("prune.tolerance: a scan needs the network and data to measure it on")
    data, held = net.data, _held(split(net.data, 10 * ITEMS)[1])
    loss = loss_function("auto", data) if data.metric is None else None

    def quality(forms: dict[str, Form]) -> float:
        probe = dataclasses.replace(net, forms={**net.forms, **forms})
        return validate(Trainee(probe), data, held, loss)[0]

    whole, found = quality({}), {}
    for place, (name, weight) in enumerate(weights.items()):
        if net.progress:
            net.progress(f"sensitivity of {name}", place, len(weights))
        found[name] = [(1.0, whole), *((d, quality({name: prune(weight, d)})) for d in DENSITIES)]
    return found


def better_is_more(net: Network) -> bool:
    """Whether more of what a scan of this network measures is better."""
    metric = None if net.data is None else net.data.metric
    return metric == "accuracy" or getattr(metric, "higher_is_better", False)


def allowed(curve: list[tuple[float, float]], tolerance: float, higher_is_better: bool) -> float:
    """The least density down to which the quality stays within `tolerance` of the whole network's."""
    sign, whole = (1 if higher_is_better else -1), curve[0][1]
    density = curve[0][0]
    for at, quality in curve:
        if sign * (whole - quality) > tolerance:
            break
        density = at
    return density


def _held(items: MapStyle) -> MapStyle:
    """The first held-out items, read once."""
    count = min(ITEMS, len(items))
    inputs, targets = next(iter(batches(items, count)))
    return TensorDataset(inputs, targets) if isinstance(inputs, Tensor) and isinstance(targets, Tensor) else items
