"""Small networks with quantisers of activations and weights on grids, as the runtimes hold them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from steps.nets import network
from torch import Tensor, nn

from deepcomp.model.edit import Edit
from deepcomp.model.graph import Value
from deepcomp.model.layers import Layer
from deepcomp.model.quantizers import STATIC
from deepcomp.network import Network
from deepcomp.quantizer import Quantizer
from deepcomp.runtime.integer import Integer
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.weights import Form, Grid, Raw

__all__ = ["both", "integer", "on_grids", "per_channel", "with_quantizers"]

Make = Callable[[Tensor, Layer], Form]


def per_channel(bits: int = 8, **settings: Any) -> Make:
    """Grids with a scale for each output channel."""
    return lambda weight, layer: Grid.fit(weight, bits, axis=layer.axes[0], **settings)


def with_quantizers(net: Network, x: Tensor, behind: Collection[str], bits: int = 8, symmetric: bool = False) -> None:
    """Put a quantiser behind the inputs and every operation of these names, for the range that x makes there."""
    assert net.captured is not None
    graph, edit = net.captured.graph, Edit(net.captured, net.tensors)
    places = [place for place, node in enumerate(graph.nodes) if node.op in behind]
    values = [*map(Value, range(len(graph.inputs))), *(Value(len(graph.inputs) + place) for place in places)]
    quantizer = Quantizer(bits, symmetric)
    for value, found in net.interpreter().observe(values, x):
        scale, zero_point = quantizer.parameters(found.detach().min(), found.detach().max())
        grid = {"scale": float(scale), "zero_point": int(zero_point), "bits": bits, "symmetric": symmetric}
        edit.bypass(value, edit.add(STATIC, {"self": value, **grid}))
    net.rewire("test", edit.finish(), {})


def on_grids(net: Network, make: Make | None = None) -> None:
    """Give every layer's weight a form."""
    for layer in net.layers("test"):
        net.store(layer.weight, (make or per_channel())(net.tensors[layer.weight], layer))


def integer(net: Network) -> Integer:
    assert net.captured is not None
    dense = {name: net.forms[name].dense() if name in net.forms else tensor for name, tensor in net.tensors.items()}
    tensors: Any = [(name, tensor.detach().clone(), "parameter") for name, tensor in dense.items()]
    form = {name: net.forms.get(name) or Raw(tensor.detach()) for name, tensor in net.tensors.items()}
    return Integer(net.captured.graph, net.captured.names, tensors, form.__getitem__)


def both(
    module: nn.Module, x: Tensor, behind: Collection[str], make: Make | None = None, **quantizers: Any
) -> tuple[Interpreter, Integer]:
    """A network with quantisers behind operations of these names, simulated and in integers."""
    net = network(module, x)
    with_quantizers(net, x, behind, **quantizers)
    on_grids(net, make)
    return net.interpreter(formed=True), integer(net)
