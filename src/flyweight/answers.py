"""Logits -> answers: the one decoding shared by the PyTorch model and the runtime.

p = softmax(logits / temperature)         intent confidence
tags = best legal BIO path                entities, then synonyms give their values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from flyweight.data.messages import Entity
from flyweight.data.tags import Span, legal_tags, tag_names, tags_to_spans
from flyweight.tokenizer import Encoded


@dataclass(frozen=True)
class Answer:
    """What a model says about one message.

    `probabilities` (C,) float64 in the order of `intents`, sums to 1; `entities` in text order.
    """

    text: str
    intents: tuple[str, ...]
    probabilities: np.ndarray
    entities: tuple[Entity, ...] = ()

    @property
    def intent(self) -> str:
        """The most likely intent (the lower index on a tie)."""
        return self.intents[int(self.probabilities.argmax())]

    @property
    def confidence(self) -> float:
        """Probability of the most likely intent."""
        return float(self.probabilities.max())

    @property
    def frame(self) -> tuple[str, frozenset[tuple[int, int, str]]]:
        """Intent and typed spans: two answers with equal frames are the same answer."""
        return self.intent, frozenset(e.key for e in self.entities)

    def to_dict(self) -> dict[str, Any]:
        """Rasa's parse result: text, intent, intent_ranking (best first), entities."""
        order = np.argsort(-self.probabilities, kind="stable")
        ranking = [{"name": self.intents[i], "confidence": float(self.probabilities[i])} for i in order]
        return parse_result(self.text, ranking, self.entities)


def parse_result(text: str, ranking: list[dict[str, Any]], found: Sequence[Entity]) -> dict[str, Any]:
    """Rasa's parse result from the ranked intents and the entities of one message."""
    entities = []
    for e in found:
        item = {"entity": e.entity, "start": e.start, "end": e.end, "value": e.value or text[e.start : e.end]}
        item |= {k: v for k, v in (("role", e.role), ("group", e.group)) if v}
        entities.append(item)
    return {"text": text, "intent": ranking[0], "intent_ranking": ranking, "entities": entities}


class Answerer(Protocol):
    """Anything that answers messages: the PyTorch model, a loaded .fly, a classic classifier."""

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        ...


@dataclass(frozen=True)
class Labels:
    """What logits mean: intent names, entity labels, temperature, synonyms (written form, lower case -> value)."""

    intents: tuple[str, ...]
    entity_labels: tuple[str, ...] = ()
    temperature: float = 1.0
    synonyms: dict[str, str] = field(default_factory=dict)

    @property
    def tags(self) -> list[str]:
        """BIO tag names in the order of the entity head's outputs."""
        return tag_names(self.entity_labels)

    def answer(self, text: str, encoded: Encoded, intent_logits: np.ndarray, tag_logits: np.ndarray | None) -> Answer:
        """Decode one message. intent_logits (C,); tag_logits (W, n_tags) or None without an entity head."""
        entities: tuple[Entity, ...] = ()
        if tag_logits is not None and len(encoded.words):
            entities = self.entities(text, encoded.words, legal_tags(tag_logits, self.tags))
        return Answer(text, self.intents, softmax(intent_logits / self.temperature), entities)

    def entities(self, text: str, words: Sequence[Span], path: Sequence[int] | np.ndarray) -> tuple[Entity, ...]:
        """The entities of one message, with the values of synonyms, from the number of each word's tag."""
        names = self.tags
        found = tags_to_spans(words, [names[i] for i in path])
        return tuple(replace(e, value=self.synonyms.get(text[e.start : e.end].lower())) for e in found)


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x - max) / sum over the last axis, in float64."""
    x = np.asarray(logits, dtype=np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
