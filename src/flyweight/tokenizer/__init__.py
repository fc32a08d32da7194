"""Text -> token ids, and where its words begin: the one tokenizer door of workshop and service.

Entities are tagged on each word's first sub-token. What a word is, is the tokenizer's own matter: BERT's pre-tokenizer
splits at white space and round every punctuation mark, RoBERTa's into runs of letters, of digits and of others. Those
with a Metaspace (XLM-R) split at blanks only; their words are cut further, see `package.metaspace_words`.

What a tokenizer.json asks for is read in `spec` against a list of what the native tokenizer does (native/tokenizer):
BERT's WordPiece, RoBERTa's byte-level BPE, SentencePiece's Unigram, with their added tokens and post-processors.
Anything else, known or not, goes to the `tokenizers` package, which the native one equals token by token.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

from flyweight.errors import CheckpointError
from flyweight.tokenizer.package import Encoded, Package
from flyweight.tokenizer.spec import UnsupportedError, native_fields, parse, vocabulary

__all__ = ["Encoded", "Tokenizer"]


class Tokenizer:
    """A `tokenizer.json` with a length limit; longer messages lose their tail, special tokens stay.

    `native` is the C++ tokenizer, which the engine calls without Python; where it is None, `refusal` says why and the
    `tokenizers` package does the work.
    """

    def __init__(self, source: str, max_tokens: int):
        """`source` is the text of a tokenizer.json. Errors: CheckpointError, MissingExtraError."""
        self.source, self.max_tokens = source, max_tokens
        self.native: Any = None
        self.refusal: str | None = None
        try:
            spec = parse(source)
            self.native = _native_class()(**native_fields(spec, max_tokens))
            self._vocab_size = len(vocabulary(spec).keys() | {t["content"] for t in spec["added_tokens"]})
        except (UnsupportedError, ValueError) as error:
            self.refusal = str(error)
            self._package = Package(source, max_tokens, self.refusal)
            self._vocab_size = self._package.vocab_size

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str, int]]:
        return type(self), (self.source, self.max_tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self  # nothing about it changes

    @classmethod
    def from_file(cls, path: Path, max_tokens: int) -> Tokenizer:
        """Read a tokenizer.json."""
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a model folder needs a tokenizer.json")
        return cls(path.read_text(encoding="utf-8"), max_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._vocab_size

    @property
    def n_ids(self) -> int:
        """1 + the largest id: as many rows must the word embeddings have. Ids may have gaps."""
        return int(self.native.largest_id) + 1 if self.native is not None else self._package.n_ids

    @property
    def sha256(self) -> str:
        """Hash of the tokenizer.json text: recorded in the manifest."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def encode(self, text: str) -> Encoded:
        """Tokenize one message."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[Encoded]:
        """Tokenize several messages (no padding). Half a surrogate pair, which is no Unicode text, counts as U+FFFD."""
        if self.native is None:
            return self._package.encode_batch(texts)
        return [Encoded(*self.native.encode(text)) for text in texts]


def _native_class() -> Any:
    try:
        return importlib.import_module("flyweight._native").Tokenizer
    except (ImportError, AttributeError) as error:  # or built before there was a native tokenizer
        raise UnsupportedError("flyweight._native was not built") from error
