"""Adam with a rate that falls to zero along half a cosine: how inputs and generators learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcomp.errors import InputError

__all__ = ["Descent"]


@dataclass(frozen=True)
class Descent:
    """One run of Adam.

    Attributes
    ----------
    what : str
        Who learns, for progress and errors.
    iterations : int
    rate : float
        Learning rate at the start.
    progress : callable, optional
        Called as `progress(what, done, total)`.
    """

    what: str
    iterations: int
    rate: float
    progress: Callable[[str, int, int], None] | None = None

    @torch.enable_grad()
    def run(self, learnt: Iterable[Tensor], loss: Callable[[], Tensor], title: str = "") -> None:
        """Make a loss small.

        Parameters
        ----------
        learnt : iterable of Tensor
            Leaves that require gradients; changed in place.
        loss : callable
            Computes a scalar anew.
        title : str
            Which of several runs this is, for progress.

        Raises
        ------
        InputError
            If the loss is not finite.
        """
        optimiser = torch.optim.Adam(list(learnt), self.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.iterations, 1))
        for iteration in range(self.iterations):
            optimiser.zero_grad()
            found = loss()
            if not math.isfinite(found.item()):
                raise InputError(
                    f"{self.what}: the loss is {found.item()} in iteration {iteration + 1}, a finite one expected; "
                    f"a rate below {self.rate} may help"
                )
            found.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            falling.step()
            if self.progress and iteration % 10 == 0:
                self.progress(f"{self.what}{title}: loss {found.item():.4g}", iteration, self.iterations)
