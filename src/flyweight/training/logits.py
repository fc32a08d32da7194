"""A teacher is anything that yields logits: our model, a .fly, a function, a file of logits, several of them.

    fw.train(data, base="small", teacher=fw.NLUModel.load("bot"))
    fw.train(data, base="small", teacher=fw.LogitsTeacher(xlnet, intents))          # xlnet(texts) -> (N, C)
    fw.train(data, base="small", teacher=fw.LogitsTeacher.from_file("xlnet.jsonl"))
    fw.train(data, base="small", teacher=fw.LogitsTeacher.from_fly("bot.fly"))
    fw.train(data, base="small", teacher=fw.Ensemble([one, another]))

The file is JSON Lines. The first line names the classes, `tags` only for a teacher of entities; then one line a text,
`words` the character spans [start, end) that the rows of `tags` belong to. Of lines with one text the last counts.

    {"intents": ["greet", "book"], "tags": ["O", "B-city", "I-city"]}
    {"text": "to Rome", "intent": [-1.2, 3.4], "words": [[0, 2], [3, 7]], "tags": [[5, 0, -2], [-1, 4, 0]]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyweight.answers import Answer, Labels, softmax
from flyweight.cores import usable_cores
from flyweight.data.messages import Entity, Message
from flyweight.data.source import listed
from flyweight.data.tags import Span, legal_tags, tag_names
from flyweight.errors import ConfigError, DataError
from flyweight.model.linear import computes, mask_of
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.runtime.parser import load
from flyweight.training.distances import divergence
from flyweight.training.kept_answers import Answers
from flyweight.training.logits_file import LogitsFile
from flyweight.training.losses import Batch, Logits, heads_loss
from flyweight.training.taught import Classes, RowError, Taught

ABSENT = -50.0  # of a tag that cannot be meant, where the likeliest tag has 0: e^-50 is 2e-22 of its probability
BLOCK = 256  # texts between two lines of progress, and what an interrupted asking loses at most


class LogitsTeacher:
    """A function of texts as a teacher; answers like a model, so that it can be evaluated and compared with.

    function(texts) gives (N, len(intents)) logits, or for a teacher of entities a list of N triples
    (intent (C,), words [(start, end), ...], tags (W, len(tags))). `tags`: O, B-x and I-x, in the function's order; of
    B-x and I-x one is enough (see `tag_sources`). version: a name that changes when the function's answers do; without
    one `ask_teacher` keeps none of them.
    """

    def __init__(
        self,
        function: Callable[[list[str]], Any],
        intents: Sequence[str],
        tags: Sequence[str] = (),
        version: str | None = None,
    ):
        """Errors: ConfigError for names that are no classes."""
        self.function, self.classes, self.version = function, Classes(intents, tags), version
        self.labels: Labels = self.classes.labels

    @classmethod
    def from_file(cls, path: str | Path) -> LogitsTeacher:
        """A teacher that knows the texts of a JSON Lines file (see the module). Errors: DataError with the line."""
        file = LogitsFile(Path(path))
        return cls(file.look_up, file.classes.labels.intents, file.classes.tags)

    @classmethod
    def from_fly(cls, path: str | Path) -> LogitsTeacher:
        """A .fly file as a teacher: our engine answers several times as fast as PyTorch, whatever else teaches here.

        Errors: ArtifactError, ParityError as `flyweight.load`; ConfigError for a model without intents.
        """
        nlu = load(path, threads=usable_cores())

        def function(texts: list[str]) -> list[Any]:
            encoded = nlu.tokenizer.encode_batch(texts)
            found = nlu.engine.logits(encoded)
            return [i if t is None else (i, e.words, t) for e, (i, t) in zip(encoded, found, strict=True)]

        made = hashlib.sha256(nlu.artifact.path.read_bytes()).hexdigest()
        return cls(function, nlu.labels.intents, nlu.labels.tags, version=f"{made} {nlu.engine.name}")

    def taught(self, texts: Sequence[str]) -> list[Taught]:
        """Logits of each text, tags in the order of `labels.tags`. Errors: DataError for logits of a wrong shape."""
        found = self.function(list(texts))
        n_rows = len(found) if hasattr(found, "__len__") else 0
        if n_rows != len(texts):
            raise DataError(f"a teacher gave {n_rows} rows for {len(texts)} texts", allowed="one row a text is needed")
        try:
            return [self.classes.checked(text, row) for text, row in zip(texts, found, strict=True)]
        except RowError as error:
            raise DataError(f"a teacher gave {error.found}", allowed=f"allowed: {error.allowed}") from error

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        return _answers(self.labels, texts, self.taught(texts))


class Ensemble:
    """Several teachers as one: the mean of what they believe, in log-probabilities.

        logits_c = 1/n sum_i log softmax(z_i)_c        of intents, and of the tags of each word

    Words are those of the first teacher with tags; what another says of its words counts where they overlap (see
    `_aligned`). A teacher without entities, or that saw nothing of a word, has no vote there.
    """

    def __init__(self, teachers: Sequence[Teacher]):
        """Errors: ConfigError for no teacher, or for teachers of different intents or entity labels."""
        if not teachers:
            raise ConfigError("an ensemble of 0 teachers; allowed: 1 or more")
        self.teachers = tuple(teachers)
        first: Labels = teachers[0].labels
        tagging: Labels = next((t.labels for t in teachers if t.labels.entity_labels), first)
        for teacher in teachers:
            for kind, wanted, found in (
                ("intents", first.intents, teacher.labels.intents),
                ("entity labels", tagging.entity_labels, teacher.labels.entity_labels or tagging.entity_labels),
            ):
                if odd := sorted(set(wanted) ^ set(found)):
                    raise ConfigError(
                        f"teachers of an ensemble differ in {len(odd)} {kind}: {listed(odd)}; "
                        "allowed: teachers of the same labels, with entities or without"
                    )
        self.labels: Labels = Labels(first.intents, tagging.entity_labels)

    def taught(self, texts: Sequence[str]) -> list[Taught]:
        """What the teachers say of each text together."""
        return ask_teacher(self, texts, progress=False)

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        return _answers(self.labels, texts, self.taught(texts))

    def joined(self, found: Sequence[Sequence[Taught]]) -> list[Taught]:
        """The mean of what each teacher says of the same texts; found: one list a teacher."""
        return [self._mean(one) for one in zip(*found, strict=True)]

    def _mean(self, said: Sequence[Taught]) -> Taught:
        """Of one text."""
        intents, tags = [], []
        first = next((s for s in said if s.tags is not None), None)
        for teacher, one in zip(self.teachers, said, strict=True):
            columns = [teacher.labels.intents.index(name) for name in self.labels.intents]
            intents.append(_log_softmax(one.intent[columns]))
            if first is not None and one.tags is not None:
                tags.append(_log_softmax(_aligned(first.words, one, teacher.labels, self.labels)))
        intent = np.mean(intents, axis=0)
        return Taught(intent) if first is None else Taught(intent, first.words, np.nanmean(tags, axis=0))


Teacher = NLUModel | LogitsTeacher | Ensemble


def ask_teacher(
    teacher: Teacher, texts: Sequence[str], progress: bool = True, folder: str | Path | None = None
) -> list[Taught]:
    """What the teacher says of each text, asked in blocks.

    folder: answers are kept there by the content of teacher and text, block by block: who asks again, after Ctrl-C,
    from another process or for more texts, waits for new texts only. What teachers of an ensemble say is kept apart.
    """
    if isinstance(teacher, Ensemble):
        return teacher.joined([ask_teacher(t, texts, progress, folder) for t in teacher.teachers])
    content = None if folder is None else content_of(teacher)
    if folder is None or content is None:
        found: list[Taught] = []
        _in_blocks(texts, 0, progress, lambda block: found.extend(_said(teacher, block)))
        return found
    with Answers(folder, content) as kept:

        def ask(block: list[str]) -> None:
            if new := kept.missing(block):  # another process may have asked meanwhile
                kept.keep(new, _said(teacher, new))

        missing = kept.missing(texts)
        _in_blocks(missing, len(set(texts)) - len(missing), progress, ask)
        return kept.look_up(texts)


def content_of(teacher: NLUModel | LogitsTeacher) -> str | None:
    """SHA-256 of all that decides a teacher's logits; None for a function without a version."""
    if isinstance(teacher, LogitsTeacher):
        made_of: Any = [teacher.version, teacher.labels.intents, teacher.classes.tags]
        return None if teacher.version is None else hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    model = {k: v for k, v in teacher.describe().items() if k != "labels"}  # temperature and threshold change nothing
    made_of = [model, teacher.labels.intents, teacher.labels.entity_labels, teacher.tokenizer.sha256]
    found = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for name, module, _ in teacher.matrices():
        found.update(f"{name} {computes(module)}".encode())
        found.update(module.weight.detach().cpu().numpy().tobytes())
        if (mask := mask_of(module)) is not None:
            found.update(mask.tobytes())
    for name, vector in teacher.vectors():
        found.update(name.encode() + vector.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _in_blocks(texts: Sequence[str], n_known: int, progress: bool, ask: Callable[[list[str]], None]) -> None:
    """Hand over the texts in blocks, under a bar of which n_known is done."""
    with bar("asking the teacher", n_known + len(texts), n_known, show=progress) as advance:
        for start in range(0, len(texts), BLOCK):
            block = list(texts[start : start + BLOCK])
            ask(block)
            advance(len(block))


def _said(teacher: NLUModel | LogitsTeacher, texts: list[str]) -> list[Taught]:
    """What one teacher says of a block."""
    if isinstance(teacher, LogitsTeacher):
        return teacher.taught(texts)
    encoded = teacher.tokenizer.encode_batch(texts)
    return [Taught(i, e.words, t) for e, (i, t) in zip(encoded, teacher.logits(encoded), strict=True)]


def _answers(labels: Labels, texts: Sequence[str], said: Sequence[Taught]) -> list[Answer]:
    """One answer a message, in order."""
    found = []
    for text, t in zip(texts, said, strict=True):
        entities: tuple[Entity, ...] = ()
        if t.tags is not None and len(t.words):
            entities = labels.entities(text, t.words, legal_tags(t.tags, labels.tags))
        found.append(Answer(text, labels.intents, softmax(t.intent), entities))
    return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """x - log sum exp(x) over the last axis, float64; rows of NaN stay so."""
    x = logits - logits.astype(np.float64).max(axis=-1, keepdims=True)
    found: np.ndarray = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return found


def soft_labels_loss(
    teacher: Teacher,
    student: NLUModel,
    messages: Sequence[Message],
    progress: bool = True,
    *,
    temperature: float = 2.0,
    soft: float = 0.8,
    folder: str | Path | None = None,
) -> SoftLabels:
    """(1 - s) labels_loss + s T^2 [ KL(p_T || q_T) of intents + mean over words of KL(p_T || q_T) of tags ].

    p_T, q_T: softmax(logits / T) of teacher and student; T^2 (it is applied here) keeps the gradient's size whatever T.
    `messages` are those that `fit` will be given, in order. Intents and tags that only the teacher has are left out;
    a teacher without entities teaches intents alone. A message without intent and entities has soft labels only.
    folder: see ask_teacher.
    Hinton et al. 2015, arXiv:1503.02531.
    Errors: DataError where the teacher lacks an intent, or has entities and lacks an entity label, of the student.
    """
    learns_tags = student.tag_head is not None and bool(teacher.labels.entity_labels)
    for kind, ours, theirs in (
        ("intents", student.labels.intents, teacher.labels.intents),
        ("entity labels", student.labels.entity_labels if learns_tags else (), teacher.labels.entity_labels),
    ):
        if lacking := [name for name in ours if name not in theirs]:
            raise DataError(
                f"the teacher lacks {len(lacking)} of the {len(ours)} {kind}: {listed(lacking)}",
                allowed="train the teacher on the same labels, or leave these messages out",
            )
    texts = [m.text for m in messages]
    taught = ask_teacher(teacher, texts, progress, folder)
    columns = [teacher.labels.intents.index(name) for name in student.labels.intents]
    intents = torch.from_numpy(np.stack([t.intent[columns] for t in taught]).astype(np.float32))
    tags: list[Tensor] | None = None
    if learns_tags:
        encoded = student.tokenizer.encode_batch(texts)
        tags = [
            torch.from_numpy(_aligned(e.words, t, teacher.labels, student.labels))
            for e, t in zip(encoded, taught, strict=True)
        ]
    return SoftLabels(intents, tags, has_labels(messages), temperature, soft)


class SoftLabels:
    """See soft_labels_loss. intents (N, C); tags: N of (W, n_tags), NaN for words it did not see; labelled (N,)."""

    def __init__(self, intents: Tensor, tags: list[Tensor] | None, labelled: Tensor, temperature: float, soft: float):
        self.intents, self.tags, self.labelled = intents, tags, labelled
        self.temperature, self.soft = temperature, soft
        found = hashlib.sha256(intents.numpy().tobytes())
        for t in tags or []:
            found.update(t.numpy().tobytes())
        # `fit` knows a training that was interrupted by the name of its loss: other logits are another training.
        self.__name__ = f"soft_labels {temperature} {soft} {found.hexdigest()}"

    def __call__(self, model: NLUModel, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.of(model, batch, *model(batch.ids, batch.mask))

    def of(self, model: NLUModel, batch: Batch, logits: Tensor, hidden: Tensor) -> Tensor:
        """The loss of a forward pass already made: intent logits (B, C), hidden states (B, T, D)."""
        rows = batch.rows.cpu()
        tags = None if self.tags is None else torch.cat([self.tags[i] for i in rows.tolist()])
        wanted = self.intents[rows], tags
        return soft_loss(model, batch, logits, hidden, wanted, self.labelled[rows], self.temperature, self.soft)

    def agreement(self, rows: Sequence[Logits]) -> float:
        """Minus the mean KL(teacher || student) of an intent, minus that of a tag; in nats, 0 where they are equal.

        rows: the student's logits of all messages, in order. A score for `fit`, finer than F1.
        """
        found = divergence(torch.from_numpy(np.stack([intent for intent, _ in rows])), self.intents)
        tags = [t for _, t in rows if t is not None]
        if self.tags is not None and tags:
            wanted = torch.cat(self.tags)  # (N, n_tags)
            seen = ~wanted.isnan().any(dim=1)
            if seen.any():
                found = found + divergence(torch.from_numpy(np.concatenate(tags))[seen], wanted[seen])
        return -float(found)


def soft_loss(
    model: NLUModel,
    batch: Batch,
    logits: Tensor,
    hidden: Tensor,
    wanted: tuple[Tensor, Tensor | None],
    labelled: Tensor,
    temperature: float,
    soft: float,
) -> Tensor:
    """The formula of `soft_labels_loss` for a batch.

    logits (B, C), hidden (B, T, D): the student's; wanted: the teacher's intent logits (B, C), and tag logits
    (N, n_tags) of the words at batch.tag_at, NaN where it saw none, or None; labelled (B,) bool: has hard labels.
    """
    intents, tags = wanted
    loss = divergence(logits, intents.to(logits.device), temperature)
    if tags is not None and model.tag_head is not None and len(batch.tags):
        tags = tags.to(logits.device)
        seen = ~tags.isnan().any(dim=1)
        words = F.dropout(hidden.flatten(0, 1)[batch.tag_at], model.dropout, model.training)
        if seen.any():
            loss = loss + divergence(model.tag_head(words)[seen], tags[seen], temperature)
    if soft == 1.0:
        return loss
    hard = labelled.to(logits.device)[batch.tag_at // batch.ids.shape[1]]  # (N,)
    known = replace(batch, tag_at=batch.tag_at[hard], tags=batch.tags[hard])
    return soft * loss + (1 - soft) * heads_loss(model, known, logits, hidden)


def has_labels(messages: Sequence[Message]) -> Tensor:
    """(N,) bool: a message without intent and entities is plain text, whose words have no hard tags, not even O."""
    return torch.tensor([m.intent is not None or bool(m.entities) for m in messages])


def _aligned(words: Sequence[Span], taught: Taught, theirs: Labels, ours: Labels) -> np.ndarray:
    """The teacher's tag logits for the student's words, (W, n_tags) float32.

    A word takes the row of the first teacher's word that it overlaps and whose likeliest tag is not O (its hard label
    is that of the first entity that it overlaps), else of the first that it overlaps, NaN without one. Where the
    student splits a teacher's word, the later pieces continue its entity: B-x becomes I-x there (logits are added as
    probabilities are).
    """
    names = tag_names(ours.entity_labels)
    columns = [theirs.tags.index(name) for name in names]
    found = np.full((len(words), len(names)), np.nan, np.float32)
    if taught.tags is None:
        return found
    rows = taught.tags[:, columns].astype(np.float64)
    used: set[int] = set()
    for at, (start, end) in enumerate(words):
        hits = [i for i, (s, e) in enumerate(taught.words) if start < e and s < end]
        if not hits:
            continue
        hit = next((i for i in hits if rows[i].argmax() != 0), hits[0])
        row = rows[hit] - rows[hit].max()
        if hit in used:
            row[2::2] = np.logaddexp(row[1::2], row[2::2])  # O, B-a, I-a, B-b, I-b ...
            row[1::2] = ABSENT
        used.add(hit)
        found[at] = row
    return found
