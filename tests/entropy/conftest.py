"""Both backends for tests of the entropy coder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deepcomp import jit


@pytest.fixture(params=[False, True], ids=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Each backend in turn: True is numba."""
    if request.param and not jit.available():
        pytest.skip("numba is not installed")
    with jit.use(request.param):
        yield request.param
