"""What is given becomes a network: weights meet their architecture, a file brings its own."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deepcomp
from deepcomp import InputError, UsageError, loader
from deepcomp.opening import open_network


class Tied(nn.Module):
    """An embedding that is its own decoder."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.norm(self.mix(self.embed(tokens))))


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A `--model` of `Tied`."""
    monkeypatch.setitem(__import__("sys").modules, "tied_net", type("module", (), {"Tied": Tied}))
    return "tied_net:Tied"


@pytest.mark.parametrize("left_out", [(), ("out.weight",), ("embed.weight",)], ids=str)
@pytest.mark.parametrize("counters", [True, False])
def test_either_name_of_a_tied_pair_will_do(left_out, counters, spec, tmp_path):
    net = Tied().eval()
    gone = {*left_out, *(() if counters else ("norm.num_batches_tracked",))}
    state = {name: tensor.clone() for name, tensor in net.state_dict().items() if name not in gone}
    save_file(state, tmp_path / "w.safetensors")
    opened, source = open_network(tmp_path / "w.safetensors", spec)
    assert set(opened.tensors) == set(state) | set(left_out)
    assert len(opened.tied) == 1
    (tied,) = opened.tied.items()
    names = list(opened.tensors)
    assert names.index(tied[0]) > names.index(tied[1])
    assert source.nbytes == (tmp_path / "w.safetensors").stat().st_size
    tokens = torch.arange(5)
    assert torch.equal(opened.module(tokens), net(tokens))
    deepcomp.compress(tmp_path / "w.safetensors", tmp_path / "x.dcz", model=spec, example_inputs=tokens)
    back = deepcomp.load(tmp_path / "x.dcz")
    assert (back(tokens) - net(tokens)).abs().max() < 1e-5
    assert back.get_parameter("out.weight") is back.get_parameter("embed.weight")


def test_weights_that_differ_under_tied_names_are_kept_apart(spec, tmp_path):
    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    state["out.weight"] += 1
    assert not open_network(state, spec)[0].tied


def test_what_does_not_fit_is_named(spec):
    state = dict(Tied().state_dict())
    with pytest.raises(InputError, match=r"missing \['embed.weight', 'out.weight'\], not known \['more'\]"):
        open_network({"more": torch.ones(3), "mix.weight": state["mix.weight"], "mix.bias": state["mix.bias"],
                      **{name: state[name] for name in state if name.startswith("norm")}}, spec)  # fmt: skip
    with pytest.raises(InputError, match=r"mix.weight of shape \(2, 2\) found, \(8, 8\) expected"):
        open_network({**state, "mix.weight": torch.ones(2, 2)}, spec)


@pytest.fixture
def runnable(tmp_path):
    """A file with a network in it."""
    path = tmp_path / "net.dcz"
    deepcomp.compress(nn.Sequential(nn.Linear(4, 3)), path, example_inputs=torch.ones(2, 4))
    return path


def test_a_file_with_operations_is_decoded_once(runnable, monkeypatch):
    decoded = []
    dense = loader.File._dense
    monkeypatch.setattr(
        loader.File, "_dense", lambda self, name, arena: decoded.append(name) or dense(self, name, arena)
    )
    opened, _ = open_network(runnable)
    assert decoded == list(opened.tensors)
    assert opened.captured is not None
    assert opened.module(torch.ones(5, 4)).shape == (5, 3)


def test_a_file_with_operations_needs_no_model_and_no_input_and_says_so(runnable, tmp_path):
    for more in ({"model": "lenet-5"}, {"example_inputs": torch.ones(2, 4)}):
        with pytest.raises(UsageError, match=r"net\.dcz: brings its own operations"):
            deepcomp.compress(runnable, tmp_path / "x.dcz", **more)
    deepcomp.compress(runnable, tmp_path / "x.dcz")


def test_an_example_input_without_a_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match="an example input is given, but no network"):
        deepcomp.compress({"w": torch.ones(3)}, tmp_path / "x.dcz", example_inputs=torch.ones(2, 4))


def test_the_limit_on_dense_bytes_may_be_raised(tmp_path, monkeypatch):
    deepcomp.compress({"w": torch.zeros(1000, 1000)}, tmp_path / "x.dcz")
    monkeypatch.setattr(loader, "MAX_BYTES", 1000)
    monkeypatch.setattr(loader, "MAX_RATIO", 1)
    with pytest.raises(deepcomp.FormatError, match="max_bytes"):
        deepcomp.compress(tmp_path / "x.dcz", tmp_path / "y.dcz")
    deepcomp.compress(tmp_path / "x.dcz", tmp_path / "y.dcz", max_bytes=1 << 26)
    assert (tmp_path / "y.dcz").read_bytes() == (tmp_path / "x.dcz").read_bytes()
