"""Forms packed for the context coder: a symbol an element, in the order of the values; the same weight to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcomp.weights import Codebook, Grid, Mask, Raw, Rows, Scaled, form_class
from deepcomp.weights.dtypes import DTYPES, from_words, to_words
from deepcomp.weights.exact import exact

SHAPE = (12, 10)


def check(form):
    """The aligned packing gives the weight back; its first array."""
    packed = form.aligned()
    assert packed is not None
    assert packed.inner is None
    again = form_class(packed.code).unpack(packed, form.shape, form.dtype)
    assert np.array_equal(to_words(again.dense()), to_words(form.dense()))
    first = next(iter(packed.symbols.values()))
    assert len(first) == form.dense().numel()
    return first


def ascending(form):
    """Whether greater symbols mean greater values."""
    symbols, values = check(form).astype(np.int64), form.dense().double().reshape(-1).numpy()
    order = np.argsort(symbols, kind="stable")
    return bool((np.diff(values[order]) >= 0).all())


FITS = {
    "grid": lambda w, **at: Grid.fit(w, 4, axis=None, **at),
    "asymmetric grid": lambda w, **at: Grid.fit(w, 3, symmetric=False, **at),
    "grid of blocks": lambda w, **at: Grid.fit(w, 4, axis=1, size=5, **at),
    "codebook": lambda w, **at: Codebook.cluster(w, 7),
    "ternary": lambda w, **at: Scaled.fit(w, "ternary", sides=2, **at),
    "binary": lambda w, **at: Scaled.fit(w, "binary", axis=None, **at),
    "powers of two": lambda w, **at: Scaled.fit(w, "power-of-two", 4, axis=1, **at),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_the_same_weight_under_a_mask_or_not(fit, dtype, randn):
    weight = randn(*SHAPE).to(dtype)
    check(fit(weight))
    for density in (0, 0.05, 0.6, 1):
        mask = Mask.nonzero(weight, torch.rand(SHAPE) < density)
        mask.inner = fit(mask.inner.dense(), at=mask.positions, shape=SHAPE)
        check(mask)


@pytest.mark.parametrize("name", ["grid", "codebook", "binary"])
def test_symbols_are_in_the_order_of_the_values(name, randn):
    weight = randn(*SHAPE)
    mask = Mask.nonzero(weight, weight.abs() > 0.5)
    mask.inner = FITS[name](mask.inner.dense(), at=mask.positions, shape=SHAPE)
    assert ascending(mask)
    assert ascending(FITS[name](weight))


@pytest.mark.parametrize("kind", [kind for kind in DTYPES.values() if kind.words == 1], ids=lambda kind: kind.name)
def test_exact_forms_of_every_type(kind):
    raw = np.random.default_rng(0).integers(0, 2 if kind.name == "bool" else 256, 8 * kind.word_bytes, np.uint8)
    values = np.append(raw.view(kind.word), np.zeros(1, kind.word))  # infinities and NaNs among them, perhaps
    words = values[np.random.default_rng(1).integers(0, 9, 600)] * (np.random.default_rng(2).random(600) < 0.5)
    form = exact(from_words(words.astype(kind.word), kind.torch, (60, 10)))
    if form.aligned() is not None:
        check(form)


def test_repeated_rows_of_shared_values(randn):
    weight = Codebook.cluster(randn(5, 10), 4).dense()
    form = exact(weight.repeat(9, 1))
    assert isinstance(form, Rows)
    check(form)


def test_some_forms_have_no_such_packing(randn):
    assert Raw(randn(*SHAPE)).aligned() is None
    assert Mask.nonzero(randn(*SHAPE)).aligned() is None
    grid = Grid.fit(randn(*SHAPE), 4, axis=None)
    assert Rows(torch.arange(12), grid).aligned() is None  # the scales are those of the distinct rows
    mask = Mask.nonzero(randn(*SHAPE))
    mask.inner = Scaled.fit(mask.inner.dense(), "ternary", axis=None, at=mask.positions, shape=SHAPE)
    mask.inner.scale.data.fill_(-0.3)  # a zero would be -0
    assert mask.aligned() is None
