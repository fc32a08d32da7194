"""Transfer text: messages without labels, made of the training messages, for a teacher to answer.

What a student learns from its teacher's logits and hidden states needs no labels, and more text than there is. A splice
is the beginning of one message and the end of another, cut between words: in the domain's words, with new neighbours.
Source: Tang et al. 2019, arXiv:1903.12136 (synthetic transfer text makes students good; theirs masks and replaces).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from flyweight.data.messages import Message

ATTEMPTS = 4  # draws a splice wanted, before fewer are returned: a few short messages have few splices


def splices(messages: Sequence[Message], n: int, seed: int, never: Collection[str] = ()) -> tuple[Message, ...]:
    """At most n different splices, none of them a message's own text or in `never`; without intent and entities."""
    rng = np.random.default_rng(seed)
    words = [m.text.split() for m in messages]
    taken = {m.text for m in messages} | set(never)
    found: list[Message] = []
    for _ in range(ATTEMPTS * n if len(words) > 1 else 0):
        if len(found) == n:
            break
        first, last = (words[i] for i in rng.integers(len(words), size=2))
        head, tail = first[: rng.integers(len(first) + 1)], last[rng.integers(len(last) + 1) :]
        text = " ".join(head + tail)
        if text and text not in taken:
            taken.add(text)
            found.append(Message(text))
    return tuple(found)
