"""A network opened, its operations written down, and taken through a recipe: what all that use recipes share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from deepcomp.entry import CONSTANT
from deepcomp.errors import CaptureError, UsageError
from deepcomp.model import zoo
from deepcomp.model.capture import capture
from deepcomp.model.data import Data, Inputs
from deepcomp.model.data import example_inputs as first_inputs
from deepcomp.model.sources import Gathered, Source
from deepcomp.network import CODERS, FAST, Network
from deepcomp.opening import Given, open_network
from deepcomp.steps import Step
from deepcomp.training import Checkpoints

__all__ = ["Job", "Progress", "called", "one_thread"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """A network, and what it is taken through a recipe with; see `pipeline.compress`.

    Raises
    ------
    UsageError
        If there are no threads, or the seed or the coder is none.
    """

    network: Given
    recipe: str | os.PathLike[str]
    model: str | None
    example_inputs: Inputs | None
    data: Data | None
    seed: int
    max_bytes: int | None
    progress: Progress | None
    jobs: int = 1
    checkpoints: Checkpoints | None = None
    coder: str = FAST

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs = {self.jobs}: 1 or more expected")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed = {self.seed}: 0 to 2^64 - 1 expected")
        if self.coder not in CODERS:
            raise UsageError(f"coder = {self.coder!r}: one of {', '.join(CODERS)} expected")

    def open(self) -> tuple[Network, Source]:
        """The network, and where its weights come from; its operations where a file brings them.

        Raises
        ------
        UsageError
            If something given beside the network is of no use to it.
        InputError, FormatError
            See `open_network`.
        """
        torch.manual_seed(self.seed)
        net, source = open_network(self.network, self.model, self.max_bytes)
        self._check_given(net)
        net.data, net.seed, net.teacher = self.data, self.seed, net.module
        net.checkpoints, net.progress, net.coder = self.checkpoints, self.progress, self.coder
        return net, source

    def capture(self, net: Network) -> None:
        """Write the operations of a network down, unless it is weights alone or has brought them.

        Raises
        ------
        CaptureError
            If they cannot be, or nothing is known to call the network with.
        """
        if net.module is None or net.captured is not None:
            return
        inputs = self.example_inputs if self.example_inputs is not None else self._example()
        if inputs is None:
            raise CaptureError("no example input was given (--input SHAPE or example_inputs=)")
        net.captured = capture(net.module, _like(inputs, net.module))
        net.tensors = Gathered.of(net.tensors, net.captured.constants)
        net.roles.update(dict.fromkeys(net.captured.constants, CONSTANT))

    def run(self, net: Network, steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
        """Run the steps; after each what it says, and how long it took."""
        for number, step in enumerate(steps):
            if self.progress:
                self.progress(step.do, number, len(steps))
            started = time.perf_counter()
            said = step.run(net)
            yield {"do": step.do, "seconds": round(time.perf_counter() - started, 3), **said}

    def _check_given(self, net: Network) -> None:
        """Insist that what is given beside the network has a use."""
        if self.data is not None and net.module is None:
            raise UsageError(
                "data is given, but nothing to run on it: --model says which network the weights belong to"
            )
        if self.example_inputs is not None and net.module is None:
            raise UsageError("an example input is given, but no network to call with it: --model says which it is")
        if self.example_inputs is not None and net.captured is not None:
            raise UsageError(f"{called(self.network)}: brings its own operations, no example input is needed")

    def _example(self) -> Inputs | None:
        """What the network is called with, where nobody has said so."""
        if self.model in zoo.NAMES:
            return zoo.example(self.model)
        return None if self.data is None else first_inputs(self.data)


def called(network: Given) -> str:
    """What is given, in a few words."""
    return os.fspath(network) if isinstance(network, (str, os.PathLike)) else type(network).__name__


def _like(inputs: Inputs, module: nn.Module) -> Inputs:
    """The inputs, floats of them in the type of the module's own."""
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def fit(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    if isinstance(inputs, Tensor):
        return (fit(inputs),)
    if isinstance(inputs, Mapping):
        return {name: fit(tensor) for name, tensor in inputs.items()}
    return tuple(fit(tensor) for tensor in inputs)


@contextmanager
def one_thread() -> Iterator[None]:
    """Pin libraries to one thread: with several, sums come out in an order that varies."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
