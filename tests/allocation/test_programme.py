"""The integer programme beside brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.allocation import Choice, Infeasible, cheapest, mildest

numbers = st.one_of(st.integers(0, 6).map(float), st.floats(0, 100).map(lambda x: round(x, 3)))
tables = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.lists(st.builds(Choice, st.integers(2, 8), numbers, numbers), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def total(chosen, what):
    return math.fsum(getattr(choice, what) for choice in chosen.values())


def brute(layers, goal, spent, budget):
    """The least goal of all policies within the budget; None where there are none."""
    names = sorted(layers)
    policies = [dict(zip(names, found, strict=True)) for found in itertools.product(*(layers[n] for n in names))]
    fitting = [policy for policy in policies if total(policy, spent) <= budget]
    return min((total(policy, goal) for policy in fitting), default=None)


@settings(max_examples=60, deadline=None)
@given(layers=tables, share=st.floats(0, 1.1))
@pytest.mark.parametrize(("solve", "goal", "spent"), [(mildest, "loss", "size"), (cheapest, "size", "loss")])
def test_it_is_what_brute_force_finds(solve, goal, spent, layers, share):
    most = sum(max(getattr(c, spent) for c in choices) for choices in layers.values())
    budget = round(share * most, 3)
    best = brute(layers, goal, spent, budget)
    if best is None:
        with pytest.raises(Infeasible) as caught:
            solve(layers, budget)
        least = sum(min(getattr(c, spent) for c in choices) for choices in layers.values())
        assert caught.value.nearest == pytest.approx(least)
        return
    found = solve(layers, budget)
    assert found.keys() == layers.keys()
    assert all(choice in layers[name] for name, choice in found.items())
    assert total(found, spent) <= budget
    assert total(found, goal) == pytest.approx(best, rel=1e-6, abs=1e-5)


def test_eight_layers_of_every_width():
    rng = np.random.default_rng(0)
    layers = {f"l{i}": [Choice(k, float(rng.random() * 4.0**-k), float(100 * k)) for k in (2, 4, 8)] for i in range(8)}
    for budget in (1600, 2500, 3300, 6400):
        found = mildest(layers, budget)
        assert total(found, "size") <= budget
        assert total(found, "loss") == pytest.approx(brute(layers, "loss", "size", budget))


def test_eight_layers_by_what_they_compute():
    """Bit operations: multiply-accumulates times bits of weights and activations, of few weights many."""
    rng = np.random.default_rng(2)
    macs, widths = 2 ** rng.integers(4, 12, 8), (8, *[4] * 6, 8)
    layers = {
        f"l{i}": [Choice(k, float(rng.random() * 4.0**-k), float(macs[i] * k * widths[i])) for k in (2, 4, 6)]
        for i in range(8)
    }
    whole = float(sum(macs * widths * 8))
    losses = []
    for budget in (0.3 * whole, 0.45 * whole, 0.6 * whole, 0.8 * whole):
        found = mildest(layers, budget)
        assert total(found, "size") <= budget
        losses.append(total(found, "loss"))
        assert losses[-1] == pytest.approx(brute(layers, "loss", "size", budget), rel=1e-6)
    assert losses == sorted(losses, reverse=True)


def published(layers=60):
    rng = np.random.default_rng(1)
    weights = rng.integers(100, 10**6, layers)
    return {
        f"layer{i:02}": [Choice(k, float(rng.random() * 4.0**-k), float(weights[i] * k // 8)) for k in range(2, 9)]
        for i in range(layers)
    }


def test_more_budget_never_loses_more():
    layers = published()
    least = sum(choices[0].size for choices in layers.values())
    budgets = [least * share for share in (1, 1.2, 1.6, 2, 3, 4)]
    losses = [total(mildest(layers, budget), "loss") for budget in budgets]
    assert losses == sorted(losses, reverse=True)
    for budget, loss in zip(budgets, losses, strict=True):
        assert total(cheapest(layers, loss), "size") <= budget


def test_budgets_are_kept_to_the_byte():
    layers = published(30)
    least = sum(choices[0].size for choices in layers.values())
    for more in range(1, 2000, 333):
        assert total(mildest(layers, least + more), "size") <= least + more


def test_ties_go_to_fewer_bits_then_by_name():
    equal = [Choice(8, 1.0, 5.0), Choice(4, 1.0, 5.0)]
    assert {n: c.bits for n, c in mildest({"b": equal, "a": equal}, 10).items()} == {"a": 4, "b": 4}
    either = [Choice(4, 1.0, 1.0), Choice(8, 0.0, 2.0)]
    assert {n: c.bits for n, c in mildest({"b": either, "a": either}, 3).items()} == {"a": 4, "b": 8}


def test_what_cannot_be_kept_says_what_can():
    with pytest.raises(Infeasible, match="a budget of 3 cannot be kept, 4 is the least that can"):
        mildest({"a": [Choice(2, 0.0, 4.0), Choice(8, 0.0, 16.0)]}, 3)
    assert mildest({}, 0) == {}
