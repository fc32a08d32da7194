"""The knapsack: hand-made cases, and every budget of random ones against trying all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flyweight.analyse.knapsack import frontier


def brute_force(losses: list[list[float]], costs: list[list[float]], budget: float) -> float | None:
    """Least loss within the budget, by trying every combination; None where none fits."""
    best = None
    for choice in itertools.product(*(range(len(row)) for row in costs)):
        if sum(row[z] for row, z in zip(costs, choice, strict=True)) <= budget:
            loss = sum(row[z] for row, z in zip(losses, choice, strict=True))
            best = loss if best is None else min(best, loss)
    return best


def test_two_matrices_by_hand() -> None:
    """A loses 5 and B 1 by taking the small form, which saves 2 of either: B goes first, then A too."""
    found = frontier([[0, 5], [0, 1]], [[4, 2], [4, 2]])
    assert found.costs.tolist() == [4, 6, 8]
    assert found.losses.tolist() == [6, 1, 0]
    assert found.choices.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert [found.within(b) for b in (3.9, 4, 5.9, 6, 7, 8, 100)] == [None, 0, 0, 1, 1, 2, 2]


def test_greed_by_ratio_would_be_wrong() -> None:
    """Budget 10. By loss saved a unit of cost A (10 / 6) goes first, and then neither B nor C fits (10 - 6 < 5)."""
    found = frontier([[10, 0], [8, 0], [8, 0]], [[0, 6], [0, 5], [0, 5]])
    at = found.within(10)
    assert at is not None
    assert (found.costs[at], found.losses[at], found.choices[at].tolist()) == (10, 10, [0, 1, 1])


def test_what_is_worse_in_both_is_never_chosen() -> None:
    found = frontier([[3, 1, 1, 0]], [[2, 2, 1, 5]])  # the second and the first lose against the third
    assert (found.costs.tolist(), found.choices.tolist()) == ([1, 5], [[2], [3]])


def test_equal_choices_take_the_first() -> None:
    found = frontier([[1, 1], [2, 2]], [[3, 3], [0, 0]])
    assert found.choices.tolist() == [[0, 0]]


def test_costs_below_zero_are_savings() -> None:
    found = frontier([[0, 1], [0, 2]], [[0, -3], [0, -3]])
    assert (found.costs.tolist(), found.losses.tolist()) == ([-6, -3, 0], [3, 1, 0])
    assert found.within(-7) is None


def test_no_items_cost_nothing() -> None:
    found = frontier([], [])
    assert (found.costs.tolist(), found.losses.tolist(), found.choices.shape) == ([0], [0], (1, 0))


@pytest.mark.parametrize("seed", range(20))
def test_every_budget_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_choices = rng.integers(1, 5, size=6)
    whole = seed % 2  # whole numbers, as bytes, tie often; others, as milliseconds, never, and may be negative
    costs = [(rng.integers(0, 9, n) if whole else rng.normal(size=n)).astype(float).tolist() for n in n_choices]
    losses = [(rng.integers(0, 9, n) if whole else rng.random(n)).astype(float).tolist() for n in n_choices]
    found = frontier(losses, costs)
    for choice, cost, loss in zip(found.choices, found.costs, found.losses, strict=True):
        assert sum(row[z] for row, z in zip(costs, choice, strict=True)) == pytest.approx(cost)
        assert sum(row[z] for row, z in zip(losses, choice, strict=True)) == pytest.approx(loss)
    low, high = sum(map(min, costs)), sum(map(max, costs))
    for budget in np.linspace(low - 0.5, high + 0.5, 40):
        at, wanted = found.within(budget), brute_force(losses, costs, budget)
        assert (at is None) == (wanted is None)
        if at is not None:
            assert found.losses[at] == pytest.approx(wanted)


def test_a_thinned_frontier_keeps_its_ends_and_stays_true() -> None:
    rng = np.random.default_rng(3)
    costs, losses = (np.sort(rng.random((20, 4)))[:, ::order].tolist() for order in (1, -1))
    whole, thin = frontier(losses, costs), frontier(losses, costs, limit=150)
    assert len(thin.costs) <= 150 < len(whole.costs)
    assert thin.costs[0] == pytest.approx(whole.costs[0])
    assert thin.costs[-1] == pytest.approx(whole.costs[-1])
    assert (np.diff(thin.costs) > 0).all()
    assert (np.diff(thin.losses) < 0).all()
    for choice, cost, loss in zip(thin.choices, thin.costs, thin.losses, strict=True):
        assert sum(row[z] for row, z in zip(costs, choice, strict=True)) == pytest.approx(cost)
        best = whole.within(cost + 1e-9)
        assert best is not None
        assert loss <= whole.losses[best] * 1.05 + 0.02  # near-optimal
