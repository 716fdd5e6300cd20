"""Figures after Han et al. 2016, drawn for the LeNets: accuracy of held-out training images, never of the test set."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from drawings import STYLE, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import CHECKPOINTS, run
from safetensors.torch import load_file
from timing import data_folder, heading, show, table
from torch import nn
from torch.utils.data import TensorDataset

from deepcomp.model import zoo
from deepcomp.model.data import Data
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import evaluate
from deepcomp.report.plot import save_sensitivity

__all__ = ["factored", "figure_5", "sensitivity", "starts"]

NAME = "lenet-300-100"
WEIGHTS = CHECKPOINTS / f"{NAME}.safetensors"
HELD = 5_000  # training images, the last ones
TOLERANCE = 0.5  # percentage points, of the sensitivity scans

EPOCHS = 4  # behind each point of figure 5
DENSITIES = (0.3, 0.2, 0.1, 0.05, 0.03, 0.02)
BITS = (6, 5, 4, 3, 2, 1)
RANKS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03)  # of the rank at which two factors are as large as the weight
VALUES = 32  # shared, where pruned weights share

RETRAINING, TUNING = 8, 2  # epochs behind pruning, and of the shared values at each start
KEPT = 0.08
STARTS = ("linear", "density", "forgy", "optimal")
WIDTHS = (2, 3, 4, 5, 6, 7, 8)

PRUNE = '[[step]]\ndo = "prune"\ndensity = {}\n'
SHARE = '[[step]]\ndo = "share"\nvalues = {}\nstart = "{}"\n'
TRAIN = '[[step]]\ndo = "finetune"\nepochs = {}\nrate = 0.02\nchoose = "last"\n'
# A shared value's gradient is a sum over its members, up to 100,000 here: no one rate of SGD suits all points.
TUNE = '[[step]]\ndo = "finetune"\nepochs = {}\noptimiser = "adam"\nrate = 0.001\nchoose = "last"\n'
SCAN = '[[step]]\ndo = "prune"\ntolerance = {}\n'

COLOURS = ("#4269d0", "#d97706", "#3b8f5a", "#c2385a")
MARKS = ("o", "s", "^", "D")

Network = Path | nn.Module
Point = tuple[float, float]


# --- figure 5 -----------------------------------------------------------------------------------


def figure_5(options: argparse.Namespace) -> None:
    """Accuracy against size: pruning, sharing, both, and truncated singular value decomposition."""
    epochs = EPOCHS if options.epochs is None else options.epochs
    heading(f"Figure 5: LeNet-300-100, {epochs} epochs a point, held-out training images")
    data, original = _held_out(), WEIGHTS.stat().st_size
    whole = evaluate(_weights(), data).value
    curves: dict[str, list[Point]] = {}
    rows = [["as trained", "", f"{original:,}", "100.00 %", f"{whole:.2f} %", ""]]
    for method, setting, network, recipe in _points(epochs):
        report = _run(options.kept, f"figure-5 {method} {setting}", network, recipe, data)
        share, change = 100 * report["output_bytes"] / original, report["metric"]["after"] - whole
        curves.setdefault(method, []).append((share, change))
        sizes = [f"{report['output_bytes']:,}", f"{share:.2f} %"]
        rows.append([method, setting, *sizes, f"{whole + change:.2f} %", f"{change:+.2f}"])
    table(["", "", "bytes", "of the original", "accuracy", "change"], rows)
    _draw_figure_5(curves, epochs, options.drawings / "figure-5.svg")


def _draw_figure_5(curves: dict[str, list[Point]], epochs: int, path: Path) -> None:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    _lines(axes, curves)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.set_xticks(ticks := [1, 2, 3, 5, 10, 20, 40], [f"{tick} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-5, 0.5)
    axes.set_xlabel("file, of the original size")
    axes.set_ylabel(f"change of accuracy, percentage points\n({HELD:,} held-out training images)")
    axes.set_title(f"LeNet-300-100, {epochs} epochs of training a point")
    axes.legend()
    _save(figure, path)


def _points(epochs: int) -> Iterator[tuple[str, str, Network, str]]:
    """Method, setting, and the network and recipe that make a point of it; all train for as many epochs."""
    train, tune = TRAIN.format(epochs), TUNE.format(epochs)
    for density in DENSITIES:
        yield "pruning", f"{density:.0%}", WEIGHTS, PRUNE.format(density) + train
    for bits in BITS:
        yield "sharing", f"{2**bits} values", WEIGHTS, SHARE.format(2**bits, "linear") + tune
    for density in DENSITIES:
        shared = TRAIN.format(epochs - 1) + SHARE.format(VALUES, "linear") + TUNE.format(1)
        yield "pruning and sharing", f"{density:.0%}, 5 bits", WEIGHTS, PRUNE.format(density) + shared
    for share in RANKS:
        network = factored(_weights(), share)
        yield "SVD", f"rank {network.fc1[0].out_features}, {network.fc2[0].out_features}", network, train


def factored(network: nn.Module, share: float) -> nn.Module:
    """LeNet-300-100 with products of two thin matrices for its large layers, by truncated SVD.

    Parameters
    ----------
    network : nn.Module
        Changed in place, and returned.
    share : float
        Of the rank at which the factors of a layer hold as many weights as the layer.
    """
    for name in ("fc1", "fc2"):
        layer = network.get_submodule(name)
        out, inputs = layer.weight.shape
        rank = max(1, round(share * out * inputs / (out + inputs)))
        left, scale, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        thin, back = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, out)
        root = scale[:rank].sqrt()
        thin.weight = nn.Parameter(root[:, None] * right[:rank])
        back.weight, back.bias = nn.Parameter(left[:, :rank] * root), layer.bias
        setattr(network, name, nn.Sequential(thin, back))
    return network


# --- the starts of sharing ----------------------------------------------------------------------


def starts(options: argparse.Namespace) -> None:
    """Accuracy against bits for each start of k-means, before and after the shared values are tuned."""
    before, tuning = (RETRAINING, TUNING) if options.epochs is None else (options.epochs, options.epochs)
    heading(f"Starts: LeNet-300-100, {KEPT:.0%} kept, tuned for {tuning} epochs, held-out training images")
    data = _held_out()
    pruned = _run(options.kept, "starts pruned", WEIGHTS, PRUNE.format(KEPT) + TRAIN.format(before), data)
    whole = pruned["metric"]["after"]
    show("before sharing", f"{whole:.2f} %")
    shared: dict[str, list[Point]] = {start: [] for start in STARTS}
    tuned: dict[str, list[Point]] = {start: [] for start in STARTS}
    for start in STARTS:
        for bits in WIDTHS:
            recipe, source = PRUNE.format(1.0) + SHARE.format(2**bits, start), Path(pruned["output"])
            one = _run(options.kept, f"starts {start} {bits} shared", source, recipe, data)
            two = _run(options.kept, f"starts {start} {bits} tuned", source, recipe + TUNE.format(tuning), data)
            shared[start].append((bits, one["metric"]["after"]))
            tuned[start].append((bits, two["metric"]["after"]))
    rows = [
        [start, *(f"{a:.2f} → {b:.2f}" for (_, a), (_, b) in zip(shared[start], tuned[start], strict=True))]
        for start in STARTS
    ]
    table(["accuracy, %", *(f"{bits} bits" for bits in WIDTHS)], rows)
    panels = {"values as clustered": shared, f"values tuned for {tuning} epochs": tuned}
    _draw_starts(panels, whole, options.drawings / "starts.svg")


def _draw_starts(panels: dict[str, dict[str, list[Point]]], whole: float, path: Path) -> None:
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        _lines(axes, curves)
        axes.axhline(whole, color="black", lw=0.8, ls=":", label="before sharing")
        axes.set_xticks(WIDTHS)
        axes.set_xlabel("bits of a shared value")
        axes.set_ylabel(f"accuracy, % ({HELD:,} held-out training images)")
        axes.set_title(f"LeNet-300-100, {KEPT:.0%} kept: {title}", fontsize=10)
        axes.legend(loc="lower right")
    _save(figure, path)


# --- sensitivity --------------------------------------------------------------------------------


def sensitivity(options: argparse.Namespace) -> None:
    """Accuracy with one layer pruned at a time, without training; rings where the tolerance ends."""
    data = _held_out()
    for name in ("lenet-300-100", "lenet-5"):
        heading(f"Sensitivity: {name}, 1,000 held-out training images")
        weights = CHECKPOINTS / f"{name}.safetensors"
        report = _run(options.kept, f"sensitivity {name}", weights, SCAN.format(TOLERANCE), data)
        found: dict[str, Any] = report["steps"][0]["sensitivity"]
        densities = [density for density, _ in next(iter(found.values()))["curve"]]
        rows = [
            [layer, *(f"{quality:.1f}" for _, quality in scan["curve"]), f"{scan['density']:g}"]
            for layer, scan in found.items()
        ]
        table(["accuracy, %", *(f"{density:g}" for density in densities), f"within {TOLERANCE}"], rows)
        with matplotlib.rc_context(STYLE):
            options.drawings.mkdir(parents=True, exist_ok=True)
            save_sensitivity(
                options.drawings / f"sensitivity-{name}.svg",
                {layer: scan["curve"] for layer, scan in found.items()},
                {layer: scan["density"] for layer, scan in found.items()},
                "accuracy, % (1,000 held-out training images)",
            )


# --- what they share ----------------------------------------------------------------------------


def _held_out() -> Data:
    """MNIST's training images, of which the last ones take the test set's place."""
    images, digits = load_data("mnist", data_folder()).train[:]
    held = TensorDataset(images[-HELD:], digits[-HELD:])
    return Data(TensorDataset(images[:-HELD], digits[:-HELD]), held, "accuracy", held)


def _weights() -> nn.Module:
    network = zoo.build(NAME)
    network.load_state_dict(load_file(WEIGHTS))
    return network


def _run(folder: Path, what: str, network: Network, recipe: str, data: Data) -> dict[str, Any]:
    """The report of a recipe, which is written down beside the file it makes."""
    out = folder / f"{what.replace(', ', '-').replace(' ', '-').replace('%', '')}.dcz"
    written = out.with_suffix(".toml")
    written.write_text(recipe)
    return run(out, network, written, data)


def _lines(axes: Axes, curves: dict[str, list[Point]]) -> None:
    for (name, points), colour, mark in zip(curves.items(), COLOURS, MARKS, strict=True):
        axes.plot(*zip(*points, strict=True), color=colour, marker=mark, ms=5, lw=1.4, label=name)
    axes.grid(alpha=0.3)


def _save(figure: Figure, path: Path) -> None:
    save(figure, path)
    show("drawn", path.name)
