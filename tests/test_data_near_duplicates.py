"""Near-duplicates: forms and similarities worked out by hand, and no pair missed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data import Entity, Message
from flyweight.data.near_duplicates import near_duplicates, normal, similar_pairs, similarity, template, trigrams


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Call me at 7!", "call me at"),
        ("  what's UP?? ", "what s up"),
        ("a_b-c", "a b c"),
        ("STRASSE straße", "strasse strasse"),
        ("नमस्ते", "नमस्ते"),  # vowel signs are kept
        ("日本、東京", "日本 東京"),
        ("42 :-)", ""),
        ("", ""),
    ],
)
def test_normal(text: str, form: str) -> None:
    assert normal(text) == form


def test_template() -> None:
    rome = Entity(7, 11, "city", role="to")
    assert template(Message("Fly to Rome at 7!", "i", (rome,))) == "fly to {city#to} at"
    assert template(Message("Fly to Rome", "i", (rome,))) is None  # two words beside the entity
    assert template(Message("Fly to me at 7", "i")) is None
    assert (
        template(Message("Rome or Oslo at once", "i", (Entity(0, 4, "a"), Entity(8, 12, "b")))) == "{a} or {b} at once"
    )


@pytest.mark.parametrize(
    ("a", "b", "j"),
    [
        ("abc", "ABC!", 1),
        ("abc", "abcd", 2 / 5),  # " ab" "abc" "bc " and " ab" "abc" "bcd" "cd "
        ("abcd", "abcd abcd", 4 / 5),  # one gram more: "d a"
        ("abc", "abc abc", 3 / 4),
        ("abc", "xyz", 0),
        ("a", "b", 0),
        ("", "1", 0),
    ],
)
def test_similarity(a: str, b: str, j: float) -> None:
    assert similarity(a, b) == similarity(b, a) == j


def test_four_fifths_are_enough() -> None:
    texts = ["abcd abcd", "abc", "abcd", "abc abc", "a", "a b"]
    assert list(similar_pairs(texts)) == [(2, 0)]
    assert list(similar_pairs(texts, groups=[0, 0, 0, 0, 0, 0])) == []
    assert list(similar_pairs(texts, groups=[0, 1, 1, 1, 1, 1])) == [(2, 0)]
    assert list(similar_pairs([])) == []


WORDS = st.lists(st.text("ab ", min_size=1, max_size=9), max_size=4).map(lambda words: normal(" abc ".join(words)))


@given(st.lists(WORDS.filter(bool), max_size=25, unique=True), st.data())
def test_no_pair_is_missed(texts: list[str], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts)))
    sets = [trigrams(text) for text in texts]
    slow = {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if groups[i] != groups[j] and 5 * len(sets[i] & sets[j]) >= 4 * len(sets[i] | sets[j])
    }
    found = list(similar_pairs(texts, groups))
    assert {(min(pair), max(pair)) for pair in found} == slow
    assert len(found) == len(slow)


def test_near_duplicates() -> None:
    def fly(city: str, intent: str, end: str = "") -> Message:
        return Message(f"please fly to {city}{end}", intent, (Entity(14, 14 + len(city), "city"),))

    messages = [
        Message("Where is my card", "where"),  # 0 train
        Message("where is my card?", "where"),  # 1 train: the same part, the same intent
        fly("Rome", "fly"),  # 2 train
        Message("abcd", "x"),  # 3 train
        Message("where is  my CARD", "where"),  # 4 test: an exact duplicate of 0
        Message("where is my card!!", "lost"),  # 5 test: near 0, which has another intent
        fly("Ouagadougou", "fly"),  # 6 test: the template of 2
        fly("Llanfairpwll", "walk", "!"),  # 7 validation: the template of 2, another intent
        Message("abcd abcd", None),  # 8 test: near 3, without an intent
        Message("42", "fly"),  # 9 test
        Message("43", "walk"),  # 10 test: neither has letters
    ]
    found = near_duplicates(messages, [0, 0, 0, 0, 2, 2, 2, 1, 2, 2, 2])
    assert found.across_parts == [(5, 0), (8, 3)]
    assert found.across_intents == [(0, 5), (1, 5), (4, 5), (5, 0)]
    assert found.templates_across_parts == [(6, 2), (7, 2)]
    assert found.templates_across_intents == [(2, 7), (6, 7), (7, 2)]


def test_exact_duplicates_are_none_of_them() -> None:
    """A text with two intents and a text in two parts are told elsewhere; their neighbours still count."""
    messages = [Message("ok", "yes"), Message("OK", "thanks"), Message("ok!", "yes")]
    found = near_duplicates(messages, [0, 2, 2])
    assert found.across_parts == [(2, 0)]
    assert found.across_intents == [(2, 1)]
