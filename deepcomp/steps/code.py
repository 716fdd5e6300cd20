"""How the symbols of tensors become bytes: fast to decode, or small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from deepcomp.errors import UsageError
from deepcomp.network import CODERS, SMALLEST, Network
from deepcomp.steps.step import Step

__all__ = ["Code"]


@dataclass
class Code(Step):
    """Choose the entropy coder of tensors by name, whatever form they have.

    Attributes
    ----------
    coder : {"fast", "context", "smallest"}
        `fast` is Huffman coding, or rANS where that is smaller. `context` is adaptive arithmetic coding with
        mixed contexts, of grids and shared values, under a mask or not: it takes less and codes some
        million weights a second. `smallest` takes for each tensor what is smaller.
    """

    do: ClassVar[str] = "code"

    coder: str = SMALLEST

    def __post_init__(self) -> None:
        if self.coder not in CODERS:
            raise UsageError(f"code.coder = {self.coder!r}: one of {', '.join(CODERS)} expected")

    def run(self, net: Network) -> dict[str, Any]:
        names = net.names(self.layers, self.skip)
        net.coders.update(dict.fromkeys(names, self.coder))
        return {"tensors": len(names)}
