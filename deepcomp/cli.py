"""The `deepcomp` command: printing and exit codes; `arguments` has what it understands.

Results go to stdout, progress and messages to stderr. Exit codes: 0 ok, 1 failure, 2 usage,
3 verification failed or budget not met.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deepcomp.arguments import USAGE, parse
from deepcomp.errors import BudgetError, DeepcompError, FormatError, InputError, UsageError
from deepcomp.report import table
from deepcomp.report.strict_json import dumps

if TYPE_CHECKING:
    from torch import nn

__all__ = ["main"]

OK, FAILURE, UNVERIFIED = 0, 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        options = parse(arguments)
    except SystemExit as stop:  # argparse has said what is wrong
        return int(stop.code or 0)
    with _stoppable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _COMMANDS[options.command](options)
        except UsageError as error:
            return _fail(error, USAGE, options.debug)
        except (DeepcompError, OSError, MemoryError) as error:
            return _fail(error, FAILURE, options.debug)
        except KeyboardInterrupt as error:
            return _fail(error, FAILURE, options.debug, "interrupted")


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops the command as Ctrl-C does, so that temporary files are cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are another's business
        return

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not set by Python


def _fail(error: BaseException, code: int, debug: bool, nameless: str = "") -> int:
    """Say what is wrong in one line, behind the traceback where that is asked for."""
    if debug:
        traceback.print_exception(error)
    _say(f"deepcomp: {' '.join(str(error).split()) or nameless or type(error).__name__}")
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# --- compress ---------------------------------------------------------------------------------


def _compress(options: argparse.Namespace) -> int:
    from deepcomp.model.shapes import parse_inputs
    from deepcomp.pipeline import compress

    kept = Path(f"{options.output}.resume")
    if options.resume and not kept.is_dir():
        _say(f"deepcomp: nothing to resume at {kept}; the run starts anew")
    missed, before = None, _stamp(options.output)
    with _progress() as progress:
        try:
            report = compress(
                options.input_path,
                options.output,
                recipe=options.recipe,
                model=options.model,
                example_inputs=parse_inputs(options.input),
                data=options.data,
                data_dir=options.data_dir,
                settings=options.set,
                max_size=options.max_size,
                max_drop=options.max_drop,
                pareto=options.pareto,
                coder=options.coder,
                seed=options.seed,
                jobs=options.jobs,
                max_bytes=options.max_bytes,
                force=options.force,
                resume=options.resume,
                progress=progress,
            )
        except KeyboardInterrupt as stop:
            if kept.is_dir():
                _say(f"deepcomp: training is kept in {kept}; --resume goes on from there")
            done = "not written" if _stamp(options.output) == before else "written, but not measured"
            raise KeyboardInterrupt(f"{stop if stop.args else 'interrupted'}; {options.output} was {done}") from stop
        except BudgetError as error:
            if error.report is None:
                raise
            report, missed = error.report, error
    for warning in report.warnings:
        _say(f"deepcomp: warning: {warning}")
    if options.json:
        print(dumps(report.to_dict()))
    else:
        print(table.report(report))
    return OK if missed is None else _fail(missed, UNVERIFIED, options.debug)


def _stamp(path: str) -> tuple[int, int] | None:
    """Which file stands at a path, and since when; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


# --- the other commands -----------------------------------------------------------------------


def _decompress(options: argparse.Namespace) -> int:
    import torch
    from safetensors.torch import save

    from deepcomp.container.writer import check_target, place
    from deepcomp.loader import File

    check_target(Path(options.output), options.force, [Path(options.input_path)])
    with File(options.input_path, options.max_bytes) as file:
        names = set(file.keys())
        state = {name: tensor for name, tensor in file.tensors() if name in names}
        notes = file.metadata.get("source")
    for name, tensor in state.items():
        if tensor.dtype == torch.complex128 or name == "__metadata__":
            raise InputError(f"{name}: {tensor.dtype} under this name is nothing a safetensors file can hold")
    own: set[int] = set()
    for name, tensor in state.items():  # safetensors wants memory of its own for each tensor
        if tensor.data_ptr() in own:
            state[name] = tensor.clone()
        own.add(tensor.data_ptr())
    kept = {str(key): str(value) for key, value in notes.items()} if isinstance(notes, dict) else None
    place(options.output, save(state, kept), options.force)
    print(f"{options.output}: {len(state)} tensors, {Path(options.output).stat().st_size:,} bytes")
    return OK


def _inspect(options: argparse.Namespace) -> int:
    from deepcomp.container.writer import check_target, place
    from deepcomp.report.html import page
    from deepcomp.report.inspection import inspect

    if options.html:
        check_target(Path(options.html), options.force, [Path(options.input_path)])
    found = inspect(options.input_path, max_bytes=options.max_bytes)
    if options.html:
        place(options.html, page(found).encode(), options.force)
    print(dumps(found) if options.json else table.inspection(found))
    return OK


def _verify(options: argparse.Namespace) -> int:
    from deepcomp.verification import verify

    try:
        found = verify(options.input_path, against=options.against, max_bytes=options.max_bytes)
    except FormatError as error:
        return _fail(error, UNVERIFIED, options.debug)
    if options.against is not None:
        for row in found["tensors"]:
            print(f"  {table.printable(row['name'])}: {_difference(row)}")
    print(f"{found['file']}: ok, {len(found['tensors'])} tensors, {found['bytes']:,} bytes, every checksum right")
    return OK


def _difference(row: dict[str, Any]) -> str:
    """How far a tensor is from its original."""
    if row["identical"]:
        return "identical"
    ratio = "" if row["snr"] is None else f", {row['snr']:.1f} dB"
    return f"largest error {row['largest']:.3g}, rms {row['rms']:.3g}{ratio}"


def _evaluate(options: argparse.Namespace) -> int:
    from deepcomp.model.datasets import load_data
    from deepcomp.model.evaluate import evaluate

    data = load_data(options.data, options.data_dir)
    module, nbytes = _module(options)
    score = evaluate(module, data)
    if options.json:
        found = {"input": options.input_path, "bytes": nbytes, "metric": score.name, "value": score.value}
        print(dumps(found))
    else:
        print(f"{options.input_path}: {score.name} {score.value:.2f}")
    return OK


def _module(options: argparse.Namespace) -> tuple[nn.Module, int]:
    """The network to evaluate, and the bytes it takes."""
    from deepcomp.loader import load
    from deepcomp.opening import open_network

    path = options.input_path
    if options.runtime is not None:
        if options.model is not None:
            raise UsageError(f"--runtime {options.runtime}: is for .dcz files, and --model for weights alone")
        return load(path, runtime=options.runtime, max_bytes=options.max_bytes), Path(path).stat().st_size
    net, source = open_network(path, options.model, options.max_bytes)
    if net.module is None:
        raise UsageError(f"{path}: holds weights alone, --model says which network they belong to")
    return net.module, source.nbytes


def _diagnose(options: argparse.Namespace) -> int:
    from deepcomp.container.writer import check_target, place
    from deepcomp.diagnosis import diagnose
    from deepcomp.report.diagnosis import page

    if options.html:
        check_target(Path(options.html), options.force, [Path(options.input_path)])
    with _progress() as progress:
        found = diagnose(
            options.input_path,
            recipe=options.recipe,
            model=options.model,
            data=options.data,
            data_dir=options.data_dir,
            settings=options.set,
            items=options.items,
            seed=options.seed,
            max_bytes=options.max_bytes,
            progress=progress,
        )
    if options.html:
        place(options.html, page(found).encode(), options.force)
    for warning in found.warnings:
        _say(f"deepcomp: warning: {warning}")
    print(dumps(found.to_dict()) if options.json else table.diagnosis(found))
    return OK


def _demo(options: argparse.Namespace) -> int:
    from deepcomp.demo import demo

    with _progress() as progress:
        shown = demo(Path(options.output), progress)
    for name, report in shown:
        print(f"\n{name}")
        print(table.report(report))
    return OK


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=1, bar_format="{desc} {bar} {percentage:3.0f}%", leave=False) as bar:

        def update(what: str, done: int, total: int) -> None:
            bar.set_description_str(what, refresh=False)
            bar.total, bar.n = max(total, 1), done
            bar.refresh()

        yield update


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "compress": _compress,
    "decompress": _decompress,
    "inspect": _inspect,
    "verify": _verify,
    "evaluate": _evaluate,
    "diagnose": _diagnose,
    "demo": _demo,
}
