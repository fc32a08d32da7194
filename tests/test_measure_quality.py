"""Metrics by hand and against scikit-learn and seqeval; losses, intervals and flips against a slow plain loop."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.answers import Answer
from flyweight.data.messages import Entity, Message
from flyweight.data.tags import tags_to_spans
from flyweight.errors import ConfigError, DataError
from flyweight.measure.bootstrap import Loss, Outcomes, paired_losses, relative_loss_percent, resample_counts, scores
from flyweight.measure.quality import (
    evaluate,
    evaluate_answers,
    expected_calibration_error,
    fit_temperature,
    macro_f1,
    span_f1,
    span_scores,
)

INTENTS = ("book", "bye", "greet")
CITY, DATE = Entity(5, 9, "city"), Entity(10, 15, "date")


def answer(text: str, intent: str, *entities: Entity, confidence: float = 0.8) -> Answer:
    probabilities = np.full(len(INTENTS), (1 - confidence) / (len(INTENTS) - 1))
    probabilities[INTENTS.index(intent)] = confidence
    return Answer(text, INTENTS, probabilities, entities)


class Scripted:
    """A model that gives prepared answers and remembers how many messages it was asked at a time."""

    def __init__(self, *prepared: Answer) -> None:
        self.prepared = {a.text: a for a in prepared}
        self.asked: list[int] = []

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        self.asked.append(len(texts))
        return [self.prepared[text] for text in texts]


MESSAGES = [
    Message("hello there", "greet"),
    Message("from Bonn today", "book", (CITY, DATE)),
    Message("good bye", "bye"),
    Message("fly  Oslo again", None, (CITY,)),
]
PARENT = Scripted(
    answer("hello there", "greet"),
    answer("from Bonn today", "book", CITY, DATE),
    answer("good bye", "greet"),
    answer("fly  Oslo again", "book", CITY),
)
CHILD = Scripted(
    answer("hello there", "greet"),
    answer("from Bonn today", "book", CITY, Entity(10, 15, "city")),
    answer("good bye", "bye"),
    answer("fly  Oslo again", "greet", CITY),
)


def test_macro_f1_by_hand() -> None:
    # a: tp 1 fn 1 -> 2/3; b: tp 1 fp 1 -> 2/3; c: only gold -> 0; d: only predicted -> 0
    assert macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "d"]) == pytest.approx((2 / 3 + 2 / 3) / 4, abs=1e-15)
    assert macro_f1(["a", "b"], ["a", "b"]) == 1.0
    assert macro_f1(["a", "a"], ["b", "b"]) == 0.0
    assert macro_f1([], []) == 0.0
    with pytest.raises(DataError, match="1 predicted labels for 2 messages"):
        macro_f1(["a", "b"], ["a"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcdef")), min_size=1, max_size=60))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    sklearn_f1 = pytest.importorskip("sklearn.metrics").f1_score
    gold, predicted = [g for g, _ in pairs], [p for _, p in pairs]
    expected = sklearn_f1(gold, predicted, average="macro", zero_division=0)
    assert macro_f1(gold, predicted) == pytest.approx(expected, abs=1e-12)


def test_span_scores_by_hand() -> None:
    gold = [(CITY, DATE), (), (Entity(0, 2, "x"),)]
    # wrong label on the second span; an empty message; a repeated span counts once: right 2, predicted 3, gold 3
    predicted = [(CITY, Entity(10, 15, "city")), (), (Entity(0, 2, "x"), Entity(0, 2, "x", value="other"))]
    assert span_scores(gold, predicted) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert span_scores([(CITY, DATE)], [(CITY,)]) == pytest.approx((1.0, 0.5, 2 / 3))
    assert span_scores([(CITY,)], [(Entity(5, 8, "city"),)]) == (0.0, 0.0, 0.0)  # one character short is wrong
    assert span_scores([(CITY,)], [(Entity(5, 9, "city", role="from"),)]) == (0.0, 0.0, 0.0)  # so is another role
    assert span_scores([()], [()]) == (0.0, 0.0, 0.0)
    assert span_f1([], []) == 0.0
    with pytest.raises(DataError, match="0 predictions for 1 messages"):
        span_f1([()], [])


TAGS = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])
SENTENCES = st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=8)


@settings(deadline=None)
@given(SENTENCES)
def test_span_scores_are_seqevals(sentences: list[list[tuple[str, str]]]) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    gold, predicted = ([[pair[side] for pair in s] for s in sentences] for side in (0, 1))
    words = [[(3 * i, 3 * i + 2) for i in range(len(s))] for s in sentences]
    spans = [[tags_to_spans(w, t) for w, t in zip(words, tags, strict=True)] for tags in (gold, predicted)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where nothing is there to score
        expected = [getattr(metrics, f"{name}_score")(gold, predicted) for name in ("precision", "recall", "f1")]
    assert span_scores(*spans) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    confidences = [0.95, 0.95, 0.5, 1 / 15, 0.0]
    correct = [True, False, True, False, True]
    # (14/15, 1]: 2/5 * |1/2 - 0.95|; (7/15, 8/15]: 1/5 * |1 - 0.5|; 1/15 and 0 share the first bin: 2/5 * |1/2 - 1/30|
    assert expected_calibration_error(confidences, correct) == pytest.approx(0.18 + 0.1 + 0.4 * (0.5 - 1 / 30))
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert expected_calibration_error([1.0], [False]) == 1.0
    assert expected_calibration_error([], []) == 0.0


@pytest.mark.parametrize("bad", [math.nan, 1.5, -0.1])
def test_calibration_error_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(DataError, match="confidences are probabilities from 0 to 1"):
        expected_calibration_error([0.5, bad], [True, True])


def test_temperature_by_hand() -> None:
    # Two classes, logits (2 ln 3, 0), e = 1/6; 3 of 4 right: sigmoid(2 ln 3 / T) = 5/6 * 3/4 + 1/12 = 17/24,
    # so 2 ln 3 / T = ln(17/7); all right: 5/6 + 1/12 = 11/12, so 2 ln 3 / T = ln 11
    logits = np.tile([2 * math.log(3), 0.0], (4, 1))
    three_of_four = 2 * math.log(3) / math.log(17 / 7)
    assert fit_temperature(logits, [0, 0, 0, 1]) == pytest.approx(three_of_four, abs=1e-6)
    assert fit_temperature(logits + 1e4, [0, 0, 0, 1]) == pytest.approx(three_of_four, abs=1e-6)  # a row constant
    assert fit_temperature(logits, [0, 0, 0, 0]) == pytest.approx(2 * math.log(3) / math.log(11), abs=1e-6)
    assert fit_temperature(logits, [0, 0, 1, 1]) == pytest.approx(20.0)  # a coin toss: as unsure as allowed
    assert fit_temperature(np.zeros((0, 3)), []) == 1.0


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_recovers_the_one_that_made_the_labels(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3.0, size=(20_000, 5))
    gold = (logits / true + rng.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from softmax(logits / true)
    assert fit_temperature(logits, gold) == pytest.approx(true, rel=0.03)
    assert fit_temperature(logits, gold) == fit_temperature(logits, gold)


def test_temperature_refuses_bad_input() -> None:
    with pytest.raises(DataError, match=r"gold indices 0\.\.3; they must be in 0\.\.2"):
        fit_temperature(np.zeros((2, 3)), [0, 3])
    with pytest.raises(DataError, match="finite logits"):
        fit_temperature(np.array([[np.nan, 0.0]]), [0])
    with pytest.raises(DataError, match=r"shape \(2, 3\) for gold of shape \(1,\)"):
        fit_temperature(np.zeros((2, 3)), [0])


def test_evaluate_by_hand() -> None:
    quality = evaluate(CHILD, MESSAGES, against=PARENT, n_bootstrap=20)
    assert (quality.n_messages, quality.n_intent_messages) == (4, 3)
    assert (quality.n_gold_spans, quality.n_predicted_spans) == (3, 3)
    assert quality.intent_accuracy == 1.0
    assert quality.intent_macro_f1 == 1.0
    assert (quality.span_precision, quality.span_recall, quality.span_f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert quality.exact_frame_accuracy == pytest.approx(2 / 3)  # of the three with an intent, one has a wrong span
    assert quality.expected_calibration_error == pytest.approx(0.2)  # always 0.8 sure, always right
    assert (quality.n_flips, quality.flip_rate) == (3, 0.75)
    assert (quality.n_intent_flips, quality.intent_flip_rate) == (2, 0.5)
    assert quality.flips[0] == {
        "text": "from Bonn today",
        "gold": {"intent": "book", "entities": [[5, 9, "city"], [10, 15, "date"]]},
        "parent": {"intent": "book", "entities": [[5, 9, "city"], [10, 15, "date"]]},
        "child": {"intent": "book", "entities": [[5, 9, "city"], [10, 15, "city"]]},
    }
    assert [flip["text"] for flip in quality.flips[1:]] == ["good bye", "fly  Oslo again"]
    # parent: accuracy 2/3, macro-F1 (greet 2/3 + book 1 + bye 0) / 3 = 5/9, span F1 1
    accuracy, f1, spans = (quality.losses[m] for m in ("intent_accuracy", "intent_macro_f1", "span_f1"))
    assert (accuracy.parent, accuracy.child, accuracy.loss_percent) == pytest.approx((2 / 3, 1.0, -50.0))
    assert (f1.parent, f1.child, f1.loss_percent) == pytest.approx((5 / 9, 1.0, -80.0))
    assert (spans.parent, spans.child, spans.loss_percent) == pytest.approx((1.0, 2 / 3, 100 / 3))
    assert spans.low_percent <= spans.loss_percent <= spans.high_percent
    assert json.loads(json.dumps(quality.to_dict(), allow_nan=False)) == quality.to_dict()


def test_without_a_parent_there_are_no_flips_and_no_losses() -> None:
    quality = evaluate(CHILD, MESSAGES)
    assert (quality.n_flips, quality.flip_rate, quality.flips, quality.losses) == (None, None, [], {})
    assert quality.to_dict()["losses"] == {}


def test_messages_without_intent_count_only_for_spans() -> None:
    quality = evaluate(CHILD, MESSAGES[3:], against=PARENT, n_bootstrap=5)
    assert quality.n_intent_messages == 0
    assert (quality.intent_accuracy, quality.intent_macro_f1, quality.exact_frame_accuracy) == (0.0, 0.0, 0.0)
    assert quality.expected_calibration_error == 0.0
    assert quality.span_f1 == 1.0
    assert quality.n_intent_flips == 1  # the answer did change


def test_evaluate_asks_in_blocks_and_tells_progress() -> None:
    messages = [Message(f"m{i}", "greet") for i in range(130)]
    child, parent = (Scripted(*(answer(m.text, "greet") for m in messages)) for _ in range(2))
    told: list[tuple[int, int]] = []
    evaluate(child, messages, against=parent, n_bootstrap=2, progress=lambda done, total: told.append((done, total)))
    assert parent.asked == child.asked == [64, 64, 2]
    assert told == [(n, 260) for n in (64, 128, 130, 194, 258, 260)]


def test_evaluate_says_what_is_wrong() -> None:
    with pytest.raises(DataError, match="no messages to evaluate"):
        evaluate(CHILD, [])
    with pytest.raises(DataError, match="1 answers for 4 messages"):
        evaluate_answers([answer("hello there", "greet")], MESSAGES)
    with pytest.raises(ConfigError, match="n_bootstrap is 0"):
        evaluate(CHILD, MESSAGES, against=PARENT, n_bootstrap=0)


def random_outcomes(rng: np.random.Generator, n_messages: int, n_intents: int, right: float) -> tuple[Outcomes, ...]:
    gold = rng.integers(-1, n_intents, size=n_messages)
    gold_spans = rng.integers(0, 3, size=n_messages)
    models = []
    for _ in range(2):
        predicted = np.where(
            rng.random(n_messages) < right, np.maximum(gold, 0), rng.integers(n_intents, size=n_messages)
        )
        predicted_spans = rng.integers(0, 3, size=n_messages)
        right_spans = np.minimum(gold_spans, predicted_spans) * rng.integers(0, 2, size=n_messages)
        models.append(Outcomes(gold, predicted, right_spans, predicted_spans, gold_spans))
    return tuple(models)


def slow_scores(outcomes: Outcomes, drawn: list[int]) -> dict[str, float]:
    """The metrics of one resample, message by message."""
    named = [i for i in drawn if outcomes.gold[i] >= 0]
    gold, predicted = [int(outcomes.gold[i]) for i in named], [int(outcomes.predicted[i]) for i in named]
    f1s = []
    for label in set(gold) | set(predicted):
        tp = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        f1s.append(2 * tp / (gold.count(label) + predicted.count(label)))
    right = sum(int(outcomes.right_spans[i]) for i in drawn)
    either = sum(int(outcomes.predicted_spans[i] + outcomes.gold_spans[i]) for i in drawn)
    return {
        "intent_accuracy": sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(named) if named else 0.0,
        "intent_macro_f1": sum(f1s) / len(f1s) if f1s else 0.0,
        "span_f1": 2 * right / either if either else 0.0,
    }


@pytest.mark.parametrize(("n_messages", "n_intents", "right"), [(60, 7, 0.8), (9, 6, 0.5), (3, 2, 0.3), (1, 1, 0.5)])
def test_bootstrap_equals_a_slow_loop_on_the_same_resamples(n_messages: int, n_intents: int, right: float) -> None:
    parent, child = random_outcomes(np.random.default_rng(1), n_messages, n_intents, right)
    losses = paired_losses(parent, child, n_bootstrap=80, seed=5)
    counts = np.concatenate(list(resample_counts(n_messages, 80, seed=5)))
    draws = [[i for i in range(n_messages) for _ in range(int(row[i]))] for row in counts]
    pairs = [(slow_scores(parent, drawn), slow_scores(child, drawn)) for drawn in draws]
    fast_parent, fast_child = scores(parent, counts), scores(child, counts)
    for metric, loss in losses.items():
        assert fast_parent[metric] == pytest.approx([p[metric] for p, _ in pairs], abs=1e-12), metric
        assert fast_child[metric] == pytest.approx([c[metric] for _, c in pairs], abs=1e-12), metric
        resampled = [float(relative_loss_percent(np.float64(p[metric]), np.float64(c[metric]))) for p, c in pairs]
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert (loss.low_percent, loss.high_percent) == pytest.approx((low, high), abs=1e-9), metric
        everything = list(range(n_messages))
        assert loss.parent == pytest.approx(slow_scores(parent, everything)[metric], abs=1e-12)
        assert loss.child == pytest.approx(slow_scores(child, everything)[metric], abs=1e-12)


def test_identical_models_lose_exactly_nothing() -> None:
    parent, _ = random_outcomes(np.random.default_rng(2), 50, 5, 0.7)
    for loss in paired_losses(parent, parent, n_bootstrap=200).values():
        assert (loss.loss_percent, loss.low_percent, loss.high_percent) == (0.0, 0.0, 0.0)
        assert loss.verdict(0.0) == "proved"


def test_resamples_are_whole_draws_and_do_not_depend_on_the_block_size() -> None:
    whole = np.concatenate(list(resample_counts(13, 40, seed=3)))
    assert whole.shape == (40, 13)
    assert (whole.sum(axis=1) == 13).all()
    blocks = list(resample_counts(13, 40, seed=3, block_cells=100))
    assert [len(b) for b in blocks] == [7, 7, 7, 7, 7, 5]
    assert (np.concatenate(blocks) == whole).all()
    assert (whole != np.concatenate(list(resample_counts(13, 40, seed=4)))).any()


def test_relative_loss_by_hand() -> None:
    parent, child = np.array([0.8, 0.8, 0.5, 0.0, 0.0]), np.array([0.6, 0.8, 1.0, 0.0, 0.3])
    assert relative_loss_percent(parent, child) == pytest.approx([25.0, 0.0, -100.0, 0.0, -100.0])


def test_verdicts() -> None:
    loss = Loss(parent=0.9, child=0.898, loss_percent=0.22, low_percent=-0.4, high_percent=0.9)
    assert [loss.verdict(bound) for bound in (0.2, 0.22, 0.3, 0.9, 1.5)] == ["missed", "met", "met", "proved", "proved"]
    assert loss.to_dict()["high_percent"] == 0.9


def test_importing_it_loads_numpy_at_most() -> None:
    code = (
        "import sys, flyweight.measure.quality; "
        "print([m for m in ('sklearn', 'scipy', 'torch', 'pandas', 'tokenizers', 'seqeval') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
