"""Fixtures for hostile and damaged files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from independent_decoder import decode
from limits import MEMORY, SECONDS, limited

import deepcomp
from deepcomp import jit
from deepcomp.errors import FormatError


@pytest.fixture
def bounded() -> Iterator[Any]:
    """`limited`, with numpy's kernels: compiling would count as memory and time."""
    with jit.use(numba=False):
        yield limited


@pytest.fixture
def refused(tmp_path: Path, bounded: Any) -> Callable[..., None]:
    """Insist that each reader refuses a file with one line that names it and what was found."""

    def check(
        data: bytes, found: str, *reads: Callable[[Path], Any], memory: int = MEMORY, seconds: float = SECONDS
    ) -> None:
        path = tmp_path / "x.dcz"
        path.write_bytes(data)
        for read in reads or (deepcomp.verify, deepcomp.load_state_dict):
            with bounded(memory, seconds), pytest.raises(FormatError, match=found) as caught:
                read(path)
            line = str(caught.value)
            assert line.startswith(f"{path}: ")
            assert "\n" not in line
            assert len(line) < 1000

    return check


@pytest.fixture
def refused_by_both(refused: Callable[..., None]) -> Callable[..., None]:
    """`refused`, and the independent decoder refuses the file as well."""

    def check(data: bytes, found: str) -> None:
        refused(data, found)
        with pytest.raises(ValueError):  # noqa: PT011
            decode(data)

    return check
