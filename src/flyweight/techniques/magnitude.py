"""Magnitude pruning: the weights nearest 0 go; what is left is trained, and learns from the model before.

    keep the weights with the largest |w|       1x4: the blocks of four neighbours along the input with the largest sum
    one-shot    all that is to go at once, then training (epochs=0: none)
    iterative   four rounds of pruning and training; each leaves the same share of what there was
    gradual     share removed s (1 - (1 - u)^3), u rising from 0 at a tenth to 1 at six tenths of the training

A weight that is masked gets no gradient, but is not set to 0 yet (AdamW's momentum and decay go on moving it a little);
as long as masks are made anew it can come back. Epochs before the last mask are none to choose from. What an earlier
pruning removed stays removed: a lower sparsity gives nothing back.

Of the model the attention and FFN matrices, as in the literature: they are most of the multiplications. The heads hold
a row a label, are small and see the loss first (heads=True prunes them too). Embeddings are looked up, not multiplied:
zeros there take no time away, and rows of words that no training message has would lose their meaning; vocabulary
removes whole rows.

Changes: a bit a weight (1x4: a quarter) and the values of those that stay, float; int8, codebook, gptq and the others
keep the mask. Faster in the engine once packed. Needs: messages; epochs=0 none.
Gives up: what the few messages of training do not show; above 90% movement is better.
Sources: Han et al. 2015, arXiv:1506.02626 (rounds); Zhu & Gupta 2017, arXiv:1710.01878 (cubic); Gale et al. 2019,
arXiv:1902.09574; blocks of 1x4 in BERT: Shen et al. 2022, arXiv:2211.07715.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.techniques.room import Run, check_choice, check_training, pruned
from flyweight.training.pruning import SCHEDULES, SCOPES, Plan, Schedule, Scope, check_removed, share_removed
from flyweight.training.quantized import Distil


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Pruning by size.

    sparsity: share of the weights removed, from 0 (nothing) to below 1; None: 0.8, or what a shape n:m leaves
    shape: 1x4 (what the engine skips fast) | unstructured | n:m, such as 2:4: n of every m neighbours stay,
    1 <= n < m <= 16
    scope: matrix (each loses that share) | global (all together do; n:m knows no other than matrix)
    schedule: gradual | iterative | one-shot, see the module
    heads: also the heads' matrices
    epochs: passes over the training messages, 1 to 1000; None aims at 3000 steps within 2 to 40 epochs; 0, only
    one-shot: no training. The best epoch on validation messages is kept: by agreement with the model before, without
    distil by F1
    learning_rate: peak, in (0, 1); wide models want less (768: a quarter of it)
    distil: None (labels) | logits (of the model before the first technique, beside labels) | hidden (its hidden states
    too); either also on as much transfer text as there are training messages
    """

    sparsity: float | None = None
    shape: str = "1x4"
    scope: Scope = "matrix"
    schedule: Schedule = "gradual"
    heads: bool = False
    epochs: int | None = None
    learning_rate: float = 1e-3
    distil: Distil = "hidden"
    ZERO: ClassVar[dict[str, Any] | None] = {"sparsity": 0.0}

    def __post_init__(self) -> None:
        check_removed("magnitude", self.sparsity, self.shape)
        check_choice("magnitude", "scope", self.scope, SCOPES)
        check_choice("magnitude", "schedule", self.schedule, SCHEDULES)
        check_choice("magnitude", "heads", self.heads, (True, False))
        check_training("magnitude", self.epochs, self.learning_rate, fewest=0)
        if self.epochs == 0 and self.schedule != "one-shot":
            allowed = "none, or a whole number from 1 to 1000; 0 only with schedule one-shot"
            raise ConfigError(f"magnitude: epochs is 0; allowed: {allowed}")
        check_choice("magnitude", "distil", self.distil, (None, "logits", "hidden"))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with masks, its matrices float; of packed ones what they decode to. Interrupted, it goes on.

        Errors: DataError where nothing can be learnt from.
        """
        plan = Plan(
            criterion="magnitude",
            sparsity=share_removed(self.sparsity, self.shape),
            shape=self.shape,
            scope=self.scope,
            schedule=self.schedule,
        )
        return pruned(model, run, plan, self)
