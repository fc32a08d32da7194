"""Learning the hidden states of a teacher of the same width: what a compressed model is brought back to itself with.

    loss = soft_labels_loss + sum_l  mean |h_l - t_l|^2 / mean |t_l|^2        l = embeddings, layer 1, ..., last layer

h_l, t_l (B, T, D): what layer l of student and teacher gives, real tokens only. Dividing by the teacher's mean square
makes every layer's term its relative error, whatever the model's scale. A student with fewer layers has each one's
teacher layer named: what the next layer that is left was given there. Token ids may be numbered differently, as long as
messages are cut into tokens alike.
Sources: TernaryBERT (Zhang et al. 2020, arXiv:2009.12812) and XTC (Wu et al. 2022, arXiv:2206.01859), which add the
attention scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flyweight.data.messages import Message
from flyweight.data.source import shown
from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel, pad
from flyweight.model.survivors import survivors_of
from flyweight.training.logits import has_labels, soft_loss
from flyweight.training.losses import Batch, Loss

ROOM = 1 << 30  # bytes: MiniLM's seven states of 200,000 tokens


def hidden_states_loss(
    teacher: NLUModel,
    student: NLUModel,
    messages: Sequence[Message],
    *,
    layers: Sequence[int] | None = None,
    temperature: float = 2.0,
    soft: float = 0.8,
) -> Loss:
    """See the module; temperature and soft are those of soft_labels_loss. `messages`: those that `fit` will be given.
    layers: the teacher's layer of each of the student's, from 0; None: one to one.

    The teacher is asked in the first epoch, without gradient and dropout, for states and logits alike; what it says is
    kept (states rounded to float16) up to ROOM bytes, and asked for again beyond.
    Errors: ConfigError where `difference` finds one.
    """
    if found := difference(teacher, student, messages, layers):
        raise ConfigError(f"{found}: their hidden states cannot be compared; learn its logits only (distil=logits)")
    states = [0, *(i + 1 for i in (range(len(teacher.encoder.layers)) if layers is None else layers))]
    return _HiddenStates(teacher, messages, states, temperature, soft)


def difference(
    teacher: NLUModel, student: NLUModel, messages: Sequence[Message], layers: Sequence[int] | None = None
) -> str | None:
    """Why hidden states of the two cannot be compared; None where they can.

    Both have one width, longest message and labels, the student as many layers as are named, and both tokenizers cut
    every message into as many tokens: then token t is the same to both.
    """
    for what, ours, theirs in (
        ("numbers a token", student.encoder.config.hidden, teacher.encoder.config.hidden),
        ("layers", len(student.encoder.layers), len(teacher.encoder.layers if layers is None else layers)),
        ("tokens at most", student.tokenizer.max_tokens, teacher.tokenizer.max_tokens),
        ("labels", _digest(student), _digest(teacher)),
    ):
        if ours != theirs:
            return f"the teacher has {theirs} {what}, the model {ours}"
    return cut_differently(teacher, student, messages)


def cut_differently(teacher: NLUModel, student: NLUModel, messages: Sequence[Message]) -> str | None:
    """A message that teacher and student cut into other numbers of tokens; None where there is none.

    Two tokenizers that give as many tokens for every message are taken to give the same ones.
    """
    ours, theirs = student.tokenizer, teacher.tokenizer
    if (ours.sha256, ours.max_tokens) == (theirs.sha256, theirs.max_tokens):
        return None
    texts = [m.text for m in messages]
    for text, a, b in zip(texts, theirs.encode_batch(texts), ours.encode_batch(texts), strict=True):
        if len(a.ids) != len(b.ids):
            return f"the teacher cuts {shown(text)} into {len(a.ids)} tokens, the model into {len(b.ids)}"
    return None


def layers_taught(model: NLUModel, teacher: NLUModel) -> list[int] | None:
    """The teacher's layer of each of the model's; None where the model was not cut out of the teacher: one to one."""
    if any(shape.kind != "transformer" for of in (model, teacher) for shape in of.encoder.config.layers):
        return None
    ours, theirs = survivors_of(model), survivors_of(teacher)
    if ours.dense != theirs.dense or not set(ours.layers) <= set(theirs.layers):
        return None
    return teachers_of([theirs.layers.index(i) for i in ours.layers], len(theirs.layers))


def teachers_of(kept: Sequence[int], n_layers: int) -> list[int]:
    """The teacher's layer that each kept layer learns: the one before the next that is kept, the last of all."""
    return [after - 1 for after in (*kept[1:], n_layers)] if kept else []


def _digest(model: NLUModel) -> str:
    """A short name of the labels."""
    return hashlib.sha256(repr((model.labels.intents, model.labels.tags)).encode()).hexdigest()[:8]


class _HiddenStates:
    """See hidden_states_loss."""

    def __init__(
        self, teacher: NLUModel, messages: Sequence[Message], states: Sequence[int], temperature: float, soft: float
    ):
        self.teacher, self.states, self.temperature, self.soft = teacher.copy().eval(), states, temperature, soft
        self.ids = [e.ids for e in self.teacher.tokenizer.encode_batch([m.text for m in messages])]
        self.labelled = has_labels(messages)
        self.kept: dict[int, _Said] = {}
        self.room = ROOM
        found = hashlib.sha256()
        for p in self.teacher.parameters():
            found.update(p.detach().cpu().numpy().tobytes())
        # `fit` knows an interrupted training by the name of its loss.
        self.__name__ = f"hidden_states {temperature} {soft} {found.hexdigest()}"
        if list(states) != list(range(len(teacher.encoder.layers) + 1)):
            self.__name__ += f" {states}"

    def __call__(self, model: NLUModel, batch: Batch) -> Tensor:
        """The loss of a batch."""
        mask = batch.mask
        states = model.encoder.hidden_states(batch.ids, mask)
        targets, intents, tags = self._wanted(batch)
        logits, labelled = model.intent_logits(states[-1], mask), self.labelled[batch.rows.cpu()]
        wanted = intents, tags
        loss = soft_loss(model, batch, logits, states[-1], wanted, labelled, self.temperature, self.soft)
        for found, target in zip(states, targets, strict=True):
            t = target[mask].float()  # (tokens, D)
            loss = loss + (found[mask].float() - t).square().mean() / t.square().mean()
        return loss

    def _wanted(self, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The teacher's hidden states and logits of a batch, padded like it."""
        rows, device = batch.rows.tolist(), batch.ids.device
        said = {i: self.kept[i] for i in rows if i in self.kept}
        if new := [i for i in rows if i not in said]:
            said |= self._ask(new, device)
        states = list(_padded([said[i].states for i in rows], device).unbind(2))  # (B, T, D) each
        intents = torch.stack([said[i].intents for i in rows]).to(device)
        if self.teacher.tag_head is None:
            return states, intents, None
        tags = _padded([said[i].tags for i in rows], device)  # (B, T, n_tags)
        return states, intents, tags.flatten(0, 1)[batch.tag_at]

    @torch.no_grad()
    def _ask(self, rows: list[int], device: torch.device) -> dict[int, _Said]:
        """What the teacher says of messages, kept while there is room. It reads its own ids, since `fit` renumbers."""
        self.teacher.to(device)
        ids, mask = (a.to(device) for a in pad([self.ids[i] for i in rows]))
        states = self.teacher.encoder.hidden_states(ids, mask)
        intents = self.teacher.intent_logits(states[-1], mask).float().cpu()
        compared = torch.stack([states[i].float() for i in self.states], dim=2)  # (B, T, states, D)
        compared = compared.to("cpu", torch.float16)
        tags = intents[:, None] if self.teacher.tag_head is None else self.teacher.tag_head(states[-1]).float().cpu()
        found = {}
        for at, i in enumerate(rows):
            n = len(self.ids[i])
            found[i] = said = _Said(compared[at, :n].clone(), intents[at].clone(), tags[at, :n].clone())
            self.room -= 2 * said.states.numel() + 4 * (said.tags.numel() + said.intents.numel())
            if self.room >= 0:
                self.kept[i] = said
        return found


class _Said(NamedTuple):
    """A teacher's answer to a message: states (T, states, D) float16; intents (C,); tags (T, n_tags)."""

    states: Tensor
    intents: Tensor
    tags: Tensor


def _padded(rows: list[Tensor], device: torch.device) -> Tensor:
    """(T_i, ...) each -> (B, T, ...) float32, zeros behind the ends."""
    return pad_sequence(rows, batch_first=True).to(device).float()
