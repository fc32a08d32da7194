"""Is the model right, and does it still answer like its parent?

    intent accuracy, intent macro-F1      scikit-learn's definitions
    span precision, recall, F1            seqeval's: a span counts when start, end and label are all equal
    exact-frame accuracy                  intent and every span right
    calibration error, temperature        are confidences true?
    out of scope                          AUROC, recall at a fixed false-positive rate (see out_of_scope.py)
    flips, losses                         against the parent, with 95% paired bootstrap intervals

NumPy only, so that the service half can measure itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flyweight.data.messages import Entity, Message, is_out_of_scope
from flyweight.errors import DataError
from flyweight.measure.bootstrap import Loss, Outcomes, paired_losses, weighted_macro_f1
from flyweight.measure.out_of_scope import OutOfScope, out_of_scope

if TYPE_CHECKING:  # flyweight.answers loads the tokenizer; measuring does not need it
    from flyweight.answers import Answer, Answerer

NO_CLASS = -2  # code of an answer that is no intent: it counts for no class (-1 is an unknown gold intent)
N_BINS = 15  # equal-width bins of the calibration error, as in Guo et al. 2017, arXiv:1706.04599
ANSWER_BLOCK = 64  # messages handed to a model at once, between two calls of `progress`
TEMPERATURES = (0.05, 20.0)
THRESHOLD_MARGIN = 1e-4


class SpanScores(NamedTuple):
    """Micro-averaged over all messages; 0 where a denominator is 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Quality:
    """What `evaluate` found. Scores and rates are fractions (0 to 1), losses are percent.

    Intent scores, `exact_frame_accuracy` and `expected_calibration_error` are over the `n_intent_messages` messages
    whose gold intent is known, none for a model without intents; span scores and flips are over all `n_messages`. A
    score over nothing is 0: `n_intent_messages` and `n_gold_spans` tell whether there was anything to score.
    Everything from `n_flips` on is about the parent: None or empty without `against`. A flip is a message whose
    answer (intent or spans) changed: {"text", "gold", "parent", "child"}, each of the last three a frame
    {"intent", "entities": [[start, end, label], ...]}. `out_of_scope` is None unless messages of both kinds are there.
    `losses` has intent_accuracy, intent_macro_f1 and span_f1;
    where one of the two answers no intents, spans alone are compared.
    """

    n_messages: int
    n_intent_messages: int
    n_gold_spans: int
    n_predicted_spans: int
    intent_accuracy: float
    intent_macro_f1: float
    span_precision: float
    span_recall: float
    span_f1: float
    exact_frame_accuracy: float
    expected_calibration_error: float
    out_of_scope: OutOfScope | None = None
    n_flips: int | None = None
    flip_rate: float | None = None
    n_intent_flips: int | None = None
    intent_flip_rate: float | None = None
    flips: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, Loss] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)


def evaluate(
    model: Answerer,
    messages: Sequence[Message],
    *,
    against: Answerer | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Answer every message and score the answers against gold, and against the answers of a parent.

    `progress(n_done, n_total)` is called after every 64 answers; with `against` each message is answered twice.
    `n_bootstrap` and `seed` are for the intervals of the losses. Errors: DataError without messages.
    """
    texts = [m.text for m in messages]
    n_done, n_total = 0, len(texts) * (1 if against is None else 2)

    def report(n: int) -> None:
        nonlocal n_done
        n_done += n
        if progress is not None:
            progress(n_done, n_total)

    parent = None if against is None else ask(against, texts, report)
    child = ask(model, texts, report)
    return evaluate_answers(child, messages, against=parent, n_bootstrap=n_bootstrap, seed=seed)


def evaluate_answers(
    answers: Sequence[Answer],
    messages: Sequence[Message],
    *,
    against: Sequence[Answer] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Quality:
    """`evaluate` for answers already given: a parent is asked once and many children are compared with it."""
    if not messages:
        raise DataError("no messages to evaluate", allowed="at least one message is needed")
    codes: dict[str, int] = {}
    child = _outcomes(answers, messages, codes)
    has_intent, right = child.gold >= 0, child.gold == child.predicted
    right_frame = right & (child.right_spans == child.gold_spans) & (child.right_spans == child.predicted_spans)
    precision, recall, f1 = _span_scores(child)
    # Of the likeliest intent, whatever a threshold made of it: a fallback's confidence is no probability.
    confidences = np.array([a.probabilities.max(initial=0.0) for a in answers])
    likeliest = np.array([_likeliest(a) == m.intent for a, m in zip(answers, messages, strict=True)], dtype=bool)
    quality = Quality(
        n_messages=len(messages),
        n_intent_messages=int(has_intent.sum()),
        n_gold_spans=int(child.gold_spans.sum()),
        n_predicted_spans=int(child.predicted_spans.sum()),
        intent_accuracy=_mean(right[has_intent]),
        intent_macro_f1=_macro_f1(child.gold[has_intent], child.predicted[has_intent]),
        span_precision=precision,
        span_recall=recall,
        span_f1=f1,
        exact_frame_accuracy=_mean(right_frame[has_intent]),
        expected_calibration_error=expected_calibration_error(confidences[has_intent], likeliest[has_intent]),
        out_of_scope=out_of_scope(answers, messages),
    )
    if against is None:
        return quality
    parent = _outcomes(against, messages, codes)
    comparable = all(bool(a.intents) == bool(b.intents) for a, b in zip(against, answers, strict=True))
    flips = _flips(messages, against, answers, comparable)
    n_intent_flips = sum(comparable and flip["parent"]["intent"] != flip["child"]["intent"] for flip in flips)
    losses = paired_losses(parent, child, n_bootstrap, seed)
    return replace(
        quality,
        n_flips=len(flips),
        flip_rate=len(flips) / len(messages),
        n_intent_flips=n_intent_flips,
        intent_flip_rate=n_intent_flips / len(messages),
        flips=flips,
        losses=losses if comparable else {"span_f1": losses["span_f1"]},
    )


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean F1 over the labels present in gold or predictions: scikit-learn's f1_score(average="macro").

        F1[c] = 2 tp[c] / (2 tp[c] + fp[c] + fn[c])

    0 for no messages. Errors: DataError when the lengths differ.
    """
    _same_length("predicted labels", predicted, gold)
    codes: dict[str, int] = {}
    gold_codes, predicted_codes = (
        np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.int64)
        for labels in (gold, predicted)
    )
    return _macro_f1(gold_codes, predicted_codes)


def span_scores(gold: Sequence[Iterable[Entity]], predicted: Sequence[Iterable[Entity]]) -> SpanScores:
    """Micro precision, recall and F1 of typed spans, one iterable of entities a message: seqeval's definition.

        precision = right / predicted    recall = right / gold    F1 = 2 right / (predicted + gold)

    A span is right when start, end and label (type, role, group) are equal to a gold span of the same message;
    repeated spans of a message count once. Errors: DataError when the lengths differ.
    """
    _same_length("predictions", predicted, gold)
    return _span_scores(_span_outcomes(gold, predicted))


def span_f1(gold: Sequence[Iterable[Entity]], predicted: Sequence[Iterable[Entity]]) -> float:
    """2 right / (predicted + gold) typed spans over all messages; 0 where there are none. See `span_scores`."""
    return span_scores(gold, predicted).f1


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray
) -> float:
    """How far confidence is from accuracy: 0 is perfectly calibrated, 1 is always sure and always wrong.

        ECE = sum_b  n_b / N * | accuracy_b - mean confidence_b |        15 bins ((b-1)/15, b/15]

    confidences (N,) in 0..1 of the answer given; correct (N,) bool. A confidence of 0 is in the first bin.
    0 for no messages. Errors: DataError for lengths that differ or a confidence outside 0..1.
    """
    _same_length("confidences", confidences, correct)
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if not len(sure):
        return 0.0
    outside = ~((sure >= 0) & (sure <= 1 + 1e-9))  # a softmax may round to a little over 1; NaN is outside
    if outside.any():
        raise DataError(f"a confidence is {sure[outside][0]}", allowed="confidences are probabilities from 0 to 1")
    bins = np.clip(np.searchsorted(np.arange(N_BINS + 1) / N_BINS, sure, side="left") - 1, 0, N_BINS - 1)
    gaps = np.bincount(bins, weights=right - sure, minlength=N_BINS)  # n_b * (accuracy_b - confidence_b)
    return float(np.abs(gaps).sum() / len(sure))


def fit_threshold(confidences: np.ndarray, rate: float) -> float:
    """The largest threshold, but for a hair, that turns away at most the share `rate` of messages in scope.

        threshold = (1 - 1e-4) * the (floor(rate * n) + 1)-th smallest confidence; confidences below it are turned away

    The hair keeps the message at the edge, whatever batch or engine rounds its logits: 1e-5 in a logit is at most 1e-5
    of a confidence. confidences (n,) of the best intent in scope, of validation messages in scope; rate in [0, 1).
    0 for no messages.
    """
    if not len(confidences):
        return 0.0
    kept = np.sort(confidences)[int(rate * len(confidences) + 1e-9)]  # 0.29 * 100 is a hair below 29
    return float(kept * (1 - THRESHOLD_MARGIN))


def fit_temperature(logits: np.ndarray, gold: Sequence[int] | np.ndarray) -> float:
    """The temperature at which softmax(logits / T) best explains gold, with Platt's smoothed targets.

        T = argmin  mean_i ( logsumexp(z_i / T) - sum_c t_ic z_ic / T ),   T in [0.05, 20]
        t_i = (1 - e) onehot(gold_i) + e / C,   e = 1 / (N + 2)

    Without the smoothing (e = 0: Guo et al. 2017, arXiv:1706.04599) a validation split on which every message is right
    would call for T = 0, that is, for being sure of everything; N messages cannot show that. Platt 1999.
    logits (N, C) and gold (N,) indices into C, of validation messages. The loss is convex in 1/T, hence has one
    valley in log T, which golden-section search halves-by-0.618 60 times: 6.0 * 0.618^60 = 2e-12 wide. Deterministic.
    1.0 for no messages. Errors: DataError for logits that are not (N, C) finite numbers or gold outside 0..C-1.
    """
    z, index = np.asarray(logits, dtype=np.float64), np.asarray(gold, dtype=np.int64)
    if z.ndim != 2 or z.shape[:1] != index.shape or not np.isfinite(z).all():
        raise DataError(
            f"logits of shape {z.shape} for gold of shape {index.shape}",
            allowed="finite logits (N, C) and gold (N,) are needed",
        )
    if not len(z):
        return 1.0
    if index.min() < 0 or index.max() >= z.shape[1]:
        raise DataError(f"gold indices {index.min()}..{index.max()}", allowed=f"they must be in 0..{z.shape[1] - 1}")
    z = z - z.max(axis=1, keepdims=True)  # largest exponent 0: no overflow at small T
    smoothing = 1 / (len(z) + 2)
    z_target = (1 - smoothing) * z[np.arange(len(z)), index] + smoothing * z.mean(axis=1)

    def loss(log_t: float) -> float:
        inverse = np.exp(-log_t)
        return float((np.log(np.exp(z * inverse).sum(axis=1)) - z_target * inverse).mean())

    low, high = float(np.log(TEMPERATURES[0])), float(np.log(TEMPERATURES[1]))
    best = min((_golden_section(loss, low, high), low, high), key=loss)
    return float(np.clip(np.exp(best), *TEMPERATURES))


def _golden_section(f: Callable[[float], float], low: float, high: float, n_steps: int = 60) -> float:
    """Where f, with one valley between low and high, is least."""
    shrink = (5**0.5 - 1) / 2
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(n_steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = f(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = f(right)
    return (low + high) / 2


def ask(model: Answerer, texts: Sequence[str], report: Callable[[int], None] | None = None) -> list[Answer]:
    """One answer a text, asked in blocks; `report(n)` is called after each block of n answers."""
    answers: list[Answer] = []
    for first in range(0, len(texts), ANSWER_BLOCK):
        block = texts[first : first + ANSWER_BLOCK]
        answers += model.answers(block)
        if report is not None:
            report(len(block))
    return answers


def _same_length(what: str, found: Sequence[object] | np.ndarray, wanted: Sequence[object] | np.ndarray) -> None:
    if len(found) != len(wanted):
        raise DataError(f"{len(found)} {what} for {len(wanted)} messages", allowed="one for each message is needed")


def _outcomes(answers: Sequence[Answer], messages: Sequence[Message], codes: dict[str, int]) -> Outcomes:
    """Reduce answers to codes and counts; `codes` numbers intents and grows, so a parent and a child can share it."""
    _same_length("answers", answers, messages)
    pairs = list(zip(answers, messages, strict=True))
    gold = [codes.setdefault(m.intent, len(codes)) if m.intent is not None and a.intents else -1 for a, m in pairs]
    strange = {str(m.intent) for a, m in pairs if is_out_of_scope(m.intent) and m.intent not in a.intents}
    fallback = strange.pop() if len(strange) == 1 else ""
    predicted = [codes.setdefault(p, len(codes)) if (p := _predicted(a, m, fallback)) else NO_CLASS for a, m in pairs]
    spans = _span_outcomes([m.entities for m in messages], [answer.entities for answer in answers])
    return replace(spans, gold=np.array(gold, dtype=np.int64), predicted=np.array(predicted, dtype=np.int64))


def _likeliest(answer: Answer) -> str:
    return answer.intents[int(answer.probabilities.argmax())] if answer.intents else ""


def _predicted(answer: Answer, message: Message, fallback: str) -> str:
    """The answered intent; a fallback that is no intent of the model is `fallback`, "" for no class: it only misses.

    `fallback` is the one out-of-scope intent of the messages that the model does not know. To a message of such an
    intent any out-of-scope answer is right.
    """
    if is_out_of_scope(answer.intent) and is_out_of_scope(message.intent) and message.intent not in answer.intents:
        return str(message.intent)
    return answer.intent if answer.intent in answer.intents else fallback


def _span_outcomes(gold: Sequence[Iterable[Entity]], predicted: Sequence[Iterable[Entity]]) -> Outcomes:
    counts = np.zeros((3, len(gold)), dtype=np.int64)
    for i, (wanted, found) in enumerate(zip(gold, predicted, strict=True)):
        gold_keys, found_keys = {e.key for e in wanted}, {e.key for e in found}
        counts[:, i] = len(gold_keys & found_keys), len(found_keys), len(gold_keys)
    no_intent = np.full(len(gold), -1, dtype=np.int64)
    return Outcomes(no_intent, no_intent, *counts)


def _span_scores(outcomes: Outcomes) -> SpanScores:
    right, found, wanted = (
        int(counts.sum()) for counts in (outcomes.right_spans, outcomes.predicted_spans, outcomes.gold_spans)
    )
    return SpanScores(right / max(found, 1), right / max(wanted, 1), 2 * right / max(found + wanted, 1))


def _macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    return float(weighted_macro_f1(np.ones((1, len(gold)), dtype=np.float32), gold, predicted)[0])


def _mean(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else 0.0


def _flips(
    messages: Sequence[Message], parents: Sequence[Answer], children: Sequence[Answer], intents: bool
) -> list[dict[str, Any]]:
    """Messages whose answers differ; without `intents` in their entities."""
    return [
        {
            "text": message.text,
            "gold": _frame(message.intent, message.entities),
            "parent": _frame(parent.intent, parent.entities),
            "child": _frame(child.intent, child.entities),
        }
        for message, parent, child in zip(messages, parents, children, strict=True)
        if (parent.frame != child.frame if intents else parent.frame[1] != child.frame[1])
    ]


def _frame(intent: str | None, entities: Iterable[Entity]) -> dict[str, Any]:
    return {"intent": intent, "entities": [list(key) for key in sorted({e.key for e in entities})]}
