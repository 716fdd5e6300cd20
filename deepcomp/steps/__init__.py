"""What a recipe can do, one idea a file. A new step is a file here, a line below, and nothing else."""

from __future__ import annotations

from deepcomp.steps.absorb_bias import AbsorbBias
from deepcomp.steps.adaquant import AdaQuant
from deepcomp.steps.adaround import AdaRound
from deepcomp.steps.allocate import Allocate
from deepcomp.steps.code import Code
from deepcomp.steps.correct_bias import CorrectBias
from deepcomp.steps.equalize import Equalize
from deepcomp.steps.finetune import Finetune
from deepcomp.steps.fold_bn import FoldBN
from deepcomp.steps.prune import Prune
from deepcomp.steps.prune_filters import PruneFilters
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.steps.quantize_feedback import QuantizeFeedback
from deepcomp.steps.quantize_levels import QuantizeLevels
from deepcomp.steps.rate_train import RateTrain
from deepcomp.steps.share import Share
from deepcomp.steps.slim import Slim
from deepcomp.steps.split_channels import SplitChannels
from deepcomp.steps.step import Step
from deepcomp.steps.store import Store
from deepcomp.steps.synthesise import Synthesise
from deepcomp.steps.tune_biases import TuneBiases
from deepcomp.steps.tune_bn import TuneBN

__all__ = ["STEPS", "Step"]

STEPS: dict[str, type[Step]] = {
    step.do: step
    for step in (
        Synthesise,
        FoldBN,
        Equalize,
        AbsorbBias,
        SplitChannels,
        Prune,
        PruneFilters,
        Slim,
        Finetune,
        RateTrain,
        Share,
        Quantize,
        QuantizeLevels,
        Allocate,
        CorrectBias,
        AdaRound,
        QuantizeFeedback,
        QuantizeActivations,
        AdaQuant,
        TuneBN,
        TuneBiases,
        Store,
        Code,
    )
}
