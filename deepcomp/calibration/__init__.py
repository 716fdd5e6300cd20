"""What is learnt of activations before they are quantised, by watching them.

==================  =========================================================  =================
`Extremes`          smallest and largest number, of a tensor or its channels   observers.py
`Distribution`      the same and a histogram, for every way to set a range     observers.py
`cross_entropy`     the range that logits need for their softmax               logits.py
==================  =========================================================  =================
"""

from __future__ import annotations

from deepcomp.calibration.logits import cross_entropy
from deepcomp.calibration.observers import Distribution, Extremes

__all__ = ["Distribution", "Extremes", "cross_entropy"]
