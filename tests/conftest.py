"""Fixtures for all tests."""

from __future__ import annotations

import os

# One thread a test process, and in those it starts: several would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of MNIST, CIFAR-10 and WikiText-2; skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DEEPCOMP_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set DEEPCOMP_DATA")
    return folder


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """`torch.randn` with a generator of its own: the same tensors whatever ran before."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
