"""Movement pruning: the weights that training moves towards 0 go, whatever their size.

    s = |w_0| / rms(w_0) - 0.02 sum_t m_t / rms(m_t),  m = dL/dw' * w,  w' = w * mask       rms: over the matrix
    hard   the weights with the highest s stay, the same share of each matrix
    soft   one threshold of s for all matrices, so that each finds its own share

The share that stays falls by the cubic schedule: removed are S (1 - (1 - u)^3), u rising from 0 at a tenth to 1 at six
tenths of the training. Of blocks (1x4) and groups (n:m) the sums and the best of these scores. Masked weights get no
gradient, but are not set to 0 yet (AdamW's momentum and decay go on moving them a little) and go on being scored, so
that they may come back, until the last mask. What an earlier pruning removed stays removed.

As published, s begins at 0 and adds -m as it is, from weights that were not fine-tuned yet. A model that is trained
already hardly moves: the first terms are noise, largest where weights matter most, and those with the lowest s are
among them. So s begins with the size of the weights, and every step counts alike (as Adam's do there). Soft pruning as
published keeps the threshold and presses all scores down by a penalty p sum sigmoid(s), p found by trial for the share
that is wanted; what is pressed alike keeps its order, so the threshold follows the schedule here.

Changes: as magnitude: a bit a weight (1x4: a quarter) and the values of those that stay, float; int8, codebook, gptq
and the others keep the mask. Heads and embeddings as there. Needs: messages, labelled unless distil says otherwise.
Gives up: the scores take 4 bytes a weight while training; in few steps, or with few weights removed, magnitude is as
good or better.
Source: Sanh et al. 2020, arXiv:2005.07683.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.techniques.room import Run, check_choice, check_training, pruned
from flyweight.training.pruning import Plan, check_removed, group, share_removed
from flyweight.training.quantized import Distil


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Pruning by movement.

    sparsity: share of the weights removed, from 0 (nothing) to below 1; None: 0.8, or what a shape n:m leaves
    shape: 1x4 (what the engine skips fast) | unstructured | n:m, such as 2:4: n of every m neighbours stay,
    1 <= n < m <= 16; only hard
    mode: hard (each matrix loses that share) | soft (all together do), see the module
    heads: also the heads' matrices
    epochs: passes over the training messages, 1 to 1000; None aims at 3000 steps within 2 to 40 epochs. The best on
    validation messages is kept: by agreement with the model before, without distil by F1
    learning_rate: peak, in (0, 1); wide models want less (768: a quarter of it)
    distil: None (labels) | logits (of the model before the first technique, beside labels) | hidden (its hidden states
    too); either also on as much transfer text as there are training messages
    """

    sparsity: float | None = None
    shape: str = "1x4"
    mode: Literal["hard", "soft"] = "hard"
    heads: bool = False
    epochs: int | None = None
    learning_rate: float = 1e-3
    distil: Distil = "hidden"
    ZERO: ClassVar[dict[str, Any] | None] = {"sparsity": 0.0}

    def __post_init__(self) -> None:
        check_removed("movement", self.sparsity, self.shape)
        check_choice("movement", "mode", self.mode, ("hard", "soft"))
        if self.mode == "soft" and group(self.shape):  # whose shares are alike everywhere
            raise ConfigError(f"movement: mode is 'soft'; allowed: hard, where shape is {self.shape}")
        check_choice("movement", "heads", self.heads, (True, False))
        check_training("movement", self.epochs, self.learning_rate)
        check_choice("movement", "distil", self.distil, (None, "logits", "hidden"))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with masks, its matrices float; of packed ones what they decode to. Interrupted, it goes on.

        Errors: DataError where nothing can be learnt from.
        """
        plan = Plan(
            criterion="movement",
            sparsity=share_removed(self.sparsity, self.shape),
            shape=self.shape,
            scope="matrix" if self.mode == "hard" else "global",
            schedule="gradual",
        )
        return pruned(model, run, plan, self)
