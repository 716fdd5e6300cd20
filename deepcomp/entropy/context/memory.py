"""What a walk over an array works on: the array, what is known of it so far, and what has been learned."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray

__all__ = ["Memory"]

Ints: TypeAlias = NDArray[Any] | memoryview


class Memory(NamedTuple):
    """Views of arrays in plain Python, the arrays themselves in a kernel; they last for one walk.

    A *state* is a value, which moves towards what it is told, times 4,096, and how often it has moved (`mixing.moved`).

    Attributes
    ----------
    rows, planes, taps, width : int
        The array is (rows, planes, taps); the taps of a plane lie in lines of `width`. A *place* is a tap of a plane.
    values : int32, shape (rows · planes · taps,)
        Signed integers; zero at first where they are to be decoded.
    live_rows, live_planes, live_taps : uint8, shapes (rows,), (planes,), (planes · taps,)
        Whether any value of a row, a plane, a place is not zero.
    live_kernels : uint8, shape (planes,)
        Whether the plane held anything in the last live row.
    fed : uint8, shape (planes · taps,)
        What the row of the layer before is that a place takes its input from: 0 not known, 1 dead, 2 live.
    plane_activity, tap_activity : int32, shapes (planes,), (planes · taps,)
        States: how large the values of a plane, of a place have been.
    tap_lean : int32, shape (planes · taps,)
        States: how often the values of a place have been negative.
    row : int64, shape (6,)
        What is known of the row so far, in the order that `model` names.
    states : int64
        The chances that contexts lead to.
    weights, ages : int64, shapes (mixes · inputs,), (mixes,)
        Of the mixes: how predictions are weighed, and how often that has moved.
    contexts, inputs : int64, shape (inputs,)
        Of the decision at hand: its states, and their log-odds.
    registers : int64, shape (4,)
        Of the arithmetic coder, in the order that `arithmetic` names.
    data : uint8
        What is read, or filled; the coder may run beyond.
    squash, stretch, reciprocal, rate, level : int32 or uint8
        See `tables`.
    """

    rows: int
    planes: int
    taps: int
    width: int
    values: Ints
    live_rows: Ints
    live_planes: Ints
    live_taps: Ints
    live_kernels: Ints
    fed: Ints
    plane_activity: Ints
    tap_activity: Ints
    tap_lean: Ints
    row: Ints
    states: Ints
    weights: Ints
    ages: Ints
    contexts: Ints
    inputs: Ints
    registers: Ints
    data: Ints
    squash: Ints
    stretch: Ints
    reciprocal: Ints
    rate: Ints
    level: Ints
