"""How much the loss minds a change of a weight, to second order.

=============  ==========================================================  ===========
`Matrix`       a weight as rows and columns                                matrix.py
`Fisher`       squared gradients, labels drawn from the network itself     fisher.py
`Moments`      second moments of what a layer reads                        moments.py
`divergence`   how far outputs have moved                                  divergence.py
`alongside`    two networks on the same data, value by value               alongside.py
=============  ==========================================================  ===========
"""

from __future__ import annotations

from deepcomp.curvature.alongside import alongside
from deepcomp.curvature.divergence import divergence
from deepcomp.curvature.fisher import Fisher, fisher
from deepcomp.curvature.matrix import Matrix
from deepcomp.curvature.moments import Moments, damped

__all__ = ["Fisher", "Matrix", "Moments", "alongside", "damped", "divergence", "fisher"]
