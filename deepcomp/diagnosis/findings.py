"""What a diagnosis finds, as data that reports render."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ACTIVATION", "WEIGHT", "Advice", "Channels", "Check", "Diagnosis", "Outcome", "Single"]

WEIGHT, ACTIVATION = "weight", "activation"


@dataclass(frozen=True)
class Outcome:
    """How a network does beside the one it is compared with.

    Attributes
    ----------
    value : float
        The metric; without one, how far the outputs moved, relative to their size.
    drop : float
        How much worse that is, in the metric's unit.
    snr : float
        Signal-to-quantisation-noise ratio of the outputs in dB, 20 log₁₀ ‖y‖ / ‖ŷ − y‖; infinite where they agree.
        Of outputs that the metric takes for logits (accuracy, perplexity): of the probabilities these stand for.
    error : float
        Standard error of the drop, at most: of accuracy, by the decisions that have changed; 0 of other metrics.
    """

    value: float
    drop: float
    snr: float
    error: float = 0.0

    @property
    def noise(self) -> float:
        """‖ŷ − y‖² / ‖y‖²."""
        return math.pow(10, -self.snr / 10)

    def loses(self, tolerance: float) -> bool:
        """Whether the drop counts: it is no smaller than that, nor than twice its error."""
        return self.drop >= max(tolerance, 2 * self.error)


@dataclass(frozen=True)
class Check:
    """The network in floating point, beside the original.

    Attributes
    ----------
    behind : str
        `capture`, or the step that has run last.
    value, drop : float
        As of `Outcome`.
    change : float
        ‖ŷ − y‖ / ‖y‖ of the outputs themselves.
    """

    behind: str
    value: float
    drop: float
    change: float


@dataclass(frozen=True)
class Single:
    """The network with one quantiser on.

    Attributes
    ----------
    kind : {"weight", "activation"}
    name : str
        Of the weight, or of the place as `model.placement` names it.
    bits : int, optional
        None where it is no uniform grid.
    outcome : Outcome
    """

    kind: str
    name: str
    bits: int | None
    outcome: Outcome


@dataclass(frozen=True)
class Channels:
    """What the channels of a weight or of an activation hold in floating point.

    The range of a channel is that of its numbers and 0, which every grid holds.

    Attributes
    ----------
    kind, name, bits
        As of `Single`.
    minimum, lower, median, upper, maximum : list of float
        Ends and quartiles, one for each channel.
    spread : float
        The largest range of a channel divided by the median one; 1 or more. Channels of nothing but zeros are left out.
    used : float, optional
        Bits of its grid that the median channel uses: log₂ of the levels its range covers.
    low, high : float, optional
        The ends of the grid, where all channels share one that is known.
    """

    kind: str
    name: str
    bits: int | None
    minimum: list[float]
    lower: list[float]
    median: list[float]
    upper: list[float]
    maximum: list[float]
    spread: float
    used: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Advice:
    """One thing to try.

    Attributes
    ----------
    rule : str
        The rule that gives it; see `advice.RULES`.
    text : str
    places : list of str
        The weights and activations it is about.
    settings : dict
        `step.key` and value, as `--set` takes them.
    steps : list of str
        Steps to add to the recipe.
    """

    rule: str
    text: str
    places: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)


@dataclass
class Diagnosis:
    """What `diagnose` found.

    Attributes
    ----------
    input : str
    recipe : str or None
        None where a file was looked at as it is: its weights before quantisation are then not known.
    seed, items : int
        Items of the test set that were measured.
    metric : str
    higher_is_better : bool
    tolerance : float
        A loss below this, in the metric's unit, counts as none.
    exact : float
        Outputs that move by less than this share of their size have moved by rounding alone.
    steps : list of dict
        What the recipe did, as in `pipeline.Report`.
    original : float or None
        The metric of the original module; None where there is no metric or only a file.
    fp32 : list of Check
    parts : dict of str to Outcome or None
        `fp32`, and the network with its `weights`, its `activations` or `both` quantised, beside that; None where there
        is no such quantiser, or none that can be switched off.
    sweep : list of Single
        The one with the most noise first.
    channels : list of Channels
        In the order of the sweep.
    advice : list of Advice
        In the order to try it.
    warnings : list of str
    """

    input: str
    recipe: str | None
    seed: int
    items: int
    metric: str
    higher_is_better: bool
    tolerance: float
    exact: float
    steps: list[dict[str, Any]]
    original: float | None
    fp32: list[Check]
    parts: dict[str, Outcome | None]
    sweep: list[Single]
    channels: list[Channels]
    advice: list[Advice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON values; rows of the sweep are flat."""
        found = asdict(self)
        for row in found["sweep"]:
            row |= row.pop("outcome")
        return found
