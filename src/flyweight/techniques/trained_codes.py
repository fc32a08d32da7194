"""TrainedCodes: k-means codes whose centres are trained, from the float model's answers; for 2 bits and 1 bit.

    W[r, c] = table[r, z[r, c]],  z = the nearest centre of a float weight V[r, c] that is trained beside them
    dL/dtable[r, k] = sum of dL/dW[r, c] over z[r, c] = k;  dL/dV = dL/dW (straight through)
    distil: minimise soft labels of the float model + sum over layers of its hidden states' relative squared error

Starts from k-means of the model that comes in. Centres are rounded to the int8 grid of the file, and activations to
int8, in every forward pass: what is trained is what the engine multiplies, and the best epoch (on validation messages)
is packed without another change. Embeddings share one table of float centres.

Changes: ceil(log2 k) bits a weight + the tables, like codebook; biases and norms are trained along. Costs a training:
about twice a step of the float model's, for `epochs` passes. Needs: messages; those without labels teach too, except
with distil=none.
Sources: Han et al. 2015, arXiv:1510.00149 (centre gradients); TernaryBERT, arXiv:2009.12812, and XTC, arXiv:2206.01859
(straight-through at 2 bits and 1 bit, distillation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from flyweight.forms.codes import MAX_CENTRES
from flyweight.forms.kmeans import ROW_TABLE_LIMIT, centres
from flyweight.model.linear import Embedding, Matrix
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice, check_count, check_training
from flyweight.training.loop import TrainingSettings
from flyweight.training.quantized import Distil, fit_quantized
from flyweight.training.quantizers import Centres, DynamicInput

DROPOUT = 0.0  # rounding to a few centres is noise enough


@dataclass(frozen=True, kw_only=True)
class TrainedCodes:
    """Codes with trained centres and assignments.

    encoder: centres in attention and FFN matrices; embeddings: in word and position rows (and the label embeddings of
    a similarity head); heads: in linear heads. Each 2 to 256, or None: that part is float, and trained along.
    granularity: row (a table an output row; above 64 centres the matrix shares one) | matrix; embeddings: always matrix
    epochs: passes over the training messages, 1 to 1000; the best on validation messages is kept
    learning_rate: peak, in (0, 1), of weights and centres; wide models want less (768: a quarter of it)
    distil: None (labels) | logits (the float model's, beside labels) | hidden (its hidden states too)
    reassign: training steps between two assignments of weights to centres, 1 to 100000; None: k-means' stay
    """

    encoder: int | None = 4
    embeddings: int | None = 256
    heads: int | None = 256
    granularity: Literal["row", "matrix"] = "row"
    epochs: int = 10
    learning_rate: float = 5e-4
    distil: Distil = "hidden"
    reassign: int | None = 1
    ZERO: ClassVar[dict[str, Any] | None] = {"encoder": None, "embeddings": None, "heads": None}

    def __post_init__(self) -> None:
        for name in ("encoder", "embeddings", "heads"):
            check_count("trained_codes", name, getattr(self, name), 2, MAX_CENTRES)
        check_choice("trained_codes", "granularity", self.granularity, ("row", "matrix"))
        check_training("trained_codes", self.epochs, self.learning_rate)
        check_choice("trained_codes", "distil", self.distil, (None, "logits", "hidden"))
        check_count("trained_codes", "reassign", self.reassign, 1, 100_000)

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy, trained and packed. Interrupted, it goes on from run.folder."""
        model = model.copy()
        counts = {"encoder": self.encoder, "embeddings": self.embeddings, "heads": self.heads}
        chosen = [(module, k) for _, module, part in model.matrices() if (k := counts[part]) is not None]
        if not chosen:
            return model
        with bar("k-means", len(chosen), show=run.progress) as advance:
            for module, k in chosen:
                self._quantize(module, k)
                advance()
        return fit_quantized(
            model,
            run.data,
            TrainingSettings(epochs=self.epochs, learning_rate=self.learning_rate, dropout=DROPOUT, seed=run.seed),
            teacher=run.teacher,
            distil=self.distil,
            loss=run.loss,
            device=run.device,
            folder=run.folder,
            progress=run.progress,
        )

    def _quantize(self, module: Matrix, k: int) -> None:
        """Set the quantizers of one matrix."""
        w = module.weight.detach().float().cpu().numpy()
        looked_up = isinstance(module, Embedding)
        shared = looked_up or self.granularity == "matrix" or k > ROW_TABLE_LIMIT
        found = centres(w.reshape(1, -1) if shared else w, k) if w.size else np.zeros((1, k))
        # Word rows come and go while training (see `fit`): their codes cannot be kept.
        reassign = 1 if looked_up else self.reassign
        module.weight_quantizer = Centres(found, module.weight, integer=not looked_up, reassign=reassign)
        if not isinstance(module, Embedding):
            module.input_quantizer = DynamicInput()
