"""The text without labels that a model learns from beside its training messages: made of them, and the user's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from flyweight.data.messages import Message, NLUData
from flyweight.data.unlabelled import read_unlabelled
from flyweight.model.nlu import NLUModel
from flyweight.training.logits import Teacher
from flyweight.training.substitutes import WordVectors, word_vectors
from flyweight.training.transfer import KINDS, transfer_text


def unlabelled_text(
    data: NLUData,
    model: NLUModel,
    teacher: Teacher,
    each: int,
    seed: int,
    paths: Sequence[str | Path] = (),
    kinds: Iterable[str] = KINDS,
) -> tuple[Message, ...]:
    """At most `each` messages a training message out of transfer_text, then those that read_unlabelled finds in paths.

    None of them is a validation or test message. model: who learns; mask and case are made as both tokenizers see them,
    near words where the teacher is a model. Errors: DataError for the files, ConfigError for an unknown kind.
    """
    never: Collection[str] = {m.text for m in (*data.validation, *data.test)}
    vectors = vectors_of(model, teacher)
    made = transfer_text(data.train, each * len(data.train), seed, never, kinds, vectors)
    if not paths:
        return made
    known = {m.text for m in (*data.train, *made)}
    return (*made, *read_unlabelled(paths, {*never, *known}))


def vectors_of(model: NLUModel, teacher: Teacher) -> WordVectors:
    """The teacher's words as teacher and model read them; of a teacher that gives logits alone, no words."""
    if not isinstance(teacher, NLUModel):
        return word_vectors(model.tokenizer, None)
    rows: np.ndarray = teacher.encoder.words.weight.detach().float().cpu().numpy()
    return word_vectors(teacher.tokenizer, rows, model.tokenizer)
