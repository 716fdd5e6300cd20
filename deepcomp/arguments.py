"""What the `deepcomp` command understands: its sub-commands and their arguments."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from typing import Any, NoReturn

from deepcomp.errors import UsageError
from deepcomp.sizes import parse_size
from deepcomp.version import __version__

__all__ = ["USAGE", "parse"]

USAGE = 2  # the exit code


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments by name; `command` is the sub-command's.

    Raises
    ------
    SystemExit
        With the exit code, where they are wrong, or `--help` or `--version` was asked for; everything is said.
    """
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepcomp", description="A trained PyTorch network into one small, safe file, and back.")
    parser.add_argument("--version", action="version", version=f"deepcomp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=name)
        return sub

    sub = command("compress", "compress a network into a .dcz file")
    sub.add_argument("input_path", metavar="IN", help=".safetensors, a folder of shards, .pt/.pth state dict, or .dcz")
    sub.add_argument("-o", "--output", metavar="OUT.dcz", required=True, help="the file to make")
    sub.add_argument(
        "--model",
        metavar="SPEC",
        help="a built-in network, or package.module:callable; without it weights alone are stored",
    )
    sub.add_argument("--recipe", metavar="NAME|FILE.toml", default="lossless", help="default: lossless")
    _settings(sub)
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
    sub.add_argument(
        "--coder",
        default="fast",
        metavar="NAME",
        help="fast (default), context (smaller, some million weights a second) or smallest (for each tensor what is)",
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="threads; the file does not depend on it")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--force", action="store_true", help="replace an existing OUT, and an existing curve")
    _max_bytes(sub)

    sub = command("decompress", "write the dense weights back as .safetensors")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument("-o", "--output", metavar="OUT.safetensors", required=True)
    sub.add_argument("--force", action="store_true", help="replace an existing OUT")
    _max_bytes(sub)

    sub = command("inspect", "show where each byte of a file goes")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--html", metavar="FILE", help="write a page with bars as well")
    sub.add_argument("--force", action="store_true", help="replace an existing page")
    _max_bytes(sub)

    sub = command("verify", "check every byte of a file, and its weights against the originals")
    sub.add_argument("input_path", metavar="IN.dcz")
    sub.add_argument(
        "--against", metavar="ORIGINAL", help="the weights it was made from: prints the error of each tensor"
    )
    _max_bytes(sub)

    sub = command("evaluate", "measure a network on data")
    sub.add_argument("input_path", metavar="IN", help=".dcz, .safetensors or .pt")
    sub.add_argument("--model", metavar="SPEC", help="which network weights alone belong to")
    sub.add_argument(
        "--runtime",
        metavar="NAME",
        help="how a .dcz file runs: simulated (the default), float (activations not quantised) or integer",
    )
    _data(sub, required=True)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    _max_bytes(sub)

    sub = command("diagnose", "find out which quantisers hurt, and what to do about it")
    sub.add_argument("input_path", metavar="IN", help=".safetensors, a folder of shards, .pt/.pth state dict, or .dcz")
    sub.add_argument("--model", metavar="SPEC", help="which network weights alone belong to")
    sub.add_argument("--recipe", metavar="NAME|FILE.toml", help="what quantises the network; default: ptq")
    _settings(sub)
    _data(sub, required=True)
    sub.add_argument(
        "--items", type=int, default=512, metavar="N", help="test items a measurement (default: %(default)s)"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--html", metavar="FILE", help="write a page with box plots of all channels as well")
    sub.add_argument("--force", action="store_true", help="replace an existing page")
    _max_bytes(sub)

    sub = command("demo", "the whole pipeline on data that ships with scikit-learn")
    sub.add_argument(
        "-o", "--output", metavar="FOLDER", default="deepcomp-demo", help="where its files go (default: %(default)s)"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line behind the usage, as all errors here do."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"deepcomp: {message}\n")


def _settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        metavar="STEP.KEY=VALUE",
        action=_Setting,
        default={},
        help="replace a setting of the recipe; repeatable",
    )


def _data(sub: argparse.ArgumentParser, required: bool = False) -> None:
    sub.add_argument(
        "--data",
        metavar="SPEC",
        required=required,
        help="digits, mnist, cifar10, wikitext2, npz:FILE or package.module:callable",
    )
    sub.add_argument("--data-dir", metavar="DIR", help="where mnist, cifar10 and wikitext2 are looked for first")


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


class _Setting(argparse.Action):
    """STEP.KEY=VALUE into a dict: TOML values, or texts without their quotes."""

    def __call__(self, parser: Any, namespace: Any, pair: Any, option: str | None = None) -> None:
        key, equals, text = pair.partition("=")
        if not equals:
            raise argparse.ArgumentError(self, f"{pair!r}: STEP.KEY=VALUE expected")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), key: value})
