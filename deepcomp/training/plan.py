"""How a network is trained: the settings of one training run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from deepcomp.errors import UsageError
from deepcomp.training.augment import AUGMENTATIONS
from deepcomp.training.losses import LOSSES
from deepcomp.training.quantizers import PENALTIES, ROUNDINGS

__all__ = ["Plan"]

_NAMED: dict[str, Iterable[str]] = {
    "optimiser": ("sgd", "adam", "adamw"),
    "schedule": ("constant", "linear", "cosine"),
    "choose": ("best", "last"),
    "rounding": ROUNDINGS,
    "shape": PENALTIES,
}


@dataclass
class Plan:
    """Settings of a training run.

    Attributes
    ----------
    epochs : int
        Passes over the training items; 0 leaves the network as it is.
    batch : int
        Items a step.
    optimiser : {"sgd", "adam", "adamw"}
        SGD with Nesterov momentum, or Adam.
    rate : float
        Learning rate at the start.
    schedule : {"cosine", "linear", "constant"}
        How the rate falls, to zero at the end of the last epoch for the first two.
    momentum, decay : float
        Momentum of SGD, and weight decay; scales and zero-points do not decay.
    scales : float
        The learning rate of scales and zero-points of quantisers, relative to `rate`; 0 leaves them as they are. With 1
        SGD moves them as LSQ has it, with Adam steps are shares of a scale; see `training.ranges`.
    rounding : {"nearest", "stochastic", "none"}
        Of weights on grids in training: up with a probability of the fraction, say, or not at all, which asks for a
        `penalty`. What is judged, and what training ends in, is always rounded to the nearest.
    penalty : float
        What the loss gets for each weight on a grid, times the squared distance of the latent weight from it; grows
        linearly from 0 to this.
    shape : {"distance", "sine"}
        Of the penalty; the sine's falls off half way between two levels.
    price : float
        λ, what the loss gets for each bit that weights on grids will take, in its own unit: nats an item for
        cross-entropy. Asks for `choose="last"`: the epochs before spend more bits. See `training.rate`.
    context : bool
        Whether bits depend on what is alive around a weight, as the context coder has it; if not, on how many weights
        of its tensor are alive, as for other coders.
    ramp : float
        Share of the training in which the price rises linearly from 0.
    warmup : float
        Share of the training in which the learning rate rises linearly to what `schedule` says.
    frozen : float
        Share of the epochs, the last ones, in which scales, zero-points and the statistics of batch norms stay.
    validation : int
        Training items held out to choose the epoch, the last ones, but at most a tenth of all; not
        used where `Data` has a validation set of its own.
    choose : {"best", "last"}
        Which epoch is kept: the best on the held-out items (of equals the later; none, where the start was better), or
        the last.
    loss : str
        `auto` (cross-entropy for the metrics accuracy and perplexity), `cross-entropy`, `mse`, or
        `package.module:callable` of a function `(outputs, targets) -> scalar`.
    distill : float
        Share of the loss that asks for the outputs of the uncompressed network instead of the
        targets, 0 to 1 (Hinton et al. 2015): where the metric is accuracy or perplexity, or the loss cross-entropy,
        by the divergence of softened outputs, otherwise by the mean square of the difference.
    temperature : float
        Of the softened outputs in that share.
    dropout : dict of str to float
        Layer patterns, and the share of their inputs that is dropped while training. As all
        dropout, it is lowered with the layer's density (Han et al. 2015, eq. 1–2). Not behind steps that change the
        operations (`fold-bn`, `equalize`, `prune-filters`, `quantize-activations`): these run without dropout, the
        network's own too.
    augment : str
        Of images `flip-crop` (shifts up to an eighth, and mirror images), `affine` (small rotations, stretches, shears
        and shifts) or `elastic` (these, and the image bent smoothly); `none`; or `package.module:callable` of a
        function `(inputs) -> inputs` of a batch.
    device : str
        `cpu`, `cuda`, or any other device torch knows.
    threads : int
        Of the processor. More than one may be faster, and rounds sums differently.
    """

    epochs: int = 10
    batch: int = 128
    optimiser: str = "sgd"
    rate: float = 0.01
    schedule: str = "cosine"
    momentum: float = 0.9
    decay: float = 0.0
    scales: float = 1.0
    rounding: str = "nearest"
    penalty: float = 0.0
    shape: str = "distance"
    price: float = 0.0
    context: bool = True
    ramp: float = 0.4
    warmup: float = 0.0
    frozen: float = 0.0
    validation: int = 5000
    choose: str = "best"
    loss: str = "auto"
    distill: float = 0.0
    temperature: float = 4.0
    dropout: dict[str, float] = field(default_factory=dict)
    augment: str = "none"
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        for key, choices in _NAMED.items():
            if getattr(self, key) not in choices:
                raise UsageError(f"{key} = {getattr(self, key)!r}: one of {', '.join(choices)} expected")
        for key, known in (("loss", LOSSES), ("augment", AUGMENTATIONS)):
            if getattr(self, key) not in known and ":" not in getattr(self, key):
                raise UsageError(
                    f"{key} = {getattr(self, key)!r}: one of {', '.join(known)}, or package.module:callable expected"
                )
        for key, least, most in (
            ("epochs", 0, math.inf),
            ("batch", 1, math.inf),
            ("threads", 1, math.inf),
            ("validation", 0, math.inf),
            ("rate", 0, math.inf),
            ("momentum", 0, 1),
            ("decay", 0, math.inf),
            ("scales", 0, math.inf),
            ("penalty", 0, math.inf),
            ("ramp", 0, 1),
            ("warmup", 0, 1),
            ("frozen", 0, 1),
            ("distill", 0, 1),
        ):
            if not least <= getattr(self, key) <= most:
                raise UsageError(f"{key} = {getattr(self, key)}: {least} to {most} expected")
        if not 0 <= self.price < math.inf:
            raise UsageError(f"price = {self.price}: a number expected, 0 or more")
        if self.price and self.choose == "best":
            raise UsageError(
                f"price = {self.price} and choose = 'best': last expected, the best epoch spends most bits"
            )
        if not self.temperature > 0:
            raise UsageError(f"temperature = {self.temperature}: more than 0 expected")
        for layer, share in self.dropout.items():
            if not 0 <= share < 1:
                raise UsageError(f"dropout of {layer} = {share}: 0 to below 1 expected")
