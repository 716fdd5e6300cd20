"""Is a file whole, and how far are its weights from the originals?"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcomp.errors import FormatError, InputError
from deepcomp.loader import File, load_state_dict
from deepcomp.model import sources

__all__ = ["verify"]


def verify(
    path: str | os.PathLike[str],
    *,
    against: Mapping[str, Tensor] | str | os.PathLike[str] | None = None,
    max_bytes: int | None = None,
) -> dict[str, Any]:
    """Check every byte of a file, decode every tensor, and compare with the originals if given.

    Parameters
    ----------
    path : path-like
    against : mapping of str to Tensor, or path-like, optional
        The original tensors, or a file or folder of them.
    max_bytes : int, optional
        See `loader.File`.

    Returns
    -------
    dict
        `file`, `bytes`, `tensors`: rows of `name`, and with `against` `identical`, `largest` (the
        largest absolute error), `rms` (root of the mean squared error) and `snr` (dB, None where
        infinite).

    Raises
    ------
    FormatError
        If anything about the file is wrong, or its tensors are not the originals' by name, shape
        and type.
    InputError
        If the file, or that of the originals, cannot be read.
    """
    if isinstance(against, (str, os.PathLike)):
        against = _originals(Path(against), max_bytes)
    with File(path, max_bytes) as file:
        file.reader.check()
        file.metadata  # noqa: B018 (raises where it is no JSON object)
        # the operations fit together and name tensors that are there
        file.module((name, torch.empty(0, device="meta")) for name in file.entries)
        names = set(file.keys())
        if against is not None and names != set(against):
            odd = sorted(names ^ set(against))
            where = "the original" if odd[0] in names else path
            raise FormatError(f"{path}: {odd[0][:200]!r} is missing in {where} ({len(odd)} names differ)")
        named: dict[str, list[str]] = {}  # each tensor that is decoded, and the names it stands under
        for name, entry in file.entries.items():
            named.setdefault(name if entry.source is None else file.names[entry.source], []).append(name)
        errors: dict[str, dict[str, Any]] = {}
        for first, like in named.items():
            tensor = file.get_tensor(first)
            if against is not None:
                errors |= {name: _error(path, name, tensor, against[name]) for name in like if name in names}
        rows = [{"name": name, **errors.get(name, {})} for name in file.entries if name in names]
        return {"file": os.fspath(path), "bytes": file.reader.size, "tensors": rows}


def _originals(path: Path, max_bytes: int | None) -> Mapping[str, Tensor]:
    if path.suffix != ".dcz":
        return sources.from_path(path).tensors
    try:
        return load_state_dict(path, max_bytes=max_bytes)
    except FormatError as error:  # which says nothing against the file that is verified
        raise InputError(str(error)) from None


def _error(path: str | os.PathLike[str], name: str, found: Tensor, original: Tensor) -> dict[str, Any]:
    if (found.dtype, found.shape) != (original.dtype, original.shape):
        expected = f"{original.dtype} {tuple(original.shape)} expected"
        raise FormatError(f"{path}: {name[:200]!r}: {found.dtype} {tuple(found.shape)} found, {expected}")
    same = bool(_bytes(found).equal(_bytes(original)))
    row: dict[str, Any] = {"identical": same, "largest": 0.0, "rms": 0.0, "snr": None}
    if same or not found.numel():
        return row
    wide = torch.complex128 if found.is_complex() else torch.float64
    error = (found.to(wide) - original.to(wide)).abs()
    power, noise = original.to(wide).abs().square().mean().item(), error.square().mean().item()
    row.update(largest=error.max().item(), rms=math.sqrt(noise))
    row["snr"] = 10 * math.log10(power / noise) if noise > 0 and power > 0 else None
    return row


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
