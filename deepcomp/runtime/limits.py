"""What a graph from a stranger may not do: fill the memory, or read beyond a tensor.

A few bytes of graph can ask for any number of elements, so before an operation runs, the size of
its result is bounded from the shapes and numbers it is given. And PyTorch's recurrent kernels trust
the shapes of their weights, so those are checked here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deepcomp.model.ops import Operation

__all__ = ["check_recurrent", "check_size", "largest"]

_EMPTY = 256  # elements' worth of memory in a tensor without any
_GATES = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1, "rnn_relu.input": 1}
_MASKS = (torch.bool, torch.uint8)

_Call: TypeAlias = dict[str, Any]  # the arguments by name, defaults filled in


def check_size(operation: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], limit: int) -> None:
    """Refuse a call whose result might have more than `limit` elements.

    Parameters
    ----------
    operation : Operation
    args, kwargs : sequence, mapping
        What it is called with: tensors, numbers, lists.
    limit : int

    Raises
    ------
    ValueError
    """
    names = [parameter.name for parameter in operation.parameters]
    call = {parameter.name: parameter.default for parameter in operation.parameters}
    found = largest(operation.name, call | dict(zip(names, args, strict=False)) | dict(kwargs))
    if found > limit:
        raise ValueError(f"a result of {found} elements, at most {limit} allowed")


def check_recurrent(operation: Operation, args: Sequence[Any]) -> None:
    """Insist that the states and weights of a recurrent operation fit each other; others pass.

    Raises
    ------
    ValueError
    """
    if operation.name not in _GATES:
        return
    source, states, weights, biases, layers, _, _, both, batch_first = args
    gates = _GATES[operation.name]
    hidden = tuple(states) if gates == 4 else (states, states)
    tensors = [*hidden, *weights]
    if not all(isinstance(entry, Tensor) and entry.is_floating_point() for entry in [source, *tensors]):
        raise ValueError("floating-point tensors expected")
    if source.ndim != 3 or len(hidden) != 2 or len({entry.dtype for entry in tensors}) != 1:
        raise ValueError("an input of three dimensions, a state, and weights of one type expected")
    out, cell = hidden[0].shape[-1], hidden[1].shape[-1]  # they differ where a projection follows
    rows, ways, batch = gates * cell, 2 if both else 1, source.shape[0 if batch_first else 1]
    expected = [(layers * ways, batch, out), (layers * ways, batch, cell)]
    for layer in range(min(layers, len(weights) + 1)):
        width = source.shape[2] if layer == 0 else out * ways
        one = [(rows, width), (rows, out), *([(rows,)] * 2 if biases else []), *([(out, cell)] if out != cell else [])]
        expected += one * ways
    found = [tuple(entry.shape) for entry in tensors]
    if found != expected:
        raise ValueError(f"states and weights of shapes {found} found, {expected} expected")


def largest(name: str, call: _Call) -> int:
    """The most elements that a result of the operation may have.

    Views count as if they were copied, and many small results for the memory that tensors take
    beside their elements.
    """
    return int(_RULES.get(name, _broadcast)(call))


def _tensors(call: _Call) -> list[Tensor]:
    flat = [item for value in call.values() for item in (value if isinstance(value, tuple | list) else [value])]
    return [item for item in flat if isinstance(item, Tensor)]


def _volume(shape: Iterable[int]) -> int:
    """Elements of a shape; an empty dimension counts as one, as a sum over it is no longer empty."""
    return math.prod(max(size, 1) for size in shape)


def _spread(shapes: Iterable[Sequence[int]]) -> int:
    """Elements of the shape that shapes broadcast to."""
    return _volume(map(max, zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)))


def _each(setting: Any, count: int) -> Any:
    """A setting per dimension, where one may stand for all."""
    return setting * count if len(setting) == 1 else setting


def _broadcast(call: _Call) -> int:
    return _spread([tensor.shape for tensor in _tensors(call)])


def _first(call: _Call) -> int:
    return _volume(_tensors(call)[0].shape)


def _together(call: _Call) -> int:
    return sum(_volume(tensor.shape) for tensor in _tensors(call))


def _multiplied(call: _Call) -> int:
    return math.prod(_volume(tensor.shape) for tensor in _tensors(call))


def _sized(call: _Call) -> Any:
    own = tuple(call["self"].shape) if "self" in call else ()
    own = (1,) * (len(call["size"]) - len(own)) + own
    return math.prod(mine if size == -1 else size for size, mine in zip(call["size"], own, strict=False))


def _repeated(call: _Call) -> Any:
    times = call["repeats"] if "repeats" in call else call["dims"]
    return _volume(call["self"].shape) * (times if isinstance(times, int) else math.prod(times))


def _pooled(call: _Call) -> int:
    """Padding is at most half a window, so that a side grows by one at most."""
    return _volume(size + 1 for size in call["self"].shape)


def _padded(call: _Call) -> Any:
    around = call["pad"] if "pad" in call else call["padding"]
    added = [before + after for before, after in zip(around[::2], around[1::2], strict=True)]
    return math.prod(size + more for size, more in zip_longest(call["self"].shape[::-1], added, fillvalue=0))


def _resized(call: _Call) -> Any:
    source, sizes = _tensors(call)[0], call["output_size"]
    if sizes is None:
        sizes = [math.ceil(size * by) for size, by in zip(source.shape[2:], call["scale_factors"], strict=True)]
    return _volume(source.shape[: source.ndim - len(sizes)]) * math.prod(sizes)


def _folded(call: _Call) -> Any:
    columns = call["self"]
    return _volume(columns.shape[:-1]) * math.prod(call["output_size"]) // math.prod(call["kernel_size"])


def _windows(call: _Call) -> Any:
    source, kernel = call["self"], _each(call["kernel_size"], 2)
    settings = zip(source.shape[-2:], kernel, _each(call["padding"], 2), _each(call["stride"], 2), strict=True)
    places = math.prod((size + 2 * pad - width) // step + 1 for size, width, pad, step in settings)
    return math.prod(source.shape[:-2]) * math.prod(kernel) * places


def _convolved(call: _Call) -> Any:
    source, weight, count = call["input"], call["weight"], call["weight"].ndim - 2
    sizes, kernel = source.shape[-count:], weight.shape[2:]
    if call.get("transposed", "output_padding" in call):
        channels = weight.shape[1] * call["groups"]
        settings = [_each(call[key], count) for key in ("stride", "dilation", "output_padding")]
        ends = [(n - 1) * s + d * (k - 1) + o + 1 for n, k, s, d, o in zip(sizes, kernel, *settings, strict=True)]
    else:
        channels = weight.shape[0]
        same = call["padding"] == "same"
        pads = (0,) if isinstance(call["padding"], str) else call["padding"]
        settings = [_each(setting, count) for setting in (call["stride"], call["dilation"], pads)]
        spans = zip(sizes, kernel, *settings, strict=True)
        ends = [n if same else (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in spans]
    return (source.shape[0] if source.ndim == count + 2 else 1) * channels * math.prod(ends)


def _product(call: _Call) -> int:
    left, right = _tensors(call)[-2:]
    rows = left.shape[-2] if left.ndim > 1 else 1
    columns = right.shape[-1] if right.ndim > 1 else 1
    return _spread([left.shape[:-2], right.shape[:-2]]) * rows * columns


def _linear(call: _Call) -> int:
    bias = () if call["bias"] is None else call["bias"].shape
    return _volume(_tensors(call)[0].shape[:-1]) * max(int(call["weight"].shape[0]), _volume(bias))


def _contracted(call: _Call) -> int:
    sides = (call["self"], call.get("dims_self", (-1,))), (call["other"], call.get("dims_other", (-1,)))
    return math.prod(_volume(side.shape) // _volume(side.shape[dim] for dim in dims) for side, dims in sides)


def _einsum(call: _Call) -> int:
    inputs, arrow, output = call["equation"].replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    dotted: list[torch.Size] = []  # what "..." stands for
    for labels, tensor in zip(inputs.split(","), call["tensors"], strict=True):
        head, _, tail = labels.partition("...")
        dotted.append(tensor.shape[len(head) : tensor.ndim - len(tail)])
        for label, size in [*zip(head, tensor.shape, strict=False), *zip(tail[::-1], tensor.shape[::-1], strict=False)]:
            sizes[label] = max(size, sizes.get(label, 0))
    return _spread(dotted) * math.prod(sizes[label] for label in (output.replace("...", "") if arrow else sizes))


def _indexed(call: _Call) -> int:
    rest: tuple[int, ...] = tuple(call["self"].shape)
    kept, masked, shapes = 1, 1, []
    for index in call["indices"]:
        covered = index.ndim if index is not None and index.dtype in _MASKS else 1
        size, rest = math.prod(rest[:covered]), rest[covered:]
        if index is None:
            kept *= size
        elif index.dtype in _MASKS:
            masked *= size  # where the mask is true everywhere
        else:
            shapes.append(index.shape)
    return masked * _spread(shapes) * kept * math.prod(rest)


def _selected(call: _Call) -> int:
    shape, chosen = call["self"].shape, call["index"].shape
    return _volume(shape) // _volume(shape[call["dim"] :][:1]) * _volume(chosen)


def _attended(call: _Call) -> int:
    sides = [call[key].shape for key in ("query", "key", "value")]
    return _spread([side[:-2] for side in sides]) * _volume((sides[0][-2], sides[2][-1]))


def _recurrent(call: _Call) -> Any:
    states = call["hx"] if isinstance(call["hx"], tuple | list) else [call["hx"]]
    steps = _volume(call["input"].shape[:-1])
    return max(steps * states[0].shape[-1] * 2, *(_volume(state.shape) for state in states))


def _counted(call: _Call) -> Any:
    length = call["self"].shape[call["dim"]]
    match call:
        case {"chunks": pieces}:
            pieces = min(pieces, length) if length else pieces
        case {"split_size": size}:
            pieces = length // max(size, 1) + 1
        case {"sections": pieces}:
            pass
        case {"split_sizes": sizes} | {"indices": sizes}:
            pieces = len(sizes) + 1
        case _:
            pieces = length
    return max(pieces * _EMPTY, _volume(call["self"].shape))


_RULES: dict[str, Callable[[_Call], Any]] = {
    name: rule
    for rule, names in {
        _first: """batch_norm layer_norm group_norm instance_norm rms_norm native_layer_norm native_group_norm prelu
            index_put index_add index_fill.int_Scalar scatter.src scatter.value scatter_add scatter_reduce.two
            select_scatter slice_scatter isin.Tensor_Tensor bucketize.Tensor reshape_as""",
        _together: """cat stack hstack vstack dstack diff searchsorted.Tensor lstm_cell gru_cell rnn_tanh_cell
            rnn_relu_cell""",
        _multiplied: "outer meshgrid meshgrid.indexing",
        _pooled: """avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
            max_pool2d_with_indices max_pool3d_with_indices""",
        _sized: "zeros ones full new_zeros new_ones new_full expand broadcast_to",
        _repeated: "repeat tile repeat_interleave.self_int",
        _padded: """pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
            replication_pad2d replication_pad3d""",
        _resized: """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
            adaptive_max_pool2d adaptive_max_pool3d max_unpool2d max_unpool3d upsample_nearest1d.vec
            upsample_nearest2d.vec upsample_nearest3d.vec upsample_linear1d.vec upsample_bilinear2d.vec
            upsample_trilinear3d.vec upsample_bicubic2d.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec
            _upsample_nearest_exact3d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec""",
        _folded: "col2im",
        _windows: "im2col",
        _convolved: """conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding conv_transpose1d
            conv_transpose2d.input conv_transpose3d.input convolution""",
        _product: "matmul mm bmm mv dot vdot addmm baddbmm addbmm addmv",
        _linear: "linear bilinear",
        _contracted: "inner tensordot",
        _einsum: "einsum",
        _indexed: "index.Tensor",
        _recurrent: "lstm.input gru.input rnn_tanh.input rnn_relu.input",
        _counted: "unbind.int chunk split.Tensor split_with_sizes tensor_split.sections tensor_split.indices",
        lambda c: 0: "getitem sym_size.int",
        lambda c: abs((c["end"] - c.get("start", 0)) / c.get("step", 1)) + 1: "arange arange.start arange.start_step",
        lambda c: c["steps"]: "linspace",
        lambda c: c["n"] ** 2: "eye",
        lambda c: (len(c["size"]) - 2) * _volume((c["size"][0], *c["size"][2:])): "affine_grid_generator",
        lambda c: _spread([c["self"].shape, c["mask"].shape]): "masked_scatter",
        lambda c: _volume(c["self"].shape) * c["num_classes"] if c["num_classes"] >= 0 else sys.maxsize: "one_hot",
        lambda c: _volume(c["index"].shape): "gather",
        _selected: "index_select",
        lambda c: _volume(c["indices"].shape) * math.prod(c["weight"].shape[1:]): "embedding",
        _attended: "scaled_dot_product_attention",
        lambda c: _volume(c["grid"].shape) * c["input"].shape[1]: "grid_sampler",
        lambda c: _spread([c["x1"].shape[:-2], c["x2"].shape[:-2]]) * c["x1"].shape[-2] * c["x2"].shape[-2]: "cdist",
        lambda c: _volume(c["self"].shape) * c["size"]: "unfold",
        lambda c: _volume(c["self"].shape) * (c["self"].shape[-1] + abs(c["offset"])) ** 2: "diag_embed",
        lambda c: (_volume(c["self"].shape) + abs(c["diagonal"])) ** 2: "diag",
    }.items()
    for name in names.split()
}
