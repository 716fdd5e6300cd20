"""A network on its way through a recipe: its tensors, and the form each weight has taken so far."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from deepcomp.entry import CONSTANT, PARAMETER, ROLES
from deepcomp.errors import InputError, UsageError
from deepcomp.model.capture import Captured
from deepcomp.model.channels import Channels
from deepcomp.model.data import Data, Inputs, batches, draw
from deepcomp.model.edit import Edit
from deepcomp.model.graph import Value
from deepcomp.model.layers import Layer, Layers
from deepcomp.model.quantizers import bypassed, quantizers
from deepcomp.runtime.interpreter import Interpreter, trace
from deepcomp.weights import Form, Mask

if TYPE_CHECKING:
    from deepcomp.training import Checkpoints

__all__ = ["CODERS", "CONTEXT", "FAST", "SMALLEST", "Network", "Statistics", "matches", "per_layer"]

T = TypeVar("T")
FAST, CONTEXT, SMALLEST = CODERS = ("fast", "context", "smallest")


@dataclass(frozen=True)
class Statistics:
    """What is known of a layer's output without data: that of each channel is about Gaussian.

    Attributes
    ----------
    mean, std : Tensor
        float64, shape (output channels,).
    """

    mean: Tensor
    std: Tensor


@dataclass
class Network:
    """What a step works on.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        The original tensors by name, in the order of the file; may read from disk at each access.
    forms : dict of str to Form
        What steps have chosen; a tensor without a form is stored exactly.
    roles : dict of str to int
        `entry.PARAMETER`, `BUFFER` or `CONSTANT`; parameters where nothing is said.
    tied : dict of str to str
        Tensors that share memory with an earlier one, and that one.
    captured : Captured, optional
        The operations.
    module : nn.Module, optional
        The network itself, where there is one; never changed in place.
    teacher : nn.Module, optional
        The network before any step.
    data : Data, optional
        For steps that calibrate or train.
    origin : str
        What data that was made on the way depends on; training runs are told apart by it.
    seed : int
    progress : callable, optional
        Called as `progress(what, done, total)`.
    measure : callable, optional
        Gives the bytes of the file that a network would make.
    checkpoints : Checkpoints, optional
        Where training keeps what it has reached.
    runs : int
        Training runs begun.
    coders : dict of str to str
        How the symbols of tensors are coded, by name: one of `CODERS`. See `steps.code`.
    coder : str
        How those are that `coders` says nothing of.
    statistics : dict of str to Statistics
        Of the outputs of layers, by the name of the weight, before any activation; those of a layer whose weight
        changes are forgotten, unless the step that changes it says what they have become.
    offsets : dict of str to Tensor
        Fractions of a step to add to weights before they are rounded to a grid, by name, to broadcast against the
        weight; see `steps.split_channels`. Those of a weight that changes are forgotten.
    frozen : frozenset of str
        Parameters that training leaves as they are, whatever it is told: those the module came with that ask for no
        gradient.
    obstacle : str
        Why the operations could not be written down.
    """

    tensors: Mapping[str, Tensor]
    roles: dict[str, int] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    captured: Captured | None = None
    module: nn.Module | None = None
    teacher: nn.Module | None = None
    data: Data | None = None
    origin: str = ""
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None
    measure: Callable[[Network], int] | None = None
    checkpoints: Checkpoints | None = None
    runs: int = 0
    forms: dict[str, Form] = field(default_factory=dict)
    coders: dict[str, str] = field(default_factory=dict)
    coder: str = FAST
    statistics: dict[str, Statistics] = field(default_factory=dict)
    offsets: dict[str, Tensor] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    obstacle: str = ""

    def weights(self, layers: str = "*", skip: str = "", dims: int = 2) -> Iterator[tuple[str, Tensor]]:
        """Name and original value of each weight a lossy step may touch.

        That is: tensors of 16 or more bits of floating point and two or more dimensions, once where
        tied, no constants. Narrower floats are quantised already and stay exact, and so do vectors:
        biases, BN statistics, scales.

        Parameters
        ----------
        layers, skip : str
            Which to take and which to leave: name patterns (`fnmatch`) of tensors (`fc1.weight`) or
            layers (`fc1`), several separated by commas.
        dims : int
            How many dimensions they have at least; 1: vectors too.

        Raises
        ------
        InputError
            If a weight holds numbers that are not finite, or would not be as float32, naming it.
        UsageError
            See `names`.
        """
        for name in self.names(layers, skip):
            tensor, constant = self.tensors[name], self.roles.get(name) == CONSTANT
            if name in self.tied or constant or tensor.ndim < dims or not tensor.is_floating_point():
                continue
            if tensor.numel() == 0 or tensor.element_size() < 2:
                continue
            _check_finite(name, tensor, "NaN or infinite")
            if tensor.dtype == torch.float64:
                _check_finite(name, tensor.float(), "beyond the range of float32")
            yield name, tensor

    def names(self, layers: str = "*", skip: str = "") -> list[str]:
        """The names that match `layers` and not `skip`.

        Raises
        ------
        UsageError
            See `require`.
        """
        self.require(layers)
        return [name for name in self.tensors if matches(name, layers) and not matches(name, skip)]

    def require(self, *layers: str) -> None:
        """Insist that every pattern names a tensor: one that names none is a slip.

        Raises
        ------
        UsageError
            Naming the pattern.
        """
        for pattern in (pattern for patterns in layers for pattern in _split(patterns)):
            if self.tensors and not any(matches(name, pattern) for name in self.tensors):
                raise UsageError(f"layers {pattern!r}: no tensor has such a name, nor a layer")

    def form(self, name: str) -> Form | None:
        """What the steps so far have made of a weight."""
        return self.forms.get(name)

    def update(self, name: str, tensor: Tensor) -> None:
        """Replace the original value of a tensor, and of those tied to it."""
        names = {name, *(other for other, first in self.tied.items() if first == name)}
        self.tensors = {**self.tensors, **dict.fromkeys(names, tensor)}
        self.statistics.pop(name, None)
        self.offsets.pop(name, None)

    def layers(self, what: str) -> Layers:
        """The network as transformations see it.

        Parameters
        ----------
        what : str
            Who asks, for errors.

        Raises
        ------
        InputError
            If there are weights alone, or the shapes of the network's values depend on what they hold.
        """
        captured, values = self._traced(what)
        return Layers(captured, self.tensors, values, self.tied)

    def channels(self, what: str) -> Channels:
        """The channels of the network, and which of them go together; `what` and errors as for `layers`."""
        captured, values = self._traced(what)
        return Channels(captured, self.tensors, values, self.tied)

    def _traced(self, what: str) -> tuple[Captured, list[Any]]:
        """The operations, and what each of their values is."""
        if self.captured is None:
            why = self.obstacle or "a model and an example input give them"
            raise InputError(f"{what}: the network's operations expected ({why})")
        return self.captured, trace(self.captured.graph, self.captured.names, self.tensors)

    def rewire(
        self,
        what: str,
        captured: Captured,
        tensors: Mapping[str, Tensor],
        removed: Collection[str] = (),
        forms: Mapping[str, Form] | None = None,
    ) -> None:
        """Change the operations and the tensors; the module becomes one that runs them.

        Parameters
        ----------
        what : str
            Who changes them, for errors.
        captured : Captured
            The operations from now on. Constants that they no longer refer to leave the network.
        tensors : mapping of str to Tensor
            Those that are new or changed; of tied ones the first. New ones come behind those of their module.
        removed : collection of str
            Tensors that leave the network too, unless the operations refer to them.
        forms : mapping of str to Form, optional
            Of changed tensors, changed likewise.

        Raises
        ------
        UsageError
            If another of these tensors has a form: forms come after changes of the network.
        """
        ties = {name: first for name, first in self.tied.items() if name in captured.names or name not in removed}
        constants = [name for name, role in self.roles.items() if role == CONSTANT]
        gone = {*constants, *removed} - {*captured.names, *ties.values()}
        if formed := [name for name in self.forms if (name in tensors and name not in (forms or {})) or name in gone]:
            raise UsageError(f"{what}: {formed[0]} has a form already: steps that choose forms come after this one")
        self.forms |= forms or {}
        whole = {**self.tensors, **tensors}
        whole |= {name: tensors[first] for name, first in ties.items() if first in tensors}
        self.tensors = {name: whole[name] for name in _placed(list(self.tensors), tensors) if name not in gone}
        self.tied = {name: first for name, first in ties.items() if name not in gone}
        self.roles = {name: role for name, role in self.roles.items() if name not in gone}
        self.roles |= dict.fromkeys(captured.constants, CONSTANT)
        changed = {*tensors, *gone}
        self.statistics = {name: found for name, found in self.statistics.items() if name not in changed}
        self.offsets = {name: found for name, found in self.offsets.items() if name not in changed}
        own = {name: self.tensors[name] for name in captured.constants}
        self.captured = Captured(captured.graph, captured.names, own)
        self.module = self.interpreter()

    def biases(self, what: str, layers: Sequence[Layer]) -> list[str]:
        """The names of some layers' biases; a layer without one gets one of zeros (see `rewire`)."""
        assert self.captured is not None
        edit, names = Edit(self.captured, self.tensors), []
        for layer in layers:
            names.append(layer.bias or edit.beside(layer.weight, "bias"))
            if layer.bias is None:
                edit.set_bias(layer, edit.bias(layer))
        if edit.changed:
            self.rewire(what, edit.finish(), edit.changed)
        return names

    def interpreter(self, formed: bool = False) -> Interpreter:
        """The network as its operations run it, with copies of its tensors.

        Parameters
        ----------
        formed : bool
            Whether weights are what their forms make of them; the original ones if not.
        """
        assert self.captured is not None
        forms = self.forms if formed else {}
        own = {
            name: forms[name].dense().clone() if name in forms else tensor.detach().clone()
            for name, tensor in self.tensors.items()
            if name not in self.tied
        }
        tensors = [(n, own[self.tied.get(n, n)], ROLES[self.roles.get(n, PARAMETER)]) for n in self.tensors]
        return Interpreter(self.captured.graph, self.captured.names, tensors)

    def original(self) -> Network:
        """The network as it was: its original tensors, and no activation quantised. It shares data and seed."""
        assert self.captured is not None
        graph = self.captured.graph
        return replace(self, forms={}, captured=replace(self.captured, graph=bypassed(graph, quantizers(graph))))

    @torch.no_grad()
    def observe(
        self, what: str, values: Iterable[Value], samples: int, size: int = 64, formed: bool = False
    ) -> Iterator[tuple[Value, Tensor]]:
        """What some values hold on calibration inputs, batch after batch, in the order they are computed.

        Parameters
        ----------
        what : str
            Who asks, for errors.
        values : iterable of Value
        samples : int
            How many of the training items; the same for the same seed.
        size : int
            Items a batch.
        formed : bool
            See `interpreter`.

        Raises
        ------
        UsageError
            If there is no data.
        InputError
            If the network does not run on it.
        """
        module, wanted = self.interpreter(formed), list(values)
        for inputs in self.inputs(what, samples, size):
            yield from module.observe(wanted, **inputs)

    def inputs(self, what: str, samples: int, size: int = 64) -> Iterator[dict[str, Tensor]]:
        """Batches of calibration inputs by name; see `observe`."""
        if self.data is None:
            raise UsageError(f"{what}: needs data to calibrate on (--data)")
        for inputs, _ in batches(self.data.train, size, draw(self.data.train, samples, self.seed)):
            yield self._named(inputs)

    def _named(self, inputs: Inputs) -> dict[str, Tensor]:
        """Inputs by the names and in the types that the operations have for them."""
        assert self.captured is not None
        expected = self.captured.graph.inputs
        listed = (inputs,) if isinstance(inputs, Tensor) else inputs
        given = listed if isinstance(listed, Mapping) else dict(zip([e.name for e in expected], listed, strict=False))
        return {entry.name: given[entry.name].to(entry.dtype) for entry in expected if entry.name in given}

    def store(self, name: str, form: Form) -> None:
        """Give a weight a form."""
        self.forms[name] = form

    def refine(self, name: str, make: Callable[[Tensor, Tensor | None], Form]) -> None:
        """Give a weight's values another form, under its mask where it has one.

        Parameters
        ----------
        make : callable
            Makes the form from the values and, under a mask, their flat positions (else None).
        """
        form = self.forms.get(name)
        if isinstance(form, Mask):
            form.inner = make(form.inner.dense().reshape(-1), form.positions)
        else:
            self.forms[name] = make(self.tensors[name] if form is None else form.dense(), None)


def per_layer(setting: T | dict[str, T], name: str) -> T | None:
    """A tensor's value of a setting that may be a table of layer patterns.

    The first pattern that matches counts; None where none does.
    """
    if not isinstance(setting, dict):
        return setting
    return next((value for patterns, value in setting.items() if matches(name, patterns)), None)


def _placed(names: list[str], new: Iterable[str]) -> list[str]:
    """Names in their order, new ones behind the last of their module."""
    for name in new:
        if name not in names:
            beside = [place for place, other in enumerate(names, 1) if _module(other) == _module(name)]
            names.insert(beside[-1] if beside else len(names), name)
    return names


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def matches(name: str, patterns: str) -> bool:
    """Whether a tensor's name, or the name of its layer, is among the patterns."""
    layer = _module(name)
    return any(fnmatch.fnmatchcase(name, wanted) or fnmatch.fnmatchcase(layer, wanted) for wanted in _split(patterns))


def _split(patterns: str) -> list[str]:
    return [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]


def _check_finite(name: str, tensor: Tensor, what: str) -> None:
    finite = torch.isfinite(tensor)
    if not finite.all():
        bad = tensor.numel() - int(finite.sum())
        raise InputError(f"{name}: {bad} of {tensor.numel()} weights are {what}, finite ones expected")
