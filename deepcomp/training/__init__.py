"""Training of a network whose weights have forms: the loop, and what it is made of."""

from __future__ import annotations

from deepcomp.training.checkpoints import Checkpoints
from deepcomp.training.loop import train
from deepcomp.training.plan import Plan

__all__ = ["Checkpoints", "Plan", "train"]
