"""Which word may stand for which: by the company it keeps in the messages, or by a model's word embeddings.

alike           word -> words of its distributional class: they follow and precede the same words
nearest         word -> words whose embeddings have the largest cosine with its own
word_vectors    the words of a model that are one token, their embeddings, and how its tokenizer sees text

The classes stand in for parts of speech: no tagger is needed, and other languages than English have them too.
Sources: Schuetze 1995, cmp-lg/9503009 (parts of speech from neighbours); Tang et al. 2019, arXiv:1903.12136 (words of
one part of speech); Jiao et al. 2020, arXiv:1909.10351 (TinyBERT: words that are near).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flyweight.tokenizer import Tokenizer
from flyweight.tokenizer.spec import vocabulary

Substitutes = dict[str, list[str]]

N_ALIKE, N_NEAREST = 10, 10
LEAST_ALIKE, LEAST_NEAR = 0.3, 0.4  # cosines: below them words have little in common
N_CONTEXTS = 250  # neighbours that are told apart, the most frequent ones (Schuetze): rows of 2 x 251 numbers a word
MOST_WORDS = 20_000  # the most frequent ones: 40 MB of rows
BLOCK = 512  # words whose cosines with all others are in memory: 40 MB
EDGE = ""  # the neighbour of a message's first and last word
MASKS = ("[MASK]", "<mask>", "[UNK]", "<unk>")


class WordVectors(NamedTuple):
    """words (V), their embeddings rows (V, E); mask: text of one token that hides a word, "" without; keeps_case."""

    words: list[str]
    rows: np.ndarray
    mask: str
    keeps_case: bool


def word_vectors(tokenizer: Tokenizer, embeddings: np.ndarray | None, *others: Tokenizer) -> WordVectors:
    """The words that a tokenizer keeps whole, two letters or longer, with their rows of embeddings (n_ids, E).

    embeddings: None gives no words. others: tokenizers that will read the same text: a mask must be one token to all,
    and case is kept if any keeps it.
    """
    readers = (tokenizer, *others)
    mask = next((m for m in MASKS if all(_is_one_token(m, reader) for reader in readers)), "")
    keeps_case = any(list(r.encode("No").ids) != list(r.encode("no").ids) for r in readers)
    if embeddings is None:
        return WordVectors([], np.zeros((0, 0), np.float32), mask, keeps_case)
    blank = len(tokenizer.encode("").ids)
    tokens = {token.lstrip("▁Ġ") for token in vocabulary(json.loads(tokenizer.source)) if not token.startswith("##")}
    words = sorted(token for token in tokens if len(token) > 1 and token.isalpha())
    encoded = tokenizer.encode_batch([f" {word}" for word in words])
    whole = [(w, int(e.ids[e.first[0]])) for w, e in zip(words, encoded, strict=True) if len(e.ids) == blank + 1]
    return WordVectors([w for w, _ in whole], embeddings[[i for _, i in whole]], mask, keeps_case)


def _is_one_token(mask: str, tokenizer: Tokenizer) -> bool:
    """Whether the text is read as one token between words."""
    return len(tokenizer.encode(f"no {mask} no").ids) == len(tokenizer.encode("no no").ids) + 1


def nearest(wanted: Iterable[str], vectors: WordVectors) -> Substitutes:
    """Of the wanted words that have a vector: up to N_NEAREST others of cosine LEAST_NEAR and more, nearest first."""
    index = {word: i for i, word in enumerate(vectors.words)}
    rows = np.array(sorted({index[word] for word in wanted if word in index}), np.int64)
    unit = _unit(vectors.rows.astype(np.float32))
    found: Substitutes = {}
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        found |= _best(part, unit[part] @ unit.T, vectors.words, N_NEAREST, LEAST_NEAR)
    return found


def alike(messages: Sequence[Sequence[str]]) -> Substitutes:
    """Of each word: up to N_ALIKE others that stand between the same words, most alike first. messages: their words.

        alike(v, w) = sqrt(cos(l_v, l_w) cos(r_v, r_w))     l_w, r_w: log(1 + n) of w's left and right neighbours

    At least LEAST_ALIKE; words without a common neighbour on either side are never alike.
    """
    counts = Counter(word for words in messages for word in words)
    words = [word for word, _ in counts.most_common(MOST_WORDS)]
    index = {word: i for i, word in enumerate(words)}
    contexts = {EDGE: 0} | {word: i + 1 for i, word in enumerate(words[:N_CONTEXTS])}
    sides = np.zeros((2, len(words), len(contexts)), np.float32)
    for message in messages:
        for at, word in enumerate(message):
            row = index.get(word)
            before = message[at - 1] if at else EDGE
            after = message[at + 1] if at + 1 < len(message) else EDGE
            for side, neighbour in enumerate((before, after)):
                if row is not None and neighbour in contexts:
                    sides[side, row, contexts[neighbour]] += 1
    left, right = (_unit(np.log1p(side)) for side in sides)
    found: Substitutes = {}
    for start in range(0, len(words), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(words)))
        cosines = np.sqrt(np.maximum(left[rows] @ left.T, 0) * np.maximum(right[rows] @ right.T, 0))
        found |= _best(rows, cosines, words, N_ALIKE, LEAST_ALIKE)
    return found


def _best(rows: np.ndarray, cosines: np.ndarray, words: Sequence[str], n: int, least: float) -> Substitutes:
    """word -> the n of largest cosine, `least` and more, itself left out; cosines (len(rows), len(words))."""
    cosines[np.arange(len(rows)), rows] = -1.0
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :n]
    found = {}
    for row, best, values in zip(rows, order, cosines, strict=True):
        if chosen := [words[i] for i in best if values[i] >= least]:
            found[words[row]] = chosen
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
