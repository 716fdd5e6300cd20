"""The errors of deepcomp: one line each, naming what was found and what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcomp.pipeline import Report

__all__ = ["BudgetError", "CaptureError", "DeepcompError", "FormatError", "InputError", "UsageError"]


class DeepcompError(Exception):
    """Base of every error raised on purpose by deepcomp."""


class UsageError(DeepcompError, ValueError):
    """The call itself is wrong: an unknown recipe, setting, model or data name."""


class InputError(DeepcompError):
    """A file, tensor or data set that was given cannot be used as it is."""


class FormatError(DeepcompError):
    """A `.dcz` file (or a part of one) is damaged, truncated or hostile."""


class CaptureError(DeepcompError):
    """A network's operations cannot be written down with the allow-list."""


class BudgetError(DeepcompError):
    """A size or accuracy budget was not met; `report` tells of the nearest file, which was written."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report
