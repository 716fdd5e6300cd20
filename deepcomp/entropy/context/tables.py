"""The numbers of the context coder, made with integers alone: the same on every machine.

Log-odds are counted in 128ths of an octave (a doubling of the odds). `SQUASH` leads from log-odds to
probabilities and `STRETCH` back; `RECIPROCAL` and `RATE` say how fast what is learned moves, by how
often it has moved; `LEVEL` puts activities on a logarithmic scale.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

__all__ = ["LEVEL", "RATE", "RECIPROCAL", "SQUASH", "STRETCH"]

_OCTAVE = 128  # steps of log-odds
_FRACTION = 64  # bits behind the point
_COUNTS = 4096
_MOST_ACTIVE = 15 << 12


def _powers() -> list[int]:
    """2^(k / 128) for k from 0 to 127."""
    root = 2 << _FRACTION
    for _ in range(_OCTAVE.bit_length() - 1):
        root = isqrt(root << _FRACTION)
    powers = [1 << _FRACTION]
    while len(powers) < _OCTAVE:
        powers.append(powers[-1] * root >> _FRACTION)
    return powers


def _squash() -> list[int]:
    """65,536 times the probability at log-odds i - 2048, rounded, kept from 0 and 1."""
    powers, one, found = _powers(), 1 << _FRACTION, []
    for place in range(-2048, 2048):
        octave, step = divmod(place, _OCTAVE)
        odds = powers[step] << octave if octave >= 0 else powers[step] >> -octave
        found.append(((odds << 17) // (odds + one) + 1) // 2)
    return [min(max(chance, 1), 65535) for chance in found]


def _stretch(squash: list[int]) -> list[int]:
    """The least log-odds at which the probability is (i + 1/2) / 4096 or more."""
    place, found = -2047, []
    for chance in range(8, 65536, 16):
        while squash[place + 2048] < chance:
            place += 1
        found.append(place)
    return found


SQUASH = np.array(_squash(), np.int32)
STRETCH = np.array(_stretch(SQUASH.tolist()), np.int32)
RECIPROCAL = np.array([65536 // (count + 2) for count in range(_COUNTS)], np.int32)
RATE = np.array([(1 << 18) // (count + 32) for count in range(_COUNTS)], np.int32)
LEVEL = np.array([(activity * activity >> 6).bit_length() for activity in range(_MOST_ACTIVE + 1)], np.uint8)
