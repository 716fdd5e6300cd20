"""Recipes: ordered steps with their settings, read from TOML; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from deepcomp.errors import UsageError
from deepcomp.steps import STEPS, Step

__all__ = ["Dial", "Recipe", "names"]

T = TypeVar("T")


def names() -> list[str]:
    """The built-in recipes."""
    found = resources.files("deepcomp.recipes").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in found if entry.name.endswith(".toml"))


@dataclass(frozen=True)
class Dial:
    """The setting of a recipe that budgets turn.

    Attributes
    ----------
    set : str
        As `step.key`.
    values : list
        From mild to strong.
    size : str
        A setting that takes the bytes of the whole file, so that a limit is handed over to it; empty where none does.
    """

    set: str
    values: list[Any]
    size: str = ""


@dataclass
class Recipe:
    """An ordered list of steps.

    Attributes
    ----------
    name : str
        A built-in name, or the stem of the file.
    steps : list of Step
    dial : Dial, optional
    """

    name: str
    steps: list[Step] = field(default_factory=list)
    dial: Dial | None = None

    @property
    def lossless(self) -> bool:
        """Whether nothing but exact storage happens, so that what came with the weights is kept too."""
        return not self.steps

    @property
    def targets(self) -> list[Path]:
        """The files that steps make."""
        named = (getattr(step, key) for step in self.steps for key in step.writes)
        return [Path(name) for name in named if name]

    def value(self, path: str) -> Any:
        """The value of a setting, as `settings` of `load` name it, in the first step of that name; None where unset."""
        name, _, key = path.partition(".")
        outer, _, inner = key.partition(".")
        found = next(getattr(step, outer) for step in self.steps if step.do == name)
        if not inner:
            return found
        return found.get(inner) if isinstance(found, dict) else getattr(found, inner, None)

    @classmethod
    def load(cls, source: str | os.PathLike[str], settings: dict[str, Any] | None = None, data: bool = False) -> Recipe:
        """Read a built-in recipe or a TOML file.

        Parameters
        ----------
        source : str or path-like
            A built-in name, or a path ending in `.toml`.
        settings : dict, optional
            `{"step.key": value}`: values that replace the recipe's, in every step of that name that is
            taken; a key of a table in a step is `step.table.key`.
        data : bool
            Whether there is data: decides which of the steps marked `when = "data"` and
            `when = "no-data"` are taken. Behind a step that gives data there is.

        Raises
        ------
        UsageError
            If the recipe, a step, a key or a value is not one that exists.
        """
        text = os.fspath(source)
        if text.endswith(".toml"):
            try:
                raw = Path(text).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:  # a path or a text that is none
                raise UsageError(f"recipe {text}: cannot be read: {error}") from None
            name = Path(text).stem
        elif text in names():
            raw, name = resources.files("deepcomp.recipes").joinpath(f"{text}.toml").read_text(encoding="utf-8"), text
        else:
            raise UsageError(f"recipe {text!r} is not known: one of {', '.join(names())}, or a .toml file expected")
        return cls.parse(raw, name, settings, data)

    @classmethod
    def parse(cls, text: str, name: str, settings: dict[str, Any] | None = None, data: bool = False) -> Recipe:
        """Read a recipe from TOML text; see `load`."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"recipe {name}: {error}") from None
        unknown = set(table) - {"step", "about", "dial"}
        if unknown:
            raise UsageError(f"recipe {name}: key {min(unknown)!r} is not known: about, [dial] and [[step]] expected")
        rows = table.get("step", [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError(f"recipe {name}: steps are written as [[step]] tables")
        for row in rows:  # those that are not taken, too
            _step(row, f"recipe {name}")
        taken = list(_taken(rows, data))
        here = name if len(taken) == len(rows) else f"{name} {'with' if data else 'without'} data"
        steps = [_step(row, f"recipe {name}") for row in _with_settings(taken, settings or {}, here)]
        return cls(name, steps, _dial(table.get("dial"), rows, taken, name))


_WHEN = {True: "data", False: "no-data"}


def _taken(rows: list[dict[str, Any]], data: bool) -> Iterator[dict[str, Any]]:
    """The steps that are taken, with data from the start or none."""
    for row in rows:
        if row.get("when") in (None, _WHEN[data]):
            yield row
            data = data or STEPS[row["do"]].gives_data


def _dial(table: Any, rows: list[dict[str, Any]], taken: list[dict[str, Any]], name: str) -> Dial | None:
    """The dial of a recipe; None where it has none, or a step it turns is not taken."""
    if table is None:
        return None
    kinds = {"set": str, "values": list, "size": str}
    known = isinstance(table, dict) and {"set", "values"} <= table.keys() <= kinds.keys()
    if not (known and all(isinstance(value, kinds[key]) and value for key, value in table.items())):
        raise UsageError(
            f'recipe {name}: [dial] holds set = "step.key", values = [mild, …, strong], and perhaps size = "step.key"'
        )
    dial = Dial(**table)
    settings = [(dial.set, value) for value in dial.values] + ([(dial.size, 1)] if dial.size else [])
    left_out = {row["do"] for row in rows} - {row["do"] for row in taken}
    if any(path.partition(".")[0] in left_out for path, _ in settings):
        return None
    for path, value in settings:
        for row in _with_settings(taken, {path: value}, name):
            _step(row, f"recipe {name}: dial")
    return dial


def _with_settings(rows: list[dict[str, Any]], settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = [dict(row) for row in rows]
    for path, value in settings.items():
        step, _, key = path.partition(".")
        hits = [row for row in rows if row.get("do") == step]
        if not hits or key in ("", "do", "when"):
            steps = ", ".join(dict.fromkeys(str(row.get("do")) for row in rows)) or "none"
            raise UsageError(f"setting {path!r}: STEP.KEY expected, recipe {name} has the steps: {steps}")
        outer, _, inner = key.partition(".")
        for row in hits:
            if inner and not isinstance(row.get(outer, {}), dict):
                raise UsageError(f"setting {path!r}: {step}.{outer} = {row[outer]!r} found, a table expected")
            row[outer] = {**row.get(outer, {}), inner: value} if inner else value
    return rows


def _step(row: dict[str, Any], where: str) -> Step:
    row = dict(row)
    do = row.pop("do", None)
    when = row.pop("when", None)
    if not isinstance(do, str) or do not in STEPS:
        raise UsageError(f"{where}: do = {do!r} is not known, one of {', '.join(STEPS)} expected")
    if when not in (None, *_WHEN.values()):
        raise UsageError(f"{where}: {do}.when = {when!r}: {' or '.join(_WHEN.values())} expected")
    return _build(STEPS[do], row, f"{where}: {do}")


def _build(kind: type[T], table: dict[str, Any], where: str) -> T:
    """A dataclass from a table of its fields."""
    wanted = typing.get_type_hints(kind)
    fields = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in fields:
            raise UsageError(f"{where}.{key} is not known, one of {', '.join(fields)} expected")
        values[key] = _typed(value, wanted[key], f"{where}.{key}")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _typed(value: Any, wanted: Any, where: str) -> Any:
    """The value, where it is of the type of a field; a whole number will do for a float."""
    choices = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if isinstance(value, dict):
        for choice in choices:
            if dataclasses.is_dataclass(choice):
                return _build(typing.cast(type, choice), value, where)
            if typing.get_origin(choice) is dict:
                inner = typing.get_args(choice)[1]
                return {key: _typed(entry, inner, f"{where}.{key}") for key, entry in value.items()}
    if float in choices and type(value) is int:
        return float(value)
    if type(value) not in choices:
        raise UsageError(f"{where} = {value!r}: {' or '.join(filter(None, map(_called, choices)))} expected")
    return value


def _called(choice: Any) -> str:
    """A type as someone who writes TOML knows it."""
    if choice is types.NoneType:
        return ""
    table = typing.get_origin(choice) is dict or dataclasses.is_dataclass(choice)
    return "table" if table else str(choice.__name__)
