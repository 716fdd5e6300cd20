"""The coder of each tensor: what `coder=` and the step `code` choose, in whole files."""

from __future__ import annotations

import pytest
import torch

import deepcomp
from deepcomp.container import Writer
from deepcomp.errors import UsageError
from deepcomp.loader import File
from deepcomp.network import CODERS, CONTEXT, FAST, SMALLEST, Network
from deepcomp.serializer import write
from deepcomp.steps.code import Code
from deepcomp.weights import Grid, Mask

METHOD, HUFFMAN, ANS, CONTEXTS = 0, 2, 3, 4


@pytest.fixture
def net(randn):
    """Three sparse layers; the dead rows of each are dead columns of the next."""
    tensors, forms, live = {}, {}, torch.ones(40)
    for number, rows in enumerate((48, 24, 6)):
        name, rows_live = f"{number}.weight", (torch.rand(rows) < 0.5).float()
        weight = (randn(rows, len(live)) * rows_live[:, None] * live).masked_fill(torch.rand(rows, len(live)) < 0.5, 0)
        mask = Mask.nonzero(weight)
        mask.inner = Grid.fit(mask.inner.dense(), 3, axis=None, at=mask.positions, shape=tuple(weight.shape))
        tensors[name], forms[name] = weight, mask
        tensors[f"{number}.bias"] = randn(rows)
        live = rows_live
    return Network(tensors, forms=forms)


def written(net, path, jobs=1):
    with Writer(path, force=True) as writer:
        for _ in write(net, writer, {}, jobs):
            pass
    return path


def methods(path):
    """The method of the first stream of each weight, and how many tensors back its inputs are known from."""
    found = {}
    with File(path) as file:
        for name, entry in file.entries.items():
            if name.endswith("weight"):
                short, method = divmod(file.reader.body(file._records[name])[0], 32)
                found[name] = (method, short - 1 if method == CONTEXTS and len(entry.parts) == 1 else None)
    return found


def same(path, net):
    state = deepcomp.load_state_dict(path)
    return all(torch.equal(state[name], form.dense()) for name, form in net.forms.items())


@pytest.mark.parametrize("coder", CODERS)
def test_every_coder_keeps_the_weights_whatever_the_jobs(coder, net, tmp_path):
    net.coder = coder
    path = written(net, tmp_path / "x.dcz")
    assert same(path, net)
    assert written(net, tmp_path / "y.dcz", jobs=3).read_bytes() == path.read_bytes()
    deepcomp.verify(path)


def test_fast_is_the_default_and_never_the_context_coder(net, tmp_path):
    path = written(net, tmp_path / "x.dcz")
    assert {method for method, _ in methods(path).values()} <= {HUFFMAN, ANS}
    net.coder = FAST
    assert written(net, tmp_path / "y.dcz").read_bytes() == path.read_bytes()


def test_context_knows_dead_inputs_from_the_layer_before(net, tmp_path):
    net.coder = CONTEXT
    path = written(net, tmp_path / "x.dcz")
    assert methods(path) == {"0.weight": (4, 0), "1.weight": (4, 2), "2.weight": (4, 2)}
    net.forms = {name: net.forms[name] for name in ("1.weight",)}
    assert methods(written(net, tmp_path / "y.dcz"))["1.weight"] == (4, 0)  # what is before is stored exactly


def test_one_tensor_is_read_without_decoding_those_that_feed_it(net, tmp_path):
    net.coder = CONTEXT
    written(net, tmp_path / "x.dcz")
    with deepcomp.open(tmp_path / "x.dcz") as file:
        last = file.get_tensor("2.weight")
        assert list(file._live) == [2]  # rows of the layer before, and of none before that
    assert torch.equal(last, net.forms["2.weight"].dense())


def test_smallest_is_no_larger_than_the_others(net, tmp_path):
    sizes = {}
    for coder in CODERS:
        net.coder = coder
        with File(written(net, tmp_path / "x.dcz")) as file:
            sizes[coder] = {name: len(entry.pack()) + entry.body for name, entry in file.entries.items()}
    for name in net.tensors:
        assert sizes[SMALLEST][name] <= min(sizes[FAST][name], sizes[CONTEXT][name])
    assert sum(sizes[SMALLEST].values()) < 0.97 * sum(sizes[FAST].values())


def test_the_step_chooses_by_name(net, tmp_path):
    assert Code(coder=CONTEXT, layers="1").run(net) == {"tensors": 2}
    found = methods(written(net, tmp_path / "x.dcz"))
    assert found["1.weight"] == (4, 0)
    assert found["0.weight"][METHOD] != CONTEXTS != found["2.weight"][METHOD]
    with pytest.raises(UsageError, match=r"code.coder = 'x': one of fast, context, smallest expected"):
        Code(coder="x")


def test_compress_takes_a_coder(tmp_path, randn):
    weights = {"w": randn(60, 50) * (torch.rand(60, 1) < 0.3)}
    reports = {
        coder: deepcomp.compress(weights, tmp_path / f"{coder}.dcz", recipe="uniform", coder=coder) for coder in CODERS
    }
    assert reports[SMALLEST].output_bytes <= reports[CONTEXT].output_bytes < reports[FAST].output_bytes
    default = deepcomp.compress(weights, tmp_path / "x.dcz", recipe="uniform")
    assert default.sha256 == reports[FAST].sha256
    states = [deepcomp.load_state_dict(tmp_path / f"{coder}.dcz")["w"] for coder in CODERS]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    with pytest.raises(UsageError, match="coder = 'x': one of fast, context, smallest expected"):
        deepcomp.compress(weights, tmp_path / "y.dcz", coder="x")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_tensor_that_cannot_be_coded_says_so_and_leaves_no_thread_waiting(net, tmp_path):
    net.coder = CONTEXT
    net.tensors = {"complex32": torch.zeros(40, 2, dtype=torch.complex32), **net.tensors}
    net.forms["complex32"] = Grid.fit(torch.zeros(40, 2), 4)
    with pytest.raises(deepcomp.DeepcompError, match="complex32: element type"):
        written(net, tmp_path / "x.dcz", jobs=3)
