"""Where weights come from: safetensors files and sharded folders, PyTorch state dicts, modules.

Nothing is unpickled but through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepcomp.errors import InputError

__all__ = ["Gathered", "Source", "from_module", "from_path", "from_tensors"]


@dataclass
class Source:
    """Weights by name.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        In a fixed order; of a safetensors file each is read when it is asked for.
    tied : dict of str to str
        Names whose tensor shares memory with an earlier one, and that one.
    buffers : set of str
        Names that are buffers rather than parameters, where that is known.
    nbytes : int
        Bytes of the input: the file on disk, or the tensors' own.
    notes : dict of str to str
        Metadata a safetensors file carries.
    """

    tensors: Mapping[str, Tensor]
    nbytes: int
    tied: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    notes: dict[str, str] = field(default_factory=dict)


def from_path(path: Path) -> Source:
    """Weights from a `.safetensors` file, a folder of shards with an index, or a `.pt`/`.pth` state dict.

    Raises
    ------
    InputError
        If the path is none of these, is damaged, or holds more than tensors.
    """
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        shard = _Shard(path)
        return Source(shard, path.stat().st_size, notes=shard.notes)
    if path.suffix in (".pt", ".pth"):
        return _from_pickle(path)
    raise InputError(f"{path}: a .safetensors, .pt, .pth or .dcz file expected, or a folder of shards")


def from_tensors(tensors: Mapping[str, Any]) -> Source:
    """Weights from a dictionary of tensors.

    Raises
    ------
    InputError
        If something in it is not a dense tensor with data.
    """
    for name, tensor in tensors.items():
        text = isinstance(name, str) and name == name.encode(errors="replace").decode()  # lone surrogates are none
        if not text or not isinstance(tensor, Tensor):
            raise InputError(f"{name!r}: {type(tensor).__name__} found, a tensor under a text name expected")
        if tensor.layout != torch.strided:
            raise InputError(f"{name}: a tensor of layout {tensor.layout} found, a dense one expected")
        if tensor.is_meta:
            raise InputError(f"{name}: a tensor without data (meta device) found")
    unique: dict[tuple[int, int], int] = {}
    for tensor in tensors.values():
        unique[_memory(tensor)] = tensor.nbytes
    return Source(tensors, sum(unique.values()), tied=_tied(tensors))


def from_module(module: nn.Module) -> Source:
    """The state dict of a module; its parameters and persistent buffers."""
    source = from_tensors(module.state_dict(keep_vars=False))
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    source.buffers = set(source.tensors) - parameters
    return source


class _Shard(Mapping[str, Tensor]):
    """The tensors of one safetensors file, read one at a time."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a safetensors file: {error}") from None
        self._file = file
        self._names: dict[str, None] = dict.fromkeys(file.keys())
        self.notes: dict[str, str] = file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Gathered(Mapping[str, Tensor]):
    """Tensors of several mappings as one.

    Parameters
    ----------
    places : dict of str to mapping
        For each name the mapping it is read from.
    """

    def __init__(self, places: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._places = places

    @classmethod
    def of(cls, *parts: Mapping[str, Tensor]) -> Self:
        """All of several mappings, a later one before an earlier one where both have a name."""
        return cls({name: part for part in parts for name in part})

    def __getitem__(self, name: str) -> Tensor:
        return self._places[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _from_folder(folder: Path) -> Source:
    found = sorted(folder.glob("*.safetensors.index.json"))
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} files named *.safetensors.index.json found, one expected")
    try:
        places = json.loads(found[0].read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in places.items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InputError(f"{found[0]}: not an index of shards: a JSON object with a 'weight_map' expected") from None
    shards: dict[str, _Shard] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise InputError(f"{found[0]}: shard {file!r} is not a file of this folder")
        shards[file] = _Shard(folder / file)
    for name, file in names.items():
        if name not in shards[file]:
            raise InputError(f"{found[0]}: {name} is not in shard {file}")
    nbytes = sum((folder / file).stat().st_size for file in shards) + found[0].stat().st_size
    return Source(Gathered({name: shards[file] for name, file in names.items()}), nbytes)


def _from_pickle(path: Path) -> Source:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path}: no PyTorch file, or one of more than tensors; a state dict expected") from None
    except RuntimeError as error:
        raise InputError(f"{path}: not a PyTorch file: {str(error).partition(chr(10))[0]}") from None
    except Exception:  # whatever the unpickler stumbles over
        raise InputError(f"{path}: not a PyTorch file, or a damaged one") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{path}: {type(content).__name__} found, a state dict expected")
    try:
        source = from_tensors(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    source.nbytes = path.stat().st_size
    return source


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's data lies; an empty tensor is alone with itself."""
    if tensor.numel() == 0:
        return (id(tensor), -1)
    return (tensor.untyped_storage().data_ptr(), tensor.data_ptr())


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, tensor in tensors.items():
        memory = _memory(tensor)
        key = (*memory, tensor.dtype, tuple(tensor.shape), tensor.stride() if memory[1] >= 0 else ())
        if key in first:
            tied[name] = first[key]
        else:
            first[key] = name
    return tied
