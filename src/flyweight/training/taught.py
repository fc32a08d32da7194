"""What a teacher says of a message, checked row by row: whoever yields logits is a stranger.

Taught      intent (C,), words (W spans in characters), tags (W, n_tags) or None
Classes     names of what the logits mean; `checked` makes a Taught of what was given for a text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from flyweight.answers import Labels
from flyweight.data.source import listed, shown
from flyweight.data.tags import Span
from flyweight.errors import ConfigError
from flyweight.model.finetuned import tag_sources

LARGEST = 1e30  # differences of larger logits overflow in float32


@dataclass(frozen=True)
class Taught:
    """A teacher's logits of one message: intent (C,); words (W spans in characters); tags (W, n_tags) or None."""

    intent: np.ndarray
    words: Sequence[Span] = ()
    tags: np.ndarray | None = None


class RowError(Exception):
    """Something that is no row of logits: what was found, what is allowed."""

    def __init__(self, found: str, allowed: str):
        super().__init__(found, allowed)
        self.found, self.allowed = found, allowed


class Classes:
    """Intents and tags in the order of a teacher's logits; `labels` names the same in the order of a Taught."""

    def __init__(self, intents: Sequence[str], tags: Sequence[str] = ()):
        """Errors: ConfigError for names that are no classes."""
        self.tags = tuple(tags)
        odd = [t for t in tags if t != "O" and (t[:2] not in ("B-", "I-") or len(t) < 3)]
        if len(intents) < 2 or len(set(intents)) < len(intents):
            raise ConfigError(f"a teacher of {len(intents)} intents ({listed(intents)}); allowed: 2 or more, each once")
        if odd or (tags and "O" not in tags) or len(set(tags)) < len(tags) or len(tags) == 1:
            raise ConfigError(f"a teacher's tags are {listed(tags)}; allowed: O, B-name and I-name, each once")
        self.labels = Labels(tuple(intents), tuple(sorted({t[2:] for t in tags if t != "O"})))
        self.columns = tag_sources(self.tags, self.labels.tags)

    def checked(self, text: str, row: Any) -> Taught:
        """What was given for one text: (intent, words, tags), or intent logits where there are no tags.

        Errors: RowError.
        """
        n_intents, n_tags = len(self.labels.intents), len(self.tags)
        if not n_tags:
            return Taught(_numbers(row, (n_intents,), f"intent logits for {shown(text)}"))
        try:
            intent, words, tags = row
            n_words = len(words)
        except (TypeError, ValueError) as error:
            allowed = "intent logits, words and tag logits, since the teacher has tags"
            raise RowError(f"{type(row).__name__} for {shown(text)}", allowed) from error
        spans = _numbers(words, (n_words, 2), f"words of {shown(text)}")
        if not ((spans == np.floor(spans)) & (spans >= 0) & (spans <= len(text))).all() or (np.diff(spans) <= 0).any():
            allowed = f"spans [start, end) in characters, 0 <= start < end <= {len(text)}"
            raise RowError(f"the words {shown(words)} of {shown(text)}", allowed)
        given = _numbers(tags, (n_words, n_tags), f"tag logits for {shown(text)}")
        ordered = np.stack([given[:, at] - behind for at, behind in self.columns], axis=1)
        intent = _numbers(intent, (n_intents,), f"intent logits for {shown(text)}")
        return Taught(intent, [(int(s), int(e)) for s, e in spans], ordered)


def _numbers(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """An array of that shape, float64. Errors: RowError."""
    allowed = f"numbers of shape {shape}, at most {LARGEST:g} in size"
    try:
        found = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise RowError(f"{shown(values)} as {what}", allowed) from error
    if not found.size and not shape[0]:
        return np.zeros(shape)
    if found.dtype.kind not in "fiu" or found.shape != shape or not (np.abs(found) <= LARGEST).all():
        raise RowError(f"{what} of shape {found.shape}: {shown(found.tolist())}", allowed)
    return found.astype(np.float64)
