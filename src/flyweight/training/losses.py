"""What a training minimises: functions of (model, batch). See also soft_labels_loss in logits.py, hidden_states_loss in
hidden.py, and distilled_loss in distillation.py with the table of distances.py.

labels   CE(intent) + CE(tags)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from flyweight.model.nlu import NLUModel


@dataclass(frozen=True)
class Batch:
    """B padded messages and what is known of them.

    ids (B, T) int64, mask (B, T) bool; intents (B,) int64, -100 where unknown; tag_at (N,) flat positions b*T + t of
    the words' first sub-tokens, tags (N,) int64; rows (B,) positions in the training set.
    """

    ids: Tensor
    mask: Tensor
    intents: Tensor
    tag_at: Tensor
    tags: Tensor
    rows: Tensor


Loss = Callable[[NLUModel, Batch], Tensor]
Logits = tuple[np.ndarray, np.ndarray | None]  # of one message, as NLUModel.logits gives them: intent (C,), tags (W, n)
Score = Callable[[Sequence[Logits]], float]  # of the validation messages' logits, in order; the highest epoch is kept


def labels_loss(model: NLUModel, batch: Batch) -> Tensor:
    """mean_b CE(intent_b) + mean_w CE(tag_w): the two heads weigh the same; a head without labels adds nothing."""
    return heads_loss(model, batch, *model(batch.ids, batch.mask))


def heads_loss(model: NLUModel, batch: Batch, logits: Tensor, hidden: Tensor) -> Tensor:
    """`labels_loss` of a forward pass already made: intent logits (B, C), hidden states (B, T, D)."""
    loss = logits.sum() * 0.0
    if (batch.intents >= 0).any():
        loss = loss + F.cross_entropy(logits.float(), batch.intents, ignore_index=-100)
    if model.tag_head is not None and len(batch.tags):
        words = hidden.flatten(0, 1)[batch.tag_at]  # (N, D)
        words = F.dropout(words, model.dropout, model.training)
        loss = loss + F.cross_entropy(model.tag_head(words).float(), batch.tags)
    return loss
