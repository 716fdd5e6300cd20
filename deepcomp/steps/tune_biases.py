"""Biases learn to give the original network's outputs; no labels are read (Hubara et al. 2020, §5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepcomp.curvature import divergence
from deepcomp.entry import PARAMETER
from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import METRICS
from deepcomp.model.evaluate import call
from deepcomp.network import Network
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.steps.step import Step
from deepcomp.training.losses import distillation
from deepcomp.training.teacher import Teacher
from deepcomp.weights import Form, Raw
from deepcomp.weights.grid import grid_of
from deepcomp.weights.rescaling import Rescaling

__all__ = ["TuneBiases"]

_OPTIMISERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": lambda learnt, rate: torch.optim.SGD(learnt, rate, momentum=0.9, nesterov=True),
}


@dataclass
class TuneBiases(Step):
    """Train the biases of layers, all weights staying, by the divergence from the original network's outputs.

    What is made small is KL(p ‖ p̂), with p what the original network says of a calibration input and p̂ what the
    network says with the weights and activations it has by now; half the squared change of the outputs where the
    metric is no accuracy or perplexity. Gradients go through quantisers of activations straight.

    The state with the lowest divergence on inputs that are held out is kept; that may be the one before training. So
    is what is stored: numbers are rounded as the file will hold them, also while they train. What
    `layers` and `skip` do not choose stays to the bit, and so does every integer of a weight. The original tensors
    stay what they were.

    Attributes
    ----------
    norms : bool
        Whether all other parameters of one dimension train too: those of normalisations, above all.
    scales : bool
        Whether scales of weights on grids train too.
    samples : int
        Calibration inputs. All are in memory together.
    held : float
        The share of them that is held out.
    epochs : int
        Passes over the others; 0 leaves everything as it is.
    batch : int
        Inputs a step.
    optimiser : {"adam", "sgd"}
        SGD has a Nesterov momentum of 0.9.
    rate : float
        Its learning rate, which falls to zero along half a cosine.
    """

    do: ClassVar[str] = "tune-biases"

    norms: bool = False
    scales: bool = False
    samples: int = 512
    held: float = 0.2
    epochs: int = 20
    batch: int = 32
    optimiser: str = "adam"
    rate: float = 1e-3

    def __post_init__(self) -> None:
        for key, least in (("samples", 2), ("epochs", 0), ("batch", 1)):
            if getattr(self, key) < least:
                raise UsageError(f"{self.do}.{key} = {getattr(self, key)}: {least} or more expected")
        if not 0 < self.held < 1:
            raise UsageError(f"{self.do}.held = {self.held}: more than 0 and less than 1 expected")
        if not 0 < self.rate < math.inf:
            raise UsageError(f"{self.do}.rate = {self.rate}: more than 0 expected")
        if self.optimiser not in _OPTIMISERS:
            raise UsageError(f"{self.do}.optimiser = {self.optimiser!r}: {' or '.join(_OPTIMISERS)} expected")

    def run(self, net: Network) -> dict[str, Any]:
        parts = self._parts(net)
        if not parts:
            return {"tensors": 0}
        found = self._train(net, parts)
        chosen = found.index(min(found))
        for name, part in parts.items() if chosen else ():
            if isinstance(part, Rescaling):
                part.commit()
            else:
                net.store(name, part.form())
        return {"tensors": len(parts), "epochs": self.epochs, "chosen": chosen, "divergence": found}

    def _parts(self, net: Network) -> dict[str, _Vector | Rescaling]:
        """What trains, by name."""
        layers = net.layers(self.do)
        free = {layer.bias for layer in layers} if not self.norms else set(layers.names)
        parts: dict[str, _Vector | Rescaling] = {}
        for name in net.names(self.layers, self.skip):
            tensor = net.tensors[name]
            trains = net.roles.get(name, PARAMETER) == PARAMETER and tensor.is_floating_point()
            if name in free and name not in net.tied and trains and tensor.ndim == 1:
                parts[name] = _Vector(net.form(name) or Raw(tensor))
        for name, _ in net.weights(self.layers, self.skip) if self.scales else ():
            grid = grid_of(net.form(name))
            if grid is not None and name in layers.names:
                parts[name] = Rescaling(grid)
        return parts

    @torch.enable_grad()
    def _train(self, net: Network, parts: Mapping[str, _Vector | Rescaling]) -> list[float]:
        """Let the parts be what is best on the inputs held out; the divergence there, at first and after each epoch."""
        batches, first = self._batches(net)
        lesson = _Lesson(net, parts, batches)
        learnt = [parameter for part in parts.values() for parameter in part.parameters(recurse=False)]
        optimiser = _OPTIMISERS[self.optimiser](learnt, self.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.epochs * first, 1))
        generator = torch.Generator().manual_seed(net.seed)
        held = range(first, len(batches))
        found, best = [lesson.divergence(held)], [parameter.detach().clone() for parameter in learnt]
        for epoch in range(self.epochs):
            for place in torch.randperm(first, generator=generator).tolist():
                optimiser.zero_grad()
                lesson.loss(place).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                falling.step()
            if net.progress:
                net.progress(f"{self.do}: divergence {found[-1]:.4g} held out", epoch, self.epochs)
            found.append(lesson.divergence(held))
            if found[-1] < min(found[:-1]):
                best = [parameter.detach().clone() for parameter in learnt]
        for parameter, value in zip(learnt, best, strict=True):
            parameter.data.copy_(value)
        return found

    def _batches(self, net: Network) -> tuple[list[dict[str, Tensor]], int]:
        """Calibration inputs, and which batch is the first of those held out."""
        (inputs,) = net.inputs(self.do, self.samples, self.samples)
        items = len(next(iter(inputs.values())))
        if items < 2:
            raise UsageError(f"{self.do}: 1 calibration input found, 2 or more expected: one at least is held out")
        first = items - min(max(round(self.held * items), 1), items - 1)
        trained, held = (_cut(inputs, part, self.batch) for part in (range(first), range(first, items)))
        return [*trained, *held], len(trained)


class _Vector(nn.Module):
    """A vector that trains as it is stored: its rounding counts as the identity for gradients."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._dtype, self._stored = form.dtype, form.stored if isinstance(form, Raw) else form.dtype
        self.value = nn.Parameter(form.dense().float().clone())

    def forward(self) -> Tensor:
        rounded = self.value.detach().to(self._stored).to(self._dtype)
        return rounded + (self.value - self.value.detach()).to(self._dtype)

    def form(self) -> Raw:
        return Raw(self.value.detach().to(self._dtype), self._stored)


class _Student(nn.Module):
    """A network, some of whose tensors are what parts of it make of them."""

    def __init__(self, module: Interpreter, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.names, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, **inputs: Tensor) -> Any:
        tensors = {name: part() for name, part in zip(self.names, self.parts, strict=True)}
        return functional_call(self.module, tensors, (), inputs)


class _Lesson:
    """A network beside the original one, on batches of inputs."""

    def __init__(self, net: Network, parts: Mapping[str, nn.Module], batches: Sequence[dict[str, Tensor]]) -> None:
        self._batches, self._student = batches, _Student(net.interpreter(formed=True), parts)
        self._teacher = Teacher(net.original().interpreter(), batches)
        self._labels = net.data is not None and net.data.metric in METRICS

    def loss(self, place: int) -> Tensor:
        """The divergence on one batch, a label or an item."""
        wanted, outputs = self._teacher[place], call(self._student, self._batches[place])
        if self._labels:
            return distillation(outputs, wanted, 1.0)
        return (outputs - wanted).square().sum() / (2 * len(outputs))

    @torch.no_grad()
    def divergence(self, places: Sequence[int]) -> float:
        """The divergence on some batches, an item.

        Raises
        ------
        InputError
            If it is not finite.
        """
        total, items = 0.0, 0
        for place in places:
            outputs = call(self._student, self._batches[place])
            total, items = total + divergence(self._teacher[place], outputs, self._labels), items + len(outputs)
        if not math.isfinite(total):
            raise InputError(f"tune-biases: a divergence of {total} on the inputs held out, a finite one expected")
        return total / items


def _cut(inputs: Mapping[str, Tensor], items: range, size: int) -> list[dict[str, Tensor]]:
    """Some items as batches."""
    places = [items[start : start + size] for start in range(0, len(items), size)]
    return [{name: tensor[some.start : some.stop] for name, tensor in inputs.items()} for some in places]
