"""Is a file whole, and how far are its weights from the originals?"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deepcomp.entry import CONSTANT
from deepcomp.errors import FormatError
from deepcomp.loader import File

__all__ = ["verify"]


def verify(
    path: str | os.PathLike[str], *, against: Mapping[str, Tensor] | None = None, max_bytes: int | None = None
) -> dict[str, Any]:
    """Check every byte of a file, decode every tensor, and compare with the originals if given.

    Parameters
    ----------
    path : path-like
    against : mapping of str to Tensor, optional
        The original tensors.
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
        If the file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    with File(path, max_bytes) as file:
        file.reader.check()
        file.metadata  # noqa: B018 (raises where it is no JSON object)
        # the operations fit together and name tensors that are there
        file.module((name, torch.empty(0, device="meta")) for name in file.entries)
        names = set(file.keys())
        if against is not None and names != set(against):
            odd = sorted(names ^ set(against))
            where = "the original" if odd[0] in names else path
            raise FormatError(f"{path}: {odd[0]!r} is missing in {where} ({len(odd)} names differ)")
        for name, entry in file.entries.items():
            if against is None and entry.source is not None:  # what it refers to is decoded under its own name
                rows.append({"name": name})
                continue
            tensor = file.get_tensor(name)
            if entry.role != CONSTANT:
                rows.append({"name": name, **({} if against is None else _error(path, name, tensor, against[name]))})
        return {"file": os.fspath(path), "bytes": file.reader.size, "tensors": rows}


def _error(path: str | os.PathLike[str], name: str, found: Tensor, original: Tensor) -> dict[str, Any]:
    if (found.dtype, found.shape) != (original.dtype, original.shape):
        expected = f"{original.dtype} {tuple(original.shape)} expected"
        raise FormatError(f"{path}: {name}: {found.dtype} {tuple(found.shape)} found, {expected}")
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
