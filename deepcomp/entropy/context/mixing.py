"""Predictions that learn, and their mixture.

Each decision mixes the predictions of the states that its contexts choose: log-odds are weighed, and the weights
learn from the error (Mahoney 2005, "Adaptive weighing of context models for lossless data compression"); states
follow by 1 / (n + 2).
"""

from __future__ import annotations

from deepcomp.entropy.context.arithmetic import code
from deepcomp.entropy.context.memory import Memory

__all__ = ["COUNT", "INPUTS", "decide", "decide_alone", "moved"]

INPUTS = 5  # predictions mixed at most
COUNT = 4095  # of moves, the most a state or a mix remembers
CERTAIN = (1 << 28) - 1  # the chance of what always was


def moved(state: int, target: int, most: int, m: Memory) -> int:
    """A state, its value one step nearer to a target."""
    count = state & COUNT
    value = state >> 12
    value += (target - value) * m.reciprocal[count] >> 16
    return value << 12 | min(count + 1, most)


def decide(bit: int, count: int, mix: int, m: Memory) -> int:
    """Code a bit, mixing the predictions of the first `count` contexts; all that predicted learns from it."""
    first = mix * INPUTS
    total = 0
    for i in range(count):
        odds = m.stretch[m.states[m.contexts[i]] >> 28]
        m.inputs[i] = odds
        total += odds * m.weights[first + i]
    chance = m.squash[min(max(total >> 16, -2047), 2047) + 2048]
    bit = code(bit, chance, m)
    age = m.ages[mix]
    m.ages[mix] = min(age + 1, COUNT)
    step = ((bit << 16) - chance) * m.rate[age]
    target = CERTAIN * bit
    for i in range(count):
        m.weights[first + i] += m.inputs[i] * step + (1 << 23) >> 24
        at = m.contexts[i]
        m.states[at] = moved(m.states[at], target, COUNT, m)
    return bit


def decide_alone(bit: int, at: int, m: Memory) -> int:
    """Code a bit with the prediction of one state."""
    state = m.states[at]
    bit = code(bit, min(max(state >> 24, 1), 65535), m)
    m.states[at] = moved(state, CERTAIN * bit, COUNT, m)
    return bit
