"""LeNet-300-100 and LeNet-5, trained: beside Tables 1 to 3 of Han et al. 2016, over several seeds.

Two recipes each: the paper's densities and bits, layer by layer, and the recipe for any network. A seed decides
the order of the training images; all runs start from the weights in checkpoints/.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import published
from draws import spread
from runs import CHECKPOINTS, run
from timing import check, data_folder, heading, show, table
from torch import Tensor

import deepcomp
from deepcomp import entropy
from deepcomp.model.datasets import load_data
from deepcomp.weights import Mask, Packed
from deepcomp.weights.exact import exact

__all__ = ["DENSITY", "RATIO", "Layer", "huffman_only", "layers", "lenet_5", "lenet_300_100"]

DENSITY = 0.05  # with the recipe for any network
RATIO = 45


def lenet_300_100(options: argparse.Namespace) -> None:
    """Table 2."""
    _network("lenet-300-100", published.LENET_300_100, options)


def lenet_5(options: argparse.Namespace) -> None:
    """Table 3."""
    _network("lenet-5", published.LENET_5, options)


def _network(name: str, paper: published.Network, options: argparse.Namespace) -> None:
    quick = [] if options.epochs is None else ["prune.retrain.epochs", "finetune.epochs"]
    settings = dict.fromkeys(quick, options.epochs)
    general = _runs(name, "deep-compression", {"prune.density": DENSITY, **settings}, options)
    own = _runs(name, f"deep-compression-{name}", settings, options)
    heading(f"{paper.title}, Table {paper.table} of the paper: what does not fit together there")
    print("\n".join(f"* {note}" for note in paper.notes))
    heading(f"{paper.title} at the densities and bits of the paper")
    _show_layers(own, paper)
    heading(f"{paper.title}, recipe for any network, {DENSITY:.0%} kept")
    _show_layers(general, paper)
    heading(f"{paper.title}, Table 1")
    _show_networks(paper, {"the paper's densities and bits": own, f"any network, {DENSITY:.0%} kept": general})
    check("any network: ratio, least", min(run.ratio for run in general), RATIO, at_most=False)
    check("ratio with Huffman alone, least", min(run.huffman_ratio for run in general), RATIO, at_most=False)
    check("test error, most", max(run.error for run in general), paper.error[0], unit=" %")


# --- what a file holds --------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A pruned layer of a file whose weights share values; sizes in bytes.

    Attributes
    ----------
    weights, kept : int
    value_width, gap_width : float
        Bits that an index of a shared value and the widest gap take in a fixed field.
    values, gaps, tables : int
        What the file spends on indices, on positions, and on the codebook.
    """

    weights: int
    kept: int
    value_width: float
    gap_width: float
    values: int
    gaps: int
    tables: int

    @property
    def bytes(self) -> int:
        return self.values + self.gaps + self.tables


@dataclass(frozen=True)
class Run:
    """What one seed came to: errors in percent, sizes in bytes."""

    layers: dict[str, Layer]
    error_before: float
    error: float
    original: int
    bytes: int
    huffman: int

    @property
    def ratio(self) -> float:
        return self.original / self.bytes

    @property
    def huffman_ratio(self) -> float:
        return self.original / self.huffman


def _runs(name: str, recipe: str, settings: dict[str, Any], options: argparse.Namespace) -> list[Run]:
    data = load_data("mnist", data_folder())
    found = []
    for seed in range(options.seeds):
        out = options.kept / f"{name}.{recipe}.{seed}.dcz"
        source = CHECKPOINTS / f"{name}.safetensors"
        report = run(out, source, recipe, data, settings=settings, seed=seed)
        before, after = (100 - report["metric"][when] for when in ("before", "after"))
        sizes = report["input_bytes"], report["output_bytes"], huffman_only(out, report)
        found.append(Run(layers(out, report), before, after, *sizes))
    return found


def layers(path: Path, report: dict[str, Any]) -> dict[str, Layer]:
    """The pruned layers of a file, by name."""
    found = {}
    with deepcomp.open(path) as file:
        for row in report["tensors"]:
            if "gaps" not in row["parts"]:
                continue
            weight, parts = file.get_tensor(row["name"]).numpy().reshape(-1), row["parts"]
            positions = np.flatnonzero(weight)
            found[row["name"].removesuffix(".weight")] = Layer(
                weights=weight.size,
                kept=len(positions),
                value_width=(len(np.unique(weight[positions])) - 1).bit_length(),
                gap_width=int((np.diff(positions, prepend=-1) - 1).max()).bit_length(),
                values=parts["index"],
                gaps=parts["gaps"],
                tables=parts["values"],
            )
    return found


def huffman_only(path: Path, report: dict[str, Any]) -> int:
    """Bytes the file would have if every stream were a Huffman code or fixed fields, as in the paper."""
    size = report["output_bytes"]
    with deepcomp.open(path) as file:
        for row in report["tensors"]:
            for symbols in _symbols(_packed(file.get_tensor(row["name"]), row["parts"])) if row["parts"] else ():
                now, *others = (len(entropy.encode(symbols, coder)) for coder in ("auto", "huffman", "fixed"))
                size += max(0, min(others) - now)
    return size


def _packed(tensor: Tensor, parts: dict[str, int]) -> Packed:
    """A tensor taken apart as it was for the file."""
    if "gaps" not in parts:
        return exact(tensor).pack()
    mask = Mask.nonzero(tensor)
    mask.inner = exact(mask.inner.dense())
    return mask.pack()


def _symbols(packed: Packed) -> Iterator[entropy.Symbols]:
    yield from packed.symbols.values()
    if packed.inner is not None:
        yield from _symbols(packed.inner)


# --- tables -------------------------------------------------------------------------------------


def _show_layers(runs: list[Run], paper: published.Network) -> None:
    """Print the layers, means over the seeds, beside the paper's rows."""
    print("Bits: a fixed field → as coded, per weight kept; in the paper per entry. Bytes and bits: means.\n")
    columns = ["layer", "weights", "kept", "paper", "value bits", "paper", "gap bits", "paper", "bytes", "paper"]
    named = {row.name.replace("ip", "fc"): row for row in paper.layers}
    rows = [[name, *_cells([run.layers[name] for run in runs], row)] for name, row in named.items()]
    rows.append(["total", *_cells([_total(list(run.layers.values())) for run in runs], paper.total)])
    table([*columns, "ratio", "paper"], rows)


def _total(found: list[Layer]) -> Layer:
    """All layers together; widths are means over the weights kept, as in the paper."""
    weights, kept, values, gaps, tables = (
        sum(getattr(layer, what) for layer in found) for what in ("weights", "kept", "values", "gaps", "tables")
    )
    value_width = sum(layer.value_width * layer.kept for layer in found) / kept
    gap_width = sum(layer.gap_width * layer.kept for layer in found) / kept
    return Layer(weights, kept, value_width, gap_width, values, gaps, tables)


def _cells(found: list[Layer], paper: published.Layer) -> list[str]:
    size = statistics.mean(layer.bytes for layer in found)
    return [
        f"{found[0].weights:,}",
        f"{statistics.mean(layer.kept / layer.weights for layer in found):.1%}",
        f"{paper.density} %",
        _bits(found, lambda layer: layer.value_width, lambda layer: layer.values),
        f"{paper.weight_bits[0]} → {paper.weight_bits[1]}",
        _bits(found, lambda layer: layer.gap_width, lambda layer: layer.gaps),
        f"{paper.index_bits[0]} → {paper.index_bits[1]}",
        f"{size:,.0f}",
        f"{paper.size[1] / 100 * 4 * found[0].weights:,.0f}",
        f"{4 * found[0].weights / size:.1f} ×",
        f"{100 / paper.size[1]:.1f} ×",
    ]


def _bits(found: list[Layer], width: Callable[[Layer], float], size: Callable[[Layer], int]) -> str:
    fixed, coded = statistics.mean(map(width, found)), statistics.mean(8 * size(layer) / layer.kept for layer in found)
    return f"{fixed:.3g} → {coded:.2f}"


def _show_networks(paper: published.Network, found: dict[str, list[Run]]) -> None:
    """Print whole files beside the paper's row."""
    print("Mean (least to most) over the seeds; bytes of the whole file, biases and operations included.\n")
    before, after = paper.error
    rows = [["the paper", f"{before:.2f} → {after:.2f} %", f"{1e6 * paper.size[1]:,.0f}", f"{paper.ratio} ×", "", ""]]
    for what, runs in found.items():
        cells = [
            f"{runs[0].error_before:.2f} → {spread([run.error for run in runs], '.2f')} %",
            spread([run.bytes for run in runs], ",.0f"),
            f"{spread([run.ratio for run in runs], '.1f')} ×",
            spread([run.huffman for run in runs], ",.0f"),
            f"{spread([run.huffman_ratio for run in runs], '.1f')} ×",
        ]
        rows.append([what, *cells])
    table(["", "test error", "bytes", "ratio", "bytes, Huffman alone", "ratio"], rows)
    print()
    show("seeds", len(next(iter(found.values()))))
