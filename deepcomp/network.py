"""A network on its way through a recipe: its tensors, and the form each weight has taken so far."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from deepcomp.errors import InputError
from deepcomp.model.capture import Captured
from deepcomp.model.data import Data
from deepcomp.weights import Form, Mask

if TYPE_CHECKING:
    from deepcomp.training import Checkpoints

__all__ = ["Network", "matches", "per_layer"]

T = TypeVar("T")


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
    seed : int
    progress : callable, optional
        Called as `progress(what, done, total)`.
    checkpoints : Checkpoints, optional
        Where training keeps what it has reached.
    runs : int
        Training runs begun.
    """

    tensors: Mapping[str, Tensor]
    roles: dict[str, int] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    captured: Captured | None = None
    module: nn.Module | None = None
    teacher: nn.Module | None = None
    data: Data | None = None
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None
    checkpoints: Checkpoints | None = None
    runs: int = 0
    forms: dict[str, Form] = field(default_factory=dict)

    def weights(self, layers: str = "*", skip: str = "") -> Iterator[tuple[str, Tensor]]:
        """Name and original value of each weight a lossy step may touch.

        That is: tensors of 16 or more bits of floating point and two or more dimensions, once where
        tied, no constants. Narrower floats are quantised already and stay exact, and so do vectors:
        biases, BN statistics, scales.

        Parameters
        ----------
        layers, skip : str
            Which to take and which to leave: name patterns (`fnmatch`) of tensors (`fc1.weight`) or
            layers (`fc1`), several separated by commas.

        Raises
        ------
        InputError
            If a weight holds NaN or infinity, naming it.
        """
        for name in self.names(layers, skip):
            tensor = self.tensors[name]
            if name in self.tied or self.roles.get(name) == 2 or tensor.ndim < 2 or not tensor.is_floating_point():
                continue
            if tensor.numel() == 0 or tensor.element_size() < 2:
                continue
            if not torch.isfinite(tensor.float()).all():
                bad = int((~torch.isfinite(tensor.float())).sum())
                raise InputError(f"{name}: {bad} of {tensor.numel()} weights are NaN or infinite, finite ones expected")
            yield name, tensor

    def names(self, layers: str = "*", skip: str = "") -> list[str]:
        """The names that match `layers` and not `skip`."""
        return [name for name in self.tensors if matches(name, layers) and not matches(name, skip)]

    def form(self, name: str) -> Form | None:
        """What the steps so far have made of a weight."""
        return self.forms.get(name)

    def update(self, name: str, tensor: Tensor) -> None:
        """Replace the original value of a tensor, and of those tied to it."""
        names = {name, *(other for other, first in self.tied.items() if first == name)}
        self.tensors = {**self.tensors, **dict.fromkeys(names, tensor)}

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


def matches(name: str, patterns: str) -> bool:
    """Whether a tensor's name, or the name of its layer, is among the patterns."""
    layer = name.rpartition(".")[0]
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    return any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(layer, pattern) for pattern in wanted)
