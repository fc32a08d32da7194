"""NeuronPruning: single neurons of the FFNs go, those first to which the loss is least sensitive.

    I_n = mean_x |mean_t(a_n * dL/da_n)|, l2 norm 1 in each layer     a_n(t): activation of neuron n at token t

In rounds: score all neurons that are left on training messages, remove a tenth (over all layers), fine-tune, score
again: the others take over what a few did. Messages are drawn so that every intent is there alike.

Changes: W1 (n, D) -> (n', D), W2 (D, n) -> (D, n'); a layer without neurons is only a bias, residual and norm. Smaller
and faster in any form. Needs: labelled messages; training also learns from others where there is a teacher.
Before single weights are pruned and before packing.
Source: Molchanov et al. 2016, arXiv:1611.06440.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_neurons
from flyweight.techniques.room import Run, check_rounds, cut_in_rounds
from flyweight.training.importance import MaskGradients, most_important, neuron_importance
from flyweight.training.quantized import Distil


@dataclass(frozen=True, kw_only=True)
class NeuronPruning:
    """Neuron pruning by importance, alternating with training.

    keep: share of the model's neurons that stays, over all layers, from 0 (none) to 1 (all)
    step: share removed in a round, above 0, at most 1
    between: passes over the training messages after each round but the last, 0 to 1000
    epochs: after the last round, 0 to 1000; None aims at 1500 steps within 2 to 40 epochs. The best epoch on validation
    messages is kept: by agreement with the model before, without distil by F1
    learning_rate: peak, in (0, 1); wide models want less (768: a quarter of it)
    distil: None (labels) | logits (of the model before the first technique, beside labels) | hidden (its hidden states
    too); either also on as much transfer text as there are training messages
    n_messages: that score, of the training split, 1 to 100000, fewer where it has fewer
    """

    keep: float = 0.5
    step: float = 0.1
    between: int = 1
    epochs: int | None = None
    learning_rate: float = 2e-4
    distil: Distil = "hidden"
    n_messages: int = 256
    ZERO: ClassVar[dict[str, Any] | None] = {"keep": 1.0}

    def __post_init__(self) -> None:
        check_rounds("neuron_pruning", self)

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A smaller model. Interrupted, its trainings go on from run.folder.

        Errors: ConfigError for packed or masked matrices; DataError where no message can score, or teach.
        """
        n_units = sum(s.ffn for s in model.encoder.config.transformer_shapes("neuron_pruning"))

        def cut(now: NLUModel, gradients: MaskGradients, count: int) -> NLUModel:
            return keep_neurons(now, most_important(neuron_importance(gradients), count))

        return cut_in_rounds(model, run, n_units, cut, self)
