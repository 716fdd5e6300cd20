"""Read → steps → file: what `compress` does, on one screen."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
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
from deepcomp.network import FAST, Network
from deepcomp.opening import Given
from deepcomp.recipe import Recipe
from deepcomp.report.inspection import inspect
from deepcomp.serializer import measure, write
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
        `after` and `drop` are None where the result cannot be measured. Where `max_drop` was judged on a validation
        set, `validation` has `before`, `after` and `drop` on that.
    tensors : list of dict
        See `report.inspection.inspect`.
    warnings : list of str
    points : list of dict
        With a budget: every run of the search, from large files to small ones: `setting`, `value`, `bytes`, `ratio`,
        and with data `metric`, `quality`, `drop` and maybe `validation`, as in `metric`.
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
    coder: str = FAST,
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
        found; with `max_size`, the mildest that fit must keep it. Needs `data`: it is judged on the validation set
        where that has one, so that nothing is chosen on the test set, else on the test set. See `deepcomp.budget`.
    pareto : path-like, optional
        Where to write the whole size–quality curve, as JSON, with a drawing beside it.
    coder : {"fast", "context", "smallest"}
        Of tensors that the recipe names no coder for; see `steps.code`.
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
        If the recipe, a setting, the model, the data or the coder is not one that exists.
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
    reads = _read(network, recipe, data)
    _check_targets(chain([Path(out)], budget.targets()), reads, force)
    found = load_data(data, data_dir) if data is not None else None
    plan = Recipe.load(recipe, settings or {}, found is not None)
    others = [*reads, Path(out), *budget.targets()]
    _check_targets(plan.targets, others, force or resume)  # an interrupted run may have made them
    if max_drop is not None and (found is None or found.test is None or found.metric is None):
        raise UsageError("max_drop: data with a test set and a metric is needed to measure a drop")
    checkpoints = Checkpoints(Path(f"{os.fspath(out)}.resume"), resume, force)
    job = Job(network, recipe, model, example_inputs, found, seed, max_bytes, progress, jobs, checkpoints, coder)
    judge = _Judge(found, max_drop is not None)
    settings = settings or {}
    try:
        if not budget:
            report = _run(job, judge, settings, Path(out), force)
        else:
            report = search(budget, plan, settings, partial(_run, job, judge), Path(out), force)
    except BudgetError:
        checkpoints.finish()
        raise
    checkpoints.finish()
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    return report


def _read(network: Given, recipe: str | os.PathLike[str], data: Data | str | None) -> list[Path]:
    """The files that are read, as far as they are named."""
    found = [Path(network)] if isinstance(network, (str, os.PathLike)) else []
    found += [path for folder in found if folder.is_dir() for path in folder.glob("*.safetensors*")]
    found += [Path(recipe)] if os.fspath(recipe).endswith(".toml") else []
    return found + ([Path(data.removeprefix("npz:"))] if isinstance(data, str) and data.startswith("npz:") else [])


def _check_targets(targets: Iterable[Path], others: Iterable[Path], force: bool) -> None:
    """Insist that every file can be written, and is neither another one nor one of `others`."""
    taken = [*others]
    for target in targets:
        check_target(target, force, taken)
        taken.append(target)


def _run(job: Job, judge: _Judge, settings: dict[str, Any], out: Path, force: bool = False) -> Report:
    """One pass: read, measure, run the steps, write, measure again."""
    plan = Recipe.load(job.recipe, settings, job.data is not None)
    told: list[str] = []
    with Writer(out, force) as writer, one_thread():
        net, source = job.open()
        judge.see(net)
        try:
            job.capture(net)
        except CaptureError as error:
            net.obstacle = str(error)
            told.append(f"weights alone are stored: {error}")
        metadata: dict[str, Any] = {"recipe": plan.name, "seed": job.seed, "version": __version__}
        if plan.lossless and source.notes:
            metadata["source"] = source.notes
        net.measure = partial(measure, metadata=metadata, jobs=job.jobs)
        rows = list(job.run(net, plan.steps))
        for done, _ in enumerate(write(net, writer, metadata, job.jobs), 1):
            if job.progress:
                job.progress("encode", done, len(net.tensors))
    with one_thread():
        metric = judge.compare(net, out, told)
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


class _Judge:
    """How good files are beside the original, which is measured once, however many files are made of it.

    Parameters
    ----------
    data : Data or None
        Without it, nothing is measured.
    validates : bool
        Whether files are to be measured on the validation set, too.
    """

    def __init__(self, data: Data | None, validates: bool) -> None:
        self._sets = [] if data is None else [data]
        if data is not None and data.validation is not None and validates:
            self._sets.append(replace(data, test=data.validation))
        self._before: list[Score] = []

    def see(self, net: Network) -> None:
        """Measure the original; random numbers drawn meanwhile change nothing of what follows."""
        if not self._before and net.module is not None:
            with torch.random.fork_rng(devices=[]):
                self._before = [_quality(net, net.module, data) for data in self._sets]

    def compare(self, net: Network, out: Path, told: list[str]) -> dict[str, Any] | None:
        """The quality before and after, measured on what the file gives back."""
        if not self._before:
            return None
        after: list[Score | None]
        try:
            module = _reload(net, out)
            after = [_quality(net, module, data) for data in self._sets]
        except InputError as error:  # the network is broken: the file is still what was asked for
            told.append(f"after compression {self._before[0].name} cannot be measured: {error}")
            after = [None for _ in self._sets]
        test, *validation = map(_beside, self._before, after)
        return {"name": self._before[0].name, **test} | ({"validation": validation[0]} if validation else {})


def _quality(net: Network, module: nn.Module, data: Data) -> Score:
    """How good a module is on some data: by the metric, or by how far it is from the original."""
    assert net.teacher is not None
    if data.metric is None or data.test is None:
        moved = output_change(net.teacher, module, data)
        return Score("change of outputs", moved, higher_is_better=False)
    return evaluate(module, data)


def _beside(before: Score, after: Score | None) -> dict[str, Any]:
    """One quality beside the other, which may be missing."""
    if after is None:
        return {"before": before.value, "after": None, "drop": None}
    return {"before": before.value, "after": after.value, "drop": drop(before, after)}


def _reload(net: Network, out: Path) -> nn.Module:
    """The network as the file has it: its own operations, or the original's with the file's weights."""
    if net.captured is not None:
        return loader.load(out, max_bytes=_ANY)
    with blaming(f"{type(net.teacher).__name__} cannot be copied"):
        module = copy.deepcopy(net.teacher)
    assert module is not None
    module.load_state_dict(loader.load_state_dict(out, max_bytes=_ANY), strict=False)  # counters may be missing
    return module.eval()
