"""The integer runtime from a file: what `load(path, runtime="integer")` gives, and refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepcomp
from deepcomp.errors import FormatError, InputError, MissingTensorError
from deepcomp.runtime.agreement import differences
from deepcomp.runtime.integer import Integer
from deepcomp.weights import Grid, Mask, Raw

RECIPE = """
[[step]]
do = "fold-bn"
{prune}
[[step]]
do = "quantize"
bits = 8
[[step]]
do = "quantize-activations"
"""
PRUNE = '[[step]]\ndo = "prune"\ndensity = 0.5\n'


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.max_pool2d(x + torch.relu(self.deep(x)), 2)
        return self.out(x.mean((2, 3)))


def compressed(tmp_path: Path, prune: str = "") -> Path:
    recipe, data = tmp_path / "w8a8.toml", tmp_path / "data.npz"
    recipe.write_text(RECIPE.format(prune=prune))
    x, y = np.random.default_rng(0).random((64, 1, 8, 8), np.float32), np.arange(64) % 4
    np.savez(data, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    path = tmp_path / "x.dcz"
    example = torch.rand(2, 1, 8, 8)
    deepcomp.compress(Net().eval(), path, recipe=recipe, data=f"npz:{data}", example_inputs=example, force=True)
    return path


@pytest.mark.parametrize("prune", ["", PRUNE], ids=["dense", "pruned"])
def test_a_file_runs_in_integers_and_agrees_with_its_simulation(prune: str, tmp_path: Path, randn: Any) -> None:
    path, x = compressed(tmp_path, prune), randn(16, 1, 8, 8).abs()
    simulated, integers = deepcomp.load(path), deepcomp.load(path, runtime="integer")
    assert isinstance(integers, Integer)
    assert integers.float_operations == []
    found = differences(simulated, integers, x)
    assert max(row.largest for row in found) <= 1
    assert found[0].name == "input x"
    assert found[1].name == "relu of conv2d conv.weight"
    assert integers.state_dict().keys() == simulated.state_dict().keys()
    assert all(torch.equal(integers.state_dict()[name], entry) for name, entry in simulated.state_dict().items())


def test_another_process_gets_the_same_numbers_and_imports_no_more_than_it_needs(tmp_path: Path, randn: Any) -> None:
    path, x = compressed(tmp_path), randn(3, 1, 8, 8)
    torch.save(x, tmp_path / "x.pt")
    code = f"""
        import sys, torch
        before = set(sys.modules)
        import deepcomp
        out = deepcomp.load({str(path)!r}, runtime="integer")(torch.load({str(tmp_path / "x.pt")!r}))
        heavy = {{"sklearn", "scipy", "numba", "sympy", "tqdm"}}
        found = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        assert not heavy & found, heavy & found
        torch.save(out.detach(), {str(tmp_path / "y.pt")!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    assert torch.equal(torch.load(tmp_path / "y.pt"), deepcomp.load(path, runtime="integer")(x))


def test_forms_are_what_tensors_are_stored_as(tmp_path: Path) -> None:
    with deepcomp.open(compressed(tmp_path, PRUNE)) as file:
        form = file.get_form("out.weight")
        assert isinstance(form, Mask)
        assert isinstance(form.inner, Grid)
        assert torch.equal(form.dense(), file.get_tensor("out.weight"))
        assert isinstance(file.get_form("out.bias"), Raw)
        with pytest.raises(MissingTensorError, match="no tensor named 'nope'"):
            file.get_form("nope")


def test_files_without_quantisers_or_operations_say_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.dcz"
    example = torch.rand(2, 1, 8, 8)
    deepcomp.compress(Net().eval(), path, recipe="uniform", example_inputs=example)
    said = r"x\.dcz: nothing to run in integers: conv2d conv\.weight: what it reads is not quantised$"
    with pytest.raises(InputError, match=said):
        deepcomp.load(path, runtime="integer")
    deepcomp.compress({"w": torch.ones(3, 3)}, path, force=True)
    with pytest.raises(InputError, match="holds weights without a graph"):
        deepcomp.load(path, runtime="integer")


def test_a_damaged_weight_is_found_as_in_any_runtime(tmp_path: Path) -> None:
    path = compressed(tmp_path)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError):
        deepcomp.load(path, runtime="integer")
