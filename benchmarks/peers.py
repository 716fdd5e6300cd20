"""The programs measured beside deepcomp that need more than a call: ZipNN and NNCodec."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["Zipnn", "installed", "load_nncodec", "nncodec", "zipnn_bytes"]

_LENGTH = 8  # bytes


def installed(package: str) -> bool:
    """Whether a package is there; if not, say what is left out."""
    if importlib.util.find_spec(package) is not None:
        return True
    print(f"\n{package} is not installed and left out; benchmarks/README.md says how to install it")
    return False


class Zipnn:
    """ZipNN between tensors in memory and one file on disk, synced, as `deepcomp.compress` leaves its own.

    Parameters
    ----------
    threads : int
        0: ZipNN's default, all cores.
    each : bool
        Whether tensors are compressed one by one (`input_format="torch"`, which copies nothing), or
        together as the bytes of a safetensors file.
    dtype : str
        Of the tensors, for the second.
    """

    def __init__(self, threads: int, each: bool, dtype: str) -> None:
        from zipnn import ZipNN

        self._coder = ZipNN(input_format="torch" if each else "byte", bytearray_dtype=dtype, threads=threads)
        self._each = each

    def write(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Compress; the contents of the tensors are destroyed, as ZipNN turns their bits in place."""
        pieces = tensors.values() if self._each else (bytearray(save(tensors)),)
        with open(path, "wb") as file:
            for piece in pieces:
                packed = self._coder.compress(piece)
                file.write(len(packed).to_bytes(_LENGTH, "little") + packed)
            file.flush()
            os.fsync(file.fileno())

    def read(self, path: Path, names: Iterable[str]) -> dict[str, Tensor]:
        """Decompress; `names` are those of the tensors written."""
        pieces = []
        with open(path, "rb") as file:
            while head := file.read(_LENGTH):
                pieces.append(self._coder.decompress(file.read(int.from_bytes(head, "little"))))
        return dict(zip(names, pieces, strict=True)) if self._each else load(bytes(pieces[0]))


def zipnn_bytes(data: bytes, dtype: str) -> int:
    """What ZipNN makes of the bytes of a file."""
    from zipnn import ZipNN

    return len(ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1).compress(bytearray(data)))


def load_nncodec() -> Any | None:
    """NNCodec's coder, or None where it is not installed.

    Its package also imports TensorFlow and data sets, which arrays of weights do not need: empty
    modules stand for them.
    """
    if not installed("nncodec"):
        return None
    framework = types.ModuleType("nncodec.framework")
    for part in ("tensorflow_model", "pytorch_model", "use_case_init"):
        setattr(framework, part, types.ModuleType(part))
    sys.modules.setdefault(framework.__name__, framework)
    return importlib.import_module("nncodec.nnc")


def nncodec(coder: Any, tensors: dict[str, Tensor], **settings: Any) -> tuple[int, dict[str, np.ndarray]]:
    """Bytes of the stream NNCodec writes with dependent quantisation, and the weights it gives back.

    Parameters
    ----------
    coder : module
        What `load_nncodec` returned.
    settings : dict
        Of `nncodec.nnc.compress`; with `bnf=True` batch normalisation is folded into scale and bias.
    """
    weights = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.is_floating_point()}
    folded = settings.get("bnf", False)
    blocks = _blocks(weights) if folded else None
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        stream = coder.compress(
            dict(weights),
            bitstream_path=None,
            return_bitstream=True,
            use_dq=True,
            row_skipping=True,
            block_id_and_param_type=blocks,
            **settings,
        )
        found = coder.decompress(stream, block_id_and_param_type=blocks, reconstruct_bnf=folded, reconstruct_lsa=folded)
    return len(stream), _unfolded(found, weights) if folded else found


_BN = {"weight": "bn.gamma", "bias": "bn.beta", "running_mean": "bn.mean", "running_var": "bn.var"}


def _blocks(weights: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """Which tensors make a layer, of networks whose bnX follows convX."""
    kinds, layers = {}, {}
    for name, weight in weights.items():
        layer, _, last = name.rpartition(".")
        normal = layer.rpartition(".")[2].startswith("bn")
        kinds[name] = "weight" if weight.ndim > 1 else _BN[last] if normal else "bias"
        layers[name] = layer.replace("bn", "conv")
    return {"parameter_type": kinds, "block_identifier": layers}


def _unfolded(found: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batch normalisation that only adds what NNCodec returns as the bias of the convolution."""
    for name, weight in weights.items():
        layer, _, last = name.rpartition(".")
        if name not in found:
            bias = found[layer.replace("bn", "conv") + ".weight.bias"] if last == "bias" else None
            found[name] = np.full_like(weight, last in ("weight", "running_var")) if bias is None else bias
    return {name: found[name] for name in weights}
