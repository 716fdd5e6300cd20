"""AlexNet- and VGG-16-shaped networks at the densities and bits of Han et al. 2016, Tables 4 and 5; no training."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import han_layout
import numpy as np
import published
import shapes
import synthetic
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timing import check, heading, show, table
from torch import nn

import deepcomp
from deepcomp import entropy

__all__ = ["alexnet", "recipe", "vgg_16"]

_MB, _MIB = 1e6, 2**20

_CHILD = """
import json, sys, time, torch
from deepcomp.pipeline import compress
from pathlib import Path
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
source, out, recipe, jobs, model, *image = sys.argv[1:]
whole = {"model": model, "example_inputs": torch.zeros(2, *map(int, image))} if image else {}
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, not from the imports
before, start = memory("VmRSS"), time.perf_counter()
report = compress(source, out, recipe=recipe, jobs=int(jobs), force=True, **whole)
seconds = time.perf_counter() - start
print(json.dumps({**report.to_dict(), "seconds": seconds, "peak": memory("VmHWM") - before}))
"""


def alexnet(options: argparse.Namespace) -> None:
    """Table 4."""
    _network(published.ALEXNET, shapes.AlexNet, options.folder)


def vgg_16(options: argparse.Namespace) -> None:
    """Table 5."""
    _network(published.VGG_16, shapes.VGG16, options.folder)


def _network(paper: published.Network, module: type[nn.Module], folder: Path) -> None:
    with torch.device("meta"):
        like = module()
    (folder / "recipe.toml").write_text(recipe(paper))
    heading(f"{paper.title}, Table {paper.table} of the paper: what does not fit together there")
    print("\n".join(f"* {note}" for note in paper.notes))
    for kind in synthetic.KINDS:
        heading(f"{paper.title}-shaped, {kind} weights")
        save_file(dict(synthetic.weights(like, paper, kind)), folder / "dense.safetensors")
        report = _runs(module, folder)
        rows = list(_rows(paper, report, folder))
        _show(paper, rows, report)
        _judge(paper, kind, rows, report)


def recipe(paper: published.Network) -> str:
    """Deep compression without training, at the paper's densities and numbers of shared values."""
    density = ", ".join(f"{layer.name} = {layer.density / 100:g}" for layer in paper.layers)
    values = ", ".join(f"{layer.name} = {2 ** int(layer.weight_bits[0])}" for layer in paper.layers)
    prune = f'[[step]]\ndo = "prune"\ndensity = {{ {density} }}\n'
    return f'{prune}\n[[step]]\ndo = "share"\nvalues = {{ {values} }}\nstart = "linear"\n'


# --- time and memory ----------------------------------------------------------------------------


def _runs(module: type[nn.Module], folder: Path) -> dict[str, Any]:
    """Compress in fresh processes and print what each took; the report of the weights alone."""
    whole = _fresh(folder, 1, f"shapes:{module.__name__}", *map(str, module.image))
    _runs_alone(module, folder)
    two, one = _fresh(folder, 2), _fresh(folder, 1)
    if one["sha256"] != two["sha256"]:
        raise SystemExit("two jobs make another file than one")
    runs = {"weights alone, 1 job": one, "weights alone, 2 jobs": two, "whole module, 1 job": whole}
    columns = ["", "prune", "share", "read, encode, write", "in all", "peak memory", "bytes"]
    table(columns, [[what, *_took(run), f"{run['output_bytes']:,}"] for what, run in runs.items()])
    print(f"\nPeak memory beyond what the imports take; float32 has {one['input_bytes'] / _MB:.1f} MB.\n")
    return one


def _runs_alone(module: type[nn.Module], folder: Path) -> None:
    """Make sure that the file runs without the module's code, and computes what the module does."""
    with torch.device("meta"):
        like = module()
    like.load_state_dict(deepcomp.load_state_dict(folder / "network.dcz"), assign=True)
    image = torch.rand(1, *module.image, generator=torch.Generator().manual_seed(synthetic.SEED))
    with torch.no_grad():
        torch.testing.assert_close(deepcomp.load(folder / "network.dcz")(image), like(image))


def _fresh(folder: Path, jobs: int, model: str = "", *image: str) -> dict[str, Any]:
    """The report of one run, with its seconds and peak memory beyond what the imports take, in bytes."""
    paths = [str(folder / name) for name in ("dense.safetensors", "network.dcz", "recipe.toml")]
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, *paths, str(jobs), model, *image],
        cwd=Path(__file__).parent,  # where the module is found
        check=True,
        stdout=subprocess.PIPE,
    )
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def _took(run: dict[str, Any]) -> list[str]:
    steps = [step["seconds"] for step in run["steps"]]
    seconds = [*steps, run["seconds"] - sum(steps), run["seconds"]]
    return [*(f"{value:.1f} s" for value in seconds), f"{run['peak'] / _MB:.0f} MB"]


# --- sizes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A layer of the file; sizes in bytes.

    Attributes
    ----------
    paper : published.Layer
    weights, kept : int
    gap_width : int
        Bits that the widest gap takes.
    values, gaps, tables : int
        What the file spends on indices of shared values, on positions, and on the codebook.
    least : float
        Order-0 entropy of indices and gaps, and the codebook.
    han : han_layout.Coded
        The same weights in the layout of the paper.
    """

    paper: published.Layer
    weights: int
    kept: int
    gap_width: int
    values: int
    gaps: int
    tables: int
    least: float
    han: han_layout.Coded

    @property
    def bytes(self) -> int:
        return self.values + self.gaps + self.tables

    @property
    def published(self) -> float:
        """Bytes that the paper reports."""
        return self.paper.size[1] / 100 * 4 * self.weights

    @property
    def published_values(self) -> float:
        """Of these, what is not spent on positions."""
        values, gaps = self.paper.weight_bits[1], self.paper.index_bits[1]
        return self.published * values / (values + gaps)


def _rows(paper: published.Network, report: dict[str, Any], folder: Path) -> Iterator[Row]:
    """What the file holds of each layer, found in the file itself."""
    parts = {tensor["name"]: tensor["parts"] for tensor in report["tensors"]}
    with (
        deepcomp.open(folder / "network.dcz") as file,
        safe_open(folder / "dense.safetensors", framework="np") as dense,
    ):
        for layer in paper.layers:
            name = f"{layer.name}.weight"
            weight, original = file.get_tensor(name).numpy(), dense.get_tensor(name)
            _same_survivors(layer, weight, original)
            positions = np.flatnonzero(weight)
            gaps = (np.diff(positions, prepend=-1) - 1).astype(np.uint32)
            index = np.unique_inverse(weight.reshape(-1)[positions]).inverse_indices.astype(np.uint32)
            yield Row(
                paper=layer,
                weights=weight.size,
                kept=len(positions),
                gap_width=int(gaps.max()).bit_length(),
                values=parts[name]["index"],
                gaps=parts[name]["gaps"],
                tables=parts[name]["values"],
                least=(entropy.cost(index) + entropy.cost(gaps)) / 8 + parts[name]["values"],
                han=han_layout.encode(weight, paper.gap_bits).huffman(),
            )


def _same_survivors(layer: published.Layer, weight: np.ndarray, original: np.ndarray) -> None:
    """Make sure that the file holds what the recipe asks for."""
    kept = weight != 0
    count, values = round(layer.density / 100 * weight.size), len(np.unique(weight[kept]))
    smallest, largest = np.abs(original[kept]).min(), np.abs(original[~kept]).max()
    if kept.sum() != count or smallest < largest or values > 2 ** layer.weight_bits[0]:
        raise SystemExit(f"{layer.name}: {kept.sum()} weights kept of {count}, {values} values")


def _show(paper: published.Network, rows: list[Row], report: dict[str, Any]) -> None:
    """Print what the file spends on each layer, beside the paper's rows and Han's layout of the same weights."""
    print("Bits: a fixed field → as coded; per weight kept, in the paper and in Han's layout per entry.\n")
    columns = ["layer", "weights", "kept", "value bits", "paper", "gap bits", "paper", "bytes", "paper", "ratio"]
    columns += ["paper", "Han's layout", "entries", "value bits", "gap bits"]
    table(columns, [_cells(row) for row in rows])
    layers, size = sum(row.bytes for row in rows), report["output_bytes"]
    biases = sum(tensor["bytes"] for tensor in report["tensors"]) - layers
    kept, count = (sum(getattr(row, what) for row in rows) for what in ("kept", "weights"))
    print()
    show("kept", f"{kept:,} of {count:,} weights, {kept / count:.1%}; the paper: {paper.total.density:g} %")
    show("layers, biases, frame", f"{layers:,} + {biases:,} + {size - layers - biases:,} bytes")
    show("file", f"{size / _MB:.2f} MB = {size / _MIB:.2f} MiB, {report['ratio']:.1f} ×")
    show("the paper", f"{paper.size[1]} MB, {paper.ratio} ×; its rows add up to {_published(rows) / _MB:.2f} MB")
    show("Han's layout of these weights", f"{sum(row.han.bytes for row in rows) / _MB:.2f} MB")
    values, theirs = sum(row.values for row in rows), sum(row.published_values for row in rows)
    gaps = sum(row.gaps for row in rows)
    show("values", f"{values / _MB:.2f} MB; the paper's rows {theirs / _MB:.2f} MB, fillers among them")
    show("positions", f"{gaps / _MB:.2f} MB; the paper's rows {(_published(rows) - theirs) / _MB:.2f} MB")
    least = sum(map(_least_positions, rows)) / _MB
    both = least + sum(row.kept * row.paper.weight_bits[1] for row in rows) / 8 / _MB
    show("least for independent positions", f"{least:.2f} MB; with the paper's bits of values {both:.2f} MB")


def _cells(row: Row) -> list[str]:
    layer = row.paper
    return [
        layer.name,
        f"{row.weights:,}",
        f"{row.kept / row.weights:.0%}",
        f"{layer.weight_bits[0]} → {8 * row.values / row.kept:.2f}",
        f"{layer.weight_bits[0]} → {layer.weight_bits[1]}",
        f"{row.gap_width} → {8 * row.gaps / row.kept:.2f}",
        f"{layer.index_bits[0]} → {layer.index_bits[1]}",
        f"{row.bytes:,}",
        f"{row.published:,.0f}",
        f"{4 * row.weights / row.bytes:.1f} ×",
        f"{100 / layer.size[1]:.1f} ×",
        f"{row.han.bytes:,}",
        f"{row.han.entries / row.weights:.1%}",
        f"{row.han.codes / row.han.entries:.2f}",
        f"{row.han.gaps / row.han.entries:.2f}",
    ]


def _published(rows: list[Row]) -> float:
    return sum(row.published for row in rows)


def _least_positions(row: Row) -> float:
    """Bytes below which no coder gets positions that are independent of each other (Shannon 1948)."""
    share = row.kept / row.weights
    return -row.weights / 8 * (share * math.log2(share) + (1 - share) * math.log2(1 - share))


def _judge(paper: published.Network, kind: str, rows: list[Row], report: dict[str, Any]) -> None:
    layers, han = sum(row.bytes for row in rows), sum(row.han.bytes for row in rows)
    print()
    check("bytes / Han's layout of these weights", layers / han, 1)
    check("bytes / (entropy + codebooks)", layers / sum(row.least for row in rows), 1.02)
    if kind == "published":
        check("Han's layout of these weights / paper's rows", han / _published(rows), 1, at_most=False)
        check("bytes / paper's rows", layers / _published(rows), 1)
        check("file", report["output_bytes"] / _MB, paper.size[1], unit=" MB")
    else:
        print("Not held against the paper: its positions are not independent, and its values are used less evenly.")
