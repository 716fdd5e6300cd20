"""A network as training sees it: its module, called with the weights that its forms give."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepcomp.errors import UsageError, blaming
from deepcomp.model.capture import Captured
from deepcomp.model.edit import Edit
from deepcomp.model.input_grids import InputGrid, shared_grids
from deepcomp.network import Network
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.training.narrow import Narrow, is_narrow
from deepcomp.training.quantizers import ActivationQuantizer, LevelQuantizer, WeightQuantizer, learning
from deepcomp.training.ranges import Range, Scale
from deepcomp.weights import Form, Mask, Raw
from deepcomp.weights.exact import exact

__all__ = ["Trainee"]


class Trainee(nn.Module):
    """The module of a network, where weights with a form are what that form makes of them as it learns.

    So gradients reach centroids, scales and the survivors of pruning, and nothing else of such a
    weight: what is pruned stays zero and what is shared stays shared, whatever the optimiser does. Static quantisers
    of activations learn too. What has 16 bits trains in 32 and is rounded at each call, as the file will have it: steps
    of a small rate would be lost. Narrower floats are quantised already, and stay.

    Parameters
    ----------
    net : Network
        Its module is copied; the forms are its own and train in place.
    layers, skip : str
        Patterns of the tensors that train, of tied ones the first; all others stay as they are, and so do
        `Network.frozen`.
    rounding : str
        See `quantizers.learning`.
    activations : bool
        Whether quantisers of activations learn.
    """

    def __init__(
        self, net: Network, layers: str = "*", skip: str = "", rounding: str = "nearest", activations: bool = True
    ) -> None:
        super().__init__()
        if net.module is None:
            raise UsageError("training needs the network itself, weights alone were given")
        self._dcz_called = type(net.module).__name__
        self._grids = shared_grids(net.captured.graph) if activations and net.captured is not None else {}
        with blaming(f"{self._dcz_called} cannot be copied"):
            self.module = net.interpreter() if self._grids else copy.deepcopy(net.module)
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if 0 in tensor.stride():  # several elements in one place, which cannot be written to
                tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        # Statistics and constants get no gradient; constants within a module's own code are not seen at all
        self._kept = {name: form for name, form in net.forms.items() if name in buffers}
        for name, form in self._kept.items():
            buffers[name].copy_(form.dense())
        # The others as the network holds them; `self.forms` has them as they learn
        self._own = {name: form for name, form in net.forms.items() if name in parameters}
        chosen = set(net.names(layers, skip)) - net.frozen
        self._still = [part for name, part in _norms(self.module) if net.tied.get(name, name) not in chosen]
        for part in self.module.modules():
            if isinstance(part, nn.Embedding | nn.EmbeddingBag):
                part.sparse = False  # the gradient, which neither Adam nor a form could take
        self._narrow: list[str] = []  # parameters of 16 bits
        self.narrow = nn.ModuleList()  # these as they learn
        for name, parameter in parameters.items():
            home = net.tied.get(name, name)
            numeric = parameter.is_floating_point() or parameter.is_complex()
            trains = home in chosen and home not in net.forms and numeric and parameter.element_size() > 1
            parameter.requires_grad_(trains and not is_narrow(parameter))
            if trains and is_narrow(parameter) and name == home:
                self._narrow.append(name)
                self.narrow.append(Narrow(Raw(parameter)))
        self.forms = nn.ModuleList()
        for name, form in self._own.items():
            for parameter in form.parameters():
                parameter.data = parameter.data.clone()  # forms may share memory with the tensors they were made from
            part = learning(form.requires_grad_(True), rounding)
            self.forms.append(part if name in chosen else part.requires_grad_(False))
        self.activations = nn.ModuleDict()
        for place, first in self._grids.items():
            assert net.captured is not None
            assert isinstance(self.module, Interpreter)
            if place == first:
                self.activations[str(place)] = ActivationQuantizer(InputGrid.of(net.captured.graph.nodes[place]))
            self.module.substitute(place, self._activation(first).of_items)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the module returns for these inputs."""
        weights = {name: form() for name, form in zip(self._own, self.forms, strict=True)}
        weights |= {name: part() for name, part in zip(self._narrow, self.narrow, strict=True)}
        return functional_call(self.module, weights, inputs, named)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def ranges(self) -> list[nn.Parameter]:
        """Those among them that are scales and zero-points."""
        parts = [part for part in self.modules() if isinstance(part, Range | Scale)]
        return [one for part in parts for one in part.parameters(recurse=False) if one.requires_grad]

    def train(self, mode: bool = True) -> Trainee:
        """Training mode but for batch norms whose statistics are not among what trains."""
        super().train(mode)
        for part in self._still:
            part.eval()
        return self

    def normalises(self) -> bool:
        """Whether there are batch norms."""
        return bool(_norms(self.module))

    def freeze(self) -> None:
        """Let scales, zero-points and the statistics of batch norms stay what they are."""
        for parameter in self.ranges():
            parameter.requires_grad_(False)
        for _, part in _norms(self.module):
            part.eval()

    def kinds(self) -> str:
        """What forms depend on besides their state."""
        grids = [part.grid for part in self.forms if isinstance(part, WeightQuantizer)]
        return " ".join(f"{grid.bits} {grid.symmetric} {grid.blocks}" for grid in grids)

    def penalty(self, kind: str) -> Tensor:
        """How far weights are from their grids, squared and summed; see `quantizers.PENALTIES`.

        Raises
        ------
        UsageError
            See `grids`.
        """
        return torch.stack([part.penalty(kind) for part in self.grids("penalty")]).sum()

    def grids(self, what: str) -> list[WeightQuantizer]:
        """The weights on grids that train.

        Raises
        ------
        UsageError
            If there are none, naming what needs them.
        """
        found = [part for part in self.forms if isinstance(part, WeightQuantizer) and part.grid.latent.requires_grad]
        if not found:
            raise UsageError(f"{what}: no weight lies on a grid, of those that train")
        return found

    def densities(self) -> dict[str, float]:
        """Share of weights left by pruning, by name, of those that are pruned."""
        masks = {name: form for name, form in self._own.items() if isinstance(form, Mask)}
        return {name: mask.positions.numel() / max(math.prod(mask.shape), 1) for name, mask in masks.items()}

    def settle(self, net: Network) -> None:
        """Hand what has been learnt to the network, which then holds the trained module."""
        self.to("cpu").eval()
        for part in (*self.forms, *self.narrow):
            if isinstance(part, WeightQuantizer | LevelQuantizer | Narrow):
                part.settle()
        state = self.module.state_dict()
        for name, form in self._kept.items():
            if name in state and not _same(state[name], form.dense()):
                net.update(name, state[name].clone())
                net.store(name, _again(form, state[name]))
        with torch.no_grad():
            for name in state.keys() & net.forms.keys():
                state[name].copy_(net.forms[name].dense())
            for name, part in zip(self._narrow, self.narrow, strict=True):
                state[name].copy_(part())
        for name, tensor in state.items():
            if name in net.tensors and name not in net.forms and not _same(tensor, net.tensors[name]):
                net.update(name, tensor)
        net.module = self.module
        if self._grids:
            net.rewire("training", self._captured(net), {})
            net.module.load_state_dict(state)

    def _captured(self, net: Network) -> Captured:
        """The network's operations, with the quantisers of activations that have been learnt."""
        assert net.captured is not None
        edit = Edit(net.captured, net.tensors)
        for place, first in self._grids.items():
            grid = self._activation(first).settle()
            edit.change(place, scale=grid.scale, zero_point=grid.zero_point)
        return edit.finish()

    def _activation(self, place: int) -> ActivationQuantizer:
        found = self.activations[str(place)]
        assert isinstance(found, ActivationQuantizer)
        return found


def _norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts that gather statistics in training, and the name of the first of these."""
    found = module.named_modules()
    return [(f"{name}.running_mean".lstrip("."), part) for name, part in found if "running_mean" in part._buffers]


def _again(form: Form, tensor: Tensor) -> Form:
    """A form for what has taken the place of a tensor: no wider than its own."""
    if isinstance(form, Raw) and form.stored != form.dtype:
        return Raw(tensor, form.stored)
    return exact(tensor)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
