"""Operations without some of the channels: the sizes written in their arguments, made to fit.

Most operations take their sizes from their operands. Those that do not have a rule here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from deepcomp.model import ops
from deepcomp.model.flow import SIZES, channel_axis, sizes
from deepcomp.model.graph import Argument, Node
from deepcomp.model.layout import Call, Layout
from deepcomp.model.ties import Ids

__all__ = ["rewrite"]

Count: TypeAlias = Callable[[Ids], int]  # how many channels of an axis are left


def rewrite(call: Call, left: Count) -> Node:
    """A node with its arguments made to fit the channels that are left.

    Parameters
    ----------
    call : Call
        With its result, as its rule in `flow` has made it.
    left : callable
        How many of an axis' channels are left.
    """
    name = call.node.op
    if name in ("split.Tensor", "split_with_sizes", "chunk"):
        return _split(call, left)
    changes = _RULES[name](call, left) if name in _RULES else {}
    return _node(name, call.node.arguments | changes) if changes else call.node


def _node(name: str, arguments: dict[str, Argument]) -> Node:
    return Node(name, *ops.find(name).shorten(arguments))


def _groups(call: Call, left: Count) -> dict[str, Argument]:
    channels = call["input"].axes[channel_axis(call)]
    return {"groups": call["groups"] * left(channels) // len(channels)} if call["groups"] > 1 else {}


def _num_groups(call: Call, left: Count) -> dict[str, Argument]:
    channels = call["input"].axes[1]
    return {"num_groups": call["num_groups"] * left(channels) // len(channels)}


def _sizes(call: Call, left: Count) -> dict[str, Argument]:
    assert isinstance(call.result, Layout)
    axes, found = call.result.axes, sizes(call).items()
    fit = tuple([left(axes[axis]) if type(size) is int and size != -1 else size for axis, size in found])
    return {SIZES[call.node.op]: fit}


def _bounds(call: Call, left: Count) -> dict[str, Argument]:
    channels = call["self"].axes[call["dim"]]
    if left(channels) == len(channels):
        return {}
    return {key: None if call[key] is None else left(channels[: call[key]]) for key in ("start", "end")}


def _pad(call: Call, left: Count) -> dict[str, Argument]:
    assert isinstance(call.result, Layout)
    amounts = list(call["pad"])
    for place in range(len(amounts) // 2):
        ids = call.result.axes[-1 - place]
        if left(ids) < len(ids):
            before, after = amounts[2 * place : 2 * place + 2]
            amounts[2 * place : 2 * place + 2] = left(ids[:before]), left(ids[len(ids) - after :])
    return {"pad": tuple(amounts)}


def _split(call: Call, left: Count) -> Node:
    """Parts of sizes of their own, where channels have gone."""
    channels, dim = call["self"].axes[call["dim"]], call["dim"]
    if left(channels) == len(channels):
        return call.node
    assert isinstance(call.result, tuple)
    parts = tuple([left(layout.axes[dim]) for layout in call.result])
    return _node("split_with_sizes", {"self": call.node.arguments["self"], "split_sizes": parts, "dim": dim})


_RULES: dict[str, Callable[[Call, Count], dict[str, Argument]]] = {
    name: rule
    for rule, names in {
        _groups: """conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding conv_transpose1d
            conv_transpose2d.input conv_transpose3d.input""",
        _num_groups: "group_norm",
        _sizes: " ".join(SIZES),
        _bounds: "slice.Tensor",
        _pad: "pad constant_pad_nd",
    }.items()
    for name in names.split()
}
