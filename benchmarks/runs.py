"""Runs of `compress` that take minutes: kept in a folder, and found again where the same is asked once more."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

import deepcomp
from deepcomp.model.data import Data

__all__ = ["CHECKPOINTS", "run"]

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def run(
    out: Path,
    network: nn.Module | Path,
    recipe: str | Path,
    data: Data,
    *,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The report of `compress`: of a run before, or of a new one, which goes on where one was interrupted.

    Parameters
    ----------
    out : Path
        The file to make; beside it, as JSON, what was asked and the report.
    network : nn.Module or Path
        A `.safetensors` file holds weights of the built-in network it is named after. A module is taken to be
        the same whenever `out` is.
    recipe : str or Path
        A built-in name, or a TOML file.
    """
    note = out.with_suffix(".json")
    asked = {"recipe": _text(recipe), "settings": settings or {}, "seed": seed}
    if isinstance(network, Path):
        asked["network"] = _digest(network)
    if note.is_file() and out.is_file():
        found: dict[str, Any] = json.loads(note.read_text())
        if found["asked"] == asked and found["report"]["sha256"] == _digest(out):
            return found["report"]  # type: ignore[no-any-return]
    model = network.stem if isinstance(network, Path) and network.suffix == ".safetensors" else None
    done = deepcomp.compress(
        network, out, recipe=recipe, model=model, data=data, settings=settings, seed=seed, force=True, resume=True
    )
    report = json.loads(json.dumps(done.to_dict()))
    note.write_text(json.dumps({"asked": asked, "report": report}, indent=1))
    return report  # type: ignore[no-any-return]


def _text(recipe: str | Path) -> str:
    where = recipe if isinstance(recipe, Path) else resources.files("deepcomp.recipes").joinpath(f"{recipe}.toml")
    return where.read_text(encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
