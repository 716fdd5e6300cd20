"""What `exact` finds in large tensors, of which it looks at samples: nothing worth finding is missed."""

import numpy as np
import pytest
import torch

from deepcomp import jit
from deepcomp.weights import Codebook, Raw, Shifted
from deepcomp.weights.dtypes import to_words
from deepcomp.weights.exact import exact

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = (False, True) if jit.available() else (False,)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.int64])
@pytest.mark.parametrize("values", [3, 60, 400])
def test_few_values_of_many_weights_become_a_codebook(values, dtype):
    table = (1000 * normal(values)).to(dtype)
    index = torch.randint(0, values, (300, 700), generator=torch.Generator().manual_seed(0))
    form = exact(table[index])
    assert isinstance(form, Codebook)
    assert len(form.values) == len(torch.unique(table))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_coarse_grid_becomes_a_codebook(dtype):
    weight = (normal(400, 500) * 100).round().to(dtype) / 128
    assert isinstance(exact(weight), Codebook)


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_all_differ_stay_raw(dtype):
    assert type(exact(normal(300, 700).to(dtype))) is Raw


@pytest.mark.parametrize("dtype", FLOATS)
def test_both_backends_shift_rows_alike(dtype):
    weight = (normal(300, 700) * torch.exp(normal(300, 1, seed=1))).to(dtype)
    found = []
    for numba in BACKENDS:
        with jit.use(numba):
            form = exact(weight)
            assert type(form) is Shifted
            found.append({name: plane.tobytes() for name, plane in form.pack().symbols.items()})
    assert all(symbols == found[0] for symbols in found)
    assert np.array_equal(to_words(form.dense()), to_words(weight))


def test_few_wide_words_are_not_counted_in_a_table_of_all_there_could_be():
    words = torch.arange(40_000, dtype=torch.int64).repeat(2) << 40
    assert to_words(exact(words).dense()).tobytes() == to_words(words).tobytes()
