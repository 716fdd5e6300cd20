"""A network as training sees it: its module, called with the weights that its forms give."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepcomp.errors import UsageError
from deepcomp.network import Network
from deepcomp.weights import Form, Mask

__all__ = ["Trainee"]


class Trainee(nn.Module):
    """The module of a network, where weights with a form are what `form()` returns.

    So gradients reach centroids, scales and the survivors of pruning, and nothing else of such a
    weight: what is pruned stays zero and what is shared stays shared, whatever the optimiser does.

    Parameters
    ----------
    net : Network
        Its module is copied; the forms are its own and train in place.
    layers, skip : str
        Patterns of the tensors that train; all others stay as they are.
    """

    def __init__(self, net: Network, layers: str = "*", skip: str = "") -> None:
        super().__init__()
        if net.module is None:
            raise UsageError("training needs the network itself, weights alone were given")
        self.module = copy.deepcopy(net.module)
        self.names = list(net.forms)
        self.forms = nn.ModuleList(net.forms.values())
        chosen = set(net.names(layers, skip))
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(parameter.requires_grad and name in chosen and name not in net.forms)
        for name, form in net.forms.items():
            form.requires_grad_(name in chosen)
            for parameter in form.parameters():
                parameter.data = parameter.data.clone()  # forms may share memory with the tensors they were made from

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the module returns for these inputs."""
        weights = {name: form() for name, form in zip(self.names, self.forms, strict=True)}
        return functional_call(self.module, weights, inputs, named)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def densities(self) -> dict[str, float]:
        """Share of weights left by pruning, by name, of those that are pruned."""
        masks = {name: form for name, form in zip(self.names, self.forms, strict=True) if isinstance(form, Mask)}
        return {name: mask.positions.numel() / max(math.prod(mask.shape), 1) for name, mask in masks.items()}

    def settle(self, net: Network) -> None:
        """Hand the trained weights to the network, which then holds the trained module."""
        self.to("cpu").eval()
        forms: dict[str, Form] = dict(zip(self.names, self.forms, strict=True))  # type: ignore[arg-type]
        state = self.module.state_dict()
        with torch.no_grad():
            for name, form in forms.items():
                state[name].copy_(form.dense())
        for name, tensor in state.items():
            if name in net.tensors and name not in forms and not _same(tensor, net.tensors[name]):
                net.update(name, tensor)
        net.module = self.module


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
