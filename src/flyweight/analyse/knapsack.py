"""Multiple-choice knapsack: one choice an item, least loss for every budget at once.

    minimise sum_i loss[i, z_i]  with  sum_i cost[i, z_i] <= budget           z_i one of the item's choices

A dynamic programme over the Pareto frontier: after each item, all (cost, loss) that nothing beats in both. Equal
items share costs, so a model's frontier is small; one that grows beyond LIMIT is thinned to LIMIT of its points, evenly
by cost with both ends, and is then near-optimal: every point is still a choice of exactly the cost that is said.
Source: Kellerer, Pferschy & Pisinger 2004, Knapsack Problems, chapter 11 (dominance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LIMIT = 20_000


@dataclass(frozen=True)
class Frontier:
    """Points that nothing beats: costs (P,) ascending, losses (P,) descending, choices (P, n items) uint8."""

    costs: np.ndarray
    losses: np.ndarray
    choices: np.ndarray

    def within(self, budget: float) -> int | None:
        """Number of the best point that costs at most `budget`; None where the cheapest costs more."""
        n = int(np.searchsorted(self.costs, budget, side="right"))
        return n - 1 if n else None


def frontier(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], limit: int = LIMIT) -> Frontier:
    """All best points. losses, costs: a row an item, a number a choice (at most 256).

    Of points that cost alike the one with less loss stays; of points alike in both the one with lower choices.
    """
    cost, loss = np.zeros(1), np.zeros(1)
    choices = np.zeros((1, 0), np.uint8)
    for item_losses, item_costs in zip(losses, costs, strict=True):
        n = len(item_costs)
        all_costs = (cost[:, None] + np.asarray(item_costs, np.float64)).ravel()
        all_losses = (loss[:, None] + np.asarray(item_losses, np.float64)).ravel()
        order = np.lexsort((all_losses, all_costs))  # by cost, then by loss; stable
        least = np.minimum.accumulate(all_losses[order])
        better = np.concatenate([[True], least[1:] < least[:-1]])
        keep = order[better]
        if len(keep) > limit:
            keep = keep[_spread(all_costs[keep], limit)]
        cost, loss = all_costs[keep], all_losses[keep]
        choices = np.concatenate([choices[keep // n], (keep % n).astype(np.uint8)[:, None]], axis=1)
    return Frontier(cost, loss, choices)


def _spread(costs: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` indices of ascending costs, evenly by cost, the first and the last among them."""
    wanted = np.linspace(costs[0], costs[-1], limit)
    return np.unique(np.append(np.searchsorted(costs, wanted[:-1], side="left"), len(costs) - 1))
