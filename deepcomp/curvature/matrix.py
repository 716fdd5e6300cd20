"""A weight as rows and columns: a row for each output, a column for each input of a group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepcomp.model.layers import RECURRENT, Layer, Layers, Skip

__all__ = ["Matrix"]


@dataclass(frozen=True)
class Matrix:
    """How a weight is laid out, as (groups, rows, columns).

    Attributes
    ----------
    name : str
        The weight's.
    shape : tuple of int
    layer : Layer, optional
        The one layer that uses it, and reads and makes values of the network. None where there is no such layer: of
        tables, recurrent matrices and shared weights, whose first axis then counts the rows.
    """

    name: str
    shape: tuple[int, ...]
    layer: Layer | None = None

    @classmethod
    def of(cls, layers: Layers, name: str, weight: Tensor) -> Matrix:
        """A weight of a network."""
        return cls(name, tuple(weight.shape), _reader(layers, name))

    @property
    def axis(self) -> int:
        """The weight's axis of rows."""
        return 0 if self.layer is None else self.layer.axes[0]

    def blocks(self, weight: Tensor) -> Tensor:
        """The weight, or what else has its shape, as (groups, rows, columns)."""
        if self.layer is None:
            return weight.reshape(1, self.shape[0], -1)
        return self.layer.blocks(weight).flatten(2)

    def unblocked(self, blocks: Tensor) -> Tensor:
        """`blocks` backwards."""
        if self.layer is None:
            return blocks.reshape(self.shape)
        groups, rows, _ = blocks.shape
        return self.layer.unblocked(blocks.reshape(groups, rows, self.layer.inputs // groups, -1))

    def by_channel(self, numbers: Tensor) -> Tensor:
        """Positive numbers of rows, shape (groups, rows), for the positions along `axis`.

        Where groups share these (in a transposed convolution) it is the geometric mean.
        """
        shared = self.layer is not None and self.layer.kind == "conv_transpose"
        return numbers.log().mean(0).exp() if shared else numbers.reshape(-1)


def _reader(layers: Layers, name: str) -> Layer | None:
    """The layer that alone uses a weight, if what it reads and makes are values of the network."""
    found = [layer for layer in layers if layer.weight == name]
    if len(found) != 1 or found[0].reads is None or found[0].makes is None or found[0].kind in RECURRENT.values():
        return None
    try:
        layers.check_own(found[0])
    except Skip:
        return None
    return found[0]
