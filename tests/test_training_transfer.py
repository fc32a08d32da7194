"""Transfer text: new, of the messages' own words or near them, with labels only where they are exact."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from flyweight.data.messages import Entity, Message, NLUData
from flyweight.errors import ConfigError
from flyweight.training.substitutes import WordVectors
from flyweight.training.transfer import KINDS, MIX_NGRAM, Corpus, made, splices, transfer_text

BOOK = Message("book a flight", "book", (Entity(7, 13, "thing"),))
RAIN = Message("will it rain", "weather")
VECTORS = WordVectors(
    ["book", "reserve", "rain", "Rain", "snow", "flight"],
    np.array([[1, 0.0], [1, 0.2], [0, 1], [0.3, 1], [0.2, 1], [-1, -1]]),
    "[MASK]",
    False,
)
EXACT = ("slot", "typo", "contraction", "case")


def texts_of(kind: str, messages: list[Message], n: int = 60, vectors: WordVectors | None = VECTORS) -> set[str]:
    """All that a kind makes."""
    return {m.text for m in transfer_text(messages, n, 0, (), [kind], vectors)}


def test_a_splice_is_a_beginning_and_an_end() -> None:
    words = [BOOK.text.split(), RAIN.text.split()]
    possible = {" ".join(a[:i] + b[j:]) for a in words for b in words for i in range(4) for j in range(4)}
    found = splices([BOOK, RAIN], 10, seed=0)
    assert len(found) == 10
    assert {m.text for m in found} <= possible
    assert all(m.intent is None and m.entities == () for m in found)


def test_none_twice_and_none_that_is_known() -> None:
    found = [m.text for m in splices([BOOK, RAIN], 60, seed=1, never=["book it rain"])]
    assert len(found) == len(set(found))
    assert not {BOOK.text, RAIN.text, "book it rain", ""} & set(found)
    assert "book it rain" in {m.text for m in splices([BOOK, RAIN], 60, seed=1)}
    assert "book it rain" not in {m.text for m in splices([BOOK, RAIN], 60, seed=1, never=["Book  it RAIN"])}


def test_as_many_as_there_are() -> None:
    assert {m.text for m in splices([Message("yes"), Message("no")], 9, seed=0)} == {
        "yes no",
        "no yes",
        "yes yes",
        "no no",
    }
    assert splices([Message("yes")], 9, seed=0) == ()
    assert splices([BOOK, RAIN], 0, seed=0) == ()


def test_the_seed_decides() -> None:
    a, b, c = (splices([BOOK, RAIN], 5, seed) for seed in (3, 3, 4))
    assert a == b != c


# each kind ----------------------------------------------------------------------------------------------------------


def test_a_splice_within_an_intent() -> None:
    other = Message("reserve one seat", "book")
    possible = {"book a seat", "book seat", "reserve a flight", "book one seat", "reserve one flight", "flight"}
    found = texts_of("same-intent", [BOOK, other, RAIN], 200)
    assert possible <= found
    assert not any(
        {"will", "it", "rain"} & set(text.split()) and {"book", "seat"} & set(text.split()) for text in found
    )


def test_an_ngram_is_1_to_5_words_as_they_stand() -> None:
    message = Message("will  it rain in Rome, today?")
    words = [found.span() for found in re.finditer(r"\S+", message.text)]
    possible = {message.text[words[i][0] : words[j][1]] for i in range(6) for j in range(i, min(i + 5, 6))}
    assert texts_of("ngram", [message], 400) == possible
    assert "will  it rain in Rome," in possible
    assert texts_of("ngram", [Message("yes")]) == set()


def test_masked_words() -> None:
    assert texts_of("mask", [Message("will it rain?")]) == {
        *("[MASK] it rain?", "will [MASK] rain?", "will it [MASK]?", "[MASK] [MASK] rain?", "[MASK] it [MASK]?"),
        *("will [MASK] [MASK]?", "[MASK] [MASK] [MASK]?"),
    }
    assert texts_of("mask", [RAIN], vectors=None) == set()  # whoever reads it, there is no mask for it
    assert texts_of("mask", [RAIN], vectors=VECTORS._replace(mask="")) == set()


def test_words_of_one_class() -> None:
    messages = [Message("fly to Rome today"), Message("fly to Oslo, today"), Message("drive to Rome today")]
    assert texts_of("alike", messages, 200) == {
        *("fly to Oslo today", "fly to Rome, today", "drive to Oslo today"),
        *("drive to Oslo, today", "drive to Rome, today"),
    }


def test_words_of_near_embeddings() -> None:
    found = texts_of("nearest", [Message("Book it"), Message("no rain, please")])
    assert found == {"Reserve it", "no snow, please"}  # "no Rain, please" is no new text
    assert texts_of("nearest", [RAIN], vectors=None) == set()


def test_a_value_of_the_same_label() -> None:
    messages = [
        Message("fly to Rome on May 5", "fly", (Entity(7, 11, "city", role="to"), Entity(15, 20, "date"))),
        Message("to NYC now", "fly", (Entity(3, 6, "city", "New York", role="to"), Entity(7, 10, "date"))),
        Message("in Oslo", "weather", (Entity(3, 7, "city"),)),
    ]
    found = {m.text: m for m in transfer_text(messages, 60, 0, (), ["slot"])}
    assert set(found) == {
        *("fly to NYC on May 5", "fly to Rome on now", "fly to NYC on now"),
        *("to Rome now", "to NYC May 5", "to Rome May 5"),
    }
    assert found["fly to NYC on now"] == Message(
        "fly to NYC on now", "fly", (Entity(7, 10, "city", "New York", role="to"), Entity(14, 17, "date"))
    )
    assert found["to Rome May 5"].entities == (Entity(3, 7, "city", role="to"), Entity(8, 13, "date"))


def test_typos_spare_values_and_move_them() -> None:
    message = Message("please fly to Rome, mister", "fly", (Entity(14, 18, "city"),))
    found = transfer_text([message], 200, 0, (), ["typo"])
    assert len({m.text for m in found}) > 50
    for m in found:
        [e] = m.entities
        assert (m.text[e.start : e.end], m.intent, e.entity) == ("Rome", "fly", "city")
        assert " fly to Rome, " in m.text
    assert any(m.text.startswith("please ") and not m.text.endswith("mister") for m in found)
    assert any(not m.text.startswith("please ") and not m.text.endswith("mister") for m in found)


def test_contractions_move_values() -> None:
    message = Message("What\u2019s it like in Rome, can you tell me?", "weather", (Entity(18, 22, "city"),))
    found = {m.text: m for m in transfer_text([message], 60, 0, (), ["contraction"])}
    assert set(found) == {
        "What is it like in Rome, can you tell me?",
        "Whats it like in Rome, can you tell me?",
        "What\u2019s it like in Rome, can u tell me?",
    }
    assert found["What is it like in Rome, can you tell me?"].entities == (Entity(19, 23, "city"),)
    band = Message("play thanks", "play", (Entity(5, 11, "song"),))  # a value is left as it is
    assert transfer_text([band], 20, 0, (), ["contraction"]) == ()


def test_case_where_the_tokenizer_keeps_it() -> None:
    cased = VECTORS._replace(keeps_case=True)
    assert texts_of("case", [BOOK], vectors=cased) == {"BOOK A FLIGHT", "Book a flight"}
    [upper] = [m for m in transfer_text([BOOK], 9, 0, (), ["case"], cased) if m.text.isupper()]
    assert upper == Message("BOOK A FLIGHT", "book", BOOK.entities)
    assert texts_of("case", [BOOK]) == set()
    assert texts_of("case", [BOOK], vectors=None) == set()
    assert transfer_text([BOOK], 9, 0, ["book a FLIGHT"], ["case"], cased) == ()  # judged on, whatever its case


def test_the_mix_follows_its_chances() -> None:
    """Of 10 words 1 is masked, and a quarter of the messages is cut to an n-gram."""
    words = [f"w{chr(97 + i)}" for i in range(20)]
    corpus, rng = Corpus([Message(" ".join(words))], VECTORS), np.random.default_rng(0)
    texts = [found.text.split() for _ in range(2000) if (found := KINDS["mix"](corpus, 0, rng)) is not None]
    whole = [text for text in texts if len(text) == 20]
    assert abs(1 - len(whole) / len(texts) - MIX_NGRAM) < 0.04  # 4 standard deviations
    assert {len(text) for text in texts if len(text) < 20} == {1, 2, 3, 4, 5}
    masked = np.mean([word == "[MASK]" for text in whole for word in text])
    assert abs(masked - 0.1) < 0.007


# all of them --------------------------------------------------------------------------------------------------------


def test_all_kinds_make_something_new_each_once(tiny_data: NLUData) -> None:
    never = [m.text for m in (*tiny_data.validation, *tiny_data.test)]
    vectors = VECTORS._replace(words=["weather", "ticket", "flight", "book", "rain", "hello"])
    pairs = list(made(tiny_data.train, 600, 0, never, KINDS, vectors))
    counts = Counter(kind for kind, _ in pairs)
    assert set(counts) >= set(KINDS) - {"case", "contraction"}
    folded = [m.folded for _, m in pairs]
    assert len(set(folded)) == len(folded)
    assert not set(folded) & {m.folded for m in tiny_data.messages}
    for kind, m in pairs:
        assert (m.intent is not None) == (kind in EXACT)
        assert kind in EXACT or not m.entities
    labels = {e.label for m in tiny_data.train for e in m.entities}
    values = {m.text[e.start : e.end] for m in tiny_data.train for e in m.entities}
    spans = [(e.label, m.text[e.start : e.end]) for _, m in pairs for e in m.entities]
    assert len(spans) > 50
    assert all(label in labels and value in values for label, value in spans)


def test_messages_to_be_judged_on_are_never_made() -> None:
    everything = texts_of("splice", [BOOK, RAIN], 60)
    assert "book it rain" in everything
    found = transfer_text([BOOK, RAIN], 60, 0, ["Book  IT rain"], ["splice"])
    assert {m.text for m in found} == everything - {"book it rain"}


def test_seed_and_kinds_decide(tiny_data: NLUData) -> None:
    a, b, c = (transfer_text(tiny_data.train, 40, seed, (), KINDS, VECTORS) for seed in (3, 3, 4))
    assert a == b != c
    assert len(a) == 40
    assert transfer_text(tiny_data.train, 0, 0) == ()
    assert transfer_text((), 9, 0) == ()
    assert transfer_text([Message("")], 9, 0, (), KINDS, VECTORS) == ()
    assert transfer_text(tiny_data.train, 9, 0, (), []) == ()
    with pytest.raises(ConfigError, match=r"transfer text of kind 'swap'; allowed: splice, same-intent, ngram, "):
        transfer_text(tiny_data.train, 9, 0, (), ["splice", "swap"])


def test_odd_messages_do_no_harm() -> None:
    odd = [Message(text, "a") for text in ("", "?!", "\u3053\u3093\u306b\u3061\u306f", "x", "\ud83d", "İI ß")]
    odd.append(Message("  Rome ", "b", (Entity(2, 6, "city"),)))
    for m in transfer_text(odd, 300, 0, (), KINDS, VECTORS._replace(keeps_case=True)):
        assert m.text.strip()
        assert all(m.text[e.start : e.end].casefold() == "rome" for e in m.entities)
