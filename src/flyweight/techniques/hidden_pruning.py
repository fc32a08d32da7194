"""HiddenPruning: a narrower residual stream, rotated onto its principal components first.

    x' = P^T x      P (D, D'): eigenvectors of mean over states of (sum_t x_t x_t^T / trace), the D' largest

What every layer writes is projected, what it reads is fitted on training messages to make up for what is gone, and each
LayerNorm is fitted number by number (model/slicing.py); then the dense model teaches its logits, on transfer text, too.
Rotating beats keeping the best D' numbers: MiniLM on sara-dedup at 256 of 384, untrained, KL to the dense model 0.14
nats against 0.27; at 192 0.32 against 0.63.

Changes: every matrix gets fewer rows or columns, embeddings too: smaller file, faster in any form. Needs: training
messages. Gives up: not exact even for numbers that carry nothing, since LayerNorm does not rotate; the hidden states
are other ones, so that only logits can be learnt from the dense model afterwards: a room that is to learn hidden states
says so in one line, and goes on. After heads, neurons or layers, which still learn them; before single weights are
pruned and before packing.
Source: SliceGPT, Ashkboos et al. 2024, arXiv:2401.15024 (theirs is exact before cutting: RMSNorm, before the block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from flyweight.errors import ConfigError, DataError
from flyweight.model.nlu import NLUModel
from flyweight.model.slicing import hidden_moments, sliced
from flyweight.model.surgery import unpacked_copy
from flyweight.techniques.room import Run, check_share, check_training, check_whole, retrained

NARROWEST = 8  # of the hidden size: with fewer, LayerNorm leaves next to nothing of a token


@dataclass(frozen=True, kw_only=True)
class HiddenPruning:
    """A share of the hidden size.

    keep: share of the hidden size that stays, above 0, at most 1 (all); 8 numbers at least
    n_messages: of the training split, that what is left is fitted on, 1 to 100000
    epochs: passes over messages and transfer text, 0 to 1000; None aims at 1500 steps within 2 to 40 epochs
    learning_rate: peak, in (0, 1)
    transfer: messages of transfer text beside each training message, 0 to 100, that the dense model answers
    """

    keep: float = 0.667
    n_messages: int = 384
    epochs: int | None = None
    learning_rate: float = 2e-4
    transfer: int = 1
    ZERO: ClassVar[dict[str, Any] | None] = {"keep": 1.0}

    def __post_init__(self) -> None:
        check_share("hidden_pruning", "keep", self.keep, zero=False)
        check_whole("hidden_pruning", "n_messages", self.n_messages, 1, 100_000)
        check_training("hidden_pruning", self.epochs, self.learning_rate, fewest=0)
        check_whole("hidden_pruning", "transfer", self.transfer, 0, 100)

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A narrower model. An interrupted training goes on from run.folder.

        Errors: ConfigError for packed or masked matrices, or fewer than 8 numbers a token; DataError
        without training messages.
        """
        model.encoder.config.transformer_shapes("hidden_pruning")
        hidden = model.encoder.config.hidden
        width = round(self.keep * hidden)
        if width == hidden:
            return model.copy()
        if width < NARROWEST:
            raise ConfigError(
                f"hidden_pruning: keep is {self.keep:g}, {width} of {hidden} numbers a token; {NARROWEST} at least "
                f"must stay, so allowed for this model: {min(1.0, NARROWEST / hidden):.3g} to 1"
            )
        model = unpacked_copy(model)
        if not run.data.train:
            raise DataError("no training messages", allowed="what is left is fitted on them; give at least one")
        drawn = np.random.default_rng(run.seed).permutation(len(run.data.train))[: self.n_messages]
        encoded = model.tokenizer.encode_batch([run.data.train[i].text for i in drawn])
        _, vectors = torch.linalg.eigh(hidden_moments(model, encoded).double())  # ascending
        model = sliced(model, vectors.flip(1)[:, :width].float(), encoded)
        return retrained(
            model,
            run,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            distil="logits",
            transfer=self.transfer,
        )
