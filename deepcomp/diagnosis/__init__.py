"""Where quantisation hurts: the debugging flow of Nagel et al. 2021 (§3.7, Figure 9)."""

from __future__ import annotations

from deepcomp.diagnosis.findings import Advice, Channels, Check, Diagnosis, Outcome, Single
from deepcomp.diagnosis.flow import diagnose

__all__ = ["Advice", "Channels", "Check", "Diagnosis", "Outcome", "Single", "diagnose"]
