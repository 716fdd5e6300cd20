"""What batch norms remember of the training data, beside what they read now (Cai et al. 2020, ZeroQ, eq. 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.evaluate import leading
from deepcomp.model.graph import Graph, Node, Stored, Value
from deepcomp.network import Network

__all__ = ["Watched", "split"]

_STATISTICS = ("running_mean", "running_var")


class Watched(nn.Module):
    """A network in inference, its weights frozen, that also says how far its batch norms are from training.

    It is a copy of the original network: weights without their forms, activations not quantised.

    Parameters
    ----------
    net : Network
    what : str
        Who asks, for errors.
    chosen : collection of str
        Names of tensors: batch norms count whose running mean is among them.

    Attributes
    ----------
    norms : nn.ModuleList
        One entry for each place in the graph where a batch norm with running statistics stands.

    Raises
    ------
    InputError
        If there are weights alone.
    UsageError
        If no batch norm with running statistics is among those chosen.
    """

    def __init__(self, net: Network, what: str, chosen: Collection[str]) -> None:
        super().__init__()
        net.layers(what)  # insists on operations
        original = net.original()
        assert original.captured is not None
        graph, names = original.captured.graph, original.captured.names
        found = [node for node in graph.nodes if _remembers(node) and names[_stored(node, 0)] in chosen]
        if not found:
            raise UsageError(
                f"{what}: no batch norm with running statistics found, which would say what inputs are like; "
                "one at least expected (this step stands before fold-bn)"
            )
        self.norms = nn.ModuleList(_Norm(net, names, node) for node in found)
        reads: tuple[Value, ...] = tuple(node.arguments["input"] for node in found)
        seen = Graph(graph.inputs, graph.nodes, (graph.outputs, reads))
        network = replace(original, captured=replace(original.captured, graph=seen))
        self.network = network.interpreter().requires_grad_(False)
        self.dtypes = {entry.name: entry.dtype for entry in graph.inputs}

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.norms.buffers()).device

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Run on some inputs by name, floats of any type; differentiable.

        Returns
        -------
        Tensor
            The leading output; see `evaluate.leading`.
        Tensor
            A scalar, float32: ‖μ̃ − μ‖² + ‖σ̃ − σ‖² of what a batch norm reads, in units of its σ and averaged over
            its channels, on average over batch norms. So each channel counts alike, however large its numbers.
        """
        outputs, read = self.network(**{name: inputs[name].to(dtype) for name, dtype in self.dtypes.items()})
        far = [norm(values) for norm, values in zip(self.norms, read, strict=True)]
        return leading(outputs, "the network"), torch.stack(far).mean()

    @torch.no_grad()
    def judge(self, inputs: Mapping[str, Tensor], batch: int) -> tuple[Tensor, float]:
        """The leading outputs on many inputs, on the CPU, and the mean mismatch of batches; see `split`."""
        outputs, total, items = [], 0.0, 0
        for part in split(inputs, batch):
            made, mismatch = self({name: tensor.to(self.device) for name, tensor in part.items()})
            outputs.append(made.cpu())
            total, items = total + mismatch.item() * len(made), items + len(made)
        return torch.cat(outputs), total / items


class _Norm(nn.Module):
    """What one batch norm remembers.

    Attributes
    ----------
    mean, std : Tensor
        float32, shape (channels,): μ and σ = √(running variance + ε).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Network, names: list[str], node: Node) -> None:
        super().__init__()
        mean, var = (net.tensors[names[_stored(node, place)]].detach().float() for place in (0, 1))
        self.eps: float = node.arguments["eps"]
        self.register_buffer("mean", mean.clone())
        std = (var + self.eps).sqrt()
        usable = mean.isfinite() & std.isfinite() & (std > 0)
        if not usable.all():
            bad, name = len(usable) - int(usable.sum()), names[_stored(node, 0)]
            raise InputError(f"{name}: {bad} of {len(usable)} channels without a finite mean and spread, both expected")
        self.register_buffer("std", std)

    def forward(self, read: Tensor) -> Tensor:
        """How far numbers of shape (batch, channels, …) are from it.

        Variances are unbiased ones, as those that training averages.
        """
        rows = read.float().transpose(0, 1).flatten(1)
        mean = (rows.mean(1) - self.mean) / self.std
        std = (rows.var(1) + self.eps).sqrt() / self.std
        return (mean.square() + (std - 1).square()).mean()


def split(inputs: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of `size` or a few more: a smaller rest would have statistics of its own that say little."""
    items = len(next(iter(inputs.values())))
    places = torch.arange(items).tensor_split(max(items // size, 1))
    return ({name: tensor[place] for name, tensor in inputs.items()} for place in places)


def _remembers(node: Node) -> bool:
    """Whether a node is a batch norm with statistics that are tensors of the network."""
    return node.op == "batch_norm" and all(isinstance(node.arguments[name], Stored) for name in _STATISTICS)


def _stored(node: Node, place: int) -> int:
    """The number of the tensor that holds its mean, or its variance."""
    index: int = node.arguments[_STATISTICS[place]].index
    return index
