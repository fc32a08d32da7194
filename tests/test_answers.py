"""Logits -> answers: confidence, ranking, entities, synonyms; by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flyweight.answers import Answer, Labels, softmax
from flyweight.data.messages import Entity
from flyweight.tokenizer import Encoded

#       fly from NYC to New York
TEXT = "fly from NYC to New York"
WORDS = [(0, 3), (4, 8), (9, 12), (13, 15), (16, 19), (20, 24)]
LABELS = Labels(
    ("fly", "greet", "rain"),
    ("city", "city#from", "city#to#1"),
    synonyms={"nyc": "New York City", "paris": "Paris, France"},
)


def encoded(words: list[tuple[int, int]]) -> Encoded:
    return Encoded(np.zeros(len(words) + 2, np.int32), np.arange(1, len(words) + 1), words)


def tag_logits(tags: str) -> np.ndarray:
    """Logits that say exactly these tags: 1 for the tag, 0 for the others."""
    names = LABELS.tags
    return np.eye(len(names), dtype=np.float32)[[names.index(tag) for tag in tags.split()]]


def answer(tags: str, intent: tuple[float, ...] = (3.0, 1.0, 2.0)) -> Answer:
    return LABELS.answer(TEXT, encoded(WORDS), np.array(intent, np.float32), tag_logits(tags))


def test_tags_follow_the_labels() -> None:
    assert LABELS.tags == ["O", "B-city", "I-city", "B-city#from", "I-city#from", "B-city#to#1", "I-city#to#1"]
    assert Labels(("a", "b")).tags == []


def test_probabilities_by_hand() -> None:
    found = Labels(("a", "b")).answer("x", encoded([]), np.array([math.log(3), 0], np.float32), None)
    assert found.probabilities.dtype == np.float64
    assert found.probabilities == pytest.approx([0.75, 0.25], abs=1e-7)  # log 3 is rounded to float32
    assert (found.intent, found.entities) == ("a", ())
    assert found.confidence == found.probabilities[0]


def test_temperature_divides_the_logits() -> None:
    logits = np.array([math.log(9), 0], np.float32)
    for temperature, wanted in ((1.0, 0.9), (2.0, 0.75), (0.5, 81 / 82)):
        found = Labels(("a", "b"), temperature=temperature).answer("x", encoded([]), logits, None)
        assert found.confidence == pytest.approx(wanted, abs=1e-7)
        assert found.intent == "a"


def test_a_tie_goes_to_the_first_intent() -> None:
    found = answer("O O O O O O", (1.0, 5.0, 5.0))
    assert found.intent == "greet"
    ranking = found.to_dict()["intent_ranking"]
    assert [r["name"] for r in ranking] == ["greet", "rain", "fly"]
    assert found.to_dict()["intent"] == ranking[0]


def test_rasa_form_by_hand() -> None:
    found = answer("O O B-city#from O B-city#to#1 I-city#to#1").to_dict()
    total = math.exp(0) + math.exp(-2) + math.exp(-1)
    assert list(found) == ["text", "intent", "intent_ranking", "entities"]
    assert found["text"] == TEXT
    assert [r["name"] for r in found["intent_ranking"]] == ["fly", "rain", "greet"]
    wanted = [1 / total, math.exp(-1) / total, math.exp(-2) / total]
    assert [r["confidence"] for r in found["intent_ranking"]] == pytest.approx(wanted, abs=1e-12)
    assert found["entities"] == [
        {"entity": "city", "start": 9, "end": 12, "value": "New York City", "role": "from"},
        {"entity": "city", "start": 16, "end": 24, "value": "New York", "role": "to", "group": "1"},
    ]


def test_synonyms_ignore_case_and_need_the_whole_entity() -> None:
    [found] = answer("O O B-city O O O").entities
    assert (found.value, found.role, found.group) == ("New York City", None, None)  # written NYC, known as nyc
    [longer] = answer("O B-city I-city O O O").entities
    assert longer.value is None
    assert answer("O B-city I-city O O O").to_dict()["entities"][0]["value"] == "from NYC"


def test_frames_compare_intent_and_typed_spans() -> None:
    first, second = answer("O O B-city O O O"), answer("O O B-city O O O", (9.0, 0.0, 0.0))
    assert first.frame == second.frame == ("fly", frozenset({(9, 12, "city")}))
    assert answer("O O B-city#from O O O").frame != first.frame
    assert answer("O O B-city O O O", (0.0, 9.0, 0.0)).frame != first.frame
    valued = Answer(TEXT, ("a",), np.ones(1), (Entity(9, 12, "city", value="x"),))
    assert valued.frame == ("a", frozenset({(9, 12, "city")}))  # values follow from spans, they do not count


def test_only_legal_tag_sequences_come_out() -> None:
    logits = tag_logits("O O O O O O")
    names = LABELS.tags
    logits[2, names.index("I-city")] = 1.5  # the likeliest tag, but nothing opens it
    logits[2, names.index("B-city")] = 1.2
    [found] = LABELS.answer(TEXT, encoded(WORDS), np.zeros(3, np.float32), logits).entities
    assert found.key == (9, 12, "city")
    logits[4, names.index("B-city#from")] = logits[5, names.index("I-city")] = 2  # I-city cannot follow B-city#from
    logits[5, names.index("I-city#from")] = 1.9
    entities = LABELS.answer(TEXT, encoded(WORDS), np.zeros(3, np.float32), logits).entities
    assert [e.key for e in entities] == [(9, 12, "city"), (16, 24, "city#from")]


def test_no_words_no_entities() -> None:
    found = LABELS.answer("", encoded([]), np.zeros(3, np.float32), np.zeros((0, 7), np.float32))
    assert (found.entities, found.intent) == ((), "fly")
    assert found.probabilities.tolist() == [1 / 3] * 3
    assert LABELS.answer(TEXT, encoded(WORDS), np.zeros(3, np.float32), None).entities == ()


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_softmax_sums_to_one_and_keeps_the_order(logits: np.ndarray) -> None:
    found = softmax(logits)
    assert found.dtype == np.float64
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(3), abs=4 * 2.0**-52)  # three additions, one division
    for row, p in zip(logits, found, strict=True):
        order = np.argsort(-row, kind="stable")
        assert (np.diff(p[order]) <= 0).all()
        assert p[order[0]] == p.max()
