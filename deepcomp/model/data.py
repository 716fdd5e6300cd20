"""Data sets: what a network is calibrated, fine-tuned and judged on.

`Data` joins a training set, a test set and a metric; `load_data` finds one by name. Data sets are
map-style, items `(inputs, target)`; those that also answer a slice with a whole batch
(`Pairs`, `TensorDataset`) are read that way by `batches`, all others item by item.
"""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from deepcomp.errors import InputError, UsageError
from deepcomp.model.zoo import call_spec

__all__ = [
    "Data",
    "Inputs",
    "MapStyle",
    "Metric",
    "Pairs",
    "batches",
    "calibration",
    "draw",
    "example_inputs",
    "load_data",
]

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a module is called with: one argument, positional arguments, or keyword arguments."""

Array: TypeAlias = np.ndarray[Any, Any]
Folder: TypeAlias = str | os.PathLike[str] | None

METRICS = ("accuracy", "perplexity")
_TIMEOUT = 5.0  # seconds a download may stand still


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

    def __post_init__(self) -> None:
        _check_dataset("train", self.train)
        if self.test is not None:
            _check_dataset("test", self.test)
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
        self, inputs: Tensor | _Jpegs, targets: Tensor, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.inputs, self.targets, self.transform = inputs, targets, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        x = self.inputs[index]
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        return (x if self.transform is None else self.transform(x)), self.targets[index]


class _Jpegs:
    """RGB images as uint8 tensors (…, 3, height, width), kept as JPEG bytes and decoded on access.

    Image i is the file `data[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, data: Array, offsets: Array, size: tuple[int, int]) -> None:
        self.data, self.offsets, self.size = data, offsets, size

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return self._decode(range(len(self.offsets) - 1)[index])
        return torch.stack([self._decode(i) for i in torch.arange(len(self.offsets) - 1)[index].tolist()])

    def _decode(self, index: int) -> Tensor:
        from PIL import Image

        raw = self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(raw), formats=["JPEG"]) as image:
                if image.size != self.size[::-1] or image.mode != "RGB":
                    raise InputError(f"image {index}: {image.mode} {image.size} found, RGB {self.size[::-1]} expected")
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        except (OSError, Image.DecompressionBombError) as error:
            raise InputError(f"image {index}: no readable JPEG: {error}") from error


def _collate(items: list[Any]) -> Any:
    """Items joined along a new first dimension, keeping tuples and dicts what they are."""
    first = items[0]
    if isinstance(first, Mapping):
        return {key: _collate([item[key] for item in items]) for key in first}
    if isinstance(first, tuple):
        return tuple(_collate(list(column)) for column in zip(*items, strict=True))
    return default_collate(items)


def _gather(dataset: MapStyle, index: slice | Tensor) -> tuple[Inputs, Tensor]:
    if isinstance(dataset, Pairs) or (isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2):
        return cast(tuple[Inputs, Tensor], dataset[index])
    positions = range(len(dataset))[index] if isinstance(index, slice) else index.tolist()
    pairs = [dataset[i] for i in positions]
    try:
        return _collate([inputs for inputs, _ in pairs]), _collate([target for _, target in pairs])
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"data set: items {positions[0]} to {positions[-1]} do not form a batch: {reason}") from error


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


def load_data(spec: str | Data, data_dir: Folder = None) -> Data:
    """The data a `--data` argument names.

    Parameters
    ----------
    spec : str or Data
        `digits` (comes with scikit-learn; x/16, 1×8×8), `mnist` (x/255, 1×28×28), `cifar10`
        (normalised as ImageNet is, 3×32×32), `npz:FILE` (see `_npz`), `package.module:callable`
        returning a `Data`; or a `Data`, which is returned as it is.
    data_dir : path, optional
        Where `mnist` and `cifar10` are looked for first; then in `$DEEPCOMP_DATA`, then in a
        per-user cache, which scikit-learn's `fetch_openml` fills.

    Raises
    ------
    UsageError
        No such data set, or a callable that cannot be called or returns something else.
    InputError
        The data is nowhere to be found, or its file is damaged.
    """
    if isinstance(spec, Data):
        return spec
    if spec in _BUILT_IN:
        return _BUILT_IN[spec](data_dir)
    if spec.startswith("npz:"):
        return _npz(Path(spec.removeprefix("npz:")))
    if ":" in spec:
        data = call_spec(spec)
        if not isinstance(data, Data):
            raise UsageError(f"{spec}: returned a {type(data).__name__}, a deepcomp.Data was expected")
        return data
    raise UsageError(
        f"unknown data {spec!r}: expected one of {', '.join(_BUILT_IN)}, npz:FILE, or package.module:callable"
    )


def _digits(_: object) -> Data:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().div_(16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(targets).long()
    # RandomState's streams are frozen for good, so the split is the same under every version.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(y)))
    train, test = order[:1437], order[1437:]
    return Data(TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test]), "accuracy")


def _mnist(data_dir: Folder) -> Data:
    return _npz(_find("mnist", ("mnist.npz",), data_dir), (28, 28), lambda x: x.unsqueeze(-3))


def _cifar10(data_dir: Folder) -> Data:
    path = _find("cifar10", ("cifar10.npz", "cifar10_jpeg.npz"), data_dir)
    if path.name == "cifar10.npz":
        return _npz(path, (3, 32, 32), _imagenet)
    if importlib.util.find_spec("PIL") is None:
        raise InputError(f"{path}: its images are JPEG files, which need Pillow: pip install pillow")
    parts: list[MapStyle] = []
    for part in ("train", "test"):
        data, offsets, y = _read(path, (f"jpeg_{part}", f"offset_{part}", f"y_{part}")).values()
        if y.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.shape != (len(y) + 1,):
            found = f"{offsets.dtype} {offsets.shape}"
            raise InputError(f"{path}: offset_{part}: {found} found, one integer more than y_{part} {y.shape} expected")
        parts.append(Pairs(_Jpegs(data, offsets, (32, 32)), torch.from_numpy(y).long(), _imagenet))
    return Data(parts[0], parts[1], "accuracy")


_BUILT_IN = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}


def _imagenet(x: Tensor) -> Tensor:
    mean = x.new_tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = x.new_tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    return (x - mean) / std


def _npz(path: Path, shape: tuple[int, ...] | None = None, transform: Callable[[Tensor], Tensor] | None = None) -> Data:
    """Arrays `x_train`, `y_train` and, if there is a test set, `x_test`, `y_test`; an item a row.

    uint8 inputs become float32 x/255, other floats float32, other integers (tokens) int64. Integer
    targets are classes (int64, metric accuracy where there is a test set), others float32.
    """
    arrays = _read(path, ("x_train", "y_train"), optional=("x_test", "y_test"))
    sets: dict[str, Pairs] = {}
    for part in ("train", "test") if "x_test" in arrays else ("train",):
        x, y = arrays[f"x_{part}"], arrays.get(f"y_{part}", np.empty(0))
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise InputError(f"{path}: x_{part} {x.shape} and y_{part} {y.shape} found, as many of both expected")
        if shape and x.shape[1:] != shape:
            raise InputError(f"{path}: x_{part}: items of shape {x.shape[1:]} found, {shape} expected")
        inputs = torch.from_numpy(x) if x.dtype == np.uint8 else _tensor(path, f"x_{part}", x)
        sets[part] = Pairs(inputs, _tensor(path, f"y_{part}", y), transform)
    classes = "test" in sets and arrays["y_test"].dtype.kind in "iu"
    return Data(sets["train"], sets.get("test"), "accuracy" if classes else None)


def _tensor(path: Path, name: str, array: Array) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name}: dtype {array.dtype} found, floats or integers expected")
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def _read(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Array]:
    """The named arrays of an npz file, never unpickling anything."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        archive = np.load(path, allow_pickle=False)
        keys = tuple(archive.files) if isinstance(archive, np.lib.npyio.NpzFile) else ()
        arrays = {name: archive[name] for name in (*names, *optional) if name in keys}
    except Exception as error:  # zipfile, zlib and numpy know a dozen kinds for a damaged file
        raise InputError(f"{path}: no readable npz archive: {' '.join(str(error).split())}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path}: {', '.join(keys) or 'no arrays'} found, {missing[0]} expected")
    return arrays


def _find(name: str, files: tuple[str, ...], data_dir: Folder) -> Path:
    """The first of `files` in `data_dir`, `$DEEPCOMP_DATA` or the cache; fetched into the cache at last."""
    variable = os.environ.get("DEEPCOMP_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcomp"
    for folder in (data_dir, variable, cache):
        for path in (Path(folder) / file for file in files) if folder else ():
            if path.is_file():
                return path
    try:
        return _fetch(name, files[0], cache)
    except Exception as error:  # scikit-learn's, the network's or the disk's: all end in the same line
        raise InputError(
            f"{name}: no {' or '.join(files)} in --data-dir ({data_dir or 'not given'}), "
            f"$DEEPCOMP_DATA ({variable or 'not set'}) or the cache ({cache}), "
            f"and fetch_openml could not fill the cache: {' '.join(str(error).split())[:200]}"
        ) from error


_OPENML = {"mnist": ("mnist_784", 60_000, (28, 28)), "cifar10": ("CIFAR_10", 50_000, (3, 32, 32))}


def _fetch(name: str, file: str, cache: Path) -> Path:
    """Download a data set once and keep it as `file`, in the layout `_npz` reads."""
    from sklearn.datasets import fetch_openml

    title, train, shape = _OPENML[name]
    cache.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=cache) as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a retry; a failure becomes one line
            # This parser is the one that needs no pandas.
            settings = {"as_frame": False, "parser": "liac-arff", "n_retries": 1, "delay": 0.1}
            images, labels = fetch_openml(title, version=1, data_home=scratch, return_X_y=True, **settings)
            x, y = images.astype(np.uint8).reshape(-1, *shape), labels.astype(np.uint8)
            parts = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
            np.savez_compressed(Path(scratch) / file, **parts)
            return (Path(scratch) / file).replace(cache / file)
    finally:
        socket.setdefaulttimeout(timeout)
