"""TrainedCodes: k-means codes whose centres are trained, from the float model's answers; for 2 bits and 1 bit.

    W[r, c] = table[r, z[r, c]],  z = the nearest centre of a float weight V[r, c] that is trained beside them
    dL/dtable[r, k] = sum of dL/dW[r, c] over z[r, c] = k;  dL/dV = dL/dW (straight through)
    distil: minimise soft labels of the float model + sum over layers of its hidden states' relative squared error

Starts from k-means of the model that comes in. Centres are rounded to the int8 grid of the file, and activations to
int8, in every forward pass: what is trained is what the engine multiplies, and the best epoch (on validation messages)
is packed without another change. Embeddings share one table of float centres.

"kept" trains a model that is packed already, such as one of mixed precision: each matrix starts from its own centres,
and V from the float model's weights, unless other biases or norms show that a training lies between. int8 is trained as
int8 rows, static activations become int8 a token. Say it of all three parts (encoder, embeddings, heads): numbers of
centres, their defaults too, pack a part anew. Word and position rows with a table each stay as they are, untrained:
only rows that occur are there while training.

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
import torch
from torch import Tensor

from flyweight.errors import ConfigError
from flyweight.forms import Sparse
from flyweight.forms.codes import MAX_CENTRES, Codes
from flyweight.forms.kmeans import ROW_TABLE_LIMIT, centres, survivors
from flyweight.model.linear import Embedding, Linear, Matrix, mask_of
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice, check_count, check_training
from flyweight.training.loop import TrainingSettings
from flyweight.training.quantized import Distil, epochs_of, fit_taught, taught_data
from flyweight.training.quantizers import Centres, DynamicInput, Fixed, Int8Rows

DROPOUT = 0.0  # rounding to a few centres is noise enough
PARTS = ("encoder", "embeddings", "heads")
Centred = int | Literal["kept"] | None


@dataclass(frozen=True, kw_only=True)
class TrainedCodes:
    """Codes with trained centres and assignments.

    encoder: centres in attention and FFN matrices; embeddings: in word and position rows (and the label embeddings of
    a similarity head); heads: in linear heads. Each 2 to 256; kept: each matrix keeps its bits and tables, float ones
    are trained along, where others of the part are packed; None: that part is float, and trained along.
    granularity: row (a table an output row; above 64 centres the matrix shares one) | matrix; embeddings: always matrix
    epochs: passes over the training messages, 1 to 1000; None aims at 1500 steps within 2 to 40 epochs. The best on
    validation messages is kept: by agreement with the float model, without distil by F1
    learning_rate: peak, in (0, 1), of weights and centres; wide models want less (768: a quarter of it)
    distil: None (labels) | logits (the float model's, beside labels) | hidden (its hidden states too); either also on
    as many unlabelled splices of the training messages
    reassign: training steps between two assignments of weights to centres, 1 to 100000; None: those of the start stay
    """

    encoder: Centred = 4
    embeddings: Centred = 256
    heads: Centred = 256
    granularity: Literal["row", "matrix"] = "row"
    epochs: int | None = None
    learning_rate: float = 5e-4
    distil: Distil = "hidden"
    reassign: int | None = 1
    ZERO: ClassVar[dict[str, Any] | None] = {"encoder": None, "embeddings": None, "heads": None}

    def __post_init__(self) -> None:
        for name in PARTS:
            k = getattr(self, name)
            if not (k is None or k == "kept" or (type(k) is int and 2 <= k <= MAX_CENTRES)):
                allowed = f"none, kept, or a whole number from 2 to {MAX_CENTRES}"
                raise ConfigError(f"trained_codes: {name} is {k!r}; allowed: {allowed}")
        check_choice("trained_codes", "granularity", self.granularity, ("row", "matrix"))
        check_training("trained_codes", self.epochs, self.learning_rate)
        check_choice("trained_codes", "distil", self.distil, (None, "logits", "hidden"))
        check_count("trained_codes", "reassign", self.reassign, 1, 100_000)

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy, trained and packed. Interrupted, it goes on from run.folder.

        Errors: ConfigError where bits of a part are to be kept that has none; DataError where nothing can be learnt
        from.
        """
        model = model.copy()
        counts: dict[str, Centred] = {"encoder": self.encoder, "embeddings": self.embeddings, "heads": self.heads}
        chosen = [
            (name, module, k)
            for name, module, part in model.matrices()
            if (k := counts[part]) is not None and (k != "kept" or module.form is not None)
        ]
        for name, k in counts.items():
            forms = [module.form for _, module, part in model.matrices() if part == name]
            if k == "kept" and forms and all(form is None for form in forms):
                raise ConfigError(
                    f"trained_codes: {name} is kept, but no matrix of that part is packed; apply mixed_precision, "
                    f"codebook or gptq before, or give {name} a number of centres, or none (float)"
                )
        if not chosen:
            return model
        data = taught_data(run.data, self.distil, run.seed, run.loss)
        floats = float_weights(model, run.teacher)
        with bar("k-means", len(chosen), show=run.progress) as advance:
            for name, module, k in chosen:
                if k == "kept":
                    self._keep(module, floats.get(name))
                else:
                    self._quantize(module, k)
                advance()
        epochs = epochs_of(self.epochs, data)
        return fit_taught(
            model,
            data,
            TrainingSettings(epochs=epochs, learning_rate=self.learning_rate, dropout=DROPOUT, seed=run.seed),
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
        mask = mask_of(module)
        if shared:
            w, mask = w.reshape(1, -1), None if mask is None else mask.reshape(1, -1)
        there, h = survivors(w, mask)
        found = centres(there, k, h) if w.size else np.zeros((1, k))
        # Word rows come and go while training (see `fit`): their codes cannot be kept.
        reassign = 1 if looked_up else self.reassign
        module.weight_quantizer = Centres(found, module.weight, integer=not looked_up, reassign=reassign)
        if not isinstance(module, Embedding):
            module.input_quantizer = DynamicInput()

    def _keep(self, module: Matrix, weight: Tensor | None) -> None:
        """Set the quantizers that train one packed matrix in its own form, from the float weight where it is known."""
        form, looked_up = module.form, isinstance(module, Embedding)
        if isinstance(form, Sparse):
            form = form.values
        if isinstance(form, Codes) and looked_up and len(form.table) > 1:
            module.weight_quantizer = Fixed(form)
            return
        if isinstance(form, Codes):
            module.weight_quantizer = Centres.of(form, reassign=1 if looked_up else self.reassign)
        else:
            module.weight_quantizer = Int8Rows()
        if isinstance(module, Linear) and module.activations != "float":
            module.input_quantizer = DynamicInput()
        mask = module.mask if isinstance(module, Linear) else None
        if weight is not None:
            with torch.no_grad():
                module.weight.copy_(weight if mask is None else weight * mask)


def float_weights(model: NLUModel, teacher: NLUModel) -> dict[str, Tensor]:
    """The teacher's matrices that the model's are roundings of; none where biases or norms are not the teacher's."""
    ours, theirs = dict(model.vectors()), dict(teacher.vectors())
    if ours.keys() != theirs.keys() or not all(torch.equal(v.cpu(), theirs[name].cpu()) for name, v in ours.items()):
        return {}
    known = {name: module.weight.detach() for name, module, _ in teacher.matrices()}
    return {name: known[name] for name, m, _ in model.matrices() if known[name].shape == m.weight.shape}
