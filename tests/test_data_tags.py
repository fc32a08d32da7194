"""Spans <-> BIO tags by hand, and legal decoding against brute force over all legal sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data import Entity
from flyweight.data.tags import legal_tags, spans_to_tags, tag_names, tags_to_spans

#        fly to New York on May 5
WORDS = [(0, 3), (4, 6), (7, 10), (11, 15), (16, 18), (19, 22), (23, 24)]
TAG_NAMES = tag_names(["a", "b"])


def test_tag_names() -> None:
    assert tag_names([]) == []
    assert tag_names(["city", "date#from"]) == ["O", "B-city", "I-city", "B-date#from", "I-date#from"]


@pytest.mark.parametrize(
    ("entities", "tags"),
    [
        ([], "O O O O O O O"),
        ([Entity(7, 15, "city"), Entity(19, 24, "date")], "O O B-city I-city O B-date I-date"),
        ([Entity(7, 10, "city"), Entity(11, 15, "city")], "O O B-city B-city O O O"),
        ([Entity(8, 12, "city")], "O O B-city I-city O O O"),  # half words count
        ([Entity(3, 4, "gap")], "O O O O O O O"),  # a blank between two words
        ([Entity(7, 15, "city", role="to", group="1")], "O O B-city#to#1 I-city#to#1 O O O"),
        ([Entity(7, 15, "city", group="1")], "O O B-city##1 I-city##1 O O O"),
        ([Entity(7, 9, "x"), Entity(9, 15, "y")], "O O B-x B-y O O O"),  # a word goes to the first entity it overlaps
    ],
)
def test_spans_to_tags(entities: list[Entity], tags: str) -> None:
    assert spans_to_tags(WORDS, entities) == tags.split()


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O O O O O O", []),
        ("O O B-city I-city O B-date I-date", [Entity(7, 15, "city"), Entity(19, 24, "date")]),
        ("I-city O O O O O I-city", [Entity(0, 3, "city"), Entity(23, 24, "city")]),  # I- without B-
        ("B-a I-b O O O O O", [Entity(0, 3, "a"), Entity(4, 6, "b")]),
        ("I-a B-a I-a I-b O O O", [Entity(0, 3, "a"), Entity(4, 10, "a"), Entity(11, 15, "b")]),
        ("B-a-b I-a-b O O O O O", [Entity(0, 6, "a-b")]),
        ("O O B-city#to#1 I-city#to#1 O B-city##2 O",
         [Entity(7, 15, "city", role="to", group="1"), Entity(19, 22, "city", group="2")]),
    ],
)  # fmt: skip
def test_tags_to_spans(tags: str, entities: list[Entity]) -> None:
    assert tags_to_spans(WORDS, tags.split()) == entities


def test_numbers_of_words_and_tags_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        tags_to_spans(WORDS, ["O"])


@st.composite
def words_and_entities(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Entity]]:
    """Words of 1-4 letters with 0-2 blanks between them, and entities over runs of whole words."""
    words: list[tuple[int, int]] = []
    at = 0
    for length, gap in draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=10)):
        words.append((at, at + length))
        at += length + gap
    entities, first = [], 0
    while first < len(words):
        last = first + draw(st.integers(0, 2))
        label = draw(st.sampled_from([None, ("a", None, None), ("b", "to", None), ("b", "to", "1"), ("b", None, "1")]))
        if label and last < len(words):
            entities.append(Entity(words[first][0], words[last][1], label[0], role=label[1], group=label[2]))
        first = last + 1
    return words, entities


@given(words_and_entities())
def test_spans_to_tags_and_back(case: tuple[list[tuple[int, int]], list[Entity]]) -> None:
    words, entities = case
    assert tags_to_spans(words, spans_to_tags(words, entities)) == entities


def is_legal(path: tuple[int, ...]) -> bool:
    names = [TAG_NAMES[i] for i in path]
    return all(
        not now.startswith("I-") or before in (f"B-{now[2:]}", now)
        for before, now in zip(["O", *names], names, strict=False)
    )


LOGITS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(-8, 8), min_size=5, max_size=5), min_size=n, max_size=n)
)


@given(LOGITS)
def test_legal_tags_equal_brute_force(rows: list[list[int]]) -> None:
    logits = np.array(rows, dtype=np.float32)  # small integers: sums are exact, ties do happen

    def score(path: tuple[int, ...]) -> float:
        return float(sum(logits[t, tag] for t, tag in enumerate(path)))

    found = tuple(int(i) for i in legal_tags(logits, TAG_NAMES))
    legal = [path for path in itertools.product(range(5), repeat=len(rows)) if is_legal(path)]
    assert is_legal(found)
    assert score(found) == max(map(score, legal))


def test_legal_tags_by_hand() -> None:
    #              O  B-a I-a B-b I-b
    assert legal_tags(np.array([[0, 1, 9, 0, 0], [0, 0, 5, 0, 0]], dtype=np.float32), TAG_NAMES).tolist() == [1, 2]
    # The best tag of each word alone is B-a, I-b (3 + 4); legal are B-a, I-a (3 + 2) and B-b, I-b (2 + 4).
    assert legal_tags(np.array([[0, 3, 0, 2, 0], [0, 0, 2, 0, 4]], dtype=np.float32), TAG_NAMES).tolist() == [3, 4]
    assert legal_tags(np.zeros((3, 5), dtype=np.float32), TAG_NAMES).tolist() == [0, 0, 0]  # ties: the lower index
    assert legal_tags(np.zeros((0, 5), dtype=np.float32), TAG_NAMES).tolist() == []
    assert legal_tags(np.array([[-1.0]] * 2, dtype=np.float32), ["O"]).tolist() == [0, 0]
