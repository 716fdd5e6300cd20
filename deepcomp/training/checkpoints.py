"""What training has reached, on disk, so that an interrupted run goes on where it stopped.

A recipe is deterministic: run again, its steps ask for the same training runs in the same order. So
only these are kept. A finished one is read instead of trained, an unfinished one continues from its
last epoch, and everything else is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from deepcomp.container.writer import place
from deepcomp.errors import InputError

__all__ = ["Checkpoints", "Slot"]

EVERY = 20.0  # seconds between two writings, at least


class Checkpoints:
    """The training runs of one `compress`, in a folder beside the file it makes.

    Parameters
    ----------
    folder : Path
        Made when the first checkpoint is written.
    resume : bool
        Whether what lies there is used; if not, the first training run removes it.
    every : float
        Seconds between two writings of a run in progress, at least.
    """

    def __init__(self, folder: Path, resume: bool = False, every: float = EVERY) -> None:
        self.folder = folder
        self.every = every
        self._stale = not resume

    def slot(self, identity: str) -> Slot:
        """The place of a training run.

        Parameters
        ----------
        identity : str
            All that decides what the run ends in: its settings, its seed, the state it starts from.
            A checkpoint is found again only under the same identity.
        """
        if self._stale:
            self.clear()
        digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
        return Slot(self.folder / f"{digest}.pt", self.every)

    def clear(self) -> None:
        """Remove all checkpoints, and the folder if nothing else lies there."""
        self._stale = False
        for path in self.folder.glob("*.pt"):
            path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class Slot:
    """Where one training run is kept."""

    def __init__(self, path: Path, every: float) -> None:
        self.path = path
        self._every = every
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where nothing was.

        Raises
        ------
        InputError
            If the file is not a checkpoint.
        """
        if not self.path.is_file():
            return None
        try:
            content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
            raise InputError(f"{self.path}: not a checkpoint; remove it, or start anew without --resume") from None
        return content

    def save(self, content: dict[str, Any], finished: bool) -> None:
        """Write tensors, numbers and texts; a run in progress not more often than it is worth."""
        now = time.monotonic()
        if not finished and now - self._last < self._every:
            return
        with contextlib.suppress(FileExistsError):
            self.path.parent.mkdir()
        out = io.BytesIO()
        torch.save(content, out)
        place(self.path, out.getvalue(), force=True)
        self._last = now
