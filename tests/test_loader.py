"""Single tensors: what a file lacks, and what is closed, is said in one line."""

import pytest
import torch

import deepcomp
from deepcomp import DeepcompError, InputError


@pytest.fixture
def path(tmp_path):
    deepcomp.compress({"w": torch.ones(3), "v": torch.arange(4.0)}, tmp_path / "x.dcz")
    return tmp_path / "x.dcz"


def test_a_tensor_that_is_not_there_is_a_key_error_and_one_of_ours(path):
    with deepcomp.open(path) as file:
        for kind in (KeyError, InputError, DeepcompError, deepcomp.MissingTensorError):
            with pytest.raises(kind, match=r"x\.dcz: no tensor named 'nope'$"):
                file.get_tensor("nope")


def test_a_closed_file_says_so(path):
    with deepcomp.open(path) as file:
        file.get_tensor("w")
    reads = [lambda: file.get_tensor("w"), lambda: file.get_tensor("v"), lambda: file.get_form("w")]
    for read in (*reads, lambda: dict(file.tensors())):
        with pytest.raises(InputError, match=r"x\.dcz: closed already"):
            read()
    file.close()
    assert file.keys() == ["w", "v"]
