"""The channels of weights and activations: their ranges, and how much of a grid they use (Nagel et al. 2021, §3.7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from deepcomp.calibration import Extremes
from deepcomp.diagnosis.findings import ACTIVATION, WEIGHT, Channels
from deepcomp.diagnosis.switches import Board, Switch
from deepcomp.model.graph import Value, references
from deepcomp.model.layers import Layers
from deepcomp.model.quantizers import STATIC
from deepcomp.model.uses import uses
from deepcomp.network import Network
from deepcomp.quantizer import Quantizer
from deepcomp.weights.grid import grid_of

__all__ = ["activation_channels", "weight_channels"]

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_SAMPLE = 1024  # numbers a channel that quartiles of activations are taken of
_BATCH = 64
_QUARTILES = (25, 50, 75)


def weight_channels(net: Network) -> Iterator[Channels]:
    """The output channels of each weight that has a form: those that `quantize` would give scales of their own."""
    assert net.captured is not None
    used = uses(net.captured, net.tied)
    for name, form in net.forms.items():
        tensor = net.tensors[name].detach()
        if tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
            continue
        axis = used[name][0].axis if name in used else 0
        rows = _rows(tensor.double(), axis).numpy()
        boxes = np.percentile(rows, (0, *_QUARTILES, 100), axis=1)
        grid = grid_of(form)
        if grid is None:
            yield _channels(WEIGHT, name, None, boxes)
            continue
        steps = _rows(grid.blocks.spread(grid.scale.detach()).expand(tensor.shape), axis).amax(1)
        ends = None
        if grid.blocks.count == 1:
            scale, zero = grid.scale.item(), grid.zero_point.item()
            ends = -scale * zero, scale * (Quantizer(grid.bits, grid.symmetric).top - zero)
        yield _channels(WEIGHT, name, grid.bits, boxes, steps.double().numpy(), ends)


def activation_channels(board: Board, samples: int) -> Iterator[Channels]:
    """The channels of what the quantisers of activations read, on calibration inputs, with nothing quantised."""
    assert board.net.captured is not None
    nodes, seen = board.net.captured.graph.nodes, _observed(board, samples)
    for switch in board.activations:
        ends, steps = None, None
        if nodes[switch.place].op == STATIC:
            given = nodes[switch.place].arguments
            top = Quantizer(given["bits"], given["symmetric"]).top
            ends = -given["scale"] * given["zero_point"], given["scale"] * (top - given["zero_point"])
            steps = np.array([given["scale"]])
        if switch.name in seen:
            yield _channels(ACTIVATION, switch.name, switch.bits, seen[switch.name], steps, ends)


def _observed(board: Board, samples: int) -> dict[str, Array]:
    """Ends and quartiles of each channel, shape (5, channels), by the name of the place."""
    by_value: dict[Value, list[Switch]] = {}
    for switch in board.activations:
        assert switch.source is not None
        if board.layers.shape(switch.source):  # single numbers have no channels
            by_value.setdefault(switch.source, []).append(switch)
    boxes = {value: _Boxes(same[0].name, _axis(board.layers, value), samples) for value, same in by_value.items()}
    for value, held in board.bare.observe("diagnose", boxes, samples, _BATCH):
        boxes[value].observe(held)
    return {switch.name: boxes[value].numbers() for value, same in by_value.items() for switch in same}


class _Boxes:
    """Ends, which are exact, and quartiles of each channel of an activation, of numbers drawn from each batch."""

    def __init__(self, name: str, axis: int, samples: int) -> None:
        self.axis, self.extremes = axis, Extremes(name, axis)
        self.most = -(-_SAMPLE // -(-samples // _BATCH))
        self.generator = torch.Generator().manual_seed(0)
        self.drawn: list[Tensor] = []

    def observe(self, held: Tensor) -> None:
        self.extremes.observe(held)
        rows = _rows(held, self.axis)
        if rows.shape[1] > self.most:
            rows = rows[:, torch.randint(rows.shape[1], (self.most,), generator=self.generator)]
        self.drawn.append(rows.double())

    def numbers(self) -> Array:
        low, high = (end.numpy() for end in self.extremes.bounds)
        return np.stack([low, *np.percentile(torch.cat(self.drawn, 1).numpy(), _QUARTILES, axis=1), high])


def _axis(layers: Layers, value: Value) -> int:
    """The axis of channels: as the layers have it that read a value or have made it; else by the number of axes."""
    known = {layer.makes.value: layer.makes.dim for layer in layers if layer.makes is not None}
    known |= {layer.reads.value: layer.reads.dim for layer in layers if layer.reads is not None}
    shape, first = layers.shape(value), len(layers.graph.inputs)
    while value not in known and value.index >= first:
        node = layers.graph.nodes[value.index - first]
        read = [entry for entry in references((node.args, node.kwargs)) if isinstance(entry, Value)]
        like = [entry for entry in read if layers.shape(entry) == shape]
        if not like:
            break
        value = like[0]
    return known.get(value, 1 if len(shape) > 3 else max(len(shape) - 1, 0))


def _rows(x: Tensor, axis: int) -> Tensor:
    """One row a channel."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def _channels(
    kind: str,
    name: str,
    bits: int | None,
    boxes: Array,
    steps: Array | None = None,
    ends: tuple[float, float] | None = None,
) -> Channels:
    """What is said of channels, from their boxes, the steps of their grids and the ends of the one they share."""
    low, high = np.minimum(boxes[0], 0), np.maximum(boxes[4], 0)
    alive = high > low
    spread = float((high - low).max() / np.median((high - low)[alive])) if alive.any() else 1.0
    used = None
    if steps is not None and alive.any():
        if ends is not None:
            low, high = np.maximum(low, ends[0]), np.minimum(high, ends[1])
        levels = ((high - low).clip(min=0) / steps + 1).clip(max=2.0 ** (bits or 0))
        used = float(np.median(np.log2(levels)[alive]))
    lower, q1, q2, q3, upper = ([_short(number) for number in row] for row in boxes)
    about = (_short(spread), None if used is None else _short(used))
    shown = (None, None) if ends is None else (_short(ends[0]), _short(ends[1]))
    return Channels(kind, name, bits, lower, q1, q2, q3, upper, *about, *shown)


def _short(number: float) -> float:
    """Six digits: what is drawn needs no more."""
    return float(f"{number:.6g}") + 0.0  # no negative zero
