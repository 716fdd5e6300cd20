"""The flow: floating point first, then weights against activations, then one quantiser at a time, then channels."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deepcomp.diagnosis.advice import advise
from deepcomp.diagnosis.bench import CHANGE, Bench, Run
from deepcomp.diagnosis.channels import activation_channels, weight_channels
from deepcomp.diagnosis.findings import Check, Diagnosis, Outcome, Single
from deepcomp.diagnosis.switches import Board, bare
from deepcomp.errors import CaptureError, InputError, UsageError
from deepcomp.job import Job, Progress, called, one_thread
from deepcomp.loader import File
from deepcomp.model.data import Data, Inputs
from deepcomp.model.datasets import load_data
from deepcomp.model.quantizers import quantizers
from deepcomp.network import Network
from deepcomp.opening import Given
from deepcomp.recipe import Recipe
from deepcomp.weights import Form, Grid

__all__ = ["diagnose"]


def diagnose(
    network: Given,
    /,
    *,
    data: str | Data,
    recipe: str | os.PathLike[str] | None = None,
    model: str | None = None,
    example_inputs: Inputs | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    items: int = 512,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Find out which quantisers of a network hurt, and what to do about it (Nagel et al. 2021, §3.7).

    The network is taken through a recipe in memory; nothing is written. A `.dcz` file with quantisers of activations
    is looked at as it is: what its weights were before quantisation is not known, so its activations alone are.

    Parameters
    ----------
    network : nn.Module, dict of tensors, or path
    data : str or Data
        The recipe calibrates on its training set; quality is measured on its test set.
    recipe : str or path-like, optional
        A built-in recipe or a `.toml` file; `ptq` if not given.
    model, example_inputs, data_dir, settings, seed, max_bytes, progress
        See `pipeline.compress`.
    items : int
        Test items that each measurement uses, and training items that ranges of activations are of.

    Returns
    -------
    Diagnosis

    Raises
    ------
    UsageError
        If the recipe, a setting, the model or the data is not one that exists; if there is a recipe for a file that
        is looked at as it is.
    InputError
        If the input cannot be read or run on the data, or its operations cannot be written down.
    """
    found = load_data(data, data_dir)
    plan = Recipe.load(recipe or "ptq", settings, data=True)
    job = Job(network, recipe or "ptq", model, example_inputs, found, seed, max_bytes, progress)
    with one_thread():
        return _Examination(job, Bench(found, items, seed)).run(plan, chosen=recipe is not None or bool(settings))


class _Examination:
    """One run of the flow, and what it has found so far."""

    def __init__(self, job: Job, bench: Bench) -> None:
        self.job, self.bench = job, bench
        self.checks: list[Check] = []
        self.warnings: list[str] = []
        self._seen: tuple[object, object] | None = None

    def run(self, plan: Recipe, chosen: bool) -> Diagnosis:
        """All of it; `chosen` says whether somebody has asked for this recipe."""
        net, _ = self.job.open()
        exact = _exact(net)
        quantised = self._as_it_is(net, chosen)
        steps, original = ([], None) if quantised else self._prepare(net, plan)
        board = Board(net)
        fp32 = self.bench.run(board.module(()))
        parts, sweep = self._parts(board, fp32), self._sweep(board, fp32)
        channels = [*weight_channels(net), *activation_channels(board, self.bench.items)]
        order = {(row.kind, row.name): place for place, row in enumerate(sweep)}
        channels.sort(key=lambda found: order.get((found.kind, found.name), len(order)))
        diagnosis = Diagnosis(
            input=called(self.job.network),
            recipe=None if quantised else plan.name,
            seed=self.job.seed,
            items=self.bench.items,
            metric=CHANGE if fp32.score is None else fp32.score.name,
            higher_is_better=fp32.score is not None and fp32.score.higher_is_better,
            tolerance=self.bench.tolerance(fp32),
            exact=exact,
            steps=steps,
            original=original,
            fp32=self.checks,
            parts=parts,
            sweep=sweep,
            channels=channels,
            warnings=self.warnings,
        )
        diagnosis.advice = list(advise(diagnosis, [] if quantised else plan.steps))
        return diagnosis

    def _as_it_is(self, net: Network, chosen: bool) -> bool:
        """Whether a network is quantised already, so that no recipe can be tried on it."""
        stored, name = _stored(self.job), called(self.job.network)
        if net.captured is None or not quantizers(net.captured.graph):
            if stored:
                self.warnings.append(f"{name}: {len(stored)} weights lie on grids already; that cost is not seen here")
            return False
        if chosen:
            raise UsageError(f"{name}: is quantised already and looked at as it is; recipes are for other networks")
        self.warnings.append(f"{name}: looked at as it is; what quantising its weights cost is not seen here")
        net.forms |= stored
        return True

    def _prepare(self, net: Network, plan: Recipe) -> tuple[list[dict[str, Any]], float | None]:
        """Take the network through the recipe; behind each step compare it, not quantised, with the original."""
        assert net.module is not None
        original = self.bench.run(net.module)
        try:
            self.job.capture(net)
        except CaptureError as error:
            raise InputError(f"{called(self.job.network)}: its operations are needed, but {error}") from error
        self._check("capture", net, original)
        rows = []
        for row in self.job.run(net, plan.steps):
            rows.append(row)
            self._check(row["do"], net, original)
        if net.runs:
            self.warnings.append("the recipe trains: its weights fit each other, and one alone says little")
        return rows, None if original.score is None else original.score.value

    def _check(self, behind: str, net: Network, original: Run) -> None:
        """Compare the network, not quantised, with the original, if it is not what it was at the last check."""
        now = (net.captured, net.tensors)
        if self._seen is None or any(a is not b for a, b in zip(self._seen, now, strict=True)):
            run = self.bench.run(bare(net).interpreter())
            outcome = run.beside(original)
            self.checks.append(Check(behind, outcome.value, outcome.drop, run.change(original)))
        else:
            self.checks.append(replace(self.checks[-1], behind=behind))
        self._seen = now

    def _parts(self, board: Board, fp32: Run) -> dict[str, Outcome | None]:
        """The network with its weights, its activations and both quantised."""
        groups = {"weights": board.weights, "activations": board.activations}
        found = {name: self.bench.run(board.module(on)).beside(fp32) if on else None for name, on in groups.items()}
        whole = self.bench.run(board.module([*board.weights, *board.activations])) if all(groups.values()) else None
        both = found["weights"] or found["activations"] if whole is None else whole.beside(fp32)
        return {"fp32": fp32.beside(fp32), **found, "both": both}

    def _sweep(self, board: Board, fp32: Run) -> list[Single]:
        """One quantiser at a time, the one with the most noise first."""
        rows = []
        switches = [*board.weights, *board.activations]
        for done, switch in enumerate(switches):
            if self.job.progress:
                self.job.progress(f"{switch.kind} {switch.name}", done, len(switches))
            outcome = self.bench.run(board.module([switch])).beside(fp32)
            rows.append(Single(switch.kind, switch.name, switch.bits, outcome))
        return sorted(rows, key=lambda row: row.outcome.snr)


def _stored(job: Job) -> dict[str, Form]:
    """The grids that weights of a file lie on."""
    given = job.network
    if not isinstance(given, (str, os.PathLike)) or Path(given).suffix != ".dcz":
        return {}
    with File(given, job.max_bytes) as file:
        grids = [name for name, entry in file.entries.items() if any(part.code == Grid.code for part in entry.parts)]
        return {name: file.get_form(name) for name in grids}


def _exact(net: Network) -> float:
    """How far outputs may move where a change of the network is exact but for rounding."""
    kinds = {tensor.dtype for tensor in net.tensors.values() if tensor.is_floating_point()}
    return max([1e-4, *(16 * torch.finfo(kind).eps for kind in kinds)])
