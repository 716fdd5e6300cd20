"""Hostile names: labels of weights, and of a network paths that lead nowhere but to its tensors."""

from __future__ import annotations

import pytest
import torch
from build import back, deflated, file, graph, node, plain, reference, seal, tensor, words

import deepcomp
from deepcomp.runtime import interpreter

W = tensor("w", (2,), words(1, 2))
RELU = node(13, back())

NAMES = [
    "", ".", "a..b", ".a", "a.", "../../etc/passwd", "a/../b", "/etc/passwd", "a\\b", "\0", "a\0b", "a\nb", "\x1b[2J",
    "\u202ea", "x" * 65536, "x." * 1000 + "x", "__class__", "__dict__", "weight.__dict__", "a.__class__.__init__",
    "forward", "training", "_parameters", "_modules.x", "_dcz", "state_dict", "half", "a.forward.b", "register_buffer",
]  # fmt: skip

by_name = pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:30]))


@by_name
@pytest.mark.parametrize("role", [0, 1, 2])
def test_names_of_a_network_lead_nowhere_but_to_its_tensors(name, role, refused):
    before = sorted(dir(torch.nn.Module))
    refused(file(tensor(name, (2,), words(1, 2), role=role), graph(RELU)), "is a tensor's name", deepcomp.load)
    assert sorted(dir(torch.nn.Module)) == before


@by_name
def test_names_of_weights_alone_are_labels(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.dcz").write_bytes(file(tensor(name, (2,), words(1, 2))))
    assert list(deepcomp.load_state_dict("x.dcz")) == [name]
    with deepcomp.open("x.dcz") as opened:
        assert opened.keys() == [name]
        assert opened.get_tensor(name).tolist() == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["x.dcz"]


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a.b.c", "a.b"), ("a", "a.b.c.d")], ids=str)
def test_a_tensor_is_not_a_part_at_once(names, refused):
    tensors = [tensor(name, (2,), words(1, 2)) for name in names]
    refused(file(*tensors, graph(RELU)), "goes through a tensor|two tensors or parts", deepcomp.load)


def test_a_tied_name_that_collides_is_refused(refused):
    refused(file(W, reference("w.w", (2,), 0), graph(RELU)), "goes through a tensor of the name 'w'", deepcomp.load)


def tree(names: int, parts: int) -> bytes:
    """A network of so many empty tensors, each of whose names is a path of its own through so many parts."""
    below = ".".join(["a"] * parts)
    tensors = [tensor(f"{number}.{below}", (0,), words(), last=number == names - 1) for number in range(names)]
    return seal(b"", deflated(plain([*tensors, graph(RELU)])[1:]))


def test_names_that_make_too_many_parts_are_refused(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(interpreter, "MAX_MODULES", 60)
    refused(tree(7, 10), "more than 60 parts in the names of the tensors", deepcomp.load, deepcomp.verify)
    (tmp_path / "x.dcz").write_bytes(tree(6, 10))
    assert sum(1 for _ in deepcomp.load(tmp_path / "x.dcz").modules()) == 1 + 60


def test_parts_that_names_share_count_once(monkeypatch, tmp_path):
    monkeypatch.setattr(interpreter, "MAX_MODULES", 3)
    (tmp_path / "x.dcz").write_bytes(file(*(tensor(f"a.b.c.{i}", (2,), words(1, 2)) for i in range(9)), graph(RELU)))
    assert len(deepcomp.load(tmp_path / "x.dcz").state_dict()) == 9


@pytest.mark.slow
def test_a_small_file_of_too_many_parts_is_refused_within_bounds(refused):
    data = tree(interpreter.MAX_MODULES // 63 + 1, 63)
    assert len(data) < 10_000
    refused(data, "more than 131072 parts", deepcomp.load, memory=512 << 20, seconds=60)
