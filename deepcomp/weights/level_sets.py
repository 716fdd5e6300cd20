"""Sets of levels for very few bits: whole numbers, of which a weight takes one, times a scale.

=========================  =========  ========================================================  =====================
set                        bits       levels                                                    source
=========================  =========  ========================================================  =====================
`binary`                   1          −1 and 1                                                  Rastegari et al. 2016
`ternary`                  1.58       −1, 0 and 1                                               Li & Liu 2016
`power-of-two`             2 to 5     0 and powers of two of either sign: products are shifts   Zhou et al. 2017
`additive-power-of-two`    2 to 8     0 and sums of a few powers of two: finer at the ends      Li et al. 2020
`lloyd-max`                1 to 8     those of least squared error for the weights themselves   Lloyd 1982; Max 1960
=========================  =========  ========================================================  =====================
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.weights import clustering

__all__ = ["LARGEST", "SETS", "LevelSet", "check", "level_set"]

SETS = {
    "binary": (1, 1),
    "ternary": (2, 2),
    "power-of-two": (2, 5),
    "additive-power-of-two": (2, 8),
    "lloyd-max": (1, 8),
}
LARGEST = 1 << 16  # of levels, by magnitude: float32 holds them and the thresholds between them


@dataclass(frozen=True)
class LevelSet:
    """Levels, and what they are levels of.

    Attributes
    ----------
    levels : tuple of int
        Ascending, none twice, from −2¹⁶ to 2¹⁶.
    unit : float, optional
        What of a block's weights is 1 on the scale of levels, as a multiple of their mean magnitude; None: what makes
        the squared error least.
    """

    levels: tuple[int, ...]
    unit: float | None = None


def check(name: str, bits: int) -> None:
    """Insist that there is such a set.

    Raises
    ------
    UsageError
        Naming the setting.
    """
    if name not in SETS:
        raise UsageError(f"levels = {name!r}: one of {', '.join(SETS)} expected")
    least, most = SETS[name]
    if least < most and not least <= bits <= most:
        raise UsageError(f"bits = {bits}: {least} to {most} expected of {name} levels")


def level_set(name: str, bits: int, weights: Tensor) -> LevelSet:
    """The set of a name.

    Parameters
    ----------
    name : {"binary", "ternary", "power-of-two", "additive-power-of-two", "lloyd-max"}
    bits : int
        Two to the power of it levels, or one less where they lie about 0. Binary and ternary ones have no choice.
    weights : float32 tensor
        Over the mean magnitude of their blocks: what `lloyd-max` is fitted to.

    Raises
    ------
    UsageError
        See `check`.
    """
    check(name, bits)
    match name:
        case "binary":
            return LevelSet((-1, 1), unit=1.0)
        case "ternary":  # weights below 0.7 of the mean are 0, a threshold half way to the level 1
            return LevelSet((-1, 0, 1), unit=1.4)
        case "power-of-two":
            return LevelSet(_both_signs(1 << power for power in range((1 << bits - 1) - 1)))
        case "additive-power-of-two":
            return LevelSet(_both_signs(_sums(bits - 1)))
        case _:
            return _lloyd_max(bits, weights)


def _both_signs(magnitudes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({0} | {sign * level for level in magnitudes for sign in (-1, 1)}))


def _sums(bits: int) -> Iterable[int]:
    """All sums of one number from each term, two bits a term: 0 or one of three powers of two.

    No two terms share a power. They take turns from the largest power down; where a bit is left over, its term, 0 or
    one power, has its turn behind the second round, as in the authors' program.
    """
    terms, left = divmod(bits, 2)
    turns = [*range(terms), *range(terms), *[terms] * left, *range(terms)]
    choices = [[0] for _ in range(terms + left)]
    for power, term in enumerate(reversed(turns)):
        choices[term].append(1 << power)
    return map(sum, itertools.product(*choices))


def _lloyd_max(bits: int, weights: Tensor) -> LevelSet:
    centres = clustering.centroids(weights.reshape(-1).numpy(), 1 << bits)
    unit = float(abs(centres).max(initial=0)) / LARGEST or 1.0
    return LevelSet(tuple(sorted({round(float(centre) / unit) for centre in centres} or {0})), unit)
