"""The integer runtime beside the simulation, quantiser by quantiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deepcomp.runtime.integer import Integer
from deepcomp.runtime.interpreter import Interpreter

__all__ = ["Difference", "differences", "drift"]


@dataclass(frozen=True)
class Difference:
    """How the integers of a quantiser differ from those of the simulation.

    Attributes
    ----------
    name : str
        What is quantised: `relu of conv2d layer1.0.conv1.weight`.
    largest : int
        The largest difference, in steps.
    share : float
        Of the integers, those that differ.
    """

    name: str
    largest: int
    share: float


@torch.no_grad()
def differences(simulated: Interpreter, integer: Integer, *args: Tensor, **kwargs: Tensor) -> list[Difference]:
    """What each operation between two quantisers does to the integers that the simulation has before it.

    So no difference is carried on to the next quantiser.

    Parameters
    ----------
    simulated, integer
        The same network.
    *args, **kwargs : Tensor
        Inputs.

    Returns
    -------
    list of Difference
        Of every quantiser whose value is made of integers, in the order they run.
    """
    wanted = integer.quantizers
    ours, theirs = integer.observe(wanted, *args, **kwargs), simulated.observe(wanted, *args, **kwargs)
    rows, given = [], None
    for value, numbers in theirs:
        _, found = ours.send(given)
        given = integer.levels[value].encode(numbers)
        apart = (found.int() - given.int()).abs()
        rows.append(Difference(integer.called(value), int(apart.max()), float((apart > 0).double().mean())))
    return rows


@torch.no_grad()
def drift(simulated: Interpreter, integer: Integer, *args: Tensor, **kwargs: Tensor) -> float:
    """How far the outputs are apart when both run by themselves: at most, relative to the largest number there."""
    ours, theirs = (tree_leaves(network(*args, **kwargs)) for network in (integer, simulated))
    apart = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
    return apart / max(float(other.abs().max()) for other in theirs)
