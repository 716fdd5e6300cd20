"""Write `docs/steps.md`, all steps with all their settings, from their docstrings: `python docs/write_steps.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepcomp.steps import STEPS, Step
from deepcomp.training.plan import Plan

PAGE = Path(__file__).parent / "steps.md"
HEAD = """# Steps

<!-- written by docs/write_steps.py -->

What a recipe can do. A step is a `[[step]]` table of a recipe, with `do = "…"` and settings, all of which have
defaults. `--set STEP.KEY=VALUE`, or `settings=` in Python, replaces settings of a recipe. How one is written, and which
there are: [recipes](recipes/README.md).

All steps have `layers` (`"*"`) and `skip` (`""`): the tensors they take, and those of them they leave, as name
patterns, several separated by commas.
"""
TRAINED = "The other settings are those of [training](#training)"


def page() -> str:
    """The text of the page."""
    links = [*(f"[`{do}`](#{do})" for do in STEPS), "[training](#training)"]
    training = [
        "## Training",
        "Settings of `finetune`, of `rate-train` and, in a table `[step.retrain]`, of `prune`.",
        _table(Plan),
    ]
    return "\n".join([HEAD, " · ".join(links), "", *map(_section, STEPS.values()), "\n\n".join(training), ""])


def _section(step: type[Step]) -> str:
    """What a step does, and what can be set."""
    parts = [f"## `{step.do}`", _about(step), _table(step)]
    if issubclass(step, Plan):
        usual = {field.name: field.default for field in dataclasses.fields(Plan)}
        own = [field for field in dataclasses.fields(step) if usual.get(field.name, field.default) != field.default]
        listed = [name for names, _, _ in _settings(step) for name in names]
        other = ", ".join(f"`{field.name}` {_default(field)}" for field in own if field.name not in listed)
        parts.append(f"{TRAINED}, but for these defaults: {other}." if other else f"{TRAINED}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _about(step: type[Step]) -> str:
    return inspect.cleandoc(step.__doc__ or "").partition("\nAttributes\n")[0].strip()


def _settings(owner: type[Any]) -> Iterator[tuple[list[str], str, str]]:
    """Names, type and text of each setting, or of several together, as a docstring lists them."""
    listed = inspect.cleandoc(owner.__doc__ or "").partition("\nAttributes\n----------\n")[2]
    for entry in re.split(r"\n(?=\S)", listed.strip()):
        if entry:
            head, _, text = entry.partition("\n")
            names, _, kind = head.partition(" : ")
            yield names.split(", "), kind.removesuffix(", optional"), " ".join(text.split())


def _table(owner: type[Any]) -> str:
    """The settings, with their defaults."""
    fields = {field.name: field for field in dataclasses.fields(owner)}
    lines = ["| setting | default | type | what |", "|---|---|---|---|"]
    for names, kind, text in _settings(owner):
        cells = (", ".join(f"`{n}`" for n in names), ", ".join(_default(fields[n]) for n in names), kind, text)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _default(field: dataclasses.Field[Any]) -> str:
    """As TOML has it."""
    value = field.default_factory() if callable(field.default_factory) else field.default
    if value is None:
        return "–"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, dict) else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
