"""Transfer text by splicing: new, without labels, of the messages' own words."""

from __future__ import annotations

from flyweight.data.messages import Entity, Message
from flyweight.training.transfer import splices

BOOK = Message("book a flight", "book", (Entity(7, 13, "thing"),))
RAIN = Message("will it rain", "weather")


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
