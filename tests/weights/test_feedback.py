"""Rounding with error feedback: beside nearest rounding, beside brute force, column by column."""

from __future__ import annotations

import itertools

import pytest
import torch

from deepcomp.quantizer import half_up
from deepcomp.weights import Grid
from deepcomp.weights.feedback import Factor, Rate, feedback, rate_steps
from deepcomp.weights.levels import Levels
from deepcomp.weights.open_grids import fine_grid


def second(columns, groups=1, samples=0):
    """Second moments of correlated inputs."""
    mixed = torch.randn(groups, samples or 4 * columns, columns, dtype=torch.float64)
    inputs = mixed @ torch.randn(groups, columns, columns, dtype=torch.float64)
    return inputs.mT @ inputs / inputs.shape[1] + 0.01 * torch.eye(columns, dtype=torch.float64)


def levels(weight, step=0.5):
    """Levels for a weight (rows, columns) as one group."""
    grid = fine_grid(weight, torch.full((len(weight),), step, dtype=torch.float64), 0)
    return Levels(grid, lambda tensor: tensor.reshape(1, *weight.shape))


def error(weight, q, scale, form):
    e = weight - q * scale
    return torch.einsum("gri,gij,grj->gr", e, form, e)


def test_without_correlations_it_is_rounding_to_the_nearest():
    weight = torch.randn(6, 130)
    weight[0, :4] = torch.tensor([0.25, -0.25, 0.75, -0.75])  # ties go up
    here = levels(weight)
    q = feedback(weight[None].double(), Factor.of(3 * torch.eye(130, dtype=torch.float64)[None]), here)
    assert torch.equal(q, half_up(weight[None].double() / here.scale))


def test_it_is_on_average_better_than_the_nearest_and_never_than_brute_force():
    sums = torch.zeros(3, dtype=torch.float64)
    for _ in range(40):
        form, weight = second(4), torch.randn(1, 4)
        here, w = levels(weight), weight[None].double()
        fed, near = feedback(w, Factor.of(form), here), half_up(w / here.scale)
        below = (w / here.scale).floor()
        every = [below + torch.tensor(up, dtype=torch.float64) for up in itertools.product((-1, 0, 1, 2), repeat=4)]
        best = min(float(error(w, q, here.scale, form)) for q in every)
        found = [float(error(w, q, here.scale, form)) for q in (fed, near)]
        assert found[0] >= best - 1e-9 or bool(((fed - below).abs() > 2).any())
        sums += torch.tensor([*found, best])
    assert sums[2] <= sums[0] < 0.7 * sums[1]


def reference(weight, form, scale):
    """Column by column, in the order given, each time solving for the rest of the row."""
    left, q = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        q[:, j] = half_up(left[:, j] / scale[:, 0])
        e = left[:, j] - q[:, j] * scale[:, 0]
        rest = slice(j + 1, None)
        left[:, rest] += e[:, None] * torch.linalg.solve(form[rest, rest], form[rest, j])
    return q


def test_columns_behind_make_up_for_it_in_blocks_and_in_groups():
    forms, weight = second(90, groups=2), torch.randn(2, 3, 90)
    grid = fine_grid(weight.reshape(6, 90), torch.full((6,), 0.3, dtype=torch.float64), 0)
    here = Levels(grid, lambda tensor: tensor.reshape(2, 3, 90))
    factor = Factor.of(forms)
    q = feedback(weight.double(), factor, here)
    for group, order in enumerate(factor.order):
        ordered = forms[group][order][:, order]
        wanted = reference(weight[group].double()[:, order], ordered, here.scale[group])
        assert torch.equal(q[group][:, order], wanted)
    assert (forms.diagonal(dim1=1, dim2=2).gather(1, factor.order).diff(dim=1) <= 0).all()


def test_what_must_be_zero_is_and_the_others_make_up_for_it():
    form, weight = second(12), torch.randn(5, 12)
    keep, here = torch.rand(1, 5, 12) > 0.4, levels(weight, 0.01)
    q = feedback(weight[None].double(), Factor.of(form), here, keep)
    assert not q[~keep].any()
    near = half_up(weight[None].double() / here.scale) * keep
    assert error(weight.double(), q, here.scale, form).sum() < error(weight.double(), near, here.scale, form).sum()


def test_ends_of_the_range_are_kept():
    weight = torch.randn(4, 20)
    for grid in (Grid.fit(weight, 2), Grid.fit(weight, 3, symmetric=False)):
        here = Levels(grid, lambda tensor: tensor[None])
        q = feedback(3 * weight[None].double(), Factor.of(second(20)), here)
        made = here.grid(q[0])
        assert made.integers().min() >= 0
        assert made.integers().max() <= (2 if grid.bits == 2 else 7)
        torch.testing.assert_close(made.dense().double(), (q * here.scale)[0], rtol=1e-6, atol=0)


def test_bits_count_as_much_as_they_are_worth():
    weight, form = torch.randn(8, 60), second(60)
    here, factor, w = levels(weight, 0.6), Factor.of(form), weight[None].double()
    near = feedback(w, factor, here)

    def entropy(q):
        counts = q.unique(return_counts=True)[1].double()
        return float(-(counts * (counts / counts.sum()).log2()).sum())

    free = feedback(w, factor, here, rate=Rate.of(near, torch.full((1, 8), 1e-12, dtype=torch.float64)))
    dear = feedback(w, factor, here, rate=Rate.of(near, torch.full((1, 8), 0.05, dtype=torch.float64)))
    assert torch.equal(free, near)
    assert entropy(dear) < entropy(near)
    none = feedback(w, factor, here, rate=Rate.of(near, torch.full((1, 8), 1e9, dtype=torch.float64)))
    assert len(none.unique()) == 1


def test_steps_are_coarse_where_the_loss_minds_little():
    form = second(7)
    sensitivity = torch.tensor([[1.0, 4.0, 0.0]], dtype=torch.float64)
    steps = rate_steps(Factor.of(form), sensitivity, 1e-3)
    assert float(steps[0, 0] / steps[0, 1]) == pytest.approx(2)
    assert steps[0, 2] == torch.inf
    assert float(rate_steps(Factor.of(4 * form), sensitivity, 4e-3)[0, 0] / steps[0, 0]) == pytest.approx(1)


def test_fine_grids_have_scales_of_four_significant_bits_and_few_bits_where_integers_are_small():
    weight = torch.randn(50, 9)
    grid = fine_grid(weight, torch.logspace(-3, 3, 50, dtype=torch.float64), 0)
    mantissa = torch.frexp(grid.scale).mantissa * 16
    assert torch.equal(mantissa, mantissa.round())
    assert not fine_grid(weight, torch.full((50,), torch.inf, dtype=torch.float64), 0).integers().sub(32767).any()
    here = Levels(grid, lambda tensor: tensor)
    q = torch.zeros(50, 9, dtype=torch.float64)
    for most, bits in ((0, 2), (1, 2), (2, 3), (3, 3), (4, 4), (200, 9)):
        q[0, 0] = -most
        assert here.grid(q).bits == bits
        assert torch.equal(here.grid(q).dense().double(), q * here.scale)
    assert not fine_grid(torch.zeros(2, 2), torch.ones(2, dtype=torch.float64), 0).dense().any()
