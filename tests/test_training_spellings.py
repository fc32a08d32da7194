"""The same words written otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.training.spellings import CONTRACTIONS, FORM, FORMS, NEIGHBOURS, cased, contracted, typo


def many(make: object, text: str, n: int = 400) -> set[str]:
    """All that a function makes of a text."""
    rng = np.random.default_rng(0)
    return {make(text, rng) for _ in range(n)}  # type: ignore[operator]


def test_a_typo_is_one_slip() -> None:
    found = many(typo, "tuba")
    assert {"tbua", "tuab"} <= found  # two letters in the wrong order, the first stays
    assert {"tba", "tua", "tub"} <= found  # one left out
    assert {"tuuba", "tubba", "tubaa"} <= found  # one doubled
    assert {"tyba", "tiba", "tuva", "tuna", "tubs", "tubq"} <= found  # the key beside it
    assert all(word[0] == "t" and 3 <= len(word) <= 5 for word in found)
    assert len(found) == 2 + 3 + 3 + sum(len(NEIGHBOURS[letter]) for letter in "uba")


def test_short_words_and_what_is_no_word_stay() -> None:
    for text in ("yes", "a", "", "4711", "it's", "e-mail", "3rd1"):
        assert many(typo, text, 20) == {text}


def test_letters_without_a_key_are_doubled_instead() -> None:
    assert "дождь" not in many(typo, "дождь")
    assert {len(word) for word in many(typo, "дождь")} == {4, 5, 6}


def test_capitals_stay_capitals() -> None:
    assert all(word.isupper() for word in many(typo, "ROMA"))


def test_the_keyboard() -> None:
    assert sorted(NEIGHBOURS["q"]) == ["a", "w"]
    assert sorted(NEIGHBOURS["g"]) == ["b", "f", "h", "t", "v", "y"]
    assert all(a in NEIGHBOURS[b] for a, near in NEIGHBOURS.items() for b in near)


@pytest.mark.parametrize(
    ("form", "others"),
    [
        ("what is", {"what's", "whats"}),
        ("What's", {"What is", "Whats"}),
        ("cannot", {"can't", "can not"}),
        ("I AM", {"I'm", "Im"}),
        ("it's", {"it is"}),
    ],
)
def test_forms_of_the_same_words(form: str, others: set[str]) -> None:
    assert many(contracted, form, 40) == others


def test_forms_are_found_as_whole_words() -> None:
    found = [one.group() for one in FORM.finditer("Cannot go: what is that's you yours dont can't you'll")]
    assert found == ["Cannot", "what is", "that's", "you", "dont", "can't"]
    assert [one.group() for one in FORM.finditer("its thank rain")] == []


def test_no_form_stands_for_two_things() -> None:
    assert len(FORMS) == sum(len(row) for row in CONTRACTIONS)


def test_capitals() -> None:
    assert many(cased, "to Rome") == {"to rome", "TO ROME", "To Rome"}
    assert many(cased, "Now") == {"now", "NOW"}
    assert many(cased, "") == {""}
    assert many(cased, "große") == {"große", "Große"}  # GROSSE would move what follows


@pytest.mark.parametrize("text", ["iyi ım var", "thankſ a lot", "let's ask İt is"])
def test_letters_that_only_fold_to_ours_are_left_alone(text: str) -> None:
    found = FORM.sub(lambda m: contracted(m[0], np.random.default_rng(0)), text)
    assert all(word in found for word in text.split() if not word.isascii())
