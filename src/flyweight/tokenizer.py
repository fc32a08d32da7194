"""Text -> token ids, and where its words begin: the one tokenizer door of workshop and service.

A word is what the tokenizer's own pre-tokenizer makes (BERT: white space and every punctuation mark split);
entities are tagged on each word's first sub-token.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from flyweight.data.tags import Span
from flyweight.errors import CheckpointError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Encoded:
    """One message as the encoder sees it.

    ids (T,) int32 with the special tokens; `first` (W,) the index in `ids` of each word's first sub-token;
    `words` the W character spans. Words beyond the length limit are absent.
    """

    ids: np.ndarray
    first: np.ndarray
    words: list[Span]


class Tokenizer:
    """A `tokenizer.json` with a length limit; longer messages lose their tail, special tokens stay."""

    def __init__(self, source: str, max_tokens: int):
        """`source` is the text of a tokenizer.json."""
        try:
            self._tokenizer = HFTokenizer.from_str(source)
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
        self.max_tokens = max_tokens
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.source = source

    @classmethod
    def from_file(cls, path: Path, max_tokens: int) -> Tokenizer:
        """Read a tokenizer.json."""
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a model folder needs a tokenizer.json")
        return cls(path.read_text(encoding="utf-8"), max_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def sha256(self) -> str:
        """Hash of the tokenizer.json text: recorded in the manifest."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def encode(self, text: str) -> Encoded:
        """Tokenize one message."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[Encoded]:
        """Tokenize several messages (no padding). Half a surrogate pair, which is no Unicode text, counts as U+FFFD."""
        try:
            found = self._tokenizer.encode_batch(texts)
        except TypeError:
            found = self._tokenizer.encode_batch([_SURROGATE.sub("\ufffd", text) for text in texts])
        return [_encoded(e) for e in found]


def _encoded(encoding: object) -> Encoded:
    first: list[int] = []
    words: list[Span] = []
    last_word = None
    for i, (word, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):  # type: ignore[attr-defined]
        if word is None or end <= start:
            continue
        if word == last_word:
            words[-1] = (words[-1][0], end)
        else:
            first.append(i)
            words.append((start, end))
        last_word = word
    ids = np.asarray(encoding.ids, dtype=np.int32)  # type: ignore[attr-defined]
    return Encoded(ids, np.asarray(first, dtype=np.int64), words)
