"""What to try, rule by rule, in the order of the flow (Nagel et al. 2021, Figure 9).

Floating point comes first; then weights (equalisation, a scale a channel, ranges, rounding) and activations
(equalisation, ranges); then the quantisers that stand out, by more bits; at the end training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from deepcomp.diagnosis.findings import ACTIVATION, WEIGHT, Advice, Channels, Diagnosis, Single
from deepcomp.network import per_layer
from deepcomp.steps import Step

__all__ = ["RULES", "advise"]

_EXACT = ("capture", "fold-bn", "equalize", "split-channels", "quantize", "quantize-activations")
_LOST_BITS = 3  # that the median channel lacks where one grid for all does not fit: its range is an eighth
_FEW = 3  # quantisers that can be told apart from the rest
_BITS = (4, 8, 16)
_UNITS = {"accuracy": "points of accuracy", "change of outputs": "of the outputs' size"}
_PARTS = {WEIGHT: "weights", ACTIVATION: "activations"}
_STEPS = {WEIGHT: "quantize", ACTIVATION: "quantize-activations"}


class _Case:
    """A diagnosis and the recipe it is of, as rules ask about them."""

    def __init__(self, found: Diagnosis, steps: Sequence[Step]) -> None:
        self.found, self.steps = found, steps

    def drop(self, part: str) -> float:
        """What a part loses; nothing where there is no such part."""
        outcome = self.found.parts.get(part)
        return 0.0 if outcome is None else outcome.drop

    def loses(self, part: str) -> bool:
        """Whether that counts."""
        outcome = self.found.parts.get(part)
        return outcome is not None and outcome.loses(self.found.tolerance)

    def lost(self, drop: float) -> str:
        """A loss with its unit."""
        return "nothing" if drop <= 0 else f"{drop:.3g} {_UNITS.get(self.found.metric, f'of {self.found.metric}')}"

    def has(self, do: str) -> bool:
        return any(step.do == do for step in self.steps)

    def setting(self, kind: str, key: str) -> Any:
        """A setting of the step that quantises weights or activations; None without such a step."""
        return next((getattr(step, key) for step in self.steps if step.do == _STEPS[kind]), None)

    def skipped(self, do: str, place: str) -> str | None:
        """Why a step has left a place alone."""
        rows = (row for row in self.found.steps if row["do"] == do)
        return next((row["skipped"][place] for row in rows if place in row.get("skipped", {})), None)

    def uneven(self, kind: str) -> list[Channels]:
        """Where one grid does not fit all channels: the median one is left with too few bits."""

        def lacking(row: Channels) -> float:
            return 0.0 if row.bits is None or row.used is None or row.low is None else row.bits - row.used

        rows = [row for row in self.found.channels if row.kind == kind and lacking(row) >= _LOST_BITS]
        return sorted(rows, key=lacking, reverse=True)

    def culprits(self, *kinds: str) -> list[Single]:
        """The few quantisers that make half of the noise of all; none where it takes many, or there are but few."""
        rows = [row for row in self.found.sweep if row.kind in kinds]
        powers = [row.outcome.noise for row in rows]
        few = [row for place, row in enumerate(rows[:_FEW]) if sum(powers[:place]) < sum(powers) / 2]
        enough = sum(powers[: len(few)]) >= sum(powers) / 2 > 0
        return few if enough and 2 * len(few) < len(rows) else []

    def more_bits(self, rows: Sequence[Single]) -> dict[str, Any]:
        """Settings that give some quantisers more bits and leave the others theirs."""
        settings: dict[str, Any] = {}
        for row in reversed(rows):  # the worst comes to stand first
            more = next((bits for bits in _BITS if bits > (row.bits or 16)), None)
            now = self.setting(row.kind, "bits")
            if more is None or now is None:
                continue
            key, ends = f"{_STEPS[row.kind]}.bits", self.setting(row.kind, "ends")
            if ends and row.bits == ends != per_layer(now, row.name):
                settings[f"{_STEPS[row.kind]}.ends"] = more
                continue
            table = settings.get(key, now if isinstance(now, dict) else {"*": now})
            others = {name: bits for name, bits in table.items() if name != row.name}
            settings[key] = {row.name: more, **others}  # the first pattern that fits counts
        return settings


def advise(found: Diagnosis, steps: Sequence[Step]) -> Iterator[Advice]:
    """All that the rules have to say, in their order.

    Parameters
    ----------
    found : Diagnosis
    steps : sequence of Step
        Of the recipe; none where a file was looked at as it is.
    """
    case = _Case(found, steps)
    for rule in RULES:
        yield from rule(case)


def floating_point(case: _Case) -> Iterator[Advice]:
    """Nothing is quantised, and something is lost already."""
    drop = change = 0.0
    for check in case.found.fp32:
        moved = check.behind in _EXACT and check.change > max(case.found.exact, 2 * change)
        if moved or check.drop - drop >= case.found.tolerance:
            captured = check.behind == "capture"
            what = "writing its operations down" if captured else f"the step {check.behind}"
            hint = (
                "does it do something else in each call, or for other shapes?"
                if captured
                else f"leave the step out, or exclude layers by {check.behind}.skip"
            )
            yield Advice(
                "floating-point",
                f"Before anything of the network is quantised, {what} moves its outputs by {check.change:.2g} of their "
                f"size and loses {case.lost(check.drop - drop)}: {hint}.",
                [check.behind],
            )
        drop, change = check.drop, check.change


def fine(case: _Case) -> Iterator[Advice]:
    """Nothing is lost."""
    if any(case.loses(part) for part in case.found.parts) or not case.found.sweep:
        return
    last = [part for part, outcome in case.found.parts.items() if outcome is not None][-1]
    worst = min(case.found.sweep, key=lambda row: row.outcome.snr)
    names = {"both": "weights and activations together lose"}
    small = "which may be chance"
    if case.drop(last) < case.found.tolerance:
        small = f"less than {case.found.tolerance:.3g}"
    yield Advice(
        "fine",
        f"All is well: {names.get(last, f'the {last} lose')} {case.lost(case.drop(last))}, {small}. "
        f"Most noise comes from {worst.name} ({worst.outcome.snr:.1f} dB).",
        [worst.name],
    )


def equalize(case: _Case) -> Iterator[Advice]:
    """Channels of weights differ, and nothing has evened them out."""
    rows = case.uneven(WEIGHT)
    if not case.loses("weights") or not rows or case.has("equalize"):
        return
    yield Advice(
        "equalize",
        f"{_uneven(rows)}. Add the step equalize{'' if case.has('fold-bn') else ' with fold-bn before it'}: it evens "
        "the channels out without changing what the network computes.",
        [row.name for row in rows],
        steps=["equalize"] if case.has("fold-bn") else ["fold-bn", "equalize"],
    )


def per_channel(case: _Case) -> Iterator[Advice]:
    """Channels of weights differ, and have one scale."""
    rows = case.uneven(WEIGHT)
    if not case.loses("weights") or not rows or case.setting(WEIGHT, "per") != "tensor":
        return
    said = "Where that is not enough, give"
    if case.has("equalize"):
        reasons = ((row.name, case.skipped("equalize", row.name)) for row in rows)
        left = next((f" (equalize has left {name} alone: {reason})" for name, reason in reasons if reason), "")
        said = f"{_uneven(rows)}{left}. Give"
    yield Advice(
        "per-channel",
        f'{said} every channel a scale of its own: quantize.per = "channel".',
        [row.name for row in rows],
        {"quantize.per": "channel"},
    )


def weight_range(case: _Case) -> Iterator[Advice]:
    """Ranges of weights reach as far as their outliers."""
    if case.loses("weights") and case.setting(WEIGHT, "range") == "min-max":
        yield Advice(
            "weight-range",
            "The grids of the weights reach as far as their outliers. Clip these where that errs less: "
            'quantize.range = "mse".',
            settings={"quantize.range": "mse"},
        )


def rounding(case: _Case) -> Iterator[Advice]:
    """Weights are rounded to nearest."""
    if case.loses("weights") and case.has("quantize") and not case.has("adaround"):
        yield Advice(
            "rounding",
            f"The weights alone lose {case.lost(case.drop('weights'))}, rounded to nearest. Add the step adaround "
            "behind quantize: it learns from data which to round up"
            + ("." if case.has("correct-bias") else "; correct-bias is quicker and does less."),
            steps=["adaround"],
        )


def activation_equalize(case: _Case) -> Iterator[Advice]:
    """Channels of activations differ, and nothing has evened them out."""
    rows = case.uneven(ACTIVATION)
    if case.loses("activations") and rows and not case.has("equalize") and case.steps:
        yield Advice(
            "activation-equalize",
            f"{_uneven(rows)}. The step equalize behind fold-bn evens out those that lie between two layers.",
            [row.name for row in rows],
            steps=["equalize"] if case.has("fold-bn") else ["fold-bn", "equalize"],
        )


def activation_range(case: _Case) -> Iterator[Advice]:
    """Grids of activations reach as far as their outliers."""
    rows, now = case.uneven(ACTIVATION), case.setting(ACTIVATION, "range")
    if not case.loses("activations") or now is None or not (rows or now == "min-max"):
        return
    other = "percentile" if now == "mse" else "mse"
    said = f"{_uneven(rows)}." if rows else "The grids of the activations reach as far as their outliers."
    yield Advice(
        "activation-range",
        f'{said} Clip them otherwise: quantize-activations.range = "{other}" in place of "{now}".',
        [row.name for row in rows],
        {"quantize-activations.range": other},
    )


def few(case: _Case) -> Iterator[Advice]:
    """A few quantisers do most of the harm."""
    for kind, part in _PARTS.items():
        rows = case.culprits(kind) if case.loses(part) else []
        if rows:
            settings = case.more_bits(rows)
            told = ", ".join(
                f"{row.name} (alone {case.lost(row.outcome.drop)}, {row.outcome.snr:.1f} dB)" for row in rows
            )
            yield Advice(
                f"{kind}-bits",
                f"Of the noise of all {part}, half and more comes from {told}. {_more(settings, part)}",
                [row.name for row in rows],
                settings,
            )


def together(case: _Case) -> Iterator[Advice]:
    """Neither weights nor activations lose alone, but both do."""
    if not case.loses("both") or case.loses("weights") or case.loses("activations"):
        return
    rows = case.culprits(WEIGHT, ACTIVATION) or [row for row in case.found.sweep[:_FEW]]
    settings = case.more_bits(rows)
    names = ", ".join(f"{row.name} ({row.outcome.snr:.1f} dB)" for row in rows)
    yield Advice(
        "together",
        f"Weights and activations lose {case.lost(case.drop('both'))} together and less than "
        f"{case.found.tolerance:.3g} each: the losses add up. Most noise comes from {names}. "
        f"{_more(settings, 'these')}",
        [row.name for row in rows],
        settings,
    )


def everywhere(case: _Case) -> Iterator[Advice]:
    """No quantiser stands out."""
    for kind, part in _PARTS.items():
        if not case.loses(part) or case.culprits(kind):
            continue
        rows = [row for row in case.found.sweep if row.kind == kind]
        now = case.setting(kind, "bits")
        more = next((bits for bits in _BITS if isinstance(now, int) and bits > now), None)
        settings = {} if more is None else {f"{_STEPS[kind]}.bits": more}
        yield Advice(
            f"all-{part}",
            f"The {part} lose {case.lost(case.drop(part))} and none stands out; the worst alone is {rows[0].name} "
            f"({rows[0].outcome.snr:.1f} dB). {_more(settings, 'all of them')}",
            [rows[0].name],
            settings,
        )


def training(case: _Case) -> Iterator[Advice]:
    """The last resort."""
    if any(case.loses(name) for name in case.found.parts):
        yield Advice(
            "training",
            "Where that is not enough, let the network learn to live with its quantisers: the step finetune at the end "
            "of the recipe trains through them.",
            steps=["finetune"],
        )


RULES: tuple[Callable[[_Case], Iterator[Advice]], ...] = (
    *(floating_point, fine, equalize, per_channel, weight_range, rounding, activation_equalize, activation_range),
    *(few, together, everywhere, training),
)


def _uneven(rows: Sequence[Channels]) -> str:
    """What is wrong where one grid serves channels whose ranges differ, the worst first."""
    worst, more = rows[0], len(rows) - 1
    others = f" (and {more} more)" if more else ""
    return (
        f"One grid has to do for all channels of {worst.name}{others}, the widest {worst.spread:.3g} times as wide as "
        f"the median one, which is left {worst.used:.1f} of {worst.bits} bits"
    )


def _more(settings: dict[str, Any], what: str) -> str:
    """Settings as one would write them."""
    if not settings:
        return f"Give {what} more bits where the recipe sets them."
    return "More bits: " + ", ".join(f"{key} = {_toml(value)}" for key, value in settings.items()) + "."


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    return json.dumps(value)
