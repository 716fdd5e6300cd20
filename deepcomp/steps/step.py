"""What a step is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from deepcomp.network import Network

__all__ = ["Step"]


@dataclass
class Step(ABC):
    """One step of a recipe; its settings are its dataclass fields, with defaults.

    Attributes
    ----------
    do : str
        The step's name in a recipe.
    gives_data : bool
        Whether the steps behind it have data to calibrate and train on, given or not.
    writes : tuple of str
        Settings that name files it makes, or hold "".
    layers, skip : str
        Which weights it takes and which it leaves: name patterns, several separated by commas.
    """

    do: ClassVar[str]
    gives_data: ClassVar[bool] = False
    writes: ClassVar[tuple[str, ...]] = ()

    layers: str = "*"
    skip: str = ""

    @abstractmethod
    def run(self, net: Network) -> dict[str, Any]:
        """Change the forms of the network's weights; return what the report should say."""
