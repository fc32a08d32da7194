"""The embedded data set is what its README and the project say: large, varied, without leaks."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from flyweight.data.load import load_data
from flyweight.data.messages import Message, NLUData, is_out_of_scope


@pytest.fixture(scope="module")
def data() -> NLUData:
    return load_data("assistant", validation=0.0)


def bare(message: Message) -> str:
    """Letters and digits alone, lower case."""
    return " ".join(re.sub(r"[^\w\s]", "", message.folded).split())


def template(message: Message) -> str:
    """The text with the name of its entity in place of each span: equal for two messages that swap a value."""
    found, at = [], 0
    for e in message.entities:
        found += [message.text[at : e.start], f"<{e.label}>"]
        at = e.end
    return " ".join("".join([*found, message.text[at:]]).casefold().split())


def test_size(data: NLUData) -> None:
    intents = Counter(m.intent for m in data.train)
    assert len(intents) >= 24
    assert len({e.entity for m in data.train for e in m.entities}) >= 8
    assert len(data.train) >= 1800
    assert len(data.test) >= 400
    assert set(intents) == {m.intent for m in data.test}
    assert min(intents.values()) >= 60
    assert min(Counter(m.intent for m in data.test).values()) >= 15
    assert {e.label for m in data.test for e in m.entities} <= {e.label for m in data.train for e in m.entities}
    assert sum(is_out_of_scope(m.intent) for m in data.train) >= 100


def test_no_message_twice(data: NLUData) -> None:
    twice = [text for text, n in Counter(bare(m) for m in data.messages).items() if n > 1]
    assert twice == []


def test_no_template_with_the_slot_swapped(data: NLUData) -> None:
    counts = Counter(template(m) for m in data.messages)
    again = {text: n for text, n in counts.items() if n > 1}
    assert sum(again.values()) <= 0.01 * len(data.messages), again


def test_spans_begin_and_end_with_words(data: NLUData) -> None:
    for m in data.messages:
        for e in m.entities:
            span = m.text[e.start : e.end]
            assert span == span.strip(" .,!?"), (m.text, span)
            before, after = m.text[e.start - 1 : e.start], m.text[e.end : e.end + 1]
            assert not before.isalnum(), m.text
            assert not after.isalnum(), m.text


def test_no_synonym_is_missing(data: NLUData) -> None:
    # One written form has one value: elsewhere it would be read as another thing.
    for m in data.messages:
        for e in m.entities:
            written = m.text[e.start : e.end].lower()
            if written in data.synonyms and e.value is not None:
                assert e.value == data.synonyms[written], m.text
