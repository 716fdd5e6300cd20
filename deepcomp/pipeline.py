"""Read → steps → file: what `compress` does, on one screen."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from deepcomp import loader
from deepcomp.budget import Budget, search
from deepcomp.container import Writer
from deepcomp.container.writer import check_target
from deepcomp.errors import BudgetError, CaptureError, InputError, UsageError, blaming
from deepcomp.job import Job, Progress, called, one_thread
from deepcomp.model.data import Data, Inputs
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import Score, drop, evaluate, output_change
from deepcomp.network import Network
from deepcomp.opening import Given
from deepcomp.recipe import Recipe
from deepcomp.report.inspection import inspect
from deepcomp.serializer import write
from deepcomp.sizes import parse_size
from deepcomp.training import Checkpoints
from deepcomp.version import __version__

__all__ = ["Progress", "Report", "compress", "one_thread"]

_ANY = 1 << 62  # what was just written may unfold to any size


@dataclass
class Report:
    """What `compress` did.

    Attributes
    ----------
    input, output : str
        Where the weights came from and went to.
    input_bytes, output_bytes, ratio
        Bytes of the input (on disk, or of the tensors), of the file, and their quotient.
    recipe, seed, version, sha256
        What made the file, and its SHA-256 in hexadecimal.
    steps : list of dict
        `do`, `seconds`, and what the step reports.
    metric : dict or None
        `name`, `before`, `after` and `drop` (how much worse, in the metric's unit); None without data.
        `after` and `drop` are None where the result cannot be measured.
    tensors : list of dict
        See `report.inspection.inspect`.
    warnings : list of str
    points : list of dict
        With a budget: every run of the search, its dial's value, bytes and quality.
    """

    input: str
    output: str
    input_bytes: int
    output_bytes: int
    ratio: float
    recipe: str
    seed: int
    version: str
    sha256: str
    steps: list[dict[str, Any]]
    metric: dict[str, Any] | None
    tensors: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def compress(
    network: Given,
    out: str | os.PathLike[str],
    /,
    *,
    recipe: str | os.PathLike[str] = "lossless",
    model: str | None = None,
    example_inputs: Inputs | None = None,
    data: str | Data | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    max_size: int | str | None = None,
    max_drop: float | None = None,
    pareto: str | os.PathLike[str] | None = None,
    seed: int = 0,
    jobs: int = 1,
    max_bytes: int | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compress a network into one `.dcz` file.

    Parameters
    ----------
    network : nn.Module, dict of tensors, or path
        A path is a `.safetensors` file or folder, a `.pt`/`.pth` state dict or a `.dcz` file.
    out : path-like
        The file to make. It appears whole or not at all.
    recipe : str or path-like
        A built-in recipe, or a `.toml` file.
    model : str, optional
        For a path or dict: the architecture, a built-in name or `package.module:callable`. Without
        it (and without a module) weights alone are stored.
    example_inputs : tensor, tuple or dict of tensors, optional
        What the network is called with, to write its operations down; the first dimension is the
        batch. Not needed where `data`, a built-in model or a `.dcz` file gives it.
    data : str or Data, optional
        For calibration, and to measure the quality before and after.
    data_dir : path-like, optional
        Where `mnist`, `cifar10` and `wikitext2` are looked for first.
    settings : dict, optional
        `{"step.key": value}`: settings in place of the recipe's.
    max_size : int or str, optional
        Bytes the file may have, or a text as `300kB`: the mildest settings that fit are found.
    max_drop : float, optional
        How much worse the metric may get, in its own unit: the strongest settings that keep it are
        found; with `max_size`, the mildest that fit must keep it. Needs `data`. See `deepcomp.budget`.
    pareto : path-like, optional
        Where to write the whole size–quality curve, as JSON, with a drawing beside it.
    seed : int
        Of everything random, 0 to 2^64 − 1. Same input, recipe and seed give the same bytes.
    jobs : int
        Threads; the file does not depend on it.
    max_bytes : int, optional
        Dense bytes that a `.dcz` file which is read may unfold to; see `loader.File`.
    force : bool
        Whether an existing `out`, and an existing curve, is replaced; what is read never is.
    resume : bool
        Whether training goes on from what an interrupted run has left in the folder `out.resume`;
        the file is the same as without the interruption.
    progress : callable, optional
        Called as `progress(what, done, total)`.

    Returns
    -------
    Report

    Raises
    ------
    UsageError
        If the recipe, a setting, the model or the data is not one that exists.
    InputError
        If the input cannot be read, run on the data or compressed, or `out` exists or cannot be written.
    BudgetError
        If no setting meets the budget; the nearest file is at `out`, its report in `report`.

    Warns
    -----
    UserWarning
        For each of the report's `warnings`: weights alone are stored, say.
    """
    budget = Budget(parse_size(max_size) if isinstance(max_size, str) else max_size, max_drop, pareto)
    _check_targets(chain([Path(out)], budget.targets()), network, force)
    found = load_data(data, data_dir) if data is not None else None
    if max_drop is not None and (found is None or found.test is None or found.metric is None):
        raise UsageError("max_drop: data with a test set and a metric is needed to measure a drop")
    checkpoints = Checkpoints(Path(f"{os.fspath(out)}.resume"), resume, force)
    job = Job(network, recipe, model, example_inputs, found, seed, max_bytes, progress, jobs, checkpoints)
    settings = settings or {}
    try:
        if not budget:
            report = _run(job, settings, Path(out), force)
        else:
            plan = Recipe.load(recipe, settings, found is not None)
            report = search(budget, plan, settings, partial(_run, job), Path(out), force)
    except BudgetError:
        checkpoints.clear()
        raise
    checkpoints.clear()
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    return report


def _check_targets(targets: Iterable[Path], network: Given, force: bool) -> None:
    """Insist that every file can be written, and is neither another one nor one that is read."""
    others = [Path(network)] if isinstance(network, (str, os.PathLike)) else []
    others += [path for folder in others if folder.is_dir() for path in folder.glob("*.safetensors*")]
    for target in targets:
        check_target(target, force, others)
        others.append(target)


def _run(job: Job, settings: dict[str, Any], out: Path, force: bool = False) -> Report:
    """One pass: read, measure, run the steps, write, measure again."""
    plan = Recipe.load(job.recipe, settings, job.data is not None)
    told: list[str] = []
    with Writer(out, force) as writer, one_thread():
        net, source = job.open()
        before = None if net.data is None or net.module is None else _quality(net, net.module)
        try:
            job.capture(net)
        except CaptureError as error:
            told.append(f"weights alone are stored: {error}")
        rows = list(job.run(net, plan.steps))
        metadata: dict[str, Any] = {"recipe": plan.name, "seed": job.seed, "version": __version__}
        if plan.lossless and source.notes:
            metadata["source"] = source.notes
        for done, _ in enumerate(write(net, writer, metadata, job.jobs), 1):
            if job.progress:
                job.progress("encode", done, len(net.tensors))
    metric = None
    if before is not None:
        with one_thread():
            metric = _judge(net, out, before, told)
    return Report(
        input=called(job.network),
        output=os.fspath(out),
        input_bytes=source.nbytes,
        output_bytes=writer.size,
        ratio=source.nbytes / writer.size,
        recipe=plan.name,
        seed=job.seed,
        version=__version__,
        sha256=writer.sha256,
        steps=rows,
        metric=metric,
        tensors=inspect(out, max_bytes=_ANY)["tensors"],
        warnings=told,
    )


def _quality(net: Network, module: nn.Module) -> Score:
    """How good a module is on the network's data: by the metric, or by how far it is from the original."""
    assert net.data is not None
    assert net.teacher is not None
    if net.data.metric is None or net.data.test is None:
        moved = output_change(net.teacher, module, net.data)
        return Score("change of outputs", moved, higher_is_better=False)
    return evaluate(module, net.data)


def _judge(net: Network, out: Path, before: Score, told: list[str]) -> dict[str, Any]:
    """The quality before and after, measured on what the file gives back."""
    try:
        after = _quality(net, _reload(net, out))
    except InputError as error:  # the network is broken: the file is still what was asked for
        told.append(f"after compression {before.name} cannot be measured: {error}")
        return {"name": before.name, "before": before.value, "after": None, "drop": None}
    return {"name": before.name, "before": before.value, "after": after.value, "drop": drop(before, after)}


def _reload(net: Network, out: Path) -> nn.Module:
    """The network as the file has it: its own operations, or the original's with the file's weights."""
    if net.captured is not None:
        return loader.load(out, max_bytes=_ANY)
    with blaming(f"{type(net.teacher).__name__} cannot be copied"):
        module = copy.deepcopy(net.teacher)
    assert module is not None
    module.load_state_dict(loader.load_state_dict(out, max_bytes=_ANY), strict=False)  # counters may be missing
    return module.eval()
