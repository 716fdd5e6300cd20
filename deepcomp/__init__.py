"""deepcomp: a trained PyTorch network into one small, safe file, and back into a runnable module.

>>> report = deepcomp.compress(model, "net.dcz", recipe="uniform", example_inputs=x)  # doctest: +SKIP
>>> model = deepcomp.load("net.dcz")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepcomp.errors import (
    BudgetError,
    CaptureError,
    DeepcompError,
    FormatError,
    InputError,
    MissingTensorError,
    UsageError,
)
from deepcomp.loader import File, load, load_state_dict
from deepcomp.loader import open_file as open
from deepcomp.version import __version__

if TYPE_CHECKING:
    from deepcomp.diagnosis import Diagnosis, diagnose
    from deepcomp.model.data import Data
    from deepcomp.pipeline import Report, compress
    from deepcomp.report.inspection import inspect
    from deepcomp.verification import verify

__all__ = [
    "BudgetError",
    "CaptureError",
    "Data",
    "DeepcompError",
    "Diagnosis",
    "File",
    "FormatError",
    "InputError",
    "MissingTensorError",
    "Report",
    "UsageError",
    "__version__",
    "compress",
    "diagnose",
    "inspect",
    "load",
    "load_state_dict",
    "open",
    "verify",
]

_ELSEWHERE = {  # imported when first asked for: loading a file needs none of it
    "Data": "deepcomp.model.data",
    "Diagnosis": "deepcomp.diagnosis",
    "Report": "deepcomp.pipeline",
    "compress": "deepcomp.pipeline",
    "diagnose": "deepcomp.diagnosis",
    "inspect": "deepcomp.report.inspection",
    "verify": "deepcomp.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'deepcomp' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
