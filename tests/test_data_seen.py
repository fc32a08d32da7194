"""The memory of training messages: golden bytes, what counts as the same message, damaged memories."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data import Message
from flyweight.data.seen import remember, were_seen
from flyweight.errors import DataError

TEXTS = st.lists(st.text(st.characters(exclude_categories=())), max_size=8)


def messages(*texts: str) -> list[Message]:
    return [Message(text, "x") for text in texts]


def test_golden() -> None:
    # SHA-256 of "hello" begins with 2cf24dba, that of "hi" with 8f434346
    golden = base64.b64encode(bytes.fromhex("2cf24dba" + "8f434346")).decode()
    assert remember(messages("hi", "hello", " HI ")) == golden
    assert were_seen(messages("Hello", "hi\tthere", "hi"), golden) == [True, False, True]


def test_nothing_remembered_is_nothing_seen() -> None:
    assert remember([]) == ""
    assert were_seen(messages("a", "b"), "") == [False, False]
    assert were_seen([], remember(messages("a"))) == []


@given(TEXTS, TEXTS)
def test_seen_are_the_remembered_ones(known: list[str], asked: list[str]) -> None:
    memory = remember(messages(*known))
    assert memory == remember(messages(*known[::-1], *known))
    assert all(were_seen(messages(*known), memory))
    folded = {m.folded for m in messages(*known)}  # a false hit has the chance 8 * 8 / 2^32
    assert were_seen(messages(*asked), memory) == [m.folded in folded for m in messages(*asked)]


def test_a_large_memory_has_few_false_hits() -> None:
    memory = remember(messages(*(f"known {i}" for i in range(20_000))))
    assert len(memory) <= 20_000 * 4 * 4 / 3 + 4
    # Expected 20,000^2 / 2^32 = 0.09 false hits; these texts are fixed, so this cannot turn red by chance.
    assert sum(were_seen(messages(*(f"new {i}" for i in range(20_000))), memory)) == 0


@pytest.mark.parametrize("memory", ["j0NDR", "not base64!", "j0NDRmE=", "ä", "j0NDRizyTbo=", "j0NDRo9DQ0Y=", None, [1]])
def test_damaged_memories(memory: str) -> None:
    with pytest.raises(DataError) as caught:
        were_seen(messages("hi"), memory)
    assert str(caught.value) == "the model's memory of its training messages is damaged; train or export it again"
