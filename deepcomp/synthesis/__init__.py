"""Inputs made of what a network itself knows of its training: nothing real is read.

==================  =======================================================  =============
`Watched`           a network, and how far its batch norms are from training statistics.py
`noise`, `distil`   Gaussian noise, and inputs optimised from it              inputs.py
`generate`          images of a generator network, trained for this network   generator.py
`Descent`           the Adam that both learn with                             descent.py
==================  =======================================================  =============
"""

from __future__ import annotations

from deepcomp.synthesis.descent import Descent
from deepcomp.synthesis.generator import generate
from deepcomp.synthesis.inputs import distil, noise
from deepcomp.synthesis.statistics import Watched

__all__ = ["Descent", "Watched", "distil", "generate", "noise"]
