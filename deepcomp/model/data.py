"""Data sets: what a network is calibrated, fine-tuned and judged on.

`Data` joins a training set, a test set and a metric (`datasets` finds some by name). Data sets are
map-style, items `(inputs, target)`; those that also answer a slice with a whole batch
(`Pairs`, `TensorDataset`) are read that way by `batches`, all others item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from deepcomp.errors import InputError, UsageError, blaming

__all__ = [
    "METRICS",
    "Data",
    "Inputs",
    "MapStyle",
    "Metric",
    "Pairs",
    "batches",
    "calibration",
    "draw",
    "example_inputs",
]

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a module is called with: one argument, positional arguments, or keyword arguments."""


METRICS = ("accuracy", "perplexity")


class MapStyle(Protocol):
    """A map-style data set: a length, and items `(inputs, target)` by integer index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Metric(Protocol):
    """A quality of the user's own; it says itself which way is better.

    Called once with the outputs and the targets of the whole test set, each joined along the
    batch, and returns one number. A plain function with the attribute set is one.
    """

    higher_is_better: bool

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> float: ...


@dataclass(frozen=True)
class Data:
    """What a network is calibrated, fine-tuned and judged on.

    Parameters
    ----------
    train : map-style data set
        Items `(inputs, target)`; inputs a tensor, a tuple or a dict of tensors, without a batch.
        Calibration reads only its inputs.
    test : map-style data set, optional
        Read to measure the metric and for nothing else. None: calibration only.
    metric : "accuracy", "perplexity", Metric or None
        None: quality is judged by how much the outputs change.
    validation : map-style data set, optional
        Items by which training chooses its epoch. None: some of the training items are held out.

    Raises
    ------
    InputError
        A set is empty, not map-style, or its items are not `(inputs, target)`.
    UsageError
        The metric is unknown, does not say which way is better, or has no test set to read.
    """

    train: MapStyle
    test: MapStyle | None = None
    metric: str | Metric | None = None
    validation: MapStyle | None = None

    def __post_init__(self) -> None:
        _check_dataset("train", self.train)
        if self.test is not None:
            _check_dataset("test", self.test)
        if self.validation is not None:
            _check_dataset("validation", self.validation)
        if self.metric is None:
            return
        if isinstance(self.metric, str):
            if self.metric not in METRICS:
                raise UsageError(f"metric: {self.metric!r} found, expected one of {', '.join(METRICS)}, or a callable")
        elif not callable(self.metric):
            raise UsageError(f"metric: a {type(self.metric).__name__} found, a name or a callable expected")
        elif not isinstance(getattr(self.metric, "higher_is_better", None), bool):
            raise UsageError("metric: the callable must say which way is better: higher_is_better = True or False")
        if self.test is None:
            raise UsageError("metric: there is no test set to measure it on; give test=, or metric=None")


def _check_dataset(name: str, dataset: MapStyle) -> None:
    sequence = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not sequence or isinstance(dataset, Mapping):
        raise InputError(f"{name}: a {type(dataset).__name__} found, a map-style data set (length and items) expected")
    with blaming(name):
        if len(dataset) == 0:
            raise InputError(f"{name}: the data set is empty")
        item = dataset[0]
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        raise InputError(f"{name}[0]: a {type(item).__name__} found, a pair (inputs, target) expected")
    inputs = item[0]
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    strange = [part for part in parts if not isinstance(part, Tensor)]
    if strange or len(parts) == 0:
        found = type(strange[0] if strange else inputs).__name__
        raise InputError(f"{name}[0]: inputs of {found} found, a tensor, or a tuple or dict of tensors expected")


class Pairs(Dataset[Any]):
    """Inputs and targets in memory; a slice or an index tensor gives a whole batch at once.

    Parameters
    ----------
    inputs : tensor (N, …), or anything that gives one by index
        uint8 stays uint8 in memory and is given out as float32 x/255; other types as they are.
    targets : tensor (N, …)
    transform : callable, optional
        Applied to the scaled inputs, an item or a batch.
    """

    def __init__(
        self, inputs: Tensor | MapStyle, targets: Tensor, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.inputs, self.targets, self.transform = inputs, targets, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        x = self.inputs[index]
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        return (x if self.transform is None else self.transform(x)), self.targets[index]


def _collate(items: list[Any]) -> Any:
    """Items joined along a new first dimension, keeping tuples and dicts what they are."""
    first = items[0]
    if isinstance(first, Mapping):
        return {key: _collate([item[key] for item in items]) for key in first}
    if isinstance(first, tuple):
        return tuple(_collate(list(column)) for column in zip(*items, strict=True))
    return default_collate(items)


def _gather(dataset: MapStyle, index: slice | Tensor) -> tuple[Inputs, Tensor]:
    if isinstance(dataset, Subset):  # a batch of the whole set, where that can give one at once
        places = range(len(dataset))[index] if isinstance(index, slice) else index.tolist()
        return _gather(cast(MapStyle, dataset.dataset), torch.tensor([dataset.indices[i] for i in places]))
    positions = range(len(dataset))[index] if isinstance(index, slice) else index.tolist()
    with blaming(f"data set: items {positions[0]} to {positions[-1]} do not form a batch"):
        if isinstance(dataset, Pairs) or (isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2):
            return cast(tuple[Inputs, Tensor], dataset[index])
        pairs = [dataset[i] for i in positions]
        return _collate([inputs for inputs, _ in pairs]), _collate([target for _, target in pairs])


def batches(dataset: MapStyle, size: int, order: Tensor | None = None) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches `(inputs, target)`, the last one as small as what is left.

    Parameters
    ----------
    dataset : map-style data set
    size : int
        Items a batch.
    order : int64 tensor, optional
        Which items, in which order (a permutation for training); all of them in theirs if not given.

    Raises
    ------
    InputError
        Items of different shapes or kinds that cannot be joined.
    """
    count = len(dataset) if order is None else len(order)
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield _gather(dataset, slice(start, stop) if order is None else order[start:stop])


def draw(dataset: MapStyle, count: int, seed: int) -> Tensor:
    """Indices of `count` items (of all, if there are fewer), without replacement; the same for the same seed."""
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]


def calibration(data: Data, count: int, seed: int) -> Inputs:
    """Inputs of `count` training items as one batch (see `draw`); targets and the test set are not used."""
    return _gather(data.train, draw(data.train, count, seed))[0]


def example_inputs(data: Data, batch: int = 2) -> Inputs:
    """Inputs of the first `batch` training items, begun again where there are fewer."""
    return _gather(data.train, torch.arange(batch) % len(data.train))[0]
