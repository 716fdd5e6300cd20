"""Training inside a recipe: behind pruning, of shared values (Han et al. 2016, §2–3), with quantisers in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.training import Plan, train

__all__ = ["Finetune"]


@dataclass
class Finetune(Plan, Step):
    """Train what earlier steps have left to train: survivors, shared values, scales, and all other parameters.

    Pruned weights stay zero, shared ones stay shared, and quantised ones are rounded as they train, which counts as the
    identity for gradients (Nagel et al. 2021, §4.1). Static quantisers of activations learn their ranges, unless
    `scales` is 0. Needs data; the settings are those of `training.Plan`, and `layers` and `skip` name the tensors that
    train.
    """

    do: ClassVar[str] = "finetune"

    def run(self, net: Network) -> dict[str, Any]:
        return train(net, self, self.do, self.layers, self.skip)
