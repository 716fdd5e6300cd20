"""Data sets by name: where they are looked for, and how each becomes a `Data`."""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, MapStyle, Pairs
from deepcomp.model.text import encode, vocabulary, windows, words
from deepcomp.model.zoo import call_spec
from deepcomp.model.zoo.language import LENGTH, VOCABULARY

__all__ = ["load_data"]

Array: TypeAlias = np.ndarray[Any, Any]
Folder: TypeAlias = str | os.PathLike[str] | None
_TIMEOUT = 5.0  # seconds a download may stand still


class _Jpegs:
    """RGB images as uint8 tensors (…, 3, height, width), kept as JPEG bytes and decoded on access.

    Image i is the file `data[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, data: Array, offsets: Array, size: tuple[int, int]) -> None:
        self.data, self.offsets, self.size = data, offsets, size

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return self._decode(range(len(self))[index])
        return torch.stack([self._decode(i) for i in torch.arange(len(self))[index].tolist()])

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


def load_data(spec: str | Data, data_dir: Folder = None) -> Data:
    """The data a `--data` argument names.

    Parameters
    ----------
    spec : str or Data
        `digits` (comes with scikit-learn; x/16, 1×8×8), `mnist` (x/255, 1×28×28), `cifar10`
        (normalised as ImageNet is, 3×32×32), `wikitext2` (see `model.text`; 64 words an item, the
        next word at each place as target), `npz:FILE` (see `_npz`), `package.module:callable`
        returning a `Data`; or a `Data`, which is returned as it is.
    data_dir : path, optional
        Where `mnist`, `cifar10` and `wikitext2` are looked for first; then in `$DEEPCOMP_DATA`, then
        in a per-user cache, which scikit-learn's `fetch_openml` fills with the images.

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


def _wikitext2(data_dir: Folder) -> Data:
    """The validation text is what is trained on: the training text proper is ten times as long."""
    paths = [_find("wikitext2", (f"wikitext2-{part}.txt",), data_dir) for part in ("valid", "test")]
    train, test = (words(_text(path)) for path in paths)
    known = vocabulary(train, least=3)
    if len(known) != VOCABULARY:
        raise InputError(f"{paths[0]}: {len(known)} words occur three times or more, {VOCABULARY} expected")
    sets = [TensorDataset(*windows(encode(found, known), LENGTH)) for found in (train, test)]
    return Data(sets[0], sets[1], "perplexity")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable UTF-8 text: {error}") from error


_BUILT_IN = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "wikitext2": _wikitext2}


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
    missing = (
        f"{name}: no {' or '.join(files)} in --data-dir ({data_dir or 'not given'}), "
        f"$DEEPCOMP_DATA ({variable or 'not set'}) or the cache ({cache})"
    )
    if name not in _OPENML:
        raise InputError(missing)
    try:
        return _fetch(name, files[0], cache)
    except Exception as error:  # scikit-learn's, the network's or the disk's: all end in the same line
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{missing}, and fetch_openml could not fill the cache: {reason}") from error


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
