"""Student: a smaller model made of the one that comes in, or of a pretrained base, for distillation to train.

    student = f(parent)      f chooses layers, heads and neurons, rotates the width, projects the embeddings

How each part is made of the parent's stands in model/students.py. The student is untrained, and its receipt says what
it is worth as it is: `distillation` comes next. Kinds:

    transformer   fewer, or more and thinner, layers of the parent
    bilstm        LSTM layers in both directions, maximum over the tokens
    cnn           convolutions over 5 tokens, maximum over the tokens
    bag           embeddings of words and hashed bigrams, mean over the tokens

Changes: everything; an ordinary model in any form and on any runtime. Needs: training messages where width or
embeddings shrink, or a vocabulary is learnt. Gives up: most of what the parent knew, until it is distilled.
A chain of students, each the teacher of the next, is what `distillation:teacher=assistant` is for.
Sources: DistilBERT, Sanh et al. 2019, arXiv:1910.01108 (layers of the teacher); FitNets, Romero et al. 2014,
arXiv:1412.6550 (deeper and thinner); BiLSTM Tang et al. 2019, arXiv:1903.12136; convolutions Kim 2014, arXiv:1408.5882;
bag Ye et al. 2021, arXiv:2110.08536.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch

from flyweight.errors import ConfigError, DataError
from flyweight.model.checkpoints import resolve_base
from flyweight.model.nlu import NLUModel
from flyweight.model.small import VOCABULARY, train_tokenizer
from flyweight.model.students import (
    Sizes,
    from_base,
    from_nothing,
    light_student,
    transformer_student,
    with_ngrams,
    with_vocabulary,
)
from flyweight.techniques.room import Run, check_choice, check_count
from flyweight.tokenizer import Encoded

Kind = Literal["transformer", "bilstm", "cnn", "bag"]
HIDDEN = 256  # of the other kinds where nothing else is said
LAYERS: dict[Kind, int] = {"bilstm": 1, "cnn": 1, "bag": 0}
NGRAMS = 32768  # of a bag
N_MESSAGES = 384  # of the training split: what principal components are of, and what a narrower student is fitted on


@dataclass(frozen=True, kw_only=True)
class Student:
    """What the student is; each number None: as in what it is made of.

    kind: transformer | bilstm | cnn | bag
    base: None (made of the model that comes in) | small (new weights; 2 layers of 128 unless numbers say otherwise) |
    minilm, a checkpoint folder or a Hub id (made of that, with new heads)
    layers: 0 to 100: the first, the last and evenly between, more than there are repeats some; None: 1 of bilstm, cnn
    hidden: numbers a token, 8 to 4096, even for bilstm; None: 256 of other kinds
    ffn: neurons a transformer layer, 0 to 16384; None: in proportion to hidden
    embedding: width of the embeddings, 8 to 4096; a projection follows where it is not hidden
    vocabulary: tokens of a WordPiece learnt on the training messages, 200 to 100000; None: small 4000
    ngrams: rows for hashed pairs of tokens beside the words, 0 to 16777216; None: 32768 for a bag, 0 for others
    """

    kind: Kind = "transformer"
    base: str | None = None
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    embedding: int | None = None
    vocabulary: int | None = None
    ngrams: int | None = None
    ZERO: ClassVar[dict[str, Any] | None] = {}
    FILES: ClassVar[tuple[str, ...]] = ("base",)

    def __post_init__(self) -> None:
        check_choice("student", "kind", self.kind, get_args(Kind))
        if self.base is not None and (type(self.base) is not str or not self.base):
            raise ConfigError(f"student: base is {self.base!r}; allowed: none, small, minilm, a folder or a Hub id")
        for name, low, high in (
            ("layers", 0, 100),
            ("hidden", 8, 4096),
            ("ffn", 0, 16384),
            ("embedding", 8, 4096),
            ("vocabulary", 200, 100_000),
            ("ngrams", 0, 2**24),
        ):
            check_count("student", name, getattr(self, name), low, high)
        if self.kind == "bag" and self.layers:
            raise ConfigError(f"student: layers is {self.layers!r}; allowed: none, or 0, where kind is bag")
        if self.kind == "bilstm" and self.hidden is not None and self.hidden % 2:
            raise ConfigError(f"student: hidden is {self.hidden!r}; allowed: even numbers, where kind is bilstm")
        if self.kind != "transformer" and self.ffn is not None:
            raise ConfigError(f"student: ffn is {self.ffn!r}; allowed: none, where kind is {self.kind}")

    def check(self) -> None:
        """Find the base. Errors: CheckpointError."""
        if self.base not in (None, "small"):
            resolve_base(str(self.base))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """The student, untrained, with the labels of the model that comes in.

        Errors: ConfigError for packed or masked matrices and for more than there is; CheckpointError for a base;
        DataError without training messages where they are needed.
        """
        if self == Student():
            return model.copy()
        if self.base is None and model.encoder.ngrams is not None:
            raise ConfigError("student: the model has hashed bigrams, which no student takes over; name a base")
        torch.manual_seed(run.seed)
        sizes = Sizes(layers=self.layers, hidden=self.hidden, ffn=self.ffn, embedding=self.embedding)
        light = self.kind != "transformer"
        if light:
            layers = LAYERS[self.kind] if self.layers is None else self.layers
            sizes = replace(sizes, layers=layers, hidden=self.hidden or HIDDEN)
        parent = self._parent(model, run, sizes)
        if self.vocabulary is not None and self.base != "small":
            parent = with_vocabulary(parent, self._tokenizer(run, self.vocabulary))
        fitted = self.base != "small" and (light or (self.hidden, self.embedding) != (None, None))
        encoded = _encoded(parent, run) if fitted else ()
        ngrams = (NGRAMS if self.kind == "bag" else 0) if self.ngrams is None else self.ngrams
        if light:
            student = light_student(parent, self.kind, sizes, ngrams, encoded)
        else:
            student = with_ngrams(transformer_student(parent, sizes, encoded), ngrams)
        student.card = replace(model.card, steps=list(model.card.steps), survivors=None)
        return student

    def _parent(self, model: NLUModel, run: Run, sizes: Sizes) -> NLUModel:
        """What the student is made of."""
        if self.base is None:
            return model
        if self.base == "small":
            source = self._tokenizer(run, self.vocabulary or VOCABULARY)
            return from_nothing(source, model.labels, model.tokenizer.max_tokens, sizes)
        return from_base(self.base, model.labels, model.tokenizer.max_tokens)

    @staticmethod
    def _tokenizer(run: Run, size: int) -> str:
        """A WordPiece tokenizer.json learnt on the training messages."""
        if not run.data.train:
            raise DataError("no training messages", allowed="a vocabulary is learnt on them; give at least one")
        return train_tokenizer((m.text for m in run.data.train), size)


def _encoded(model: NLUModel, run: Run) -> list[Encoded]:
    """Some training messages in the model's tokens. Errors: DataError without any."""
    if not run.data.train:
        raise DataError("no training messages", allowed="a narrower student is fitted on them; give at least one")
    drawn = np.random.default_rng(run.seed).permutation(len(run.data.train))[:N_MESSAGES]
    return model.tokenizer.encode_batch([run.data.train[i].text for i in drawn])
