"""A teacher is anything that yields logits: our model, a function, or a file of logits. And learning from it.

    fw.train(data, base="small", teacher=fw.NLUModel.load("bot"))
    fw.train(data, base="small", teacher=fw.LogitsTeacher(xlnet, intents))          # xlnet(texts) -> (N, C)
    fw.train(data, base="small", teacher=fw.LogitsTeacher.from_file("xlnet.jsonl"))

The file is JSON Lines. The first line names the classes, `tags` only for a teacher of entities; then one line a text,
`words` the character spans [start, end) that the rows of `tags` belong to. Of lines with one text the last counts.

    {"intents": ["greet", "book"], "tags": ["O", "B-city", "I-city"]}
    {"text": "to Rome", "intent": [-1.2, 3.4], "words": [[0, 2], [3, 7]], "tags": [[5, 0, -2], [-1, 4, 0]]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyweight.answers import Answer, Labels, softmax
from flyweight.data.messages import Entity, Message
from flyweight.data.source import listed, read_text, shown
from flyweight.data.tags import Span, legal_tags, tag_names
from flyweight.errors import ConfigError, DataError
from flyweight.measure.quality import ANSWER_BLOCK
from flyweight.model.finetuned import tag_sources
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.training.losses import Batch, Logits, heads_loss

ABSENT = -50.0  # of a tag that cannot be meant, where the likeliest tag has 0: e^-50 is 2e-22 of its probability
LARGEST = 1e30  # differences of larger logits overflow in float32


@dataclass(frozen=True)
class Taught:
    """A teacher's logits of one message: intent (C,); words (W spans in characters); tags (W, n_tags) or None."""

    intent: np.ndarray
    words: Sequence[Span] = ()
    tags: np.ndarray | None = None


class LogitsTeacher:
    """A function of texts as a teacher; answers like a model, so that it can be evaluated and compared with.

    function(texts) gives (N, len(intents)) logits, or for a teacher of entities a list of N triples
    (intent (C,), words [(start, end), ...], tags (W, len(tags))). `tags`: O, B-x and I-x, in the function's order; of
    B-x and I-x one is enough (see `tag_sources`).
    """

    def __init__(self, function: Callable[[list[str]], Any], intents: Sequence[str], tags: Sequence[str] = ()):
        """Errors: ConfigError for names that are no classes."""
        self.function, self.given_tags = function, tuple(tags)
        odd = [t for t in tags if t != "O" and (t[:2] not in ("B-", "I-") or len(t) < 3)]
        if len(intents) < 2 or len(set(intents)) < len(intents):
            raise ConfigError(f"a teacher of {len(intents)} intents ({listed(intents)}); allowed: 2 or more, each once")
        if odd or (tags and "O" not in tags) or len(set(tags)) < len(tags) or len(tags) == 1:
            raise ConfigError(f"a teacher's tags are {listed(tags)}; allowed: O, B-name and I-name, each once")
        self.labels = Labels(tuple(intents), tuple(sorted({t[2:] for t in tags if t != "O"})))

    @classmethod
    def from_file(cls, path: str | Path) -> LogitsTeacher:
        """A teacher that knows the texts of a JSON Lines file (see the module). Errors: DataError with the line."""
        teacher = _File(Path(path)).teacher
        assert teacher is not None  # a file without the first line is refused
        return teacher

    def taught(self, texts: Sequence[str]) -> list[Taught]:
        """Logits of each text, tags in the order of `labels.tags`. Errors: DataError for logits of a wrong shape."""
        found = self.function(list(texts))
        n_rows = len(found) if hasattr(found, "__len__") else 0
        if n_rows != len(texts):
            raise DataError(f"a teacher gave {n_rows} rows for {len(texts)} texts", allowed="one row a text is needed")
        try:
            return [self._checked(text, row) for text, row in zip(texts, found, strict=True)]
        except _RowError as error:
            raise DataError(f"a teacher gave {error.found}", allowed=f"allowed: {error.allowed}") from error

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        found = []
        for text, t in zip(texts, self.taught(texts), strict=True):
            entities: tuple[Entity, ...] = ()
            if t.tags is not None and len(t.words):
                entities = self.labels.entities(text, t.words, legal_tags(t.tags, self.labels.tags))
            found.append(Answer(text, self.labels.intents, softmax(t.intent), entities))
        return found

    def _checked(self, text: str, row: Any) -> Taught:
        """What the function gave for one text, checked. Errors: _RowError."""
        n_intents, n_tags = len(self.labels.intents), len(self.given_tags)
        if not n_tags:
            return Taught(_numbers(row, (n_intents,), f"intent logits for {shown(text)}"))
        try:
            intent, words, tags = row
            n_words = len(words)
        except (TypeError, ValueError) as error:
            allowed = "intent logits, words and tag logits, since the teacher has tags"
            raise _RowError(f"{type(row).__name__} for {shown(text)}", allowed) from error
        spans = _numbers(words, (n_words, 2), f"words of {shown(text)}")
        if not ((spans == np.floor(spans)) & (spans >= 0) & (spans <= len(text))).all() or (np.diff(spans) <= 0).any():
            allowed = f"spans [start, end) in characters, 0 <= start < end <= {len(text)}"
            raise _RowError(f"the words {shown(words)} of {shown(text)}", allowed)
        given = _numbers(tags, (n_words, n_tags), f"tag logits for {shown(text)}")
        columns = tag_sources(self.given_tags, self.labels.tags)
        ordered = np.stack([given[:, at] - behind for at, behind in columns], axis=1)
        intent = _numbers(intent, (n_intents,), f"intent logits for {shown(text)}")
        return Taught(intent, [(int(s), int(e)) for s, e in spans], ordered)


class _RowError(Exception):
    """Something that is no row of logits: what was found, what is allowed."""

    def __init__(self, found: str, allowed: str):
        super().__init__(found, allowed)
        self.found, self.allowed = found, allowed


def _numbers(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """An array of that shape, float64. Errors: _RowError."""
    allowed = f"numbers of shape {shape}, at most {LARGEST:g} in size"
    try:
        found = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise _RowError(f"{shown(values)} as {what}", allowed) from error
    if not found.size and not shape[0]:
        return np.zeros(shape)
    if found.dtype.kind not in "fiu" or found.shape != shape or not (np.abs(found) <= LARGEST).all():
        raise _RowError(f"{what} of shape {found.shape}: {shown(found.tolist())}", allowed)
    return found.astype(np.float64)


Teacher = NLUModel | LogitsTeacher


def ask_teacher(teacher: Teacher, texts: Sequence[str], progress: bool = True) -> list[Taught]:
    """What the teacher says of each text, asked in blocks."""
    found: list[Taught] = []
    with bar("asking the teacher", len(texts), show=progress) as advance:
        for start in range(0, len(texts), ANSWER_BLOCK):
            block = list(texts[start : start + ANSWER_BLOCK])
            if isinstance(teacher, LogitsTeacher):
                found += teacher.taught(block)
            else:
                encoded = teacher.tokenizer.encode_batch(block)
                logits = teacher.logits(encoded)
                found += [Taught(i, e.words, t) for e, (i, t) in zip(encoded, logits, strict=True)]
            advance(len(block))
    return found


def soft_labels_loss(
    teacher: Teacher,
    student: NLUModel,
    messages: Sequence[Message],
    progress: bool = True,
    *,
    temperature: float = 2.0,
    soft: float = 0.8,
) -> SoftLabels:
    """(1 - s) labels_loss + s T^2 [ KL(p_T || q_T) of intents + mean over words of KL(p_T || q_T) of tags ].

    p_T, q_T: softmax(logits / T) of teacher and student; T^2 (it is applied here) keeps the gradient's size whatever T.
    `messages` are those that `fit` will be given, in order. Intents and tags that only the teacher has are left out;
    a teacher without entities teaches intents alone. A message without intent and entities has soft labels only.
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
    taught = ask_teacher(teacher, texts, progress)
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
        found = _kl(self.intents, torch.from_numpy(np.stack([intent for intent, _ in rows])), 1.0)
        tags = [t for _, t in rows if t is not None]
        if self.tags is not None and tags:
            wanted = torch.cat(self.tags)  # (N, n_tags)
            seen = ~wanted.isnan().any(dim=1)
            if seen.any():
                found = found + _kl(wanted[seen], torch.from_numpy(np.concatenate(tags))[seen], 1.0)
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
    loss = _kl(intents.to(logits.device), logits, temperature)
    if tags is not None and model.tag_head is not None and len(batch.tags):
        tags = tags.to(logits.device)
        seen = ~tags.isnan().any(dim=1)
        words = F.dropout(hidden.flatten(0, 1)[batch.tag_at], model.dropout, model.training)
        if seen.any():
            loss = loss + _kl(tags[seen], model.tag_head(words)[seen], temperature)
    if soft == 1.0:
        return loss
    hard = labelled.to(logits.device)[batch.tag_at // batch.ids.shape[1]]  # (N,)
    known = replace(batch, tag_at=batch.tag_at[hard], tags=batch.tags[hard])
    return soft * loss + (1 - soft) * heads_loss(model, known, logits, hidden)


def has_labels(messages: Sequence[Message]) -> Tensor:
    """(N,) bool: a message without intent and entities is plain text, whose words have no hard tags, not even O."""
    return torch.tensor([m.intent is not None or bool(m.entities) for m in messages])


def _kl(wanted: Tensor, found: Tensor, T: float) -> Tensor:
    """T^2 mean_b KL(softmax(wanted_b / T) || softmax(found_b / T)); both (B, C)."""
    p, q = F.log_softmax(wanted / T, dim=-1), F.log_softmax(found.float() / T, dim=-1)
    return T * T * F.kl_div(q, p, reduction="batchmean", log_target=True)


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


class _File:
    """A JSON Lines file of logits, read with distrust."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, Any] = {}
        self.teacher: LogitsTeacher | None = None
        for line, source in enumerate(read_text(path).split("\n"), 1):
            if not source.strip():
                continue
            try:
                row = json.loads(source)
            except (ValueError, RecursionError) as error:
                self.fail(f"not JSON ({type(error).__name__})", "one JSON object a line", line)
            if not isinstance(row, dict):
                self.fail(f"row is {shown(row)}", "one JSON object a line", line)
            if self.teacher is None:
                self.teacher = self.read_head(row, line)
            else:
                self.read_row(row, line, self.teacher)
        if not self.rows:
            self.fail("no logits", "a line with the names of the classes, then one line a text", None)

    def read_head(self, row: dict[str, Any], line: int) -> LogitsTeacher:
        allowed = 'a first line {"intents": [names], "tags": [names]}'
        for key in ("intents", "tags"):
            names = row.get(key, [] if key == "tags" else None)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                self.fail(f"{key} is {shown(names)}", allowed, line)
        try:
            return LogitsTeacher(self.look_up, row["intents"], row.get("tags", []))
        except ConfigError as error:
            self.fail(str(error), allowed, line)

    def read_row(self, row: dict[str, Any], line: int, teacher: LogitsTeacher) -> None:
        keys = ("text", "intent", "words", "tags") if teacher.given_tags else ("text", "intent")
        missing = [key for key in keys if key not in row]
        if missing or not isinstance(row["text"], str):
            self.fail(f"row without {missing[0] if missing else 'text'}", f"the keys {', '.join(keys)}", line)
        found = (row["intent"], row["words"], row["tags"]) if teacher.given_tags else row["intent"]
        text = row["text"]
        try:
            teacher._checked(text, found)
        except _RowError as error:
            self.fail(error.found, error.allowed, line)
        self.rows[text] = found

    def look_up(self, texts: list[str]) -> list[Any]:
        missing = [text for text in texts if text not in self.rows]
        if missing:
            raise DataError(
                f"no logits of {shown(missing[0])} ({len(missing)} of {len(texts)} texts asked for)",
                allowed="a file of logits answers the texts that it holds, character by character; add a line for each",
                path=self.path,
            )
        return [self.rows[text] for text in texts]

    def fail(self, found: str, allowed: str, line: int | None) -> NoReturn:
        raise DataError(found, allowed=f"allowed: {allowed}", path=self.path, line=line)
