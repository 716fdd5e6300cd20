"""Arrays to code: a hypothesis strategy over alphabets, distributions and lengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from deepcomp import jit
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

settings.register_profile("entropy", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("entropy")


def draw_symbols(seed: int, count: int, alphabet: int, skew: float) -> NDArray[np.unsignedinteger]:
    """`count` symbols below `alphabet`; the greater the skew, the rarer the higher ones."""
    random = np.random.default_rng(seed)
    symbols = np.floor(alphabet * random.random(count) ** (1 + skew)).astype(np.uint64)
    return symbols.astype(np.uint8 if alphabet <= 256 else np.uint16 if alphabet <= 1 << 16 else np.uint32)


ALPHABETS = (1, 2, 3, 5, 16, 17, 127, 128, 129, 255, 256, 257, 1000, 65535, 65536, 65537, 1 << 32)

arrays = st.builds(
    draw_symbols,
    seed=st.integers(0, 1 << 32),
    count=st.one_of(st.integers(0, 40), st.integers(0, 3000)),
    alphabet=st.sampled_from(ALPHABETS),
    skew=st.sampled_from((0.0, 1.0, 5.0, 50.0)),
)


@pytest.fixture(params=[False, True], ids=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both backends in turn: True is numba."""
    if request.param and not jit.available():
        pytest.skip("numba is not installed")
    with jit.use(request.param):
        yield request.param
