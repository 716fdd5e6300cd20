"""How channels pass through the operations of a graph: one short rule for each kind of operation.

A channel is followed from the axis of the weight that makes it (the filters of a convolution, the
rows of a linear layer) to the axes of the weights that read it. Every axis of every tensor carries
the numbers of its channels; a rule says which channels of its operands an operation ties together
and which ones its result carries. Removing a channel is sound where every operation gives for the
channels that stay what it gave before, when no later one reads those that went. So operations that
mix channels (softmax, layer normalisation, means across them) freeze them, and so does every
operation without a rule.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepcomp.model.graph import Value
from deepcomp.model.layout import FILTER, SCALE, Call, Layout, Result
from deepcomp.model.ties import Ids

__all__ = ["RULES", "SIZES", "channel_axis", "sizes", "unknown"]

SIZES = {"reshape": "shape", "unflatten.int": "sizes", "expand": "size", "broadcast_to": "size"}  # where they are said


def unknown(call: Call) -> Result:
    """The rule of operations that have none."""
    for layout in call.layouts():
        call.freeze(layout.axes, "is not understood")
    return call.give(call.plain("is not understood"))


# ---------------------------------------------------------------- products


def channel_axis(call: Call) -> int:
    """The axis of a convolution's input that holds its channels."""
    return int(call["input"].ndim - call["weight"].ndim + 1)


def _convolution(call: Call) -> Result:
    source, weight, groups, axis = call["input"], call["weight"], call["groups"], channel_axis(call)
    transposed = "output_padding" in call.given
    read, made = (0, 1) if transposed else (1, 0)
    incoming = source.axes[axis]
    if groups == 1:
        outgoing = weight.axes[made]
        call.ties.unite(incoming, weight.axes[read])
        call.mark("weight", made, FILTER)
    else:  # a group of a grouped convolution goes as a whole
        outgoing = call.ties.new(weight.shape[1] * groups) if transposed else weight.axes[0]
        for ids in (incoming, outgoing, weight.axes[0]):
            call.tie_rows(ids, groups)
            call.ties.unite(ids.reshape(groups, -1)[:, 0], incoming.reshape(groups, -1)[:, 0])
        call.freeze(weight.axes[1:2], "has as many in each of its groups")
        call.mark("weight", 0, FILTER)
    if call["bias"] is not None:
        call.ties.unite(outgoing, call["bias"].axes[0])
    call.freeze((*source.axes[axis + 1 :], *weight.axes[2:]), "slides over this dimension")
    return Layout((*source.axes[:axis], outgoing, *map(call.fixed, call.found.shape[axis + 1 :])))


def _linear(call: Call) -> Result:
    source, weight = call["input"], call["weight"]
    if weight.ndim != 2:
        return unknown(call)
    call.ties.unite(source.axes[-1], weight.axes[1])
    call.mark("weight", 0, FILTER)
    product = Layout((*source.axes[:-1], weight.axes[0]))
    return product if call["bias"] is None else call.broadcast([product, call["bias"]])


def _matmul(call: Call) -> Result:
    """`matmul`, `mm` and `bmm`, and `addmm` with what is added first."""
    *added, left, right = call.layouts()
    if left.ndim < 2 or right.ndim < 2:
        return unknown(call)
    call.ties.unite(left.axes[-1], right.axes[-2])
    if right.ndim == 2:
        call.mark("other" if "other" in call.given else "mat2", 1, FILTER)
    heads = [Layout(side.axes[:-2]) for side in (left, right) if side.ndim > 2]
    rest = call.broadcast(heads).axes if heads else ()
    return call.broadcast([Layout((*rest, left.axes[-2], right.axes[-1])), *added])


def _embedding(call: Call) -> Result:
    weight = call["weight"]
    call.freeze(weight.axes[:1], "looks rows up by number")
    call.mark("weight", 1, FILTER)
    return Layout((*call["indices"].axes, weight.axes[1]))


# ---------------------------------------------------------------- element by element


def _elementwise(call: Call) -> Result:
    return call.broadcast(call.layouts())


def _prelu(call: Call) -> Result:
    if call["weight"].shape != (1,):
        call.ties.unite(call["self"].axes[1], call["weight"].axes[0])
    return _first(call)


def _first(call: Call) -> Layout:
    return call.layouts()[0]


def _glu(call: Call) -> Result:
    source, dim = _first(call), call["dim"]
    values, gates = np.split(source.axes[dim], 2)
    call.ties.unite(values, gates)
    return source.put(dim, values)


# ---------------------------------------------------------------- normalisation and reduction


def _batch_norm(call: Call) -> Result:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call[name] is not None:
            call.ties.unite(call["input"].axes[1], call[name].axes[0])
    if call["weight"] is not None and call.node.op == "batch_norm":
        call.mark("weight", 0, SCALE)
    return _first(call)


def _instance_norm(call: Call) -> Result:
    call.freeze(call["input"].axes[2:], "normalises across this dimension")
    return _batch_norm(call)


def _group_norm(call: Call) -> Result:
    channels = call["input"].axes[1]
    call.tie_rows(channels, call["num_groups"])
    for name in ("weight", "bias"):
        if call[name] is not None:
            call.ties.unite(channels, call[name].axes[0])
    call.freeze(call["input"].axes[2:], "normalises across this dimension")
    return _first(call)


def _layer_norm(call: Call) -> Result:
    for layout in call.layouts():
        call.freeze(layout.axes[-len(call["normalized_shape"]) :], "normalises across these channels")
    return _first(call)


def _along(call: Call) -> Result:
    call.freeze([_first(call).axes[call["dim"]]], "works across these channels")
    return _first(call)


def _reduction(call: Call) -> Result:
    source, dims = _first(call), call["dim"]
    dims = range(source.ndim) if dims in (None, ()) else [dims] if isinstance(dims, int) else dims
    dims = {dim % source.ndim for dim in dims}
    call.freeze([source.axes[dim] for dim in sorted(dims)], "works across these channels")
    axes = [call.fixed(1) if axis in dims else ids for axis, ids in enumerate(source.axes)]
    return Layout(tuple([ids for axis, ids in enumerate(axes) if call["keepdim"] or axis not in dims]))


def _spatial(count: int) -> Callable[[Call], Result]:
    """The rule of operations over the last `count` dimensions: pooling, resampling."""

    def rule(call: Call) -> Result:
        source = _first(call)
        call.freeze(source.axes[-count:], "works across this dimension")
        return call.give([Layout((*source.axes[:-count], *made.axes[-count:])) for made in call.plain()])

    return rule


def _pixel_shuffle(call: Call) -> Result:
    source, factor = _first(call), call["upscale_factor"] ** 2
    call.tie_rows(source.axes[-3], len(source.axes[-3]) // factor)
    call.freeze(source.axes[-2:], "works across this dimension")
    return Layout((*source.axes[:-3], source.axes[-3][::factor], *map(call.fixed, call.found.shape[-2:])))


# ---------------------------------------------------------------- shapes


def _view(call: Call) -> Result:
    """Operations that only look at a tensor in another way, whatever that is.

    They are run on the numbers of the channels, spread over the tensor with strides of zero: the
    axis of the result that has a stride is the one the channels now lie along.
    """
    source, layouts = _first(call), call.plain()
    for axis, ids in enumerate(source.axes):
        column = torch.tensor(ids).reshape([-1 if other == axis else 1 for other in range(source.ndim)])
        views = call.again(column.expand(source.shape))
        for place, view in enumerate(views if isinstance(views, tuple | list) else [views]):
            along = [a for a in range(view.ndim) if view.shape[a] > 1 and view.stride(a)]
            if along:
                layouts[place] = layouts[place].put(along[0], _line(view.numpy(), along[0]))
            else:
                call.freeze([ids], "takes single channels out")
    return call.give(layouts)


def _line(numbers: npt.NDArray[np.int64], along: int) -> Ids:
    """What an array holds along one axis, at the start of the others."""
    return numbers[tuple([slice(None) if axis == along else 0 for axis in range(numbers.ndim)])]


def _slice(call: Call) -> Result:
    ids = call["self"].axes[call["dim"]]
    bounds = (call.node.arguments["start"], call.node.arguments["end"])
    if call["step"] != 1 or any(isinstance(bound, Value) for bound in bounds):
        call.freeze([ids], "takes every so many channels, or a number of them that varies")
    return _view(call)


def _squeeze(call: Call) -> Result:
    dims = (call["dim"],) if isinstance(call["dim"], int) else call["dim"]
    call.freeze([call["self"].axes[dim] for dim in dims], "would drop this dimension if one were left")
    return _view(call)


def _reshape(call: Call) -> Layout:
    """Reshapes, block by block: the shortest runs of axes, before and after, of equally many elements.

    Within a block the channels are found again if all of them lay along one axis and do so afterwards.
    """
    source, (made,) = _first(call), call.plain()
    for before, after in _blocks(source.shape, made.shape):
        free = [axis for axis in before if len(before) == 1 or call.ties.free(source.axes[axis])]
        if not free:
            continue
        shape = [len(source.axes[axis]) for axis in before]
        column = call.ties.firsts(source.axes[free[0]]).reshape([-1 if axis == free[0] else 1 for axis in before])
        numbers = np.broadcast_to(column, shape).reshape([made.shape[axis] for axis in after])
        along = [axis for axis in range(numbers.ndim) if (numbers != numbers.take([0], axis)).any()]
        if len(free) > 1 or len(along) != 1 or isinstance(sizes(call).get(after[along[0]]), Value):
            call.freeze([source.axes[axis] for axis in free], "splits these channels up, or joins them")
        else:
            made = made.put(after[along[0]], _line(numbers, along[0]))
    return made


def _reshape_as(call: Call) -> Result:
    return call.broadcast([_reshape(call), call["other"]])


def sizes(call: Call) -> dict[int, Any]:
    """The sizes that the arguments of a reshape or expansion give to axes of its result."""
    if call.node.op not in SIZES:
        return {}
    first = call["dim"] % call["self"].ndim if call.node.op == "unflatten.int" else 0
    return dict(enumerate(call.node.arguments[SIZES[call.node.op]], first))


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest runs of axes of two shapes that hold equally many elements."""
    ends = [
        {size: axis + 1 for axis, size in enumerate(itertools.accumulate(shape, operator.mul))}
        for shape in (before, after)
    ]
    left = right = 0
    for size in ends[0]:
        if size in ends[1]:
            yield range(left, ends[0][size]), range(right, ends[1][size])
            left, right = ends[0][size], ends[1][size]


def _pad(call: Call) -> Result:
    source, amounts = _first(call), call["pad"]
    constant = call.given.get("mode", "constant") == "constant" and min(amounts, default=0) >= 0
    padded = source
    for place, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), 1):
        ids = source.axes[-place]
        if not (before or after):
            continue
        if constant and call.ties.free(ids):
            ids = np.concatenate([call.ties.new(before), ids, call.ties.new(after)])
        else:
            call.freeze([ids], "pads this dimension")
            ids = call.fixed(call.found.shape[-place])
        padded = padded.put(-place, ids)
    return padded


def _cat(call: Call) -> Result:
    layouts, dim = call.layouts(), call["dim"]
    if len({layout.ndim for layout in layouts}) > 1:
        return unknown(call)
    joined = np.concatenate([layout.axes[dim] for layout in layouts])
    return call.broadcast([layout.put(dim, joined) for layout in layouts])


def _stack(call: Call) -> Result:
    axes, dim = list(call.broadcast(call.layouts()).axes), call["dim"]
    axes.insert(dim % (len(axes) + 1), call.fixed(len(call.layouts())))
    return Layout(tuple(axes))


def _size(call: Call) -> Result:
    call.freeze([call["self"].axes[call["dim"]]], "counts them")
    return None


def _item(call: Call) -> Result:
    layout: Layout = call["results"][call["index"]]
    return layout


RULES: dict[str, Callable[[Call], Result]] = {
    name: rule
    for rule, names in {
        _convolution: """conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding conv_transpose1d
            conv_transpose2d.input conv_transpose3d.input""",
        _linear: "linear",
        _matmul: "matmul mm bmm addmm",
        _embedding: "embedding",
        _elementwise: """relu add.Tensor mul.Tensor sub.Tensor div.Tensor rsub.Tensor gelu sigmoid tanh silu hardtanh
            hardswish hardsigmoid leaky_relu relu6 elu add.Scalar mul.Scalar sub.Scalar div.Scalar rsub.Scalar
            pow.Tensor_Scalar pow.Tensor_Tensor sqrt rsqrt exp neg where.self masked_fill.Scalar masked_fill.Tensor
            eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar eq.Tensor ne.Tensor lt.Tensor le.Tensor
            gt.Tensor ge.Tensor sin cos clamp clamp.Tensor clamp_min clamp_max softplus mish selu celu log_sigmoid
            softshrink hardshrink threshold zeros_like ones_like maximum minimum abs log log1p erf reciprocal square
            addcmul addcdiv lerp.Scalar lerp.Tensor nan_to_num expm1 tan atan sinh cosh sign floor ceil round
            to.dtype expand_as""",
        _prelu: "prelu",
        _glu: "glu",
        _batch_norm: "batch_norm",
        _instance_norm: "instance_norm",
        _group_norm: "group_norm",
        _layer_norm: "layer_norm rms_norm",
        _along: "softmax.int log_softmax.int cumsum cumprod",
        _reduction: """mean.dim sum.dim_IntList amax amin argmax argmin logsumexp linalg_vector_norm var.correction
            std.correction""",
        _pixel_shuffle: "pixel_shuffle",
        _view: """transpose.int permute t mT numpy_T movedim.int movedim.intlist swapaxes unsqueeze select.int
            unbind.int split.Tensor split_with_sizes chunk expand broadcast_to""",
        _slice: "slice.Tensor",
        _squeeze: "squeeze.dim squeeze.dims",
        _reshape: "reshape flatten.using_ints unflatten.int",
        _reshape_as: "reshape_as",
        _pad: "pad constant_pad_nd",
        _cat: "cat",
        _stack: "stack",
        _size: "sym_size.int",
        _item: "getitem",
        **{
            _spatial(count): f"""max_pool{count}d avg_pool{count}d adaptive_avg_pool{count}d
            adaptive_max_pool{count}d max_pool{count}d_with_indices upsample_nearest{count}d.vec
            _upsample_nearest_exact{count}d.vec reflection_pad{count}d replication_pad{count}d"""
            for count in (1, 2, 3)
        },
        _spatial(1): "upsample_linear1d.vec",
        _spatial(2): "upsample_bilinear2d.vec upsample_bicubic2d.vec",
        _spatial(3): "upsample_trilinear3d.vec",
    }.items()
    for name in names.split()
}
