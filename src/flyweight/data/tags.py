"""Entity spans <-> BIO tags on words, and decoding with legal transitions only.

A tag list is `["O", "B-city", "I-city", ...]`: O first, then B and I of each entity label, labels sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flyweight.data.messages import Entity

Span = tuple[int, int]  # [start, end) in characters


def tag_names(entity_labels: Sequence[str]) -> list[str]:
    """`["O", "B-a", "I-a", "B-b", "I-b"]` for the labels a, b; empty for no labels (no entity head)."""
    return ["O", *(f"{side}-{label}" for label in entity_labels for side in "BI")] if entity_labels else []


def spans_to_tags(words: Sequence[Span], entities: Sequence[Entity]) -> list[str]:
    """One BIO tag a word. A word belongs to the first entity it overlaps; the entity's first word is B."""
    tags, last = [], None
    for start, end in words:
        hit = next((e for e in entities if start < e.end and e.start < end), None)
        tags.append("O" if hit is None else f"{'I' if hit is last else 'B'}-{hit.label}")
        last = hit
    return tags


def tags_to_spans(words: Sequence[Span], tags: Sequence[str]) -> list[Entity]:
    """Join B- and following I- words of one label into entities; an I- without its B- opens one (seqeval's rule)."""
    entities: list[Entity] = []
    previous = "O"
    for (start, end), tag in zip(words, tags, strict=True):
        side, _, label = tag.partition("-")
        if side == "I" and previous != "O" and previous.partition("-")[2] == label:
            opened = entities.pop()
            start = opened.start
        if tag != "O":
            entity, role, group = (*label.split("#"), "", "")[:3]
            entities.append(Entity(start, end, entity, role=role or None, group=group or None))
        previous = tag
    return entities


def legal_tags(logits: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The most likely tag sequence in which I-x follows only B-x or I-x.

    Maximises sum_t log softmax(logits[t])[z_t] by the Viterbi recursion; ties take the lower index.
    logits (W, n_tags) float -> (W,) int64. The row constant of the softmax cannot change the best path, so raw
    logits are summed. Costs O(W * n_tags): an I- tag has two legal parents, any other tag takes the best parent.
    """
    n_words, n_tags = logits.shape
    begin = {name[2:]: i for i, name in enumerate(names) if name.startswith("B-")}
    inside = np.array([i for i, name in enumerate(names) if name.startswith("I-")], dtype=np.int64)
    opener = np.array([begin[names[i][2:]] for i in inside], dtype=np.int64)
    score = np.zeros(n_tags)
    parents = np.zeros((n_words, n_tags), dtype=np.int64)
    for t in range(n_words):
        best = int(score.argmax())
        parent = np.full(n_tags, best, dtype=np.int64)
        if t:
            parent[inside] = np.where(score[opener] >= score[inside], opener, inside)
        carried = score[parent]
        if not t:
            carried[inside] = -np.inf
        score = carried + logits[t].astype(np.float64)
        parents[t] = parent
    path = np.zeros(n_words, dtype=np.int64)
    last = int(score.argmax()) if n_words else 0
    for t in range(n_words - 1, -1, -1):
        path[t] = last
        last = int(parents[t, last])
    return path
