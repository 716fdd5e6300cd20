"""Bytes of deepcomp beside its peers: `python benchmarks/size.py [--lossless]`, as Markdown tables.

Accuracies are deepcomp's own measurements, of the weights each program gives back, on the test set; a search
sees held-out training items instead. NNCodec is left out where it is not installed, networks and data
where they are not there, each with a line that says so.
"""

from __future__ import annotations

import argparse
import lzma
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from peers import installed, load_nncodec, nncodec, zipnn_bytes
from safetensors.torch import load_file, save
from timing import check, data_folder, finish, heading, machine, table
from torch import Tensor
from torch.utils.data import Subset

import deepcomp
from deepcomp import entropy
from deepcomp.errors import BudgetError, InputError
from deepcomp.model import zoo
from deepcomp.model.data import Data
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate
from deepcomp.steps.prune import largest

SEED = 0
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
MAX_DROP = 0.5  # percentage points
HELD_OUT = 5_000  # training items that a search is judged by; a tenth, where that is less
OVERHEAD = {"lenet-300-100": 600, "lenet-5": 350}  # bytes
ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Network:
    """A network to compress: its name in the zoo, weights, test data, and settings of NNCodec to show."""

    title: str
    name: str
    tensors: dict[str, Tensor]
    data: str
    nncodec: tuple[dict[str, Any], ...]


def _lenet(*scales: float) -> tuple[dict[str, Any], ...]:
    return tuple({"qp": -18, "nonweight_qp": -24, "lambda_scale": scale} for scale in scales)


# Where NNCodec did best on networks of these shapes that were trained elsewhere, and milder points.
_NNCODEC = {
    "lenet-300-100": (*_lenet(1.7, 1.0, 0.0),),
    "lenet-5": (*_lenet(1.15, 0.0), {"qp": -22, "nonweight_qp": -24}),
    "resnet20": tuple({"qp": qp, "nonweight_qp": -40, "bnf": True} for qp in (-38, -30, -24)),
}


def networks() -> Iterator[Network]:
    """The networks whose files are there."""
    folder = data_folder()
    for title, name, path, data in (
        ("LeNet-300-100", "lenet-300-100", CHECKPOINTS / "lenet-300-100.safetensors", "mnist"),
        ("LeNet-5", "lenet-5", CHECKPOINTS / "lenet-5.safetensors", "mnist"),
        ("ResNet-20", "resnet20", folder / "resnet20-cifar10.safetensors", "cifar10"),
    ):
        if path.is_file():
            yield Network(title, name, load_file(path), data, _NNCODEC[name])
        else:
            print(f"{title} left out: no {path}")


def pruned(tensors: dict[str, Tensor], density: float = 0.08) -> dict[str, Tensor]:
    """One-shot magnitude pruning of every weight of two or more dimensions, without retraining."""
    return {
        name: torch.where(largest(tensor, density), tensor, 0) if tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }


# --- lossless -----------------------------------------------------------------------------------


def lossless(found: list[Network], folder: Path) -> None:
    """Files that give every bit back."""
    heading("Lossless, bytes")
    cases = []
    for network in found:
        cases.append((f"{network.title}, fp32", network, network.tensors))
        if network.data == "mnist":
            cases.append((f"{network.title}, fp32, pruned to 8 %", network, pruned(network.tensors)))
        else:
            for narrow, short in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
                rounded = {n: t.to(narrow) if t.is_floating_point() else t for n, t in network.tensors.items()}
                cases.append((f"{network.title}, {short}", network, rounded))
    rows, shares, beside = [], {}, installed("zipnn")
    for title, network, tensors in cases:
        raw = save(tensors)
        kind = max(tensors.values(), key=Tensor.numel).dtype
        zipnn = zipnn_bytes(raw, str(kind).removeprefix("torch.")) if beside else 0
        ours = deepcomp.compress(tensors, folder / "lossless.dcz", force=True).output_bytes
        runs = deepcomp.compress(tensors, folder / "lossless.dcz", model=network.name, force=True).output_bytes
        back = deepcomp.load_state_dict(folder / "lossless.dcz")
        if not all(torch.equal(back[name], tensor) for name, tensor in tensors.items()):
            raise SystemExit(f"{title}: not what it was")
        zstd = len(zstandard.ZstdCompressor(level=19).compress(raw))
        xz = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
        sizes = (len(raw), zstd, xz, zipnn, ours, runs)
        rows.append([title, *(f"{size:,}" if size else "" for size in sizes), f"{len(raw) / ours:.3f} ×"])
        if beside:
            shares[title] = ours / zipnn
    table(
        ["Network", "safetensors", "zstd -19", "xz -9e", "ZipNN", "deepcomp", "deepcomp, runnable", "ratio"],
        rows,
    )
    print(
        "\ndeepcomp: weights alone, as its neighbours; runnable: with the operations. Ratio: safetensors / deepcomp.\n"
    )
    for title, share in shares.items():
        check(f"{title}: deepcomp / ZipNN", share, 1)


def few_values(folder: Path) -> None:
    """Tensors with few distinct values, which a codebook stores."""
    heading(f"Lossless, {ELEMENTS:,} float32 weights of few distinct values")
    random = np.random.default_rng(SEED)
    rows, shares = [], {}
    for count in (2, 16, 256, 4096, 1 << 16):
        values = random.standard_normal(count).astype(np.float32)
        index = np.clip(np.rint(count / 2 + count / 8 * random.standard_normal(ELEMENTS)), 0, count - 1).astype(
            np.uint32
        )
        used = len(np.unique(index))
        weights = torch.from_numpy(values[index]).reshape(-1, 1000)
        deepcomp.compress({"weight": weights}, folder / "few.dcz", force=True)
        if not torch.equal(deepcomp.load_state_dict(folder / "few.dcz")["weight"], weights):
            raise SystemExit(f"{count} values: not what they were")
        (tensor,) = deepcomp.inspect(folder / "few.dcz")["tensors"]
        bits, codebook = entropy.cost(index), 4 * used
        shares[used] = tensor["bytes"] / (bits / 8 + codebook)
        rows.append([f"{used:,}", f"{bits / ELEMENTS:.3f}", f"{codebook:,}", f"{tensor['bytes']:,}", tensor["form"]])
    table(["Distinct values", "entropy, bits a weight", "table, bytes", "deepcomp, bytes", "form"], rows)
    print()
    for used, share in shares.items():
        check(f"{used:,} values: bytes / (entropy + table)", share, 1.02)


# --- lossy --------------------------------------------------------------------------------------

_OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform, quantize.bits 8": ("uniform", {"quantize.bits": 8}),
    "uniform, quantize.bits 4": ("uniform", {"quantize.bits": 4}),
    "deep-compression, one-shot": ("deep-compression", {}),
}
_SEARCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("uniform", {}),
    # The search needs data, and given data the recipe would train: for hours, on ResNet-20.
    "deep-compression, one-shot": (
        "deep-compression",
        {"prune.per": "layer", "prune.rounds": 1, "prune.retrain.epochs": 0, "finetune.epochs": 0},
    ),
}


def lossy(network: Network, folder: Path, coder: Any | None) -> None:
    """Smaller files of weights that are near to the original ones."""
    heading(f"Lossy: {network.title}")
    try:
        data = load_data(network.data, data_folder())
    except InputError as error:
        print(f"left out: {error}")
        return
    dense = _accuracy(network.name, network.tensors, data)
    size = len(save(network.tensors))
    rows = [["fp32 safetensors", f"{size:,}", "1 ×", f"{dense:.2f} %", ""]]

    def add(label: str, bytes_: int, accuracy: float) -> None:
        rows.append([label, f"{bytes_:,}", f"{size / bytes_:.1f} ×", f"{accuracy:.2f} %", f"{dense - accuracy:+.2f}"])

    out = folder / "lossy.dcz"
    for title, (recipe, settings) in _OURS.items():
        report = deepcomp.compress(
            network.tensors, out, model=network.name, recipe=recipe, settings=settings, force=True
        )
        add(f"deepcomp {title}", report.output_bytes, evaluate(deepcomp.load(out), data).value)
    validation = _validation(data)
    for title, (recipe, settings) in _SEARCHED.items():
        searched = f"deepcomp {title}, max_drop {MAX_DROP}"
        try:
            report = deepcomp.compress(
                network.tensors,
                out,
                model=network.name,
                recipe=recipe,
                data=validation,
                settings=settings,
                max_drop=MAX_DROP,
                force=True,
            )
        except BudgetError as missed:
            print(f"{searched}: {missed}\n")
            continue
        (point,) = (point for point in report.points if point["bytes"] == report.output_bytes)
        label = f"{searched}: {point['setting']} {point['value']}"
        print(f"{label}, where its drop on held-out training items is {point['drop']:+.2f}\n")
        add(label, report.output_bytes, evaluate(deepcomp.load(out), data).value)
    for settings in network.nncodec if coder is not None else ():
        bytes_, found = nncodec(coder, network.tensors, **settings)
        tensors = {name: torch.from_numpy(weight) for name, weight in found.items()}
        label = ", ".join(["NNCodec DQ", *(f"{_NAMES.get(k, k)} {v}" for k, v in settings.items())])
        add(label, bytes_, _accuracy(network.name, tensors, data))
    table([network.title, "bytes", "ratio", "accuracy", "drop"], rows)


def _validation(data: Data) -> Data:
    """Data that holds the last training items out as its test set, for searches: the real one stays unseen."""
    items = len(data.train)
    kept = items - min(HELD_OUT, items // 10)
    return Data(Subset(data.train, range(kept)), Subset(data.train, range(kept, items)), data.metric)


_NAMES = {"nonweight_qp": "nw", "lambda_scale": "λ", "bnf": "BN folding"}


def _accuracy(name: str, tensors: dict[str, Tensor], data: Data) -> float:
    module = zoo.build(name)
    module.load_state_dict(tensors)
    return evaluate(module, data).value


def overhead(found: list[Network], folder: Path) -> None:
    """What a file takes beyond payload and codebooks, the operations included."""
    heading("Overhead, runnable, bytes")
    for network in found:
        for recipe in ("lossless", "uniform", "deep-compression") if network.name in OVERHEAD else ():
            deepcomp.compress(network.tensors, folder / "over.dcz", model=network.name, recipe=recipe, force=True)
            frame = deepcomp.inspect(folder / "over.dcz")["frame"]
            print(", ".join(f"{part} {size}" for part, size in frame.items()))
            check(f"{network.title}, {recipe}: frame", sum(frame.values()), OVERHEAD[network.name], unit=" bytes")


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Bytes of deepcomp beside its peers, as Markdown tables.")
    parser.add_argument("--lossless", action="store_true", help="leave out what needs data and minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)  # accuracies: on a busy machine several threads take many times as long
    machine()
    coder = load_nncodec()
    found = list(networks())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lossless(found, folder)
        few_values(folder)
        overhead(found, folder)
        for network in found if not options.lossless else ():
            lossy(network, folder, coder)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
