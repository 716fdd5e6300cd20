"""Verify: every tensor is decoded once, whatever the number of its names, and compared under each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import deepcomp
from deepcomp.container import Reader
from deepcomp.errors import FormatError, InputError

NAMES = 50


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the records whose bodies are read from now on."""
    found: list[str] = []
    body = Reader.body
    monkeypatch.setattr(Reader, "body", lambda self, record: found.append(record.name) or body(self, record))
    return found


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Tensor]:
    """Some tensors, two of which have many names: one is tied, and one is equal to others; their file is x.dcz."""
    tied, equal, single = torch.randn(30, 30), torch.randn(20, 20), torch.randn(7)
    state = {"single": single}
    for number in range(NAMES):
        state |= {f"tied{number}": tied, f"equal{number}": equal.clone()}
    deepcomp.compress(state, tmp_path / "x.dcz")
    return state


def test_references_are_decoded_with_what_they_refer_to(weights, decoded, tmp_path):
    rows = deepcomp.verify(tmp_path / "x.dcz")["tensors"]
    assert sorted(decoded) == ["equal0", "single", "tied0"]
    assert rows == [{"name": name} for name in weights]


def test_references_are_decoded_once_when_compared(weights, decoded, tmp_path):
    rows = deepcomp.verify(tmp_path / "x.dcz", against=weights)["tensors"]
    assert sorted(decoded) == ["equal0", "single", "tied0"]
    assert [row["name"] for row in rows] == list(weights)
    assert all(row["identical"] for row in rows)


def test_the_originals_may_be_a_file_of_any_kind(weights, tmp_path):
    save_file({name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "x.safetensors")
    torch.save(weights, tmp_path / "x.pt")
    for path in (tmp_path / "x.safetensors", str(tmp_path / "x.pt"), tmp_path / "x.dcz"):
        rows = deepcomp.verify(tmp_path / "x.dcz", against=path)["tensors"]
        assert all(row["identical"] for row in rows)
        assert len(rows) == len(weights)
    with pytest.raises(InputError, match="no such file"):
        deepcomp.verify(tmp_path / "x.dcz", against="none.pt")
    with pytest.raises(FormatError, match="max_bytes"):
        deepcomp.verify(tmp_path / "x.dcz", max_bytes=100)


def test_a_damaged_original_says_nothing_against_the_file(weights, tmp_path):
    (tmp_path / "y.dcz").write_bytes((tmp_path / "x.dcz").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"y\.dcz"):
        deepcomp.verify(tmp_path / "x.dcz", against=tmp_path / "y.dcz")


def test_each_name_is_compared_with_its_own_original(weights, tmp_path):
    weights["tied7"] = weights["tied7"] + 1
    rows = deepcomp.verify(tmp_path / "x.dcz", against=weights)["tensors"]
    assert [row["name"] for row in rows if not row["identical"]] == ["tied7"]
    assert {row["name"]: row["rms"] for row in rows}["tied7"] == pytest.approx(1)


def test_loading_decodes_references_once(weights, decoded, tmp_path):
    state = deepcomp.load_state_dict(tmp_path / "x.dcz")
    assert sorted(decoded) == ["equal0", "single", "tied0"]
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_constants_are_decoded_and_no_weights(tmp_path, decoded):
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + torch.arange(3.0)

    module = Shifted()
    deepcomp.compress(module, tmp_path / "x.dcz", example_inputs=torch.ones(2, 3))
    decoded.clear()
    assert [row["name"] for row in deepcomp.verify(tmp_path / "x.dcz", against=module.state_dict())["tensors"]] == [
        "weight"
    ]
    with deepcomp.open(tmp_path / "x.dcz") as file:
        assert len(file.entries) == len(decoded)


@pytest.mark.parametrize("name", ["w", "a\nb", "\x1b[2J\x07", "\u202ew", "x" * 65536], ids=lambda name: repr(name[:10]))
def test_an_odd_original_is_said_in_one_harmless_line(name, tmp_path):
    deepcomp.compress({name: torch.ones(3)}, tmp_path / "x.dcz")
    for other in (
        {name: torch.ones(4)},
        {name: torch.ones(3).double()},
        {},
        {name: torch.ones(3), name[::-1] + "v": torch.ones(1)},
    ):
        with pytest.raises(FormatError) as caught:
            deepcomp.verify(tmp_path / "x.dcz", against=other)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000
