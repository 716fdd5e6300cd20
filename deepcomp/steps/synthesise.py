"""Calibration and training inputs that nobody took: they are made of batch norm statistics (Cai et al. 2020, ZeroQ)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepcomp.errors import UsageError
from deepcomp.model.data import Data
from deepcomp.network import Network
from deepcomp.steps.step import Step
from deepcomp.synthesis import Descent, Watched, distil, generate, noise

__all__ = ["Synthesise"]

_EFFORT = {"inputs": (100, 0.2), "generator": (500, 0.01)}  # iterations and rate


@dataclass
class Synthesise(Step):
    """Give all later steps synthetic inputs in place of data: nothing real is read, whether or not there is any.

    A batch norm remembers the mean and the spread that each of its channels had in training. Inputs are made with
    which it reads that again: see `synthesis`. The network itself stays as it is to the bit.

    Where the network's leading output is a matrix, (batch, classes), it is taken for a classifier: targets are then the
    classes it gives, and the metric by which later steps judge is how often its own answers are given again. Otherwise
    targets are its outputs, and there is no metric.

    Put this step first: batch norms must still be there, and weights what they were trained to be. Of these, `layers`
    and `skip` choose which count.

    Attributes
    ----------
    by : {"inputs", "generator"}
        Whether the inputs themselves are optimised, from Gaussian noise, or a generator network that makes images
        (Xu et al. 2020, GDFQ).
    samples : int
        Inputs to make.
    batch : int
        Those whose statistics are matched together.
    iterations : int, optional
        Of Adam; 0 leaves the noise as it is. If not given, 100 for each batch of inputs and 500 for a generator.
    rate : float, optional
        Its learning rate, which falls to zero along half a cosine. If not given, 0.2 for inputs, where it is in units
        of the noise, and 0.01 for a generator.
    classifier : bool
        Whether an output (batch, classes) holds logits of classes.
    device : str
        `cpu`, `cuda`, or any other device torch knows.
    """

    do: ClassVar[str] = "synthesise"
    gives_data: ClassVar[bool] = True

    by: str = "inputs"
    samples: int = 512
    batch: int = 64
    iterations: int | None = None
    rate: float | None = None
    classifier: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.by not in _EFFORT:
            raise UsageError(f"{self.do}.by = {self.by!r}: {' or '.join(_EFFORT)} expected")
        for key, least in (("samples", 2), ("batch", 2), ("iterations", 0)):
            found = getattr(self, key)
            if found is not None and found < least:
                raise UsageError(f"{self.do}.{key} = {found}: {least} or more expected")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"{self.do}.rate = {self.rate}: more than 0 expected")

    def run(self, net: Network) -> dict[str, Any]:
        if net.forms:
            raise UsageError(f"{self.do}: {next(iter(net.forms))} has a form already: inputs are made before that")
        watched = self._moved(Watched(net, self.do, net.names(self.layers, self.skip)))
        assert net.captured is not None
        plain = noise(self.do, net.captured.graph.inputs, self.samples, torch.Generator().manual_seed(net.seed))
        outputs, before = watched.judge(plain, self.batch)
        classes = outputs.shape[1] if self.classifier and outputs.ndim == 2 and outputs.shape[1] > 1 else 0
        made = self._kept(net, watched, plain, classes)
        outputs, after = watched.judge(made["inputs"], self.batch)
        given = net.data is not None
        net.data, net.origin = _data(made["inputs"], outputs, classes), self._identity(net)
        return {
            "by": self.by,
            "samples": self.samples,
            "real_inputs": 0,
            "data": "given; no step from here on reads any of it" if given else "none given",
            "batch_norms": len(watched.norms),
            "classes": classes,
            "mismatch_of_noise": before,
            "mismatch": after,
            **made["said"],
        }

    def _kept(self, net: Network, watched: Watched, plain: Mapping[str, Tensor], classes: int) -> dict[str, Any]:
        """What `_make` gives, made once for all runs of a recipe that ask for the same."""
        if net.checkpoints is None:
            return self._make(net, watched, plain, classes)
        slot = net.checkpoints.slot(self._identity(net))
        made = slot.load()
        if made is None:
            made = self._make(net, watched, plain, classes)
            slot.save(made, finished=True)
        return made

    def _make(self, net: Network, watched: Watched, plain: Mapping[str, Tensor], classes: int) -> dict[str, Any]:
        """The inputs by name, and what the report says of them."""
        iterations, rate = _EFFORT[self.by]
        descent = Descent(
            self.do,
            iterations if self.iterations is None else self.iterations,
            rate if self.rate is None else self.rate,
            progress=net.progress,
        )
        if self.by == "inputs":
            return {"inputs": distil(watched, plain, self.batch, descent), "said": {}}
        random = torch.Generator().manual_seed(net.seed)
        images, entropy = generate(watched, plain, classes, self.batch, descent, random)
        return {"inputs": images, "said": {f"cross_entropy_{when}": value for when, value in entropy.items()}}

    def _moved(self, watched: Watched) -> Watched:
        try:
            return watched.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise UsageError(f"{self.do}.device = {self.device!r}: {' '.join(str(error).split())}") from None

    def _identity(self, net: Network) -> str:
        """Says which inputs these are: everything they depend on."""
        assert net.captured is not None
        digest = hashlib.sha256(net.captured.graph.to_bytes())
        for name in net.captured.names:
            tensor = net.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return f"{self} {net.seed} {digest.hexdigest()}"


def _data(inputs: Mapping[str, Tensor], outputs: Tensor, classes: int) -> Data:
    """Inputs, and what the network says of them, in the place of data."""
    alone = next(iter(inputs.values())) if len(inputs) == 1 else None
    targets = outputs.argmax(1) if classes else outputs
    items = [
        ({name: tensor[place] for name, tensor in inputs.items()} if alone is None else alone[place], target)
        for place, target in enumerate(targets)
    ]
    return Data(items, items, "accuracy") if classes else Data(items)
