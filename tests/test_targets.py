"""Where files go: nothing that is read, and nothing that is there, is lost."""

import numpy as np
import pytest
from torch import nn

import deepcomp
from deepcomp import InputError, UsageError
from deepcomp.model import zoo


def test_what_is_read_is_never_replaced(tmp_path):
    inputs, labels = np.random.rand(20, 8).astype("float32"), np.arange(20) % 3
    np.savez(tmp_path / "d.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[step]]\ndo = "quantize"\n[dial]\nset = "quantize.bits"\nvalues = [8, 4]\n')
    data, read = f"npz:{tmp_path / 'd.npz'}", {path: path.read_bytes() for path in tmp_path.iterdir()}
    given = {"recipe": recipe, "data": data, "force": True}
    for out, curve in ((recipe, None), (tmp_path / "d.npz", None), (tmp_path / "x.dcz", tmp_path / "d.npz")):
        with pytest.raises(UsageError, match="is read, or written for something else"):
            deepcomp.compress(nn.Linear(8, 3), out, pareto=curve, **given)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == read


def test_a_plot_replaces_nothing_unless_forced(tmp_path):
    plot = tmp_path / "keep.svg"
    plot.write_text("mine")
    settings = {"prune.tolerance": 50.0, "prune.plot": str(plot)}
    given = {"recipe": "deep-compression", "data": "digits", "settings": {**settings, "prune.rounds": 1}}
    with pytest.raises(InputError, match=r"keep\.svg: exists already"):
        deepcomp.compress(zoo.build("digits-cnn"), tmp_path / "x.dcz", **given)
    assert plot.read_text() == "mine"
    missing = {**given["settings"], "prune.plot": str(tmp_path / "no" / "plot.svg")}
    with pytest.raises(InputError, match="not a folder one can write to"):
        deepcomp.compress(zoo.build("digits-cnn"), tmp_path / "x.dcz", **{**given, "settings": missing})


def test_long_names_are_an_error_with_budgets_too(tmp_path):
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        deepcomp.compress(nn.Linear(8, 3), tmp_path / f"{'a' * 245}.dcz", recipe="uniform", max_size=1000)
