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
import re
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
        Whether what lies there is used.
    force : bool
        Whether, if it is not used, the first training run may remove it.
    """

    def __init__(self, folder: Path, resume: bool = False, force: bool = False) -> None:
        self.folder = folder
        self._stale, self._force, self._used = not resume, force, False

    def slot(self, identity: str) -> Slot:
        """The place of a training run.

        Parameters
        ----------
        identity : str
            All that decides what the run ends in: its settings, its seed, the state it starts from.
            A checkpoint is found again only under the same identity.

        Raises
        ------
        InputError
            If an interrupted run has left checkpoints that are neither to be used nor removed.
        """
        if self._stale:
            if self._kept() and not self._force:
                raise InputError(
                    f"{self.folder}: holds an interrupted run; --resume goes on with it, --force removes it"
                )
            self.clear()
        self._used = True
        digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
        return Slot(self.folder / f"{digest}.pt")

    def finish(self) -> None:
        """Remove all checkpoints at the end of a run that has used them; those of another are not this one's."""
        if self._used:
            self.clear()

    def clear(self) -> None:
        """Remove all checkpoints, and the folder if nothing else lies there."""
        self._stale = False
        for path in self._kept():
            path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _kept(self) -> list[Path]:
        """The checkpoints there are; files of other names are not ours."""
        return [path for path in self.folder.glob("*.pt") if re.fullmatch(r"[0-9a-f]{24}\.pt", path.name)]


class Slot:
    """Where one training run is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
            raise self.damaged() from None
        return content

    def damaged(self) -> InputError:
        """What is wrong with a file that is no checkpoint, as an error to raise."""
        return InputError(f"{self.path}: not a checkpoint; --force without --resume starts anew")

    def save(self, content: dict[str, Any], finished: bool) -> None:
        """Write tensors, numbers and texts; a run in progress not more often than it is worth."""
        now = time.monotonic()
        if not finished and now - self._last < EVERY:
            return
        with contextlib.suppress(FileExistsError):
            self.path.parent.mkdir()
        out = io.BytesIO()
        torch.save(content, out)
        place(self.path, out.getvalue(), force=True)
        self._last = now
