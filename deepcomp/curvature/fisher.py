"""The Fisher information of weights: how far the network's own outputs move, to second order.

KL(p ‖ p̂) of the outputs before and after a small change δ of the weights is ½ δᵀ F δ, with F = E[Jᵀ (diag(p) − p pᵀ) J]
over inputs, J being the derivatives of the logits: no labels are needed (Martens 2020, §5). With random signs r and
u = √p ⊙ r − p (√p · r), E[u uᵀ] = diag(p) − p pᵀ; so the squared gradient of z · u, with u held still, is an
unbiased sample of F. Drawing labels from p would be another one, but where p is sure of itself that is nearly always
zero, and else far off. Signs are drawn each for itself, so the squared gradient of a whole batch is on average the sum
of those of its items, and one backward pass a batch is enough.

Of F two factors are kept: F ≈ diag(rows) ⊗ columns / tr(columns).

Of a table many rows may be in no input. They are not worth nothing: leave out any batch, and the rows that it alone has
would be unknown too. So what rows of a single batch have in all is what unknown rows may expect in all (Good 1953).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepcomp.curvature.matrix import Matrix
from deepcomp.errors import InputError
from deepcomp.model.data import METRICS
from deepcomp.model.evaluate import call
from deepcomp.network import Network
from deepcomp.runtime.interpreter import Interpreter

__all__ = ["Fisher", "fisher"]

_SIZE = 8  # items a batch: few, as each batch is one sample of the squares


@dataclass(frozen=True)
class Fisher:
    """Of a weight as a `Matrix`, an item.

    Attributes
    ----------
    rows : float64 tensor, shape (groups, rows)
        E ‖g‖² of each row; of a table, rows that no input has share what those have that a single batch has.
    columns : float64 tensor, shape (groups, columns, columns), optional
        E gᵀg, g being all rows of a group.
    """

    rows: Tensor
    columns: Tensor | None = None

    def __add__(self, other: Fisher) -> Fisher:
        columns = None if self.columns is None or other.columns is None else self.columns + other.columns
        return Fisher(self.rows + other.rows, columns)

    def __mul__(self, factor: float) -> Fisher:
        return Fisher(self.rows * factor, None if self.columns is None else self.columns * factor)


def fisher(
    net: Network, what: str, module: Interpreter, matrices: Sequence[Matrix], samples: int, temperature: float = 1.0
) -> dict[str, Fisher]:
    """The Fisher information of some weights.

    Where the metric is no accuracy or perplexity, outputs count as the means of Gaussians of variance 1: KL is then
    half their squared change.

    Parameters
    ----------
    net : Network
        Whose data are used.
    what : str
        Who asks, for errors.
    module : Interpreter
        The network with the weights as they are to be judged; left without gradients.
    matrices : sequence of Matrix
        The weights; those that no layer alone reads with get both factors.
    samples : int
        Training items.
    temperature : float
        T: p is the softmax of z/T. Above 1, items the network is sure of count too.

    Raises
    ------
    UsageError
        If there is no data.
    InputError
        If a gradient is not finite, naming the weight; or the network does not run on the data.
    """
    module.requires_grad_(False)
    weights = [module.get_parameter(matrix.name).requires_grad_() for matrix in matrices]
    labels = net.data is not None and net.data.metric in METRICS
    generator = torch.Generator().manual_seed(net.seed)
    items, sums, seen = 0, dict[str, Fisher](), dict[str, Tensor]()
    for inputs in net.inputs(what, samples, _SIZE):
        items += len(next(iter(inputs.values())))
        outputs = call(module, inputs)
        u = _slopes(outputs.detach(), labels, temperature, generator)
        slopes = torch.autograd.grad(outputs, weights, u, allow_unused=True)
        for matrix, weight, slope in zip(matrices, weights, slopes, strict=True):
            g = matrix.blocks(torch.zeros_like(weight) if slope is None else slope).float()
            columns = (g.mT @ g).double() if matrix.layer is None else None
            here, name = Fisher(g.square().sum(2).double(), columns), matrix.name
            sums[name] = sums[name] + here if name in sums else here
            seen[name] = seen.get(name, 0) + (here.rows > 0).long()
    for name, found in sums.items():
        if not found.rows.isfinite().all():
            raise InputError(f"{name}: its gradients on the calibration data are not all finite")
    module.requires_grad_(False)
    tables = [matrix.name for matrix in matrices if matrix.layer is None]
    sums |= {name: replace(sums[name], rows=_with_unseen(sums[name].rows, seen[name])) for name in tables}
    return {name: found * (1 / items) for name, found in sums.items()}


def _with_unseen(rows: Tensor, seen: Tensor) -> Tensor:
    """Rows in no batch get what rows in a single one have in all."""
    unseen = seen == 0
    return torch.where(unseen, rows[seen == 1].sum() / unseen.sum(), rows)


def _slopes(outputs: Tensor, labels: bool, temperature: float, generator: torch.Generator) -> Tensor:
    """u of all outputs; random signs alone where these are no logits."""
    signs = 2.0 * torch.randint(0, 2, outputs.shape, generator=generator) - 1
    if not labels:
        return signs
    p = (outputs / temperature).softmax(-1)
    drawn = p.sqrt() * signs
    return drawn - p * drawn.sum(-1, keepdim=True)
