"""What `compress` is given becomes a network: weights, their architecture, and the operations a file brings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from deepcomp import loader
from deepcomp.entry import BUFFER, CONSTANT
from deepcomp.errors import InputError, UsageError
from deepcomp.model import sources, zoo
from deepcomp.model.capture import Captured
from deepcomp.network import Network

__all__ = ["Given", "open_network"]

Given: TypeAlias = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
"""A module, its weights by name, or the path of a file or folder of them."""


def open_network(
    given: Given, model: str | None = None, max_bytes: int | None = None
) -> tuple[Network, sources.Source]:
    """The network of a module, of weights, or of a file of any kind.

    Parameters
    ----------
    given : nn.Module, dict of tensors, or path
    model : str, optional
        For weights alone: their architecture, as `zoo.resolve` takes it.
    max_bytes : int, optional
        Dense bytes a `.dcz` file may unfold to; see `loader.File`.

    Returns
    -------
    Network, Source
        The network, with a module where its architecture is known and with its operations where they
        are, and where its weights came from.

    Raises
    ------
    UsageError
        If there is no such model, or none is needed.
    InputError, FormatError
        If the weights cannot be read, or do not fit the model.
    """
    if isinstance(given, nn.Module):
        if model is not None:
            raise UsageError(f"{type(given).__name__}: is a network already; model = {model!r} is for weights alone")
        source = sources.from_module(given)
        return _network(source, given), source
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        if path.suffix == ".dcz" and path.is_file():
            return _from_file(path, model, max_bytes)
        return _from_weights(sources.from_path(path), model)
    if isinstance(given, Mapping):
        return _from_weights(sources.from_tensors(given), model)
    raise UsageError(f"{type(given).__name__} found, a module, a dict of tensors or a path expected")


def _from_weights(source: sources.Source, model: str | None) -> tuple[Network, sources.Source]:
    return _network(source, None if model is None else _fill(zoo.resolve(model), source, model)), source


def _network(source: sources.Source, module: nn.Module | None) -> Network:
    parameters = module.named_parameters(remove_duplicate=False) if module is not None else ()
    frozen = frozenset(name for name, parameter in parameters if not parameter.requires_grad)
    return Network(source.tensors, dict.fromkeys(source.buffers, BUFFER), source.tied, module=module, frozen=frozen)


def _from_file(path: Path, model: str | None, max_bytes: int | None) -> tuple[Network, sources.Source]:
    """The network of a `.dcz` file, with its operations where it has them."""
    with loader.File(path, max_bytes) as file:
        tensors = dict(file.tensors())
        roles = {name: entry.role for name, entry in file.entries.items()}
        graph, module = file.graph(), file.module(tensors.items())
    source = sources.from_tensors({name: tensor for name, tensor in tensors.items() if roles[name] != CONSTANT})
    source.nbytes = path.stat().st_size
    source.buffers = {name for name, role in roles.items() if role == BUFFER}
    if graph is None:
        return _from_weights(source, model)
    if model is not None:
        raise UsageError(f"{path}: brings its own operations; model = {model!r} is for weights alone")
    constants = {name: tensor for name, tensor in tensors.items() if roles[name] == CONSTANT}
    return Network(tensors, roles, source.tied, Captured(*graph, constants), module), source


def _fill(module: nn.Module, source: sources.Source, model: str) -> nn.Module:
    """Load weights into a module, and take over from it what the weights alone do not say."""
    own = sources.from_module(module)
    home = {name: own.tied.get(name, name) for name in own.tensors}  # the names of one tensor have one home
    _check_fit(source, own, home, model)
    floats = {tensor.dtype for tensor in source.tensors.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        module = module.to(floats.pop())
    module.load_state_dict(dict(source.tensors), strict=False)
    given = {home[name]: source.tensors[name] for name in source.tensors}
    left_out = [name for name in own.tensors if name not in source.tensors and home[name] in given]
    source.tensors = sources.Gathered.of(source.tensors, {name: given[home[name]] for name in left_out})
    source.tied = _ties(source.tensors, home)
    source.buffers = own.buffers
    return module.eval()


def _check_fit(source: sources.Source, own: sources.Source, home: Mapping[str, str], model: str) -> None:
    """Insist that weights are those of a module, be it under one of several names they have there."""
    given = {home[name] for name in source.tensors if name in home}
    absent = [name for name in own.tensors if home[name] not in given]
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]  # older files lack these counters
    odd = [name for name in source.tensors if name not in own.tensors]
    if absent or odd:
        raise InputError(f"weights do not fit {model}: missing {absent[:3]}, not known {odd[:3]}")
    for name, tensor in source.tensors.items():
        found, wanted = tuple(tensor.shape), tuple(own.tensors[name].shape)
        if found != wanted:
            raise InputError(f"weights do not fit {model}: {name} of shape {found} found, {wanted} expected")


def _ties(tensors: Mapping[str, Tensor], home: Mapping[str, str]) -> dict[str, str]:
    """Names whose tensor is that of an earlier one, and that one, where their values agree."""
    first: dict[str, str] = {}
    pairs = [(name, first.setdefault(home[name], name)) for name in tensors]
    return {name: one for name, one in pairs if one != name and torch.equal(tensors[name], tensors[one])}
