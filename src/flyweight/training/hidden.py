"""Learning the hidden states of a teacher of the same shape: what a quantized model is brought back to itself with.

    loss = soft_labels_loss + sum_l  mean |h_l - t_l|^2 / mean |t_l|^2        l = embeddings, layer 1, ..., last layer

h_l, t_l (B, T, D): what layer l of student and teacher gives, real tokens only. Dividing by the teacher's mean square
makes every layer's term its relative error, whatever the model's scale.
Sources: TernaryBERT (Zhang et al. 2020, arXiv:2009.12812) and XTC (Wu et al. 2022, arXiv:2206.01859), which add the
attention scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from flyweight.data.messages import Message
from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel, pad
from flyweight.training.logits import has_labels, soft_loss
from flyweight.training.losses import Batch, Loss


def hidden_states_loss(
    teacher: NLUModel, student: NLUModel, messages: Sequence[Message], *, temperature: float = 2.0, soft: float = 0.8
) -> Loss:
    """See the module; temperature and soft are those of soft_labels_loss. `messages`: those that `fit` will be given.

    The teacher runs in every step, without gradient and dropout, and gives its logits there too: nobody asks it before.
    Errors: ConfigError for a teacher of another shape or with other labels.
    """
    check_same_shape(teacher, student)
    return _HiddenStates(teacher, messages, temperature, soft)


def check_same_shape(teacher: NLUModel, student: NLUModel) -> None:
    """ConfigError unless both have the same token ids, number of layers, width and labels."""
    for what, ours, theirs in (
        ("layers", len(student.encoder.layers), len(teacher.encoder.layers)),
        ("numbers a token", student.encoder.config.hidden, teacher.encoder.config.hidden),
        ("tokens at most", student.tokenizer.max_tokens, teacher.tokenizer.max_tokens),
        ("as tokenizer", student.tokenizer.sha256[:8], teacher.tokenizer.sha256[:8]),
        ("labels", _digest(student), _digest(teacher)),
    ):
        if ours != theirs:
            raise ConfigError(
                f"the teacher has {theirs} {what}, the model {ours}: their hidden states cannot be compared; "
                "learn its logits only (distil=logits)"
            )


def _digest(model: NLUModel) -> str:
    """A short name of the labels."""
    return hashlib.sha256(repr((model.labels.intents, model.labels.tags)).encode()).hexdigest()[:8]


class _HiddenStates:
    """See hidden_states_loss."""

    def __init__(self, teacher: NLUModel, messages: Sequence[Message], temperature: float, soft: float):
        self.teacher, self.temperature, self.soft = teacher.copy().eval(), temperature, soft
        self.ids = [e.ids for e in self.teacher.tokenizer.encode_batch([m.text for m in messages])]
        self.labelled = has_labels(messages)
        found = hashlib.sha256()
        for p in self.teacher.parameters():
            found.update(p.detach().cpu().numpy().tobytes())
        # `fit` knows an interrupted training by the name of its loss.
        self.__name__ = f"hidden_states {temperature} {soft} {found.hexdigest()}"

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

    @torch.no_grad()
    def _wanted(self, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The teacher's hidden states and logits. It reads its own ids, since `fit` numbers the student's anew."""
        device = batch.ids.device
        self.teacher.to(device)
        ids, mask = pad([self.ids[i] for i in batch.rows.tolist()])
        states = self.teacher.encoder.hidden_states(ids.to(device), mask.to(device))
        intents = self.teacher.intent_logits(states[-1], mask.to(device)).float()
        if self.teacher.tag_head is None:
            return states, intents, None
        return states, intents, self.teacher.tag_head(states[-1].flatten(0, 1)[batch.tag_at]).float()
