"""The whole pipeline in under a minute: train a small network on digits, compress it, run the files."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from deepcomp.model import zoo
from deepcomp.model.data import Data, batches
from deepcomp.model.datasets import load_data
from deepcomp.pipeline import Progress, Report, compress, one_thread
from deepcomp.verification import verify

__all__ = ["demo"]

EPOCHS = 30
RUNS: tuple[tuple[str, dict[str, object]], ...] = (
    ("lossless", {}),
    ("uniform", {"quantize.bits": 4}),
    ("deep-compression", {}),
)


def demo(folder: Path, progress: Progress | None = None) -> list[tuple[str, Report]]:
    """Train `digits-cnn` on scikit-learn's digits and compress it with each recipe; `deep-compression` trains.

    Parameters
    ----------
    folder : Path
        Where the files go; it is made where it is missing, files in it are replaced.
    progress : callable, optional
        Called as `progress(what, done, total)`.

    Returns
    -------
    list of (str, Report)
        What was done, and what came of it. Accuracies are those of the files, loaded again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data("digits")
    with one_thread():  # so that the demo's numbers are the same everywhere
        network = _trained(data, progress)
    shown = []
    for recipe, settings in RUNS:
        out = folder / f"digits-cnn.{recipe}.dcz"
        report = compress(network, out, recipe=recipe, settings=settings, data=data, force=True, progress=progress)
        verify(out)
        about = "".join(f" --set {key}={value}" for key, value in settings.items())
        shown.append((f"--recipe {recipe}{about}", report))
    return shown


def _trained(data: Data, progress: Progress | None) -> nn.Module:
    torch.manual_seed(0)
    network = zoo.build("digits-cnn").train()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        for inputs, target in batches(data.train, 64, torch.randperm(len(data.train))):
            optimiser.zero_grad()
            F.cross_entropy(network(inputs), target).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        if progress:
            progress("train digits-cnn", epoch + 1, EPOCHS)
    return network.eval()
