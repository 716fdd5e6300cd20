"""The `deepcomp` command: arguments, printing, exit codes.

Results go to stdout, progress and messages to stderr. Exit codes: 0 ok, 1 failure, 2 usage,
3 verification failed or budget not met.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from deepcomp.errors import BudgetError, DeepcompError, FormatError, InputError, UsageError
from deepcomp.report import table
from deepcomp.report.strict_json import dumps
from deepcomp.sizes import parse_size
from deepcomp.version import __version__

__all__ = ["main"]

OK, FAILURE, USAGE, UNVERIFIED = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said what is wrong
        return int(stop.code or 0)
    with _stoppable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(options.run(options) or OK)
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
                settings=_settings(options.set),
                max_size=options.max_size,
                max_drop=options.max_drop,
                pareto=options.pareto,
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
    from deepcomp.opening import open_network

    data = load_data(options.data, options.data_dir)
    net, source = open_network(options.input_path, options.model, options.max_bytes)
    if net.module is None:
        raise UsageError(f"{options.input_path}: holds weights alone, --model says which network they belong to")
    score = evaluate(net.module, data)
    if options.json:
        found = {"input": options.input_path, "bytes": source.nbytes, "metric": score.name, "value": score.value}
        print(dumps(found))
    else:
        print(f"{options.input_path}: {score.name} {score.value:.2f}")
    return OK


def _demo(options: argparse.Namespace) -> int:
    from deepcomp.demo import demo

    with _progress() as progress:
        shown = demo(Path(options.output), progress)
    for name, report in shown:
        print(f"\n{name}")
        print(table.report(report))
    return OK


# --- arguments --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepcomp", description="A trained PyTorch network into one small, safe file, and back.")
    parser.add_argument("--version", action="version", version=f"deepcomp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    sub = command("compress", _compress, "compress a network into a .dcz file")
    sub.add_argument("input_path", metavar="IN", help=".safetensors, a folder of shards, .pt/.pth state dict, or .dcz")
    sub.add_argument("-o", "--output", metavar="OUT.dcz", required=True, help="the file to make")
    sub.add_argument(
        "--model",
        metavar="SPEC",
        help="a built-in network, or package.module:callable; without it weights alone are stored",
    )
    sub.add_argument("--recipe", metavar="NAME|FILE.toml", default="lossless", help="default: lossless")
    sub.add_argument(
        "--set",
        metavar="STEP.KEY=VALUE",
        action="append",
        default=[],
        help="replace a setting of the recipe; repeatable",
    )
    sub.add_argument(
        "--input",
        metavar="SHAPE",
        action="append",
        default=[],
        help="an example input of --model, 1x3x32x32 or NAME=1x64:int64; repeatable",
    )
    _data(sub)
    limit = sub.add_mutually_exclusive_group()
    limit.add_argument("--max-size", metavar="SIZE", type=_size, help="largest file allowed, such as 300kB or 1.5MiB")
    limit.add_argument(
        "--max-drop", metavar="DROP", type=float, help="most the metric may get worse, in its own unit; needs --data"
    )
    sub.add_argument(
        "--pareto", metavar="FILE", help="write the size-quality curve of the recipe as JSON, and draw it beside"
    )
    sub.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run where the recipe leaves something to go on with",
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="threads; the file does not depend on it")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--force", action="store_true", help="replace an existing OUT, and an existing curve")
    _max_bytes(sub)

    sub = command("decompress", _decompress, "write the dense weights back as .safetensors")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument("-o", "--output", metavar="OUT.safetensors", required=True)
    sub.add_argument("--force", action="store_true", help="replace an existing OUT")
    _max_bytes(sub)

    sub = command("inspect", _inspect, "show where each byte of a file goes")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--html", metavar="FILE", help="write a page with bars as well")
    sub.add_argument("--force", action="store_true", help="replace an existing page")
    _max_bytes(sub)

    sub = command("verify", _verify, "check every byte of a file, and its weights against the originals")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument(
        "--against", metavar="ORIGINAL", help="the weights it was made from: prints the error of each tensor"
    )
    _max_bytes(sub)

    sub = command("evaluate", _evaluate, "measure a network on data")
    sub.add_argument("input_path", metavar="IN", help=".dcz, .safetensors or .pt")
    sub.add_argument("--model", metavar="SPEC", help="which network weights alone belong to")
    _data(sub, required=True)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    _max_bytes(sub)

    sub = command("demo", _demo, "the whole pipeline on data that ships with scikit-learn")
    sub.add_argument(
        "-o", "--output", metavar="FOLDER", default="deepcomp-demo", help="where its files go (default: %(default)s)"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line behind the usage, as all errors here do."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"deepcomp: {message}\n")


def _data(sub: argparse.ArgumentParser, required: bool = False) -> None:
    sub.add_argument(
        "--data", metavar="SPEC", required=required, help="digits, mnist, cifar10, npz:FILE or package.module:callable"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="where mnist and cifar10 are looked for first")


def _max_bytes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--max-bytes",
        metavar="SIZE",
        type=_size,
        help="dense bytes a .dcz file may unfold to (default: 4GiB or 2,000 times its size)",
    )


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _settings(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r}: STEP.KEY=VALUE expected")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value  # a text without its quotes
    return found


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
