"""Figures of a network after some steps, over draws of the calibration data; and how scripts are asked for them."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Collection, Sequence

from subjects import SUBJECTS, Subject, score, through

from deepcomp.steps import STEPS, Step

__all__ = ["Draws", "Figures", "asked", "cell", "gain", "spread", "step"]

Figures = list[float]  # accuracies in percent or perplexities, one for each draw of calibration data


class Draws:
    """One network, its data, and how it does before and after steps.

    Attributes
    ----------
    images : bool
        Whether figures are accuracies in percent; perplexities if not.
    float : float
        The figure of the network in fp32.
    """

    def __init__(self, subject: Subject, items: int, seeds: int) -> None:
        self.subject, self.seeds = subject, tuple(range(seeds))
        self.data = subject.load(items)
        self.images = self.data.metric == "accuracy"
        self.float = self.of([])[0]

    @property
    def measure(self) -> str:
        return "accuracy, %" if self.images else "perplexity"

    def of(self, steps: Sequence[Step], seeds: Sequence[int] = (0,)) -> Figures:
        """Figures after some steps, for each draw of the calibration data."""
        return [score(through(self.subject, self.data, steps, seed), self.data) for seed in seeds]

    def gain(self, found: Figures, than: Figures) -> float:
        """How much better one way is than another on average: points, or percent of the perplexity."""
        return gain(found, than, self.images)


def gain(found: Figures, than: Figures, images: bool) -> float:
    """How much better some figures are than others on average: points, or percent of the perplexity."""
    a, b = statistics.fmean(found), statistics.fmean(than)
    return a - b if images else 100 * (b - a) / b


def spread(found: Sequence[float], form: str) -> str:
    """The mean, with the least and the greatest where there are several."""
    mean, least, most = (format(value, form) for value in (statistics.fmean(found), min(found), max(found)))
    return mean if len(found) == 1 else f"{mean} ({least} to {most})"


def cell(found: Figures) -> str:
    """The spread of accuracies or perplexities."""
    return spread(found, ".2f")


def step(do: str, **settings: object) -> Step:
    """A step of a recipe."""
    return STEPS[do](**settings)


def asked(
    about: str, sections: Collection[str], networks: Collection[str]
) -> tuple[list[str], list[Subject], argparse.Namespace]:
    """The sections and networks the command line names, all or `networks` if it names none; and its options."""
    known = [*sections, *SUBJECTS]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("what", nargs="*", metavar="SECTION or NETWORK", help="of " + ", ".join(known))
    parser.add_argument("--items", type=int, default=0, help="test items, the first ones (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration data (default: %(default)s)")
    options = parser.parse_args()
    if unknown := {*options.what} - {*known}:
        parser.error(f"{min(unknown)}: one of {', '.join(known)} expected")
    chosen = [name for name in sections if name in options.what] or [*sections]
    subjects = [name for name in SUBJECTS if name in options.what] or networks
    return chosen, [SUBJECTS[name] for name in subjects], options
