"""Out-of-scope detection: scikit-learn's AUROC and ROC curve, by hand and at random; what counts as out of scope."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.answers import Answer
from flyweight.data.messages import Message, is_out_of_scope
from flyweight.errors import DataError
from flyweight.measure.out_of_scope import OutOfScope, auroc, out_of_scope, recall_at_fpr
from flyweight.measure.quality import evaluate_answers, fit_threshold

# auroc ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positives", "negatives", "wanted"),
    [
        ([0.9, 0.8], [0.1, 0.2, 0.3], 1.0),
        ([0.1], [0.9, 0.8], 0.0),
        ([0.5], [0.5], 0.5),
        ([0.5, 0.5], [0.5, 0.5, 0.5], 0.5),
        # pairs: .9 beats both, .4 beats .2 and ties with .4: (2 + 1.5) / 4
        ([0.9, 0.4], [0.4, 0.2], 0.875),
        # .3 beats .1 alone, .7 beats all but .8: (1 + 3) / 8
        ([0.3, 0.7], [0.1, 0.5, 0.6, 0.8], 0.5),
        ([1.0], [0.0], 1.0),
    ],
)
def test_auroc_by_hand(positives: list[float], negatives: list[float], wanted: float) -> None:
    assert auroc(np.array(positives), np.array(negatives)) == wanted
    assert auroc(np.array(positives[::-1]), np.array(negatives[::-1])) == wanted
    assert auroc(-np.array(negatives), -np.array(positives)) == wanted


@pytest.mark.parametrize(
    ("positives", "negatives", "rate", "wanted"),
    [
        # 20 negatives 0.00 .. 0.95: 5% is one of them, so t must lie above 0.90
        ([0.99, 0.91, 0.90, 0.5], [i / 20 for i in range(20)], 0.05, 0.5),
        ([0.99, 0.96, 0.95, 0.5], [i / 20 for i in range(19, -1, -1)], 0.0, 0.5),
        ([0.99, 0.91, 0.90, 0.86], [i / 20 for i in range(20)], 0.10, 1.0),
        # 19 negatives: 5% is less than one, none may be reached
        ([0.99, 0.91, 0.90, 0.5], [i / 20 for i in range(19)], 0.05, 0.5),
        # the two highest negatives are equal: a threshold that lets one through lets both
        ([0.8, 0.6], [0.7, 0.7, *[0.1] * 18], 0.05, 0.5),
        ([0.8, 0.6], [0.7, 0.7, *[0.1] * 18], 0.10, 1.0),
        # a positive at the negative's own score is not above it
        ([0.7], [0.7], 0.05, 0.0),
        ([0.7, 0.2, 0.1], [0.1], 0.05, 2 / 3),
    ],
)
def test_recall_by_hand(positives: list[float], negatives: list[float], rate: float, wanted: float) -> None:
    assert recall_at_fpr(np.array(positives), np.array(negatives), rate) == wanted


SCORES = st.lists(st.integers(0, 12).map(lambda i: i / 12), min_size=1, max_size=60)  # few values: many ties
ANY = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60)


@given(st.one_of(SCORES, ANY), st.one_of(SCORES, ANY))
def test_auroc_is_that_of_scikit_learn(positives: list[float], negatives: list[float]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    gold = [1] * len(positives) + [0] * len(negatives)
    wanted = metrics.roc_auc_score(gold, positives + negatives)
    assert auroc(np.array(positives), np.array(negatives)) == pytest.approx(wanted, abs=1e-12)


@given(st.one_of(SCORES, ANY), st.one_of(SCORES, ANY), st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.29, 0.5, 0.99]))
def test_recall_is_that_of_the_roc_curve(positives: list[float], negatives: list[float], rate: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    gold = [1] * len(positives) + [0] * len(negatives)
    reached, found, _ = metrics.roc_curve(gold, positives + negatives, drop_intermediate=False)
    n_reached = np.round(reached * len(negatives))  # whole messages
    wanted = found[n_reached <= rate * len(negatives) + 1e-9].max()
    assert recall_at_fpr(np.array(positives), np.array(negatives), rate) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("positives", "negatives"), [([], [0.5]), ([0.5], []), ([], [])])
def test_one_kind_alone_has_no_curve(positives: list[float], negatives: list[float]) -> None:
    for score in (auroc, lambda p, n: recall_at_fpr(p, n, 0.05)):
        with pytest.raises(DataError, match=rf"^{len(positives)} messages out of scope and {len(negatives)} in scope"):
            score(np.array(positives), np.array(negatives))


# what counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("out_of_scope", True),
        ("oos", True),
        ("nlu_fallback", True),
        ("out_of_scope/other_language", True),
        ("oos/", True),
        ("out_of_scope_2", False),
        ("OOS", False),
        ("faq/out_of_scope", False),
        ("greet", False),
        ("", False),
        (None, False),
    ],
)
def test_names_of_out_of_scope_intents(name: str | None, outside: bool) -> None:
    assert is_out_of_scope(name) is outside


def answer(probabilities: Sequence[float], names: Sequence[str] = ("a", "b"), threshold: float = 0.0) -> Answer:
    return Answer("x", tuple(names), np.array(probabilities), (), threshold)


def test_scores_by_hand() -> None:
    names = ("a", "out_of_scope/chat", "b", "oos")
    assert answer([0.1, 0.5, 0.3, 0.1], names).out_of_scope_score == pytest.approx(0.7)  # the best in scope is b
    assert answer([0.6, 0.4]).out_of_scope_score == pytest.approx(0.4)
    assert answer([0.6, 0.4], ("oos", "nlu_fallback")).out_of_scope_score == 1.0  # it knows nothing else
    assert answer([0.6, 0.4], threshold=0.9).out_of_scope_score == pytest.approx(0.4)  # whatever the threshold


def test_detection_by_hand() -> None:
    messages = [Message("x", intent) for intent in ("a", "b", "a", "oos", "out_of_scope/chat", None)]
    answers = [
        answer([0.9, 0.1], threshold=0.65),  # score 0.1
        answer([0.3, 0.7], threshold=0.65),  # score 0.3
        answer([0.6, 0.4], threshold=0.65),  # score 0.4: turned away
        answer([0.5, 0.5], threshold=0.65),  # score 0.5: turned away
        answer([0.2, 0.8], threshold=0.65),  # score 0.2: answered b
        answer([0.5, 0.5], threshold=0.65),  # a message of unknown intent does not count
    ]
    found = out_of_scope(answers, messages)
    # pairs of scores: 0.5 beats 0.1, 0.3, 0.4; 0.2 beats 0.1: 4 of 6. Recall: above 0.4 is one of two.
    assert found == OutOfScope(3, 2, pytest.approx(4 / 6), 0.5, 0.5, pytest.approx(1 / 3))  # type: ignore[arg-type]


def test_detection_by_intents_of_its_own() -> None:
    names = ("a", "oos/chat")
    messages = [Message("x", intent) for intent in ("a", "out_of_scope", "oos/chat", "a")]
    rows = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]]
    found = out_of_scope([answer(row, names) for row in rows], messages)
    assert found is not None
    # without a threshold: 1 of 2 is answered oos/chat, and 1 of the 2 others too
    assert (found.found, found.false_alarms) == (0.5, 0.5)
    # scores 0.8 and 0.4 against 0.1 and 0.6: 0.8 beats both, 0.4 beats one
    assert found.auroc == 0.75


@pytest.mark.parametrize(
    "intents", [(), ("a", "b"), ("oos", "out_of_scope"), (None, None), ("oos", None), ("a", None, None)]
)
def test_messages_of_one_kind_are_not_scored(intents: tuple[str | None, ...]) -> None:
    messages = [Message("x", intent) for intent in intents]
    assert out_of_scope([answer([0.5, 0.5])] * len(messages), messages) is None


def test_a_model_without_intents_is_not_scored() -> None:
    answers = [answer([], ())] * 2
    messages = [Message("x", "oos"), Message("y", "a")]
    assert out_of_scope(answers, messages) is None
    quality = evaluate_answers(answers, messages)
    assert (quality.n_intent_messages, quality.out_of_scope) == (0, None)


def test_quality_knows_a_fallback_as_the_right_answer() -> None:
    messages = [Message("x", "oos"), Message("y", "a"), Message("z", "b")]
    # turned away, turned away, answered: right, wrong, right
    answers = [answer(row, threshold=0.7) for row in ([0.5, 0.5], [0.6, 0.4], [0.1, 0.9])]
    quality = evaluate_answers(answers, messages)
    assert quality.intent_accuracy == pytest.approx(2 / 3)
    assert quality.exact_frame_accuracy == pytest.approx(2 / 3)
    assert quality.out_of_scope is not None
    assert (quality.out_of_scope.found, quality.out_of_scope.false_alarms) == (1.0, 0.5)
    assert quality.to_dict()["out_of_scope"]["n_out_of_scope"] == 1
    # oos was found once, and once too often: 2 / (2 + 1); a 0, b 1
    assert quality.intent_macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)
    # of an out-of-scope intent that the model knows, only that intent is right
    knowing = [answer([0.4, 0.3, 0.3], ("a", "oos", "oos/chat"), 0.7)]
    assert evaluate_answers(knowing, [Message("x", "oos")]).intent_accuracy == 1.0
    assert evaluate_answers(knowing, [Message("x", "oos/chat")]).intent_accuracy == 0.0


def test_flips_count_fallbacks() -> None:
    messages = [Message("x", "a"), Message("y", "a")]
    parent = [answer([0.6, 0.4], threshold=0.5), answer([0.6, 0.4], threshold=0.5)]
    child = [answer([0.6, 0.4], threshold=0.7), answer([0.8, 0.2], threshold=0.7)]
    quality = evaluate_answers(child, messages, against=parent)
    assert (quality.n_flips, quality.n_intent_flips) == (1, 1)
    assert quality.flips[0]["child"]["intent"] == "nlu_fallback"


# the threshold --------------------------------------------------------------------------------------------------------

HAIR = 1 - 1e-4


@pytest.mark.parametrize(
    ("confidences", "rate", "edge"),
    [
        ([0.9, 0.5, 0.7, 0.3], 0.25, 0.5),  # one of four may go: 0.3
        ([0.9, 0.5, 0.7, 0.3], 0.5, 0.7),
        ([0.9, 0.5, 0.7, 0.3], 0.49, 0.5),
        ([0.9, 0.5, 0.7, 0.3], 0.24, 0.3),  # less than one: none
        ([0.9, 0.5, 0.7, 0.3], 0.99, 0.9),
        ([0.5, 0.5, 0.5, 0.9], 0.25, 0.5),  # of three equal ones none may go, for two would be too many
        ([i / 100 for i in range(100)], 0.29, 0.29),  # 0.29 * 100 is 28.999999999999996
        ([1.0, 1.0], 0.5, 1.0),
        ([0.4], 0.9, 0.4),
    ],
)
def test_thresholds_by_hand(confidences: list[float], rate: float, edge: float) -> None:
    found = fit_threshold(np.array(confidences), rate)
    assert found == edge * HAIR
    assert found < 1
    n_away = sum(c < found for c in confidences)
    assert n_away == sum(c < edge for c in confidences)


def test_no_messages_no_threshold() -> None:
    assert fit_threshold(np.zeros(0), 0.1) == 0.0


@given(
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=50),
    st.integers(0, 99).map(lambda percent: percent / 100),
    st.integers(0, 10_000),
)
def test_thresholds_turn_away_at_most_the_rate(confidences: list[float], rate: float, seed: int) -> None:
    n = len(confidences)
    found = fit_threshold(np.array(confidences), rate)
    # rounding moves a confidence by 1e-5 of itself: still not more
    rounded = np.array(confidences) * (1 + np.random.default_rng(seed).uniform(-1e-5, 1e-5, n))
    assert (rounded < found).sum() <= rate * n + 1e-9
    # and a hair higher would be too much
    assert (np.array(confidences) < found / HAIR * (1 + 1e-9)).sum() > rate * n - 1e-9
