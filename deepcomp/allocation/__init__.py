"""Which of several choices each layer gets, so that together they lose least within a budget."""

from __future__ import annotations

from deepcomp.allocation.fitting import fitting
from deepcomp.allocation.programme import Choice, Infeasible, cheapest, mildest

__all__ = ["Choice", "Infeasible", "cheapest", "fitting", "mildest"]
