"""A layer is a product of matrices: its patches times its weight are its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcomp.entry import PARAMETER
from deepcomp.model import sources
from deepcomp.model.capture import capture
from deepcomp.model.layers import Layers
from deepcomp.model.patches import columns, patches, product
from deepcomp.network import Network


def layers(module: nn.Module, x: Tensor) -> Layers:
    captured, source = capture(module.eval(), x), sources.from_module(module)
    return Network(source.tensors, dict.fromkeys(source.tensors, PARAMETER), source.tied, captured).layers("test")


def check(module: nn.Module, x: Tensor) -> None:
    found = layers(module, x)
    (layer,) = found
    node, weight = found.graph.nodes[layer.place], dict(module.named_parameters())[layer.weight]
    wanted = columns(layer, module(x))
    rows = patches(node, layer, x)
    assert (rows.dtype, wanted.dtype) == (torch.float32, torch.float32)
    assert rows.shape == (len(wanted), layer.groups, layer.blocks(weight)[0, 0].numel())
    torch.testing.assert_close(product(layer, rows, weight.float()), wanted, rtol=1e-4, atol=1e-5)
    at = torch.randperm(len(wanted))[:5]
    assert torch.equal(patches(node, layer, x, at), rows[at])
    assert torch.equal(columns(layer, module(x), at), wanted[at])


@st.composite
def convolutions(draw: Any) -> tuple[nn.Module, int]:
    """A convolution or a transposed one in one to three dimensions, of any settings; and its dimensions."""
    dims, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    reads, makes = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    settings: dict[str, Any] = {"groups": groups, "dilation": each(1, 2), "bias": False}
    if draw(st.booleans()):
        stride = each(1, 3)
        more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, settings["dilation"], strict=True))
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        return kind(reads, makes, each(1, 3), stride, each(0, 1), more, **settings), dims
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    if draw(st.booleans()):
        return kind(reads, makes, each(1, 3), padding=draw(st.sampled_from(["same", "valid"])), **settings), dims
    return kind(reads, makes, each(1, 3), each(1, 3), each(0, 2), **settings), dims


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(0, 1 << 30))
def test_every_convolution_is_a_product_with_its_patches(drawn: tuple[nn.Module, int], seed: int) -> None:
    module, dims = drawn
    torch.manual_seed(seed)
    check(module, torch.randn(2, module.in_channels, *range(6, 6 + dims)))


class Product(nn.Module):
    """A product with a weight of shape (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)])
@pytest.mark.parametrize("module", [nn.Linear(5, 3, bias=False), Product()], ids=["linear", "matmul"])
def test_linear_layers_read_vectors(module: nn.Module, shape: tuple[int, ...], randn: Any) -> None:
    check(module, randn(*shape))


def test_halves_are_widened(randn: Any) -> None:
    module = nn.Linear(5, 3, bias=False).to(torch.bfloat16)
    x = randn(4, 5).to(torch.bfloat16)
    found = layers(module, x)
    (layer,) = found
    assert torch.equal(patches(found.graph.nodes[layer.place], layer, x)[:, 0], x.float())
