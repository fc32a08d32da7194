"""Vocabulary: the word embeddings of tokens that the domain never uses go, with their tokens.

    keep t  =  t occurs at least `least` times in the domain's texts,  or is one of the `common` first of the base,
               or is needed: special, a single character or byte, or on the way to one that is kept

The domain's texts: training and validation messages, synonyms and lookup tables. Messages made of kept tokens are cut
as before, and get the same answers bit for bit. A word with a token that went is cut into shorter ones that stayed.

Changes: word rows (V, E) -> (V', E), about half of a MiniLM, and the tokenizer.json to match; nothing of the time, rows
are looked up. Needs: messages, labelled or not. Gives up: what the base knew of words that nobody wrote yet.
Before packing; trainings afterwards can still learn from a model with the old tokens.
Source: Abdaoui et al. 2020, Load What You Need, arXiv:2010.05609 (tokens of languages that are not needed).
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from flyweight.data.messages import NLUData
from flyweight.errors import DataError, FlyweightWarning
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_tokens
from flyweight.techniques.room import Run, check_whole
from flyweight.tokenizer.shrink import first_tokens

MOST = 10_000_000  # more tokens than any base has


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens of the domain.

    least: times a token occurs in the domain's texts to stay, 1 to 10000000
    common: so many of the base's tokens stay beside, those with the lowest numbers, 0 to 10000000: the most frequent
    ones, as bases number them. They are for words that nobody wrote yet, see docs/lab-notebook.md
    """

    least: int = 1
    common: int = 10_000
    ZERO: ClassVar[dict[str, Any] | None] = {"common": MOST}

    def __post_init__(self) -> None:
        check_whole("vocabulary", "least", self.least, 1, MOST)
        check_whole("vocabulary", "common", self.common, 0, MOST)

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A model with fewer word rows; a copy, and a warning, where the base has no more tokens than `common`.

        Errors: ConfigError for packed matrices and odd tokenizers; DataError.
        """
        n_rows = model.encoder.config.vocab_size
        if self.common >= n_rows:
            if self.common < MOST:
                warnings.warn(
                    f"vocabulary: the model has {n_rows} tokens, common is {self.common}: none goes; "
                    "give a lower common",
                    FlyweightWarning,
                    stacklevel=2,
                )
            return model.copy()
        texts = domain_texts(run.data)
        if not texts:
            raise DataError("no training messages", allowed="vocabulary needs at least one, labelled or not")
        counts = Counter(int(i) for e in model.tokenizer.encode_batch(texts) for i in e.ids)
        kept = {i for i, n in counts.items() if n >= self.least}
        kept |= set(first_tokens(model.tokenizer.source, self.common))
        return keep_tokens(model, kept)


def domain_texts(data: NLUData) -> list[str]:
    """Texts of training and validation messages, synonyms and what they stand for, entries of lookup tables."""
    texts = [m.text for part in (data.train, data.validation) for m in part]
    texts += [text for pair in data.synonyms.items() for text in pair]
    return texts + [text for entries in data.lookups.values() for text in entries]
