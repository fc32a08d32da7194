"""How much was lost against the parent, and how sure is that: relative loss with a paired bootstrap interval.

    loss = 100 * (parent - child) / parent                     percent; negative where the child is better

A resample draws N of the N messages with replacement; parent and child are scored on the same draw. A draw is a row
of counts (how often each message was drawn), so every metric of every resample is a matrix product and no loop runs
over messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from flyweight.errors import ConfigError

METRICS = ("intent_accuracy", "intent_macro_f1", "span_f1")  # the metrics for which a loss is claimed
BLOCK_CELLS = 8_000_000  # float32 counts held at once: 32 MB


@dataclass(frozen=True)
class Loss:
    """Relative loss of one metric against the parent, with its 95% paired bootstrap interval over messages.

    `parent` and `child` are the metric itself (0 to 1). `loss_percent` = 100 * (parent - child) / parent;
    `low_percent` and `high_percent` are the 2.5% and 97.5% percentiles of the same over the resamples.
    Where the parent's metric is 0 the loss is 0 if the child's is 0 too, else -100 (a gain with no ratio).
    """

    parent: float
    child: float
    loss_percent: float
    low_percent: float
    high_percent: float

    def verdict(self, bound_percent: float) -> str:
        """Is the loss within the bound?

        "proved": point estimate and upper limit are within; "met": only the point estimate is; "missed": it is not.
        """
        if self.loss_percent > bound_percent:
            return "missed"
        return "proved" if self.high_percent <= bound_percent else "met"

    def to_dict(self) -> dict[str, float]:
        """The fields as plain floats."""
        return asdict(self)


@dataclass(frozen=True)
class Outcomes:
    """What one model did on each of N messages, reduced to what metrics need.

    gold (N,) int64: code of the gold intent, -1 where the message has none; predicted (N,) int64: code of the answer.
    right_spans, predicted_spans, gold_spans (N,) int64: distinct typed spans of the message.
    """

    gold: np.ndarray
    predicted: np.ndarray
    right_spans: np.ndarray
    predicted_spans: np.ndarray
    gold_spans: np.ndarray


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where whole is 0 (scikit-learn's zero_division=0)."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


def weighted_macro_f1(weights: np.ndarray, gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Macro-F1 of each row of weights: mean over the labels present in that row's gold or predictions.

        F1[c] = 2 tp[c] / (gold[c] + predicted[c])

    weights (B, N) float32 counts; gold, predicted (N,) codes >= 0 -> (B,) float64. Cost: 3 x (B, N) @ (N, C).
    """
    if gold.size == 0:
        return np.zeros(len(weights))
    n_labels = int(max(gold.max(), predicted.max())) + 1
    codes = np.arange(n_labels)
    is_gold = (gold[:, None] == codes).astype(np.float32)  # (N, C)
    is_predicted = (predicted[:, None] == codes).astype(np.float32)  # (N, C)
    right = (gold == predicted).astype(np.float32)  # (N,)
    # float32 sums of whole numbers are exact below 2^24 = 16.7 M messages
    tp = ((weights * right) @ is_gold).astype(np.float64)  # (B, C)
    support = (weights @ is_gold).astype(np.float64) + weights @ is_predicted  # (B, C)
    n_present = (support > 0).sum(axis=1)
    return divide(divide(2.0 * tp, support).sum(axis=1), n_present)


def scores(outcomes: Outcomes, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `METRICS` for each row of weights. weights (B, N) float32 counts -> (B,) float64 a metric."""
    has_intent = outcomes.gold >= 0
    gold, predicted = outcomes.gold[has_intent], outcomes.predicted[has_intent]
    on_intents = weights if has_intent.all() else weights[:, has_intent]
    n_right = (on_intents @ (gold == predicted).astype(np.float32)).astype(np.float64)
    n_intents = on_intents.sum(axis=1, dtype=np.float64)
    right, found, wanted = (
        (weights @ counts.astype(np.float32)).astype(np.float64)
        for counts in (outcomes.right_spans, outcomes.predicted_spans, outcomes.gold_spans)
    )
    return {
        "intent_accuracy": divide(n_right, n_intents),
        "intent_macro_f1": weighted_macro_f1(on_intents, gold, predicted),
        "span_f1": divide(2.0 * right, found + wanted),
    }


def resample_counts(
    n_messages: int, n_bootstrap: int, seed: int, block_cells: int = BLOCK_CELLS
) -> Iterator[np.ndarray]:
    """Blocks (B, n_messages) float32 of draw counts, n_bootstrap rows in all, each row summing to n_messages.

    The rows depend on the seed only, not on the block size.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, block_cells // n_messages)
    for first in range(0, n_bootstrap, rows):
        n_rows = min(rows, n_bootstrap - first)
        drawn = rng.integers(n_messages, size=(n_rows, n_messages))
        drawn += n_messages * np.arange(n_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n_messages)
        yield counts.reshape(n_rows, n_messages).astype(np.float32)


def relative_loss_percent(parent: np.ndarray, child: np.ndarray) -> np.ndarray:
    """100 * (parent - child) / parent; where the parent is 0: 0 if the child is 0 too, else -100."""
    at_zero = np.where(child > 0, -100.0, 0.0)
    return np.divide(100.0 * (parent - child), parent, out=at_zero, where=parent > 0)


def paired_losses(parent: Outcomes, child: Outcomes, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, Loss]:
    """A `Loss` for each of `METRICS`. Parent and child must be about the same messages in the same order."""
    if n_bootstrap < 1:
        raise ConfigError(f"n_bootstrap is {n_bootstrap}; an interval needs at least 1 resample (1000 is usual)")
    n_messages = len(parent.gold)
    all_once = np.ones((1, n_messages), dtype=np.float32)
    at_parent, at_child = scores(parent, all_once), scores(child, all_once)
    resampled: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
    for weights in resample_counts(n_messages, n_bootstrap, seed):
        of_parent, of_child = scores(parent, weights), scores(child, weights)
        for metric in METRICS:
            resampled[metric].append(relative_loss_percent(of_parent[metric], of_child[metric]))
    losses = {}
    for metric in METRICS:
        low, high = np.percentile(np.concatenate(resampled[metric]), [2.5, 97.5])
        point = relative_loss_percent(at_parent[metric], at_child[metric])[0]
        parent_score, child_score = float(at_parent[metric][0]), float(at_child[metric][0])
        losses[metric] = Loss(parent_score, child_score, float(point), float(low), float(high))
    return losses
