"""Distilled inputs: noise, optimised until a network's batch norms read what they read in training.

Cai et al. 2020, ZeroQ, §3.1: the weights stay, the inputs learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.graph import Input
from deepcomp.synthesis.descent import Descent
from deepcomp.synthesis.statistics import Watched, split

__all__ = ["distil", "noise"]


def noise(what: str, expected: Sequence[Input], samples: int, random: torch.Generator) -> dict[str, Tensor]:
    """Standard Gaussian numbers in the shapes of a network's inputs.

    Parameters
    ----------
    what : str
        Who asks, for errors.
    expected : sequence of Input
    samples : int
        The size of the batch.
    random : torch.Generator
        On the CPU.

    Returns
    -------
    dict of str to Tensor
        float32, by the names of the inputs.

    Raises
    ------
    UsageError
        Naming an input that holds no floating-point numbers, or has no batch.
    """
    made = {}
    for entry in expected:
        if not entry.dtype.is_floating_point:
            raise UsageError(
                f"{what}: input {entry.name!r} of {str(entry.dtype).removeprefix('torch.')} found, floating-point "
                "inputs expected: others cannot be learnt from batch norms"
            )
        sizes = [size for size in entry.shape if size is not None]
        if entry.shape != (None, *sizes):
            raise UsageError(f"{what}: input {entry.name!r} of shape {entry.shape} found, a batch of any size expected")
        made[entry.name] = torch.randn(samples, *sizes, generator=random)
    return made


def distil(watched: Watched, start: Mapping[str, Tensor], batch: int, descent: Descent) -> dict[str, Tensor]:
    """Inputs that the batch norms of a network take for training data.

    Parameters
    ----------
    watched : Watched
    start : mapping of str to Tensor
        Where they begin, by name.
    batch : int
        Inputs whose statistics are matched together; see `statistics.split`.
    descent : Descent
        Of each batch.

    Returns
    -------
    dict of str to Tensor
        float32, on the CPU, as many as those they begin from.

    Raises
    ------
    InputError
        See `Descent.run`.
    """
    parts = list(split(start, batch))
    made = [_distilled(watched, part, descent, f" {n}/{len(parts)}") for n, part in enumerate(parts, 1)]
    return {name: torch.cat([part[name] for part in made]) for name in start}


def _distilled(watched: Watched, start: Mapping[str, Tensor], descent: Descent, title: str) -> dict[str, Tensor]:
    """One batch of them."""
    learnt = {name: tensor.to(watched.device, copy=True).requires_grad_() for name, tensor in start.items()}
    descent.run(learnt.values(), lambda: watched(learnt)[1], title)
    return {name: tensor.detach().cpu() for name, tensor in learnt.items()}
