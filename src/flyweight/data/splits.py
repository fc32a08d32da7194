"""Stratified splits that never part duplicates.

    group       all messages with one folded text (Message.folded)
    stratum     all groups of one intent
    held out    floor(share * groups + 1/2) of each stratum, those with the smallest SHA-256(seed, folded text);
                of an intent or an entity label that would go whole, the text with the largest stays;
                texts of the source's other parts stay too

A hash in place of a shuffle makes the split a property of the text: it depends neither on the order of the messages
nor on Python's hash seed, and a new message moves few others.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from flyweight.data.messages import Message
from flyweight.errors import ConfigError


def split(
    messages: Iterable[Message], share: float, seed: int, *, stay: Collection[str] = ()
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """`(kept, held_out)`, each in the order of the input; `share` of each intent's distinct texts is held out.

    No intent and no entity label is held out whole: one with a single distinct text is kept. Nor are the folded texts
    `stay`, those of other parts, say: others are held out in their place, as far as the intent has any.
    Raises ConfigError unless 0 <= share < 1.
    """
    check_share("share", share)
    messages = tuple(messages)
    groups: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        groups[message.folded].append(message)
    strata: dict[str, list[str]] = defaultdict(list)
    for folded, group in groups.items():
        strata[_stratum(group)].append(folded)
    held: set[str] = set()
    for folded_texts in strata.values():
        n_held = math.floor(share * len(folded_texts) + 0.5)
        movable = (folded for folded in folded_texts if folded not in stay)
        held.update(sorted(movable, key=lambda folded: _rank(folded, seed))[:n_held])
    held -= _rescued(groups, held, seed)
    kept = tuple(m for m in messages if m.folded not in held)
    return kept, tuple(m for m in messages if m.folded in held)


def sample(messages: tuple[Message, ...], at_most: int) -> tuple[Message, ...]:
    """All messages, or of more than `at_most` about that many, stratified by intent."""
    return messages if len(messages) <= at_most else split(messages, at_most / len(messages), 0)[1]


def check_share(name: str, share: float, what: str = "a share of the messages") -> None:
    """ConfigError unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise ConfigError(f"{name} is {share}; allowed: {what}, 0 <= {name} < 1")


def _stratum(group: list[Message]) -> str:
    """The commonest intent of a group of duplicates; the alphabet breaks a tie."""
    counts = Counter(m.intent or "" for m in group)
    return min(counts, key=lambda intent: (-counts[intent], intent))


def _rescued(groups: dict[str, list[Message]], held: set[str], seed: int) -> set[str]:
    """Texts to keep after all: one of each intent and of each entity label that would be held out whole."""
    homes: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for folded, group in groups.items():
        intents = {("intent", m.intent) for m in group}
        labels = {("label", e.label) for m in group for e in m.entities}
        for name in intents | labels:
            homes[name].append(folded)
    return {max(texts, key=lambda t: _rank(t, seed)) for texts in homes.values() if all(t in held for t in texts)}


def _rank(folded: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{folded}".encode("utf-8", "surrogatepass")).digest()
