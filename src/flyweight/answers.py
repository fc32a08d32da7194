"""Logits -> answers: the one decoding shared by the PyTorch model and the runtime.

p = softmax(logits / temperature)         intent confidence
best in scope < threshold                 the answer is a fallback: the likeliest out-of-scope intent, else nlu_fallback
tags = best legal BIO path                entities, then synonyms give their values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from flyweight.data.messages import Entity, is_out_of_scope
from flyweight.data.tags import Span, legal_tags, tag_names, tags_to_spans
from flyweight.tokenizer import Encoded

FALLBACK = "nlu_fallback"  # Rasa's name for "not sure enough"


@dataclass(frozen=True)
class Answer:
    """What a model says about one message.

    `probabilities` (C,) float64 in the order of `intents`, sums to 1; `entities` in text order. `threshold`: the least
    probability of an intent in scope; below it the answer is a fallback.
    """

    text: str
    intents: tuple[str, ...]
    probabilities: np.ndarray
    entities: tuple[Entity, ...] = ()
    threshold: float = 0.0

    @cached_property
    def best(self) -> dict[str, Any]:
        """{"name", "confidence"} of the answer: the most likely intent (the lower index on a tie), or a fallback.

        A model without intents answers the name None with the confidence 0, as Rasa does.
        """
        if not self.intents:
            return NO_INTENT
        if not self.threshold:
            at = int(self.probabilities.argmax())
            return {"name": self.intents[at], "confidence": float(self.probabilities[at])}
        return self.ranking()[0]

    @property
    def intent(self) -> str:
        """Name of the answer; "" for a model without intents."""
        return self.best["name"] or ""

    @property
    def confidence(self) -> float:
        """Confidence of the answer: its probability; at least the threshold for a fallback."""
        return float(self.best["confidence"])

    @property
    def out_of_scope_score(self) -> float:
        """1 - the probability of the best intent in scope: the higher, the likelier is none of them meant."""
        inside = [p for name, p in zip(self.intents, self.probabilities, strict=True) if not is_out_of_scope(name)]
        return 1.0 - float(max(inside, default=0.0))

    def ranking(self) -> list[dict[str, Any]]:
        """[{"name", "confidence"}], best first, a fallback before all."""
        order = np.argsort(-self.probabilities, kind="stable")
        ranked = [{"name": self.intents[i], "confidence": float(self.probabilities[i])} for i in order]
        return with_fallback(ranked, self.threshold)

    @property
    def frame(self) -> tuple[str, frozenset[tuple[int, int, str]]]:
        """Intent and typed spans: two answers with equal frames are the same answer."""
        return self.intent, frozenset(e.key for e in self.entities)

    def to_dict(self) -> dict[str, Any]:
        """Rasa's parse result: text, intent, intent_ranking (best first), entities."""
        found = [
            entity_item(self.text, e.start, e.end, (e.entity, e.role or "", e.group or ""), e.value)
            for e in self.entities
        ]
        return parse_result(self.text, self.ranking(), found)


NO_INTENT: dict[str, Any] = {"name": None, "confidence": 0.0}


def with_fallback(ranking: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """The ranking, with a fallback put first where no intent in scope reaches the threshold.

    The fallback is the best ranked out-of-scope intent, moved to the front, or `nlu_fallback`; its confidence is at
    least the threshold (Rasa's FallbackClassifier gives it the threshold), so that the list stays sorted.
    """
    if not threshold or not ranking:
        return ranking
    inside = next((r["confidence"] for r in ranking if not is_out_of_scope(r["name"])), 0.0)
    if inside >= threshold:
        return ranking
    own: dict[str, Any]
    own = next((r for r in ranking if is_out_of_scope(r["name"])), {"name": FALLBACK, "confidence": 0.0})
    first = {"name": own["name"], "confidence": max(threshold, own["confidence"])}
    return [first, *(r for r in ranking if r is not own)]


def entity_item(text: str, start: int, end: int, parts: tuple[str, str, str], value: str | None) -> dict[str, Any]:
    """Of Rasa's parse result. parts: entity, role, group, the last two "" where there is none."""
    entity, role, group = parts
    item: dict[str, Any] = {"entity": entity, "start": start, "end": end, "value": value or text[start:end]}
    if role:
        item["role"] = role
    if group:
        item["group"] = group
    return item


def parse_result(text: str, ranking: list[dict[str, Any]], entities: list[dict[str, Any]]) -> dict[str, Any]:
    """Rasa's parse result from the ranked intents and the `entity_item`s of one message."""
    return {
        "text": text,
        "intent": ranking[0] if ranking else NO_INTENT,
        "intent_ranking": ranking,
        "entities": entities,
    }


class Answerer(Protocol):
    """Anything that answers messages: the PyTorch model, a loaded .fly, a classic classifier."""

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        ...


@dataclass(frozen=True)
class Labels:
    """What logits mean: intent names, entity labels, temperature, synonyms (written form, lower case -> value).

    threshold: least confidence of an answer in scope, 0 for none. fallback_rate: the share of messages in scope that
    the threshold was fitted to turn away, 0 where it was not fitted; what is fitted once is fitted again after every
    step that changes the model. Both in [0, 1).
    """

    intents: tuple[str, ...]
    entity_labels: tuple[str, ...] = ()
    temperature: float = 1.0
    synonyms: dict[str, str] = field(default_factory=dict)
    threshold: float = 0.0
    fallback_rate: float = 0.0

    @property
    def tags(self) -> list[str]:
        """BIO tag names in the order of the entity head's outputs."""
        return tag_names(self.entity_labels)

    def answer(self, text: str, encoded: Encoded, intent_logits: np.ndarray, tag_logits: np.ndarray | None) -> Answer:
        """Decode one message. intent_logits (C,); tag_logits (W, n_tags) or None without an entity head."""
        entities: tuple[Entity, ...] = ()
        if tag_logits is not None and len(encoded.words):
            entities = self.entities(text, encoded.words, legal_tags(tag_logits, self.tags))
        return Answer(text, self.intents, softmax(intent_logits / self.temperature), entities, self.threshold)

    def entities(self, text: str, words: Sequence[Span], path: Sequence[int] | np.ndarray) -> tuple[Entity, ...]:
        """The entities of one message, with the values of synonyms, from the number of each word's tag."""
        names = self.tags
        found = tags_to_spans(words, [names[i] for i in path])
        return tuple(replace(e, value=self.synonyms.get(text[e.start : e.end].lower())) for e in found)

    def items(self, text: str, words: Sequence[Span], path: Sequence[int]) -> list[dict[str, Any]]:
        """The same as `entity_item`s, of a legal path: B opens an entity, I goes on with it."""
        spans: list[tuple[int, int, int]] = []  # start, end, number of B
        for (start, end), tag in zip(words, path, strict=True):
            if tag & 1:
                spans.append((start, end, tag))
            elif tag:
                spans[-1] = (spans[-1][0], end, tag - 1)
        value, parts = self.synonyms.get, self._parts
        return [entity_item(text, s, e, parts[tag >> 1], value(text[s:e].lower())) for s, e, tag in spans]

    @cached_property
    def _parts(self) -> list[tuple[str, str, str]]:
        """Entity, role and group of each label."""
        split = [(*label.split("#"), "", "") for label in self.entity_labels]
        return [(names[0], names[1], names[2]) for names in split]


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x - max) / sum over the last axis, in float64."""
    x = np.asarray(logits, dtype=np.float64)
    if not x.shape[-1]:
        return x
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
