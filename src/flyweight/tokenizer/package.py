"""The `tokenizers` package: what the native tokenizer equals, and does not cover. And what a word of its tokens is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight.data.tags import Span
from flyweight.errors import CheckpointError, MissingExtraError

TRIAL = ["", "a \U0001f600\u0378 7:30"]  # known and unknown characters: what does not work fails at once
_SURROGATE = re.compile("[\ud800-\udfff]")
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # noqa: E501

# Scripts that are written without blanks between words.
UNSPACED = (
    *("Bopomofo", "Han", "Hiragana", "Katakana", "Khmer", "Lao", "Myanmar", "New_Tai_Lue", "Tai_Le", "Tai_Tham"),
    *("Tai_Viet", "Thai", "Tibetan", "Yi"),
)
_LETTER = r"[\p{L}\p{N}&&[^" + "".join(r"\p{" + script + "}" for script in UNSPACED) + "]]"
_MARK = r"[\p{M}\x{200C}\x{200D}]"
UNIT = rf"{_LETTER}(?:{_LETTER}|{_MARK})*|(?m:.){_MARK}*"  # see metaspace_words


@dataclass(frozen=True)
class Encoded:
    """One message as the encoder sees it.

    ids (T,) int32 with the special tokens; `first` (W,) the index in `ids` of each word's first sub-token;
    `words` the W character spans. Words beyond the length limit are absent.
    """

    ids: np.ndarray
    first: np.ndarray
    words: list[Span]


class Package:
    """A tokenizer.json in the `tokenizers` package, cut to `max_tokens`."""

    def __init__(self, source: str, max_tokens: int, refusal: str):
        """`refusal`: why the native tokenizer does not do it. Errors: CheckpointError, MissingExtraError."""
        try:
            import tokenizers
        except ImportError as error:
            raise MissingExtraError("tokenizers", "tokenizers", f"this tokenizer.json ({refusal})") from error
        with _refused("read"):
            self.tokenizer = tokenizers.Tokenizer.from_str(source)
            self.tokenizer.no_padding()
            self.tokenizer.enable_truncation(max_tokens)
        self.blank = _metaspace(json.loads(source).get("pre_tokenizer"))
        self._units = None if self.blank is None else unit_splitter()
        self.encode_batch(TRIAL)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def n_ids(self) -> int:
        """1 + the largest id."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode_batch(self, texts: list[str]) -> list[Encoded]:
        """Tokenize several messages. Errors: CheckpointError."""
        texts = [_SURROGATE.sub("\ufffd", text) for text in texts]
        with _refused("used"):
            found = self.tokenizer.encode_batch(texts)
            return [self.encoded(e, text) for e, text in zip(found, texts, strict=True)]

    def encoded(self, encoding: Any, text: str) -> Encoded:
        """What `tokenizers` says of a text, with its words."""
        if self.blank is None:
            first, words = plain_words(encoding)
        else:
            first, words = metaspace_words(encoding, text, self.blank, units(self._units, text))
        return Encoded(np.asarray(encoding.ids, dtype=np.int32), np.asarray(first, dtype=np.int64), words)


@contextmanager
def _refused(verb: str) -> Iterator[None]:
    """The package raises bare exceptions for what a tokenizer.json lacks, or panics, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"tokenizer.json cannot be {verb}: {reason}") from error


def plain_words(encoding: Any) -> tuple[list[int], list[Span]]:
    """The pre-tokenizer's words: the index of each one's first token, and its characters."""
    first: list[int] = []
    words: list[Span] = []
    last_word = None
    for i, (word, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
        if word is None or end <= start:
            continue
        if word == last_word:
            words[-1] = (words[-1][0], end)
        else:
            first.append(i)
            words.append((start, end))
        last_word = word
    return first, words


def metaspace_words(encoding: Any, text: str, blank: str, unit: list[int]) -> tuple[list[int], list[Span]]:
    """The words of a tokenizer that splits at blanks only ("Berlin." is one word of it, and so is a Chinese sentence).

    The text is cut into units: a run of letters and numbers (\\p{L}, \\p{N}) of scripts that are written with blanks,
    with the combining marks and joiners among and behind them; or any other character with the marks behind it.
    A token starts a word unless it goes on in the unit where the token before it ends, both in one word of the
    pre-tokenizer, or begins with a character that is the last word's already (the normalizer made several of it).
    Words hold whole tokens: "don't" is don ' t where its pieces are, and 7:30 one word where it is one piece.

    Tokens lose the white space at their ends, and the `blank` by which the Metaspace stands for one; those that are
    nothing else belong to no word. unit (len(text),): the number of each character's unit.
    """
    first: list[int] = []
    words: list[Span] = []
    last_word = None
    tokens = zip(encoding.tokens, encoding.word_ids, encoding.offsets, strict=True)
    for i, (token, word, (start, end)) in enumerate(tokens):
        covered = text[start:end]
        start += len(covered) - len(covered.lstrip(WHITE_SPACE + blank))
        end -= len(covered) - len(covered.rstrip(WHITE_SPACE + blank))
        if word is None or end <= start or not token.strip(blank):
            continue
        last = words[-1][1] if words else 0
        if start < last or (word == last_word and unit[start] == unit[last - 1]):
            words[-1] = (words[-1][0], max(last, end))
        else:
            first.append(i)
            words.append((start, end))
        last_word = word
    return first, words


def unit_splitter() -> Any:
    """A pre-tokenizer of the package that cuts a text into units, see `metaspace_words`."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(UNIT), "isolated")


def units(splitter: Any, text: str) -> list[int]:
    """The number of each character's unit."""
    return [i for i, (unit, _) in enumerate(splitter.pre_tokenize_str(text)) for _ in unit]


def _metaspace(node: Any) -> str | None:
    """The character that stands for a blank where a pre-tokenizer is or has a Metaspace."""
    if not isinstance(node, dict):
        return None
    if node.get("type") == "Metaspace":
        return str(node["replacement"])
    found = [_metaspace(step) for step in node.get("pretokenizers") or []]
    return next((blank for blank in found if blank is not None), None)
