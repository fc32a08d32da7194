"""Splits: nothing lost, duplicates together, every intent kept, the same on any machine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data import Entity, Message, split
from flyweight.errors import ConfigError

MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["a", "A ", "b", " B", "b  c", "B C", "d", "e", "f", "ẞ", "ss", "ß"]),
              st.sampled_from(["x", "y", "z", None]),
              st.sampled_from([(), (Entity(0, 1, "x"),), (Entity(0, 1, "v"),), (Entity(0, 1, "v", role="r"),)])),
    max_size=40,
)  # fmt: skip
SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.75, 0.99])


def intent_messages(counts: dict[str, int]) -> list[Message]:
    return [Message(f"{intent} {i}", intent) for intent, n in counts.items() for i in range(n)]


def labels(messages: Iterable[Message]) -> set[str]:
    return {e.label for m in messages for e in m.entities}


def held_counts(messages: list[Message], share: float, seed: int = 0) -> dict[str | None, int]:
    _, held = split(messages, share, seed)
    return {intent: sum(m.intent == intent for m in held) for intent in {m.intent for m in messages}}


def test_held_out_numbers_by_hand() -> None:
    # floor(0.2 n + 1/2): 1 -> 0, 2 -> 0, 3 -> 1, 7 -> 1, 8 -> 2, 10 -> 2; 0.9 * 2 rounds to 2, one stays
    messages = intent_messages({"one": 1, "two": 2, "three": 3, "seven": 7, "eight": 8, "ten": 10})
    assert held_counts(messages, 0.2) == {"one": 0, "two": 0, "three": 1, "seven": 1, "eight": 2, "ten": 2}
    assert held_counts(messages, 0.9) == {"one": 0, "two": 1, "three": 2, "seven": 6, "eight": 7, "ten": 9}
    assert held_counts(messages, 0.0) == dict.fromkeys(["one", "two", "three", "seven", "eight", "ten"], 0)
    assert split([], 0.2, 0) == ((), ())


def test_duplicates_count_once_and_move_together() -> None:
    messages = [Message(text, "x") for text in ("Hi", "hi ", "HI", "hello", "yo", "hey  you", "hey you")]
    for seed in range(20):
        kept, held = split(messages, 0.25, seed)  # 4 distinct texts: one of them is held out
        assert len({m.folded for m in held}) == 1
        assert not {m.folded for m in kept} & {m.folded for m in held}


def test_texts_that_stay_are_replaced_by_others() -> None:
    messages = intent_messages({"x": 10, "y": 3})
    _, usual = split(messages, 0.2, 0)  # 2 of x, 1 of y
    kept, held = split(messages, 0.2, 0, stay={m.folded for m in usual})
    assert sorted(m.intent or "" for m in held) == ["x", "x", "y"]
    assert set(usual) <= set(kept)
    _, rest = split(messages, 0.2, 0, stay={f"x {i}" for i in range(9)} | {"y 0", "y 1", "y 2"})
    assert rest == (Message("x 9", "x"),)


def test_an_intent_whose_texts_all_belong_to_other_strata_is_kept() -> None:
    # "a 0" and "b 0" also carry the intent "rare"; whatever is held out, "rare" stays in training.
    shared = [Message("a 0", "rare"), Message("b 0", "rare")]
    messages = [*intent_messages({"a": 3, "b": 3}), Message("a 0", "a"), Message("b 0", "b"), *shared]
    for seed in range(50):
        kept, _ = split(messages, 0.67, seed)
        assert "rare" in {m.intent for m in kept}


def test_an_entity_label_is_never_held_out_whole() -> None:
    # Three of 100 messages have a role that no other message has: held out together with the chance 0.5^3.
    marked = [Message(f"to {i}", "x", (Entity(3, 4, "city", role="to"),)) for i in range(3)]
    messages = [*intent_messages({"x": 97}), *marked]
    rescued = 0
    for seed in range(100):
        kept, held = split(messages, 0.5, seed)
        assert labels(kept) == {"city#to"}
        assert len(held) in (49, 50)
        rescued += len(held) == 49
    assert rescued == 12


def test_a_rescued_label_keeps_its_duplicates() -> None:
    once = Message("To  Rome", "x", (Entity(4, 8, "city"),))
    messages = [*intent_messages({"x": 20}), once, Message("to rome", "x"), Message("TO ROME", "y")]
    for seed in range(30):
        kept, _ = split(messages, 0.9, seed)
        assert [m.text for m in kept if m.folded == "to rome"] == ["To  Rome", "to rome", "TO ROME"]


@given(MESSAGES, SHARES, st.integers(0, 5))
def test_split_is_a_partition_that_never_parts_duplicates(messages: list[Message], share: float, seed: int) -> None:
    kept, held = split(messages, share, seed)
    left = list(messages)
    for message in (*kept, *held):
        left.remove(message)
    assert not left
    assert not {m.folded for m in kept} & {m.folded for m in held}
    assert {m.intent for m in kept} == {m.intent for m in messages}
    assert labels(kept) == labels(messages)
    positions = {id(m): i for i, m in enumerate(messages)}
    for side in (kept, held):
        assert [positions[id(m)] for m in side] == sorted(positions[id(m)] for m in side)


@given(MESSAGES, SHARES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_of_the_messages_does_not_matter(
    messages: list[Message], share: float, seed: int, chance: random.Random
) -> None:
    shuffled = list(messages)
    chance.shuffle(shuffled)
    once, again = split(messages, share, seed), split(shuffled, share, seed)
    assert {m.folded for m in once[1]} == {m.folded for m in again[1]}


def test_seeds_differ() -> None:
    messages = intent_messages({"x": 100})
    assert len({split(messages, 0.2, seed)[1] for seed in range(5)}) == 5


def test_independent_of_the_hash_seed() -> None:
    code = (
        "from flyweight.data import Message, split\n"
        "messages = [Message(f'{i % 5} {i}', str(i % 5)) for i in range(60)]\n"
        "print([m.text for m in split(messages, 0.2, 3)[1]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("share", [-0.1, 1.0, 2, float("nan")])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ConfigError) as caught:
        split([], share, 0)
    assert str(caught.value) == f"share is {share}; allowed: a share of the messages, 0 <= share < 1"
