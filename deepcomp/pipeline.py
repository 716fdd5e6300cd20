"""Read → steps → file: what `compress` does, on one screen."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from deepcomp import loader
from deepcomp.budget import Budget, search
from deepcomp.container import Writer
from deepcomp.container.writer import check_target
from deepcomp.entry import BUFFER, CONSTANT
from deepcomp.errors import BudgetError, CaptureError, InputError, UsageError
from deepcomp.model import sources, zoo
from deepcomp.model.capture import Captured, capture
from deepcomp.model.data import Data, Inputs
from deepcomp.model.data import example_inputs as first_inputs
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import drop, evaluate, output_change
from deepcomp.network import Network
from deepcomp.recipe import Recipe
from deepcomp.report.inspection import inspect
from deepcomp.serializer import write
from deepcomp.training import Checkpoints
from deepcomp.version import __version__

__all__ = ["Report", "compress", "read_module"]

_ANY = 1 << 62  # what was just written may unfold to any size
Progress = Callable[[str, int, int], None]


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
    network: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    recipe: str | os.PathLike[str] = "lossless",
    model: str | None = None,
    example_inputs: Inputs | None = None,
    data: str | Data | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    max_size: int | None = None,
    max_drop: float | None = None,
    pareto: str | os.PathLike[str] | None = None,
    seed: int = 0,
    jobs: int = 1,
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
        batch. Not needed where `data` or a built-in model gives it.
    data : str or Data, optional
        For calibration, and to measure the quality before and after.
    data_dir : path-like, optional
        Where `mnist` and `cifar10` are looked for first.
    settings : dict, optional
        `{"step.key": value}`: settings in place of the recipe's.
    max_size : int, optional
        Bytes the file may have: the mildest settings that fit are found.
    max_drop : float, optional
        How much worse the metric may get, in its own unit: the strongest settings that keep it are
        found. Needs `data`. See `deepcomp.budget`.
    pareto : path-like, optional
        Where to write the whole size–quality curve, as JSON, with a drawing beside it.
    seed : int
        Of everything random. Same input, recipe and seed give the same bytes.
    jobs : int
        Threads; the file does not depend on it.
    force : bool
        Whether an existing `out` is replaced.
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
        If the input cannot be read or compressed, or `out` exists or cannot be written.
    BudgetError
        If no setting meets the budget; the nearest file is at `out`, its report in `report`.
    """
    if jobs < 1:
        raise UsageError(f"jobs = {jobs}: 1 or more expected")
    judge = load_data(data, data_dir) if data is not None else None
    budget = Budget(max_size, max_drop, pareto)
    checkpoints = Checkpoints(Path(f"{os.fspath(out)}.resume"), resume, force)
    if max_drop is not None and (judge is None or judge.test is None or judge.metric is None):
        raise UsageError("max_drop: data with a test set and a metric is needed to measure a drop")

    def run(settings: dict[str, Any], target: Path, replace: bool = False) -> Report:
        plan = Recipe.load(recipe, settings, judge is not None)
        return _run(network, target, plan, model, example_inputs, judge, seed, jobs, replace, checkpoints, progress)

    try:
        if not budget:
            report = run(settings or {}, Path(out), force)
        else:
            plan = Recipe.load(recipe, settings, judge is not None)
            check_target(Path(out), force)
            report = search(budget, plan, settings or {}, run, Path(out), force)
    except BudgetError:
        checkpoints.clear()
        raise
    checkpoints.clear()
    return report


def _run(
    network: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
    out: Path,
    plan: Recipe,
    model: str | None,
    example_inputs: Inputs | None,
    judge: Data | None,
    seed: int,
    jobs: int,
    force: bool,
    checkpoints: Checkpoints,
    progress: Progress | None,
) -> Report:
    """One pass: read, run the steps, write, measure."""
    warnings: list[str] = []
    with Writer(out, force) as writer, _one_thread():
        torch.manual_seed(seed)
        net, source = _read(network, model)
        if judge is not None and net.module is None:
            raise UsageError(
                "data is given, but nothing to run on it: --model says which network the weights belong to"
            )
        net.data, net.seed, net.teacher = judge, seed, net.module
        net.checkpoints, net.progress = checkpoints, progress
        inputs = example_inputs if example_inputs is not None else _example(model, judge)
        _capture(net, inputs, warnings)
        rows = []
        for number, step in enumerate(plan.steps):
            if progress:
                progress(step.do, number, len(plan.steps))
            started = time.perf_counter()
            said = step.run(net)
            rows.append({"do": step.do, "seconds": round(time.perf_counter() - started, 3), **said})
        metadata: dict[str, Any] = {"recipe": plan.name, "seed": seed, "version": __version__}
        if plan.lossless and source.notes:
            metadata["source"] = source.notes
        for done, _ in enumerate(write(net, writer, metadata, jobs), 1):
            if progress:
                progress("encode", done, len(net.tensors))
    with _one_thread():
        metric = _judge(net.teacher, out, judge, net.captured is not None, warnings)
    described = inspect(out, max_bytes=_ANY)
    return Report(
        input=os.fspath(network) if isinstance(network, (str, os.PathLike)) else type(network).__name__,
        output=os.fspath(out),
        input_bytes=source.nbytes,
        output_bytes=writer.size,
        ratio=source.nbytes / writer.size,
        recipe=plan.name,
        seed=seed,
        version=__version__,
        sha256=writer.sha256,
        steps=rows,
        metric=metric,
        tensors=described["tensors"],
        warnings=warnings,
    )


def _read(
    network: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str], model: str | None
) -> tuple[Network, sources.Source]:
    """The network to compress, and where its weights came from."""
    if isinstance(network, nn.Module):
        source = sources.from_module(network)
        return _network(source, network), source
    if isinstance(network, (str, os.PathLike)):
        path = Path(network)
        if path.suffix == ".dcz" and path.is_file():
            return _reopen(path, model)
        source = sources.from_path(path)
    elif isinstance(network, Mapping):
        source = sources.from_tensors(network)
    else:
        raise UsageError(f"{type(network).__name__} found, a module, a dict of tensors or a path expected")
    return _network(source, None if model is None else _fill(zoo.resolve(model), source, model)), source


def _network(source: sources.Source, module: nn.Module | None) -> Network:
    return Network(source.tensors, dict.fromkeys(source.buffers, BUFFER), source.tied, module=module)


def _reopen(path: Path, model: str | None) -> tuple[Network, sources.Source]:
    """The network of a `.dcz` file, with its operations where it has them."""
    with loader.File(path) as file:
        tensors = dict(file.tensors())
        roles = {name: entry.role for name, entry in file.entries.items()}
        graph = file.graph()
    source = sources.from_tensors({name: tensor for name, tensor in tensors.items() if roles[name] != CONSTANT})
    source.nbytes = path.stat().st_size
    if graph is None:
        return _network(source, None if model is None else _fill(zoo.resolve(model), source, model)), source
    constants = {name: tensors[name] for name in tensors if roles[name] == CONSTANT}
    net = Network(tensors, roles, source.tied, Captured(*graph, constants), loader.load(path))
    return net, source


def _fill(module: nn.Module, source: sources.Source, model: str) -> nn.Module:
    """Load weights into a module, and take over from it what the weights alone do not say."""
    own = sources.from_module(module)
    missing = [name for name in own.tensors if name not in source.tensors]
    absent = [name for name in missing if own.tied.get(name) not in source.tensors]
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]  # older files lack these counters
    odd = [name for name in source.tensors if name not in own.tensors]
    if absent or odd:
        raise InputError(f"weights do not fit {model}: missing {absent[:3]}, not known {odd[:3]}")
    wrong = [name for name, tensor in source.tensors.items() if tensor.shape != own.tensors[name].shape]
    if wrong:
        found, wanted = tuple(source.tensors[wrong[0]].shape), tuple(own.tensors[wrong[0]].shape)
        raise InputError(f"weights do not fit {model}: {wrong[0]} of shape {found} found, {wanted} expected")
    floats = {tensor.dtype for tensor in source.tensors.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        module = module.to(floats.pop())
    module.load_state_dict(dict(source.tensors), strict=False)
    for name, first in own.tied.items():
        if name in missing and first in source.tensors:
            source.tensors = _with(source.tensors, {name: source.tensors[first]})
        if name in source.tensors and torch.equal(source.tensors[name], source.tensors[first]):
            source.tied[name] = source.tied.get(first, first)
    source.buffers = own.buffers
    return module.eval()


def _example(model: str | None, data: Data | None) -> Inputs | None:
    """What the network is called with, where nobody has said so."""
    if model in zoo.NAMES:
        return zoo.example(model)
    return None if data is None else first_inputs(data)


def _capture(net: Network, inputs: Inputs | None, warnings: list[str]) -> None:
    """Write the network's operations down, if it has any and they can be."""
    if net.module is None or net.captured is not None:
        return
    if inputs is None:
        warnings.append("no example input was given, so weights alone are stored (--input SHAPE or example_inputs=)")
        return
    try:
        net.captured = capture(net.module, _like(inputs, net.module))
    except CaptureError as error:
        warnings.append(f"weights alone are stored: {error}")
        return
    net.tensors = _with(net.tensors, net.captured.constants)
    net.roles.update(dict.fromkeys(net.captured.constants, CONSTANT))


def _with(tensors: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return sources.Gathered({**dict.fromkeys(tensors, tensors), **dict.fromkeys(more, more)})


def _like(inputs: Inputs, module: nn.Module) -> Inputs:
    """The inputs, floats of them in the type of the module's own."""
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def fit(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    if isinstance(inputs, Tensor):
        return (fit(inputs),)
    if isinstance(inputs, Mapping):
        return {name: fit(tensor) for name, tensor in inputs.items()}
    return tuple(fit(tensor) for tensor in inputs)


def read_module(path: str | os.PathLike[str], model: str) -> nn.Module:
    """The network of a weight file of any kind, as the architecture `model` names."""
    module = _read(path, model)[0].module
    assert module is not None
    return module


def _judge(
    before: nn.Module | None, out: str | os.PathLike[str], data: Data | None, runs: bool, warnings: list[str]
) -> dict[str, Any] | None:
    """The quality before and after, measured on what the file gives back."""
    if data is None or before is None:
        return None
    if runs:
        after = loader.load(out, max_bytes=_ANY)
    else:
        after = loader.load(out, into=copy.deepcopy(before), max_bytes=_ANY)
    if data.metric is None or data.test is None:
        change = output_change(before, after, data)
        return {"name": "change of outputs", "before": 0.0, "after": change.relative, "drop": change.relative}
    was = evaluate(before, data)
    try:
        now = evaluate(after, data)
    except InputError as error:  # the network is broken: the file is still what was asked for
        warnings.append(f"after compression {was.name} cannot be measured: {error}")
        return {"name": was.name, "before": was.value, "after": None, "drop": None}
    return {"name": was.name, "before": was.value, "after": now.value, "drop": drop(was, now)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pin libraries to one thread: with several, sums come out in an order that varies."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
