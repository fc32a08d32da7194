"""Only the embedding rows that messages have use of: within a training, the others are not there.

Rows of other tokens and bigrams would see no gradient, only decay, and the optimizer would move them all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from flyweight.model.encoder import Encoder, Renumbered
from flyweight.model.linear import Embedding
from flyweight.positions import bigram_buckets
from flyweight.tokenizer import Encoded


@contextmanager
def occurring_rows(encoder: Encoder, encoded: Sequence[Encoded]) -> Iterator[np.ndarray]:
    """Within, the encoder has the word and bigram rows of these messages alone; afterwards all are back in place.

    Gives the new number of each token id, (vocab_size,) int32, for the messages to be renumbered by. Which bigram a
    token ends is still decided by the true ids, of itself and the one before: the encoder is told them.
    """
    used = np.unique(np.concatenate([[0], *(e.ids for e in encoded)]))  # 0 fills batches up
    with ExitStack() as places:
        places.enter_context(_only(encoder.words, used))
        if encoder.ngrams is not None:
            places.enter_context(_only_bigrams(encoder, encoder.ngrams, used, encoded))
        yield _numbering(used, encoder.config.vocab_size)


@contextmanager
def _only_bigrams(encoder: Encoder, ngrams: Embedding, words: np.ndarray, encoded: Sequence[Encoded]) -> Iterator[None]:
    """words: true id of each word row there is. What fills a batch up finds row 0; nothing comes of it."""
    n, device = encoder.config.ngrams, ngrams.weight.device
    used = np.unique(np.concatenate([[0], *(bigram_buckets(e.ids, n) for e in encoded)]))
    rows = _numbering(used, n).astype(np.int64)
    encoder.renumbered = Renumbered(torch.from_numpy(words).to(device), torch.from_numpy(rows).to(device))
    try:
        with _only(ngrams, used):
            yield
    finally:
        encoder.renumbered = None


@contextmanager
def _only(table: Embedding, used: np.ndarray) -> Iterator[None]:
    """Within, the table has the used rows alone."""
    full = table.weight.data
    at = torch.from_numpy(used).to(full.device)
    table.weight = nn.Parameter(full[at].clone())
    try:
        yield
    finally:
        full[at] = table.weight.data
        table.weight = nn.Parameter(full)


def _numbering(used: np.ndarray, n: int) -> np.ndarray:
    """Where each of n rows is among the used ones, (n,) int32; 0 for the others."""
    found = np.zeros(n, np.int32)
    found[used] = np.arange(len(used))
    return found
