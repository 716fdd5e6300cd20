"""Channels of captured networks: which go together, which stay, and the network without some of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from deepcomp.errors import InputError
from deepcomp.model import zoo
from deepcomp.model.capture import Captured, capture
from deepcomp.model.channels import FILTER, SCALE, Channels
from deepcomp.model.graph import Graph, Input, Node, Value
from deepcomp.model.ties import Ties
from deepcomp.runtime.interpreter import Interpreter, trace


class Net(nn.Module):
    """Parts by name, and a function of them and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def separable() -> nn.Module:
    """A depthwise-separable residual block, as MobileNets have."""
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16),
    ]  # fmt: skip
    block = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1))
    return Net(lambda n, x: n.head((y := n.stem(x)).add(n.block(y)).mean((2, 3))), stem=nn.Sequential(*layers),
               block=block, head=nn.Linear(16, 5))  # fmt: skip


def dense() -> nn.Module:
    """Feature maps joined, as in a DenseNet."""

    def run(n: Any, x: Tensor) -> Tensor:
        a = n.a(x)
        b = torch.cat([a, n.b(a).relu()], 1)
        c = torch.cat([b, n.c(n.norm(b).relu())], 1)
        return n.head(functional.adaptive_avg_pool2d(c, 2).flatten(1))

    return Net(run, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 6, 3, padding=1), norm=nn.BatchNorm2d(10),
               c=nn.Conv2d(10, 5, 1), head=nn.Linear(60, 7))  # fmt: skip


def gated() -> nn.Module:
    """Parts of an axis that are multiplied: gated linear units, each way, and squeeze and excitation."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = functional.glu(n.glu(x), 1)
        left, right = n.both(y).chunk(2, 1)
        y = left * right.sigmoid()
        return n.head((y * n.up(n.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()).flatten(1))

    return Net(run, glu=nn.Conv2d(3, 12, 3), both=nn.Conv2d(6, 16, 1), down=nn.Conv2d(8, 3, 1), up=nn.Conv2d(3, 8, 1),
               head=nn.Linear(32, 4))  # fmt: skip


def parts() -> nn.Module:
    """An axis taken apart unevenly and padded, parts of which are read by different layers."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.conv(x)
        first, second, third = y.split([2, 5, 3], 1)
        seen = n.first(first) + n.rest(torch.cat([third, functional.pad(second.relu(), (0, 0, 0, 0, 1, 2))], 1))
        return n.head(torch.stack([seen, n.tail(y[:, 4:])], 1).permute(0, 2, 1, 3, 4).flatten(1))

    return Net(run, conv=nn.Conv2d(3, 10, 3), first=nn.Conv2d(2, 4, 1), rest=nn.Conv2d(11, 4, 1),
               tail=nn.Conv2d(6, 4, 1), head=nn.Linear(4 * 2 * 4, 3))  # fmt: skip


def grouped() -> nn.Module:
    """A ResNeXt block and group normalisation, convolutions that go up again, instance normalisation."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.norm(n.cardinal(n.reduce(x).relu())).relu()
        y = functional.pixel_shuffle(n.wide(n.upper(n.up(y))), 2)
        return n.out(functional.interpolate(n.instance(y), scale_factor=0.5, mode="bilinear"))

    return Net(run, reduce=nn.Conv2d(3, 12, 1), cardinal=nn.Conv2d(12, 24, 3, padding=1, groups=4),
               norm=nn.GroupNorm(6, 24), up=nn.ConvTranspose2d(24, 9, 2, 2),
               upper=nn.ConvTranspose2d(9, 6, 1, groups=3), wide=nn.Conv2d(6, 20, 1),
               instance=nn.InstanceNorm2d(5, affine=True), out=nn.Conv2d(5, 2, 1))  # fmt: skip


def words() -> nn.Module:
    """Embedding, convolutions over time, and products written out."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.conv(n.tokens(x).transpose(1, 2)).relu().amax(2)
        return torch.addmm(n.offset, torch.tanh(y @ n.matrix), n.last)

    return Net(run, tokens=nn.Embedding(20, 6), conv=nn.Conv1d(6, 8, 3, padding="same"),
               matrix=nn.Parameter(torch.randn(8, 5)), last=nn.Parameter(torch.randn(5, 4)),
               offset=nn.Parameter(torch.randn(4)))  # fmt: skip


def unflattened() -> nn.Module:
    """Features that become feature maps: the flattening of a decoder, backwards."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.scale * n.conv(x).flatten(1)
        return n.out(y.unflatten(1, (6, 2, 2)).relu() + y.view(-1, 6, 2, 2).expand(-1, 6, 2, 2))

    return Net(run, conv=nn.Conv2d(3, 6, 3), scale=nn.Parameter(torch.randn(24)), out=nn.Conv2d(6, 2, 1))


def reused() -> nn.Module:
    """A layer called twice, its weights used under another name too."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.again(n.inner(n.inner(n.first(x)).relu()).relu())
        return n.last(y)

    net = Net(run, first=nn.Linear(4, 8), inner=nn.Linear(8, 8), again=nn.Linear(8, 8), last=nn.Linear(8, 3))
    net.again.weight = net.inner.weight
    return net


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, *shape)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "lenet-300-100": (lambda: zoo.build("lenet-300-100"), images(1, 28, 28)),
    "lenet-5": (lambda: zoo.build("lenet-5"), images(1, 28, 28)),
    "digits-cnn": (lambda: zoo.build("digits-cnn"), images(1, 8, 8)),
    "resnet20": (lambda: zoo.build("resnet20"), images(3, 32, 32)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), images(5, 8)),
    "separable": (separable, images(3, 8, 8)),
    "dense": (dense, images(3, 8, 8)),
    "gated": (gated, images(3, 4, 4)),
    "parts": (parts, images(3, 4, 4)),
    "grouped": (grouped, images(3, 4, 4)),
    "unflattened": (unflattened, images(3, 4, 4)),
    "reused": (reused, images(4)),
    "words": (words, lambda: torch.randint(0, 20, (3, 7))),
}


def analysed(captured: Captured, tensors: dict[str, Tensor], tied: dict[str, str]) -> Channels:
    return Channels(captured, tensors, trace(captured.graph, captured.names, tensors), tied)


class Case:
    """A network with random statistics, captured."""

    def __init__(self, make: Callable[[], nn.Module], inputs: Callable[[], Tensor]) -> None:
        torch.manual_seed(0)
        self.module, self.inputs = make().eval(), inputs()
        for part in self.module.modules():
            if isinstance(part, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm):
                for name, tensor in part.state_dict().items():
                    if tensor.is_floating_point():
                        tensor.copy_(torch.rand_like(tensor) + 0.5 * (name != "bias"))
        self.captured = capture(self.module, self.inputs)
        state = {name: tensor.detach() for name, tensor in self.module.state_dict().items()}
        owners = {id(p): n for n, p in reversed(list(self.module.named_parameters(remove_duplicate=False)))}
        pairs = self.module.named_parameters(remove_duplicate=False)
        self.tied = {name: owners[id(p)] for name, p in pairs if owners[id(p)] != name}
        self.tensors = state | self.captured.constants
        self.channels = analysed(self.captured, self.tensors, self.tied)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors, some in place of the network's own."""
        return self.tensors | tensors | {name: tensors[f] for name, f in self.tied.items() if f in tensors}

    def run(self, graph: Graph, tensors: dict[str, Tensor]) -> Tensor:
        network = Interpreter(graph, self.captured.names, [(n, t, "buffer") for n, t in self.whole(tensors).items()])
        with torch.no_grad():
            found = network(self.inputs)
        assert isinstance(found, Tensor)
        return found

    def choose(self, seed: int) -> Iterable[tuple[Any, Any]]:
        """Some channels of each group, by their places in it: from none to all but one."""
        random = np.random.default_rng(seed)
        for group in self.channels.groups:
            yield group, random.permutation(len(group))[: random.integers(0, len(group))]

    def zeroed(self, chosen: list[tuple[Any, Any]], where: Callable[[Any], bool]) -> dict[str, Tensor]:
        """The tensors with zeros where the chosen channels lie in some places."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        for group, gone in chosen:
            for place in filter(where, group.places):
                tensors[place.tensor].index_fill_(place.axis, torch.from_numpy(place.indices[gone].reshape(-1)), 0)
        return tensors


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*NETWORKS[request.param])


# ---------------------------------------------------------------- removal


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_computes_what_the_network_did_when_nothing_reads_the_channels_that_go(
    case: Case, seed: int
) -> None:
    """Readers: axes of matrices and kernels that hold no filters."""
    chosen = list(case.choose(seed))
    masked = case.zeroed(chosen, lambda place: place.role != FILTER and case.tensors[place.tensor].ndim >= 2)
    gone = np.concatenate([group.channels[at] for group, at in chosen])
    graph, smaller = case.channels.without(gone, case.tensors)
    assert all(tensor.numel() < case.tensors[name].numel() for name, tensor in smaller.items())
    torch.testing.assert_close(case.run(graph, smaller), case.run(case.captured.graph, masked), rtol=1e-4, atol=1e-5)


def test_channels_that_are_zero_throughout_go_without_a_trace(case: Case) -> None:
    chosen = list(case.choose(9))
    zeroed = case.zeroed(chosen, lambda place: True)
    gone = np.concatenate([group.channels[at] for group, at in chosen])
    graph, smaller = case.channels.without(gone, zeroed)
    torch.testing.assert_close(case.run(graph, smaller), case.run(case.captured.graph, zeroed), rtol=1e-4, atol=1e-5)


def test_one_channel_of_each_group_is_enough(case: Case) -> None:
    gone = np.concatenate([group.channels[1:] for group in case.channels.groups])
    graph, smaller = case.channels.without(gone, case.tensors)
    assert torch.isfinite(case.run(graph, smaller)).all()


def test_without_nothing_the_network_is_the_same(case: Case) -> None:
    graph, smaller = case.channels.without([], case.tensors)
    assert graph == case.captured.graph
    assert not smaller


def test_what_is_left_can_be_analysed_and_pruned_again(case: Case) -> None:
    first = np.concatenate([group.channels[1::2] for group in case.channels.groups])
    graph, smaller = case.channels.without(first, case.tensors)
    tensors = case.whole(smaller)
    again = analysed(Captured(graph, case.captured.names, {}), tensors, case.tied)
    assert sum(map(len, again.groups)) <= sum(map(len, case.channels.groups)) - len(first)
    gone = np.concatenate([group.channels[1:] for group in again.groups])
    graph, smaller = again.without(gone, tensors)
    assert torch.isfinite(case.run(graph, tensors | smaller)).all()


def test_a_graph_without_some_channels_survives_the_file(case: Case) -> None:
    gone = np.concatenate([group.channels[: len(group) // 2] for group in case.channels.groups])
    graph, _ = case.channels.without(gone, case.tensors)
    assert Graph.from_bytes(graph.to_bytes(), len(case.captured.names)) == graph


# ---------------------------------------------------------------- which channels go together


def found(name: str) -> Case:
    return Case(*NETWORKS[name])


def test_a_flattened_channel_is_a_block_of_columns() -> None:
    groups = found("lenet-5").channels.groups
    assert [[(p.tensor, p.axis, p.role) for p in g.places] for g in groups] == [
        [("conv1.weight", 0, FILTER), ("conv1.bias", 0, ""), ("conv2.weight", 1, "")],
        [("conv2.weight", 0, FILTER), ("conv2.bias", 0, ""), ("fc1.weight", 1, "")],
        [("fc1.weight", 0, FILTER), ("fc1.bias", 0, ""), ("fc2.weight", 1, "")],
    ]
    assert groups[1].places[2].indices.tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(50)]


def test_residual_channels_go_together_through_padded_shortcuts() -> None:
    channels = found("resnet20").channels
    inner = [group for group in channels.groups if len(group.by_role(FILTER)) == 1]
    assert sorted(len(group) for group in inner if len(group.places) == 6) == [16] * 3 + [32] * 3 + [64] * 3
    (trunk,) = [group for group in channels.groups if any(p.tensor == "conv1.weight" for p in group.places)]
    where = {place.tensor: place.indices[:, 0].tolist() for place in trunk.by_role(FILTER)}
    assert where["conv1.weight"] == where["layer1.2.conv2.weight"] == list(range(16))
    assert where["layer2.0.conv2.weight"] == where["layer2.2.conv2.weight"] == list(range(8, 24))
    assert where["layer3.0.conv2.weight"] == where["layer3.2.conv2.weight"] == list(range(24, 40))
    assert {place.tensor for place in trunk.by_role(SCALE)} == {
        "bn1.weight", *(f"layer{i}.{j}.bn2.weight" for i in (1, 2, 3) for j in range(3))
    }  # fmt: skip
    assert channels.staying == {"linear.weight": "tied to the network's outputs"}


def test_padding_shrinks_with_the_channels() -> None:
    case = found("resnet20")
    groups = {group.places[0].tensor: group for group in case.channels.groups}
    gone = groups["layer2.0.conv2.weight"].channels[[0, 1, 9]]  # channels 0, 1 and 25 of the second stage
    graph, _ = case.channels.without(gone, case.tensors)
    assert [node.args[1] for node in graph.nodes if node.op == "pad"] == [(0, 0, 0, 0, 6, 7), (0, 0, 0, 0, 16, 16)]


def test_depthwise_filters_go_with_the_channels_they_read() -> None:
    channels = found("separable").channels
    stem = next(group for group in channels.groups if group.places[0].tensor == "stem.0.weight")
    assert [place.tensor for place in stem.by_role(FILTER)] == ["stem.0.weight", "stem.3.weight"]


def test_groups_of_convolutions_and_norms_go_whole() -> None:
    case = found("grouped")
    made = {place.tensor: group for group in case.channels.groups for place in group.by_role(FILTER)}
    assert len(made["cardinal.weight"]) == 2  # four groups of six filters over six norm groups of four
    graph, _ = case.channels.without(made["cardinal.weight"].channels[:1], case.tensors)
    calls = {node.op: node.arguments for node in graph.nodes if node.op != "conv2d" or len(node.args) > 6}
    assert calls["conv2d"]["groups"] == 2
    assert calls["group_norm"]["num_groups"] == 3


def test_a_layer_called_twice_ties_what_it_reads_to_what_it_makes() -> None:
    (group,) = found("reused").channels.groups
    assert len(group) == 8
    where = {(place.tensor, place.axis) for place in group.places}
    assert where >= {("first.weight", 0), ("inner.weight", 0), ("inner.weight", 1), ("last.weight", 1)}
    assert "again.weight" not in {place.tensor for place in group.places}  # tied: sliced under its first name


def test_hidden_neurons_of_a_transformer_may_go_and_its_trunk_stays() -> None:
    channels = found("encoder").channels
    (group,) = channels.groups
    assert [place.tensor for place in group.places] == ["linear1.weight", "linear1.bias", "linear2.weight"]
    assert set(channels.staying) == {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear2.weight"}


def test_parts_of_an_axis_that_different_layers_read_are_groups_of_their_own() -> None:
    channels = found("parts").channels
    assert [len(group) for group in channels.groups if group.places[0].tensor == "conv.weight"] == [2, 2, 3, 3]


# ---------------------------------------------------------------- what stays, and why


def staying(make: Callable[[], nn.Module], inputs: Callable[[], Any]) -> dict[str, str]:
    channels = Case(make, inputs).channels
    assert not channels.groups
    return channels.staying


def test_operations_without_a_rule_freeze_what_they_read() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.lstm, self.out = nn.Embedding(9, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(self.embed(x))
            return self.out(y)

    assert staying(Recurrent, lambda: torch.randint(0, 9, (2, 4))) == {
        "embed.weight": "lstm.input is not understood",
        "lstm.weight_ih_l0": "lstm.input is not understood",
        "lstm.weight_hh_l0": "lstm.input is not understood",
        "out.weight": "tied to the network's outputs",
    }


CONV: dict[str, Callable[[], nn.Module]] = {"conv": lambda: nn.Conv2d(3, 6, 3), "last": lambda: nn.Conv2d(6, 2, 1)}


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda n, x: n.last(n.conv(x).softmax(1)), "softmax.int works across these channels"),
        (lambda n, x: n.last(n.conv(x) * n.conv(x).mean(1, keepdim=True)), "mean.dim works across these channels"),
        (lambda n, x: n.last(functional.channel_shuffle(n.conv(x), 2)), "channel_shuffle is not understood"),
        (lambda n, x: n.last(n.conv(x).flip(1)), "flip is not understood"),
        (lambda n, x: n.last(n.conv(x).cumsum(1)), "cumsum works across these channels"),
        (lambda n, x: n.last(n.conv(x).view(-1, 2, 3, 2, 2).transpose(1, 2).reshape(-1, 6, 2, 2)),
         "reshape splits these channels up, or joins them"),
        (lambda n, x: (n.last(n.conv(x)), n.conv(x)[:, ::2]),
         "slice.Tensor takes every so many channels, or a number of them that varies"),
        (lambda n, x: n.last(n.conv(x)) + n.conv(x)[:, 3:4], "slice.Tensor takes single channels out"),
        (lambda n, x: n.last(n.conv(x)) + n.conv(x)[:, 3, None], "select.int takes single channels out"),
        (lambda n, x: n.last(functional.pad(n.conv(x), (0, 0, 0, 0, -1, 1))), "pad pads this dimension"),
        (lambda n, x: n.last(functional.layer_norm(n.conv(x).permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)),
         "layer_norm normalises across these channels"),
        (lambda n, x: n.last(n.conv(x) + x.repeat(1, 2, 1, 1)[:, :, 2:, 2:]), "repeat is not understood"),
        (lambda n, x: n.last(n.conv(x) + x.mean(1, keepdim=True).expand(-1, 6, -1, -1)[:, :, 2:, 2:]),
         "expand makes this dimension, which is not channels"),
        (lambda n, x: n.conv(x), "tied to the network's outputs"),
    ],
)  # fmt: skip
def test_channels_that_cannot_be_told_apart_stay(run: Any, why: str) -> None:
    case = Case(lambda: Net(run, **{name: make() for name, make in CONV.items()}), images(3, 4, 4))
    assert not case.channels.groups
    assert case.channels.staying["conv.weight"] == why


def test_a_single_filter_stays() -> None:
    assert staying(lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 2, 1)), images(3, 4, 4)) == {
        "0.weight": "there is only one", "1.weight": "tied to the network's outputs"
    }  # fmt: skip


def test_results_too_large_to_follow_are_an_error() -> None:
    """A few bytes of graph can ask for any size."""
    graph = Graph((Input("x", torch.float32, (None, 4)),), (Node("zeros", ((1 << 30,),)),), Value(1))
    with pytest.raises(InputError, match=r"dimensions of 10737\d+ in all"):
        analysed(Captured(graph, [], {}), {}, {})


# ---------------------------------------------------------------- ties


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.lists(st.integers(0, 9), max_size=3))
def test_ties_are_the_finest_partition_with_these_pairs(pairs: list[tuple[int, int]], frozen: list[int]) -> None:
    ties = Ties()
    ties.new(10)
    parts = [{number} for number in range(10)]
    for turn, (one, other) in enumerate(pairs):
        ties.unite(np.array([one]), np.array([other]))
        if turn < len(frozen):
            ties.freeze(np.array([frozen[turn]]), "so")
        joined = next(part for part in parts if one in part) | next(part for part in parts if other in part)
        parts = [part for part in parts if not part & joined] + [joined]
    stays, firsts = set(frozen[: len(pairs)]), ties.firsts(np.arange(10))
    assert [{n for n in range(10) if firsts[n] == firsts[m]} for m in range(10)] == [
        next(part for part in parts if m in part) for m in range(10)
    ]
    for part, number in itertools.product(parts, range(10)):
        if number in part:
            assert ties.why(number) == ("so" if part & stays else None)
            assert ties.free(np.array([number])) == (not part & stays)


def test_of_several_reasons_the_first_stays() -> None:
    ties = Ties()
    one, other = ties.fixed(3, "first"), ties.fixed(3, "second")
    ties.unite(one, other)
    ties.freeze(other, "third")
    assert ties.why(int(other[2])) == "first"
