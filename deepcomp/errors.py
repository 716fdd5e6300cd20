"""The errors of deepcomp: one line each, naming what was found and what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcomp.pipeline import Report

__all__ = [
    "BudgetError",
    "CaptureError",
    "DeepcompError",
    "FormatError",
    "InfeasibleError",
    "InputError",
    "MissingTensorError",
    "UsageError",
    "blaming",
    "one_line",
]


class DeepcompError(Exception):
    """Base of every error raised on purpose by deepcomp."""


class UsageError(DeepcompError, ValueError):
    """The call itself is wrong: an unknown recipe, setting, model or data name."""


class InfeasibleError(UsageError):
    """A setting asks for more than can be done.

    Attributes
    ----------
    setting : str
        As `step.key`.
    nearest : float
        Its nearest value that can be kept.
    """

    def __init__(self, setting: str, value: float, nearest: float) -> None:
        super().__init__(f"{setting} = {value}: {nearest} is the least that can be kept")
        self.setting, self.nearest = setting, nearest


class InputError(DeepcompError):
    """A file, tensor or data set that was given cannot be used as it is."""


class MissingTensorError(InputError, KeyError):
    """A file has no tensor of the name that was asked for."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class FormatError(DeepcompError):
    """A `.dcz` file (or a part of one) is damaged, truncated or hostile."""


class CaptureError(DeepcompError):
    """A network's operations cannot be written down with the allow-list."""


class BudgetError(DeepcompError):
    """A size or accuracy budget was not met; `report` tells of the nearest file, which was written."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


def one_line(error: Exception) -> str:
    """What a foreign error is and says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Errors of a user's own code within the block become an `InputError` of one line that says whose they are."""
    try:
        yield
    except (DeepcompError, MemoryError):
        raise
    except Exception as error:  # whatever that code does
        raise InputError(f"{what}: {one_line(error)}") from error
