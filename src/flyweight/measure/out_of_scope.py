"""Does the model notice that a message is none of its intents?

    score        1 - confidence of the best intent in scope; positives are the out-of-scope messages
    AUROC        P(score of a positive > score of a negative) + P(equal) / 2
    recall       share of positives found at a score that at most 5% of the negatives reach (recall at 5% FPR)
    at the model's threshold: share of positives and of negatives that were answered out of scope

NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flyweight.data.messages import Message, is_out_of_scope
from flyweight.errors import DataError

if TYPE_CHECKING:  # flyweight.answers loads the tokenizer; measuring does not need it
    from flyweight.answers import Answer

FALSE_POSITIVE_RATE = 0.05


@dataclass(frozen=True)
class OutOfScope:
    """Out-of-scope detection on messages of known intent; shares are fractions (0 to 1).

    auroc and recall_at_5_percent_fpr judge the scores, whatever the threshold. found and false_alarms judge answers:
    the share of the out-of-scope messages, and of those in scope, that were answered with an out-of-scope intent.
    """

    n_in_scope: int
    n_out_of_scope: int
    auroc: float
    recall_at_5_percent_fpr: float
    found: float
    false_alarms: float


def out_of_scope(answers: Sequence[Answer], messages: Sequence[Message]) -> OutOfScope | None:
    """How well answers tell out-of-scope messages from the others; None unless both kinds are there.

    Answers of a model without intents do not count.
    """
    known = [(m, a) for m, a in zip(messages, answers, strict=True) if m.intent is not None and a.intents]
    outside = np.array([is_out_of_scope(m.intent) for m, _ in known], dtype=bool)
    if not outside.any() or outside.all():
        return None
    scores = np.array([a.out_of_scope_score for _, a in known])
    answered = np.array([is_out_of_scope(a.intent) for _, a in known], dtype=bool)
    return OutOfScope(
        n_in_scope=int((~outside).sum()),
        n_out_of_scope=int(outside.sum()),
        auroc=auroc(scores[outside], scores[~outside]),
        recall_at_5_percent_fpr=recall_at_fpr(scores[outside], scores[~outside], FALSE_POSITIVE_RATE),
        found=float(answered[outside].mean()),
        false_alarms=float(answered[~outside].mean()),
    )


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Area under the ROC curve by the Mann-Whitney statistic: scikit-learn's roc_auc_score.

        AUROC = ( #{p > n} + #{p = n} / 2 ) / (P N)      over all pairs of a positive p and a negative n

    positives (P,), negatives (N,) scores, both at least 1. O((P + N) log N). Errors: DataError for none.
    """
    _both("AUROC", positives, negatives)
    ordered = np.sort(negatives)
    below, up_to = (np.searchsorted(ordered, positives, side=side) for side in ("left", "right"))
    return float((below + up_to).sum() / 2 / (len(positives) * len(negatives)))


def recall_at_fpr(positives: np.ndarray, negatives: np.ndarray, rate: float) -> float:
    """The largest share of positives with score >= t among all thresholds t that at most `rate` of the negatives reach.

    positives (P,), negatives (N,) scores, rate in [0, 1). Errors: DataError for none.
    """
    _both("recall", positives, negatives)
    n_allowed = int(rate * len(negatives) + 1e-9)  # 0.05 * 20 is a hair above 1 in some products, below in others
    highest_refused = np.sort(negatives)[::-1][n_allowed]  # t must lie above this score
    return float((positives > highest_refused).mean())


def _both(what: str, positives: np.ndarray, negatives: np.ndarray) -> None:
    if not len(positives) or not len(negatives):
        raise DataError(
            f"{len(positives)} messages out of scope and {len(negatives)} in scope for {what}",
            allowed="at least one of each is needed",
        )
