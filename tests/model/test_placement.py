"""Where quantisers belong: behind what makes new numbers, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcomp.model import sources, zoo
from deepcomp.model.capture import Captured, capture
from deepcomp.model.graph import Value, references
from deepcomp.model.layers import Layers
from deepcomp.model.placement import Site, is_view, placement
from deepcomp.runtime.interpreter import trace

IMAGE, ROWS, WORDS = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 6), torch.zeros(2, 5, dtype=torch.int64)


class Written(nn.Module):
    """Modules by name, and a `forward` of one expression."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.run(self, x) if y is None else self.run(self, x, y)


def found(module: nn.Module, inputs: Any) -> tuple[Captured, list[Site], dict[str, str]]:
    captured, source = capture(module.eval(), inputs), sources.from_module(module)
    tensors = {**source.tensors, **captured.constants}
    layers = Layers(captured, tensors, trace(captured.graph, captured.names, tensors), source.tied)
    sites, skipped = placement(layers, captured.names)
    return captured, sites, skipped


def places(run: Callable[..., Any], inputs: Any, **parts: nn.Module) -> list[str]:
    """Sites as `NAME: OPERATION`, with the first on the same grid where that is another."""
    captured, sites, _ = found(Written(run, **parts), inputs)
    return [f"{site.name}: {made(captured, site)}{shared(sites, number)}" for number, site in enumerate(sites)]


def made(captured: Captured, site: Site) -> str:
    place = site.value.index - len(captured.graph.inputs)
    return "input" if place < 0 else captured.graph.nodes[place].op.partition(".")[0]


def shared(sites: list[Site], number: int) -> str:
    first = sites[number].grid
    return "" if first == number else f" on {sites[first].name}"


def conv(read: int = 3, makes: int = 3) -> nn.Module:
    return nn.Conv2d(read, makes, 3, padding=1)


# ---------------------------------------------------------------- layers and what is fused with them


@pytest.mark.parametrize("act", [F.relu, F.relu6, F.silu, F.gelu, torch.sigmoid, lambda x: x.clamp(-1, 1)])
def test_an_activation_function_is_fused_into_its_layer(act: Callable[[Tensor], Tensor]) -> None:
    one, two = places(lambda m, x: act(m.a(x)), IMAGE, a=conv())
    assert one == "x: input"
    assert two.startswith("a: ")
    assert not two.endswith("conv2d")


def test_so_is_whatever_a_constant_does_number_by_number_and_views_between() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = F.relu(F.max_pool2d(m.norm(m.a(x)), 2))
        return F.linear(y.flatten(1) * 3 + m.offset.weight, m.b.weight)

    parts = {"a": conv(), "norm": nn.BatchNorm2d(3), "offset": nn.Linear(48, 1), "b": nn.Linear(48, 2)}
    assert places(run, IMAGE, **parts) == ["x: input", "a: add", "b: linear"]


def test_what_something_else_reads_too_is_quantised_itself() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(F.silu(y) - y)

    assert places(run, IMAGE, a=conv(), b=conv()) == [
        "x: input",
        "a: conv2d",
        "a/silu: silu",
        "a/sub: sub",
        "b: conv2d",
    ]


def test_relu_of_what_is_on_a_grid_stays_on_it() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(F.relu(y)) + y

    assert places(run, IMAGE, a=conv(), b=conv()) == ["x: input", "a: conv2d", "b: conv2d", "b/add: add"]


def test_an_input_is_quantised_behind_its_normalisation() -> None:
    run = lambda m, x: m.a((x - 0.5) / 0.25)  # noqa: E731
    assert places(run, IMAGE, a=conv()) == ["x: div", "a: conv2d"]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.flatten(1),
        lambda x: x.reshape(-1, 192)[:, ::2],
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(1, 2)[:, 3],
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.pad(x, (1, 1)),
        lambda x: x[:, [2, 0, 0]],
        lambda x: x.index_select(1, torch.tensor([1, 1])),
        lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
        lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
        lambda x: x.amax((2, 3)),
    ],
)
def test_views_get_none_of_their_own(view: Callable[[Tensor], Tensor]) -> None:
    assert places(lambda m, x: view(m.a(x)), IMAGE, a=conv()) == ["x: input", "a: conv2d"]


def test_padding_with_a_number_makes_new_numbers() -> None:
    run = lambda m, x: m.b(F.pad(m.a(x), (1, 1), value=2.0))  # noqa: E731
    assert places(run, IMAGE, a=conv(), b=conv()) == ["x: input", "a: pad", "b: conv2d"]


# ---------------------------------------------------------------- averages, sums and concatenations


@pytest.mark.parametrize(
    ("average", "name"),
    [
        (lambda x: F.avg_pool2d(x, 2), "avg_pool2d"),
        (lambda x: F.adaptive_avg_pool2d(x, 1), "adaptive_avg_pool2d"),
        (lambda x: x.mean((2, 3)), "mean"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "upsample_bilinear2d"),
    ],
)
def test_averages_take_over_the_grid_of_what_they_average(average: Callable[[Tensor], Tensor], name: str) -> None:
    captured, sites, _ = found(Written(lambda m, x: average(F.relu(m.a(x))), a=conv()), IMAGE)
    assert [(site.name, made(captured, site), site.grid, site.average) for site in sites[1:]] == [
        ("a", "relu", 1, False),
        (f"a/{name}", name, 1, True),
    ]


def test_a_sum_has_operands_on_grids_and_one_of_its_own_with_what_is_fused() -> None:
    run = lambda m, x: F.relu(m.b(x) + F.relu(m.a(x)))  # noqa: E731
    assert places(run, IMAGE, a=conv(), b=conv()) == ["x: input", "b: conv2d", "a: relu", "a/add: relu"]


def test_a_product_of_a_value_with_itself_is_one_of_two_values() -> None:
    assert places(lambda m, x: m.a(x).square() * 2, ROWS, a=nn.Linear(6, 6)) == ["x: input", "a: mul"]

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return y * y

    assert places(run, ROWS, a=nn.Linear(6, 6)) == ["x: input", "a: linear", "a/mul: mul"]


def test_parts_of_a_concatenation_share_a_grid_if_it_alone_reads_them() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.c(torch.cat([F.relu(m.a(x)), F.max_pool2d(m.b(x), 3, 1, 1)], 1))

    parts = {"a": conv(), "b": conv(), "c": conv(6)}
    assert places(run, IMAGE, **parts) == ["x: input", "a: relu", "b: conv2d on a", "c: conv2d"]


def test_else_a_concatenation_is_quantised_again() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.c(torch.cat([y, m.b(y)], 1))

    parts = {"a": conv(), "b": conv(), "c": conv(6)}
    assert places(run, IMAGE, **parts) == ["x: input", "a: relu", "b: conv2d", "b/cat: cat", "c: conv2d"]


def test_a_concatenation_of_what_is_on_one_grid_is_a_view() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.b(torch.cat([y, F.avg_pool2d(y, 3, 1, 1), y], 1))

    parts = {"a": conv(), "b": conv(9)}
    assert places(run, IMAGE, **parts) == ["x: input", "a: relu", "a/avg_pool2d: avg_pool2d on a", "b: conv2d"]


def test_a_constant_joined_to_an_activation_is_quantised_with_it() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(torch.cat([m.token.weight.expand(x.shape[0], 1, 6), m.a(x)], 1))

    parts = {"a": nn.Linear(6, 6), "token": nn.Linear(6, 1), "b": nn.Linear(6, 2)}
    assert places(run, ROWS, **parts) == ["x: input", "a: cat", "b: linear"]


# ---------------------------------------------------------------- what is no activation


def test_whole_numbers_make_no_activations_until_a_layer_reads_them() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.a((x.float() + torch.arange(5).cos()) / 3)

    captured, sites, skipped = found(Written(run, a=nn.Linear(5, 2)), WORDS)
    assert [(site.name, made(captured, site)) for site in sites] == [("a", "linear")]
    assert skipped == {"a/input": "it is computed from whole numbers alone"}


def test_what_a_table_holds_is_not_quantised_again_but_what_is_made_of_it_is() -> None:
    _, sites, skipped = found(Written(lambda m, x: m.a(m.table(x)), table=nn.Embedding(7, 6), a=nn.Linear(6, 2)), WORDS)
    assert [site.name for site in sites] == ["a"]
    assert skipped == {"table": "its table is quantised, which makes what it looks up so"}

    def run(m: Any, x: Tensor) -> Tensor:
        return m.a(m.table(x) + m.places(torch.arange(5)))

    parts = {"table": nn.Embedding(7, 6), "places": nn.Embedding(5, 6), "a": nn.Linear(6, 2)}
    assert places(run, WORDS, **parts) == ["table: add", "a: linear"]


def test_a_recurrent_layer_has_one_for_each_result_that_is_read() -> None:
    def run(m: Any, x: Tensor) -> Any:
        y, (h, _) = m.lstm(m.table(x))
        return m.out(y), h

    parts = {"table": nn.Embedding(7, 6), "lstm": nn.LSTM(6, 4, batch_first=True), "out": nn.Linear(4, 7)}
    assert places(run, WORDS, **parts) == ["lstm: getitem", "lstm#2: getitem", "out: linear"]


def masked(add: Callable[[Tensor, Tensor], Tensor]) -> list[str]:
    """Attention written by hand."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        scores = add(q @ k.transpose(1, 2) / 6**0.5, mask)
        return m.o(scores.softmax(-1) @ v)

    return places(run, ROWS, **{name: nn.Linear(6, 6) for name in "qkvo"})


@pytest.mark.parametrize(
    "add",
    [
        lambda scores, mask: scores.masked_fill(mask, -torch.inf),
        lambda scores, mask: torch.where(mask, torch.tensor(-1e9), scores),
        lambda scores, mask: (scores + mask.float() * torch.finfo(torch.float32).min).to(torch.float64).float(),
    ],
)
def test_masks_are_left_to_the_softmax(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    qkv = ["x: input", "q: linear", "k: linear", "v: linear"]
    assert masked(add) == [*qkv, "v/matmul: div", "v/softmax: softmax", "v/matmul#2: matmul", "o: linear"]
    assert masked(lambda scores, mask: scores) == masked(add)


def test_masked_outputs_are_quantised_before_the_mask() -> None:
    run = lambda m, x, y: m.a(x).masked_fill(y, -torch.inf)  # noqa: E731
    module = Written(run, a=nn.Linear(6, 6))
    captured, sites, skipped = found(module, (ROWS, ROWS > 0))
    assert [(site.name, made(captured, site), site.output) for site in sites[1:]] == [("a", "linear", False)]
    assert list(skipped) == ["a/masked_fill"]


def test_attention_as_torch_has_it() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    module = Written(lambda m, x: m.layer(x, mask, is_causal=True), layer=layer)
    captured, sites, _ = found(module, ROWS)
    assert [(site.name.removeprefix("layer."), made(captured, site)) for site in sites] == [
        ("x", "input"),
        ("layer_norm", "layer_norm"),
        ("self_attn", "linear"),
        ("self_attn/scaled_dot_product_attention", "scaled_dot_product_attention"),
        ("self_attn.out_proj", "linear"),
        ("self_attn.out_proj/add", "add"),
        ("self_attn.out_proj/layer_norm", "layer_norm"),
        ("linear1", "relu"),
        ("linear2", "linear"),
        ("linear2/add", "add"),
    ]


# ---------------------------------------------------------------- all together


def test_ends_and_names() -> None:
    def run(m: Any, x: Tensor, y: Tensor) -> Any:
        return {"logits": m.a(m.a(x) + y).flatten(1), "y": y}

    _, sites, _ = found(Written(run, a=conv()), (IMAGE, IMAGE))
    assert [(site.name, site.input, site.output) for site in sites] == [
        ("x", True, False),
        ("y", True, True),
        ("a", False, False),
        ("a/add", False, False),
        ("a#2", False, True),
    ]


def test_every_layer_of_a_network_reads_and_makes_quantised_numbers() -> None:
    captured, sites, skipped = found(zoo.build("resnet20"), torch.zeros(2, 3, 32, 32))
    assert skipped == {}
    nodes, first = captured.graph.nodes, len(captured.graph.inputs)
    quantized = {site.value for site in sites}
    assert len(quantized) == len(sites) == 31
    for place, node in enumerate(nodes):  # what a view is of is quantised, at whatever distance
        if is_view(captured.graph, place) and node.args[0] in quantized:
            quantized.add(Value(first + place))
    for node in nodes:
        if node.op in ("conv2d", "linear", "mean.dim", "add.Tensor"):
            assert quantized.issuperset(entry for entry in references(node.args) if isinstance(entry, Value)), node
