"""Room in memory or in a file: the same numbers either way."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch

from deepcomp.errors import InputError
from deepcomp.training.scratch import Pool, scratch


def mapped() -> int:
    """How many unnamed files this process has mapped into memory."""
    return Path("/proc/self/maps").read_text().count("(deleted)")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_what_is_too_large_lies_in_a_file_that_goes_with_the_tensor() -> None:
    before, files = mapped(), set(os.listdir(tempfile.gettempdir()))
    small, large = scratch((10, 20), budget=800), scratch((10, 21), budget=800)
    assert mapped() == before + 1
    assert set(os.listdir(tempfile.gettempdir())) <= files
    for tensor in (small, large):
        assert tensor.dtype == torch.float32
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
        assert tensor.sum() == tensor.numel() * (tensor.numel() - 1) / 2
    rows = large[3:5]
    del tensor, large
    gc.collect()
    assert mapped() == before + 1
    assert rows[0, 0] == 63
    del rows
    gc.collect()
    assert mapped() == before


def test_no_room_is_one_line() -> None:
    with pytest.raises(InputError, match=r"a temporary file of \d+ bytes in .*: "):
        scratch((1 << 50,), budget=0)


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_a_pool_holds_what_came_in_order(budget: int) -> None:
    pool = Pool(10, budget)
    assert len(pool.rows) == 0
    for count in (3, 4, 1):
        pool.add(torch.full((count, 2), float(count)))
    assert pool.rows.tolist() == [[3, 3]] * 3 + [[4, 4]] * 4 + [[1, 1]]
