"""Range setting: the interval that a uniform quantiser covers (Nagel et al. 2021, §3.1).

============  =======================================================  ===========
range         the interval                                             file
============  =======================================================  ===========
`min-max`     of all numbers                                           sample.py
`percentile`  that leaves out a share at either end                    sample.py
`mse`         of least squared error                                   search.py
`aciq`        of least error, were they Gaussian or Laplacian          aciq.py
`kl`          that keeps most of the distribution's information        kl.py
`lsq`         of a step that follows from the mean magnitude           lsq.py
============  =======================================================  ===========

Each is asked of a `Sample`: of weights (`Values`), or of a `Histogram` where numbers are too many to keep.
"""

from __future__ import annotations

from collections.abc import Callable

from deepcomp.errors import UsageError
from deepcomp.quantizer import Bounds, Quantizer
from deepcomp.weights.ranges.aciq import aciq
from deepcomp.weights.ranges.histogram import Histogram
from deepcomp.weights.ranges.kl import kl
from deepcomp.weights.ranges.lsq import lsq
from deepcomp.weights.ranges.sample import Sample
from deepcomp.weights.ranges.search import least, mse
from deepcomp.weights.ranges.values import Values

__all__ = ["RANGES", "Histogram", "Sample", "Values", "least", "range_of"]

_SEARCHED: dict[str, Callable[[Sample, Quantizer], Bounds]] = {"mse": mse, "aciq": aciq, "kl": kl, "lsq": lsq}
RANGES = ("min-max", "percentile", *_SEARCHED)


def range_of(sample: Sample, quantizer: Quantizer, method: str, percentile: float = 0.01) -> Bounds:
    """The range of each row of a sample.

    Parameters
    ----------
    quantizer : Quantizer
        What the range is for: its levels decide where clipping pays.
    method : {"min-max", "percentile", "mse", "aciq", "kl", "lsq"}
    percentile : float
        Percent of the numbers left outside at either end, 0 to below 50, for `method="percentile"`.

    Returns
    -------
    low, high : float tensors, shape (rows,)
        Finite. `Quantizer.parameters` makes them hold 0.

    Raises
    ------
    UsageError
        There is no such method.
    """
    if method == "min-max":
        return sample.low, sample.high
    if method == "percentile":
        return sample.percentile(percentile)
    if method not in _SEARCHED:
        raise UsageError(f"range = {method!r}: one of {', '.join(RANGES)} expected")
    return _SEARCHED[method](sample, quantizer)
