"""The `deepcomp` command: arguments, printing, exit codes.

Results go to stdout, progress and messages to stderr. Exit codes: 0 ok, 1 failure, 2 usage,
3 verification failed or budget not met.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from deepcomp.errors import BudgetError, DeepcompError, FormatError, InputError, UsageError
from deepcomp.report import table
from deepcomp.version import __version__

__all__ = ["main"]

OK, FAILURE, USAGE, UNVERIFIED = 0, 1, 2, 3
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said what is wrong
        return int(stop.code or 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILURE))  # so that temporary files are cleaned up
    warnings.simplefilter("ignore")
    try:
        return int(options.run(options) or OK)
    except UsageError as error:
        return _fail(error, USAGE, options.debug)
    except (DeepcompError, OSError, MemoryError) as error:
        return _fail(error, FAILURE, options.debug)
    except KeyboardInterrupt:
        return _fail(InputError("interrupted; nothing was written"), FAILURE, options.debug)


def _fail(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        raise error
    _say(f"deepcomp: {' '.join(str(error).split()) or type(error).__name__}")
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# --- compress ---------------------------------------------------------------------------------


def _compress(options: argparse.Namespace) -> int:
    from deepcomp.pipeline import compress

    kept = Path(f"{options.output}.resume")
    if options.resume and not kept.is_dir():
        _say(f"deepcomp: nothing to resume at {kept}; the run starts anew")
    missed = None
    with _progress() as progress:
        try:
            report = compress(
                options.input_path,
                options.output,
                recipe=options.recipe,
                model=options.model,
                example_inputs=_example(options.input),
                data=options.data,
                data_dir=options.data_dir,
                settings=_settings(options.set),
                max_size=None if options.max_size is None else _bytes(options.max_size),
                max_drop=options.max_drop,
                pareto=options.pareto,
                seed=options.seed,
                jobs=options.jobs,
                force=options.force,
                resume=options.resume,
                progress=progress,
            )
        except KeyboardInterrupt:
            if kept.is_dir():
                _say(f"deepcomp: training is kept in {kept}; --resume goes on from there")
            raise
        except BudgetError as error:
            if error.report is None:
                raise
            report, missed = error.report, error
    for warning in report.warnings:
        _say(f"deepcomp: warning: {warning}")
    if options.json:
        print(json.dumps(report.to_dict()))
    else:
        print(table.report(report))
    if missed is not None:
        return _fail(
            InputError(f"budget not met: {missed}; the nearest is at {report.output}"), UNVERIFIED, options.debug
        )
    return OK


# --- the other commands -----------------------------------------------------------------------


def _decompress(options: argparse.Namespace) -> int:
    import torch
    from safetensors.torch import save

    from deepcomp.container.writer import place
    from deepcomp.loader import File

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
    from deepcomp.report.inspection import inspect

    found = inspect(options.input_path, max_bytes=options.max_bytes)
    if options.html:
        from deepcomp.container.writer import place
        from deepcomp.report.html import page

        place(options.html, page(found).encode(), force=True)
    if options.json:
        print(json.dumps(found))
        return OK
    print(table.inspection(found))
    return OK


def _verify(options: argparse.Namespace) -> int:
    from deepcomp.loader import load_state_dict
    from deepcomp.model import sources
    from deepcomp.verification import verify

    original = None
    if options.against:
        path = Path(options.against)
        original = load_state_dict(path) if path.suffix == ".dcz" else sources.from_path(path).tensors
    try:
        found = verify(options.input_path, against=original, max_bytes=options.max_bytes)
    except FormatError as error:
        return _fail(error, UNVERIFIED, options.debug)
    if original is not None:
        for row in found["tensors"]:
            snr = (
                "identical"
                if row["identical"]
                else f"largest error {row['largest']:.3g}, rms {row['rms']:.3g}"
                + ("" if row["snr"] is None else f", {row['snr']:.1f} dB")
            )
            print(f"  {table.printable(row['name'])}: {snr}")
    print(f"{found['file']}: ok, {len(found['tensors'])} tensors, {found['bytes']:,} bytes, every checksum right")
    return OK


def _evaluate(options: argparse.Namespace) -> int:
    from deepcomp import loader, pipeline
    from deepcomp.model.datasets import load_data
    from deepcomp.model.evaluate import evaluate

    data = load_data(options.data, options.data_dir)
    if options.input_path.endswith(".dcz") and not options.model:
        module = loader.load(options.input_path, max_bytes=options.max_bytes)
    elif options.model:
        module = pipeline.read_module(options.input_path, options.model)
    else:
        raise UsageError(f"{options.input_path}: holds weights alone, --model says which network they belong to")
    score = evaluate(module, data)
    if options.json:
        print(
            json.dumps(
                {
                    "input": options.input_path,
                    "bytes": Path(options.input_path).stat().st_size,
                    "metric": score.name,
                    "value": score.value,
                }
            )
        )
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
        help="an example input, 1x3x32x32 or NAME=1x64:int64; repeatable",
    )
    _data(sub)
    limit = sub.add_mutually_exclusive_group()
    limit.add_argument("--max-size", metavar="SIZE", help="largest file allowed, such as 300kB or 1.5MiB")
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
    sub.add_argument("--force", action="store_true", help="replace an existing OUT")

    sub = command("decompress", _decompress, "write the dense weights back as .safetensors")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument("-o", "--output", metavar="OUT.safetensors", required=True)
    sub.add_argument("--force", action="store_true", help="replace an existing OUT")
    _max_bytes(sub)

    sub = command("inspect", _inspect, "show where each byte of a file goes")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--html", metavar="FILE", help="write a page with bars as well")
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
        type=_bytes,
        help="dense bytes the file may unfold to (default: 4GiB or 2,000 times its size)",
    )


def _bytes(text: str) -> int:
    """`300kB`, `1.5MiB`, `4096` as bytes."""
    number = text.rstrip("kKmMgGiIbB")
    try:
        value = float(number) * _UNITS[text[len(number) :].lower()]
    except (ValueError, KeyError):
        raise UsageError(f"size {text!r}: a number with kB, MB, GB, KiB, MiB or GiB expected, such as 300kB") from None
    if not 0 < value < 1 << 60:
        raise UsageError(f"size {text!r}: more than 0 expected")
    return int(value)


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


def _example(specs: list[str]) -> Any:
    """Example inputs from `1x3x32x32` or `NAME=1x64:int64`."""
    import torch

    if not specs:
        return None
    generator = torch.Generator().manual_seed(0)
    positional, named = [], {}
    for spec in specs:
        name, equals, rest = spec.rpartition("=")
        shape, _, kind = rest.partition(":")
        dtype = getattr(torch, kind or "float32", None)
        try:
            sizes = [int(size) for size in shape.split("x")]
            if not isinstance(dtype, torch.dtype) or min(sizes) < 1:
                raise ValueError
        except ValueError:
            raise UsageError(f"--input {spec!r}: 1x3x32x32 or NAME=1x64:int64 expected") from None
        if dtype.is_floating_point:
            tensor = torch.randn(sizes, generator=generator).to(dtype)
        else:
            tensor = torch.zeros(sizes, dtype=dtype)
        if equals:
            named[name] = tensor
        else:
            positional.append(tensor)
    if positional and named:
        raise UsageError("--input: either all inputs have names or none")
    return named or tuple(positional)


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
