"""What every reader makes: messages with an intent and entity spans, in splits.

Entity   [start, end) in characters, a type, and optionally value, role, group
Message  text, intent, entities
NLUData  train / validation / test messages, synonyms, lookups, regexes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

# Intents that say "none of the others", or retrieval intents below one of these names: out_of_scope/other_language.
OUT_OF_SCOPE = ("out_of_scope", "oos", "nlu_fallback")

PARTS = ("train", "validation", "test")


def is_out_of_scope(intent: str | None) -> bool:
    """Whether an intent's name, up to its first slash, is one of OUT_OF_SCOPE."""
    return intent is not None and intent.partition("/")[0] in OUT_OF_SCOPE


@dataclass(frozen=True)
class Entity:
    """A span `text[start:end]` of type `entity`; `value` is its normal form where it differs from the text.

    No `#` in entity, role and group: it joins them in `label`. Readers refuse it.
    """

    start: int
    end: int
    entity: str
    value: str | None = None
    role: str | None = None
    group: str | None = None

    @property
    def label(self) -> str:
        """The name in BIO tags: `entity`, `entity#role` or `entity#role#group` (an empty role stays empty)."""
        if self.group:
            return f"{self.entity}#{self.role or ''}#{self.group}"
        return f"{self.entity}#{self.role}" if self.role else self.entity

    @property
    def key(self) -> tuple[int, int, str]:
        """What must be equal for two spans to count as the same: seqeval's exact match on a typed span."""
        return self.start, self.end, self.label


@dataclass(frozen=True)
class Message:
    """One user message; `intent` is None where the source names none."""

    text: str
    intent: str | None = None
    entities: tuple[Entity, ...] = ()

    @property
    def folded(self) -> str:
        """The text with case and white space folded: equal folded texts are exact duplicates."""
        return " ".join(self.text.casefold().split())


@dataclass(frozen=True)
class NLUData:
    """Messages in three splits, and what the source says beside them.

    `synonyms` maps a written form in lower case to its value; `lookups` and `regexes` map a name to a list of
    strings. `notes` are one-line warnings for the user (a leak between the source's own files, say). `split` records
    how parts were held out ({"test": 0.2, "validation": 0.1, "seed": 0}, only for parts that the source did not bring).
    """

    train: tuple[Message, ...]
    validation: tuple[Message, ...] = ()
    test: tuple[Message, ...] = ()
    synonyms: dict[str, str] = field(default_factory=dict)
    lookups: dict[str, list[str]] = field(default_factory=dict)
    regexes: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    split: dict[str, float] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, tuple[Message, ...]]:
        """The messages of each part by its name, in the order of PARTS."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages: train, then validation, then test."""
        return self.train + self.validation + self.test

    @property
    def intents(self) -> list[str]:
        """Sorted intent names of all messages."""
        return sorted({m.intent for m in self.messages if m.intent is not None})

    @property
    def entity_labels(self) -> list[str]:
        """Sorted entity labels (type, role, group) of all messages."""
        return sorted({e.label for m in self.messages for e in m.entities})

    def fingerprint(self) -> str:
        """SHA-256 over all messages, whatever their split or order: the same source gives the same fingerprint."""
        return fingerprint(self.messages)

    def with_splits(self, train: Iterable[Message], validation: Iterable[Message], test: Iterable[Message]) -> NLUData:
        """The same data with other splits."""
        return replace(self, train=tuple(train), validation=tuple(validation), test=tuple(test))


def fingerprint(messages: Iterable[Message]) -> str:
    """SHA-256 over the messages as sorted JSON lines (order and splits do not matter)."""
    lines = sorted(
        json.dumps([m.text, m.intent, [list(e.key) for e in m.entities]], ensure_ascii=False) for m in messages
    )
    # JSON can bring half a surrogate pair, which plain UTF-8 refuses.
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
