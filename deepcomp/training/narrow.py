"""Values of 16 bits while they learn: in 32, since steps of a small rate would be lost."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepcomp.weights import Form

__all__ = ["Narrow", "is_narrow"]


def is_narrow(tensor: Tensor) -> bool:
    """Whether numbers have 16 bits of floating point."""
    return tensor.is_floating_point() and tensor.element_size() == 2


class Narrow(nn.Module):
    """A form whose values have 16 bits: they learn in 32 and are rounded at each call, as the file will have them.

    Parameters
    ----------
    form : Form
        At least one of its parameters has 16 bits; those alone train.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form.requires_grad_(False)
        self._types = {name: value.dtype for name, value in form.named_parameters() if is_narrow(value)}
        self.wide = nn.ParameterList(form.get_parameter(name).detach().float() for name in self._types)

    def forward(self) -> Tensor:
        """The dense weight."""
        dense: Tensor = functional_call(self.form, self._rounded(), ())
        return dense

    @torch.no_grad()
    def settle(self) -> None:
        """Let the form have what has been learnt."""
        for name, value in self._rounded().items():
            self.form.get_parameter(name).data = value.detach()

    def _rounded(self) -> dict[str, Tensor]:
        return {name: wide.to(kind) for (name, kind), wide in zip(self._types.items(), self.wide, strict=True)}
