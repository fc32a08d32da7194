"""LayerPruning: whole layers go, one after the other, each time the one whose absence is measured to cost least.

    drop l = argmin_l cost(model without l)         until `keep` layers are left
    cost: agreement   mean KL(model before || model) of intents, and of tags, on validation messages
          loss        mean CE(intents) + mean CE(tags) of the labelled validation messages

What is tried is run: n + (n - 1) + ... passes over the validation messages, or, where there are none, over those of
training. With distil=hidden each layer left learns
what the model before gave to the next one that is left, the last one what the last one gave there.

Changes: a layer of n is a 1/n of encoder weights and time, in any form. Needs: messages, labelled ones for cost=loss.
Gives up: depth; a few layers of twelve are free, below half much must be learnt again.
Before single weights are pruned and before packing.
Sources: Fan et al. 2019, LayerDrop, arXiv:1909.11556; Sajjad et al. 2020, arXiv:2004.03844 (which layers to drop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from flyweight.data.messages import Message
from flyweight.errors import DataError
from flyweight.model.nlu import EVAL_BATCH, NLUModel
from flyweight.model.surgery import keep_layers, unpacked_copy
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice, check_count, check_training, check_whole, retrained
from flyweight.training.importance import representative
from flyweight.training.logits import soft_labels_loss
from flyweight.training.loop import collate, encode
from flyweight.training.losses import labels_loss
from flyweight.training.quantized import Distil

MOST = 1000  # more layers than any model has


@dataclass(frozen=True, kw_only=True)
class LayerPruning:
    """Layer pruning by measured cost.

    keep: layers that stay, 0 to 1000, all where there are fewer; None: half of them
    cost: agreement (with the model before the first technique) | loss (of the labels)
    between: passes over the training messages after each layer but the last, 0 to 1000
    epochs: after the last layer, 0 to 1000; None aims at 1500 steps within 2 to 40 epochs. The best epoch on validation
    messages is kept: by agreement with the model before, without distil by F1
    learning_rate: peak, in (0, 1); wide models want less (768: a quarter of it)
    distil: None (labels) | logits (of the model before the first technique, beside labels) | hidden (its hidden states
    too); either also on as much transfer text as there are training messages
    """

    keep: int | None = None
    cost: Literal["agreement", "loss"] = "agreement"
    between: int = 0
    epochs: int | None = None
    learning_rate: float = 2e-4
    distil: Distil = "hidden"
    ZERO: ClassVar[dict[str, Any] | None] = {"keep": MOST}

    def __post_init__(self) -> None:
        check_count("layer_pruning", "keep", self.keep, 0, MOST)
        check_choice("layer_pruning", "cost", self.cost, ("agreement", "loss"))
        check_whole("layer_pruning", "between", self.between, 0, 1000)
        check_training("layer_pruning", self.epochs, self.learning_rate, fewest=0)
        check_choice("layer_pruning", "distil", self.distil, (None, "logits", "hidden"))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A model with fewer layers. Interrupted, its trainings go on from run.folder.

        Errors: ConfigError for packed or masked matrices; DataError without messages, or where nothing can be learnt
        from.
        """
        n_layers = len(model.encoder.config.transformer_shapes("layer_pruning"))
        keep = (n_layers + 1) // 2 if self.keep is None else self.keep
        if keep >= n_layers:
            return model.copy()
        model = unpacked_copy(model)
        cost = self._cost(model, run)
        for count in range(n_layers - 1, keep - 1, -1):
            with bar("layers", count + 1, show=run.progress) as advance:
                costs = []
                for i in range(count + 1):
                    costs.append(cost(without(model, i)))
                    advance()
            model = retrained(
                without(model, min(range(count + 1), key=costs.__getitem__)),
                run,
                epochs=self.epochs if count == keep else self.between,
                learning_rate=self.learning_rate,
                distil=self.distil,
            )
        return model

    def _cost(self, model: NLUModel, run: Run) -> Callable[[NLUModel], float]:
        """What models cut out of `model` are compared by, the lower the better. Errors: DataError."""
        messages = run.data.validation or run.data.train
        if not messages:
            raise DataError(
                "no validation messages and no training messages",
                allowed="layer_pruning measures on them which layer to drop",
            )
        if self.cost == "loss":
            labelled = [m for _, m in representative(model, messages, len(messages), run.seed)]
            return lambda cut: mean_loss(cut, labelled)
        texts = [m.text for m in messages]
        agreement = soft_labels_loss(run.teacher, model, [Message(text) for text in texts], run.progress).agreement
        encoded = model.tokenizer.encode_batch(texts)
        return lambda cut: -agreement(cut.logits(encoded))


def without(model: NLUModel, layer: int) -> NLUModel:
    """A new model without this layer."""
    return keep_layers(model, [i for i in range(len(model.encoder.layers)) if i != layer])


@torch.no_grad()
def mean_loss(model: NLUModel, messages: Sequence[Message]) -> float:
    """labels_loss of messages with labels that the model was made for, without dropout; a batch counts as its size."""
    examples, total = encode(model.eval(), messages), 0.0
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].encoded.ids))
    for at in range(0, len(order), EVAL_BATCH):
        rows = order[at : at + EVAL_BATCH]
        total += len(rows) * float(labels_loss(model, collate(examples, rows)))
    return total / len(order)
