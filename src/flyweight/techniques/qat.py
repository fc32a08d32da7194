"""QAT: quantization-aware training; the weights learn to be 8-bit.

    1. quantize the weights and go forward with the quantized ones     W8 = round(W / s[r]),  y = x (s W8)^T + b
    2. compute the gradient                                            dL/dW = dL/d(s W8), straight through the rounding
    3. update the float weights                                        W = W - step(dL/dW)
    4. repeat 1 to 3; at the end quantize for good

`granularity="matrix", activations="float"` is the founding text's loop: W8 = W / scale + shift, one scale and shift a
matrix, activations as they are. activations="dynamic" also goes forward with int8 activations of each token's own
step, "static" with one step a matrix (and one each of Q, K and V: attention is computed in int8 too), switched on after
a delay, when ranges have settled (Jacob). Embeddings are int8 rows with a symmetric scale each whatever the rest, in
the founding loop too, unless embeddings=False.
ranges="lsq" learns the steps of weights (symmetric, without shift, also where a matrix has one) and of static
activations:
    dL/ds = sum g (round(x / s) - x / s inside the range, +-127 outside) / sqrt(127 n)

Changes: 1 byte a weight instead of 4; biases and norms are trained along. The epoch is chosen on validation messages
and packed without another change. Costs a training. Needs: messages, labelled unless distil says otherwise.
Sources: Jacob et al. 2017, arXiv:1712.05877 (loop, moving averages, delay); LSQ: Esser et al. 2019, arXiv:1902.08153;
Q8BERT: Zafrir et al. 2019, arXiv:1910.06188; loop with scale and shift: the founding experiment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from flyweight.errors import ConfigError
from flyweight.model.encoder import Layer
from flyweight.model.linear import Embedding, Linear, Matrix
from flyweight.model.nlu import NLUModel
from flyweight.techniques.room import Run, check_choice, check_training
from flyweight.training.loop import TrainingSettings
from flyweight.training.quantized import Distil, epochs_of, fit_taught, taught_data
from flyweight.training.quantizers import (
    DynamicInput,
    Int8Matrix,
    Int8Rows,
    LearnedRows,
    RealTokens,
    StaticAttention,
    StaticInput,
    WeightQuantizer,
    with_mask,
)


@dataclass(frozen=True, kw_only=True)
class QAT:
    """Quantization-aware training to int8.

    granularity: row (one symmetric scale an output row) | matrix (one scale and shift a matrix; lsq: one scale)
    activations: dynamic (each token's own step) | static (one step a matrix) | float
    ranges: ema (weights: their largest now; static activations: moving average of the largest) | lsq (learned; Q, K and
    V keep the average)
    delay: share of the training after which static activations are quantized, from 0 to below 1
    embeddings: also the embedding rows, as int8 with a scale each
    epochs: passes over the training messages, 1 to 1000; None aims at 1500 steps within 2 to 40 epochs. The best on
    validation messages is kept: by F1, or with distil by agreement with the float model
    learning_rate: peak, in (0, 1)
    distil: None (labels) | logits (the float model's, beside labels) | hidden (its hidden states too); either also on
    as many unlabelled splices of the training messages
    """

    granularity: Literal["row", "matrix"] = "row"
    activations: Literal["dynamic", "static", "float"] = "dynamic"
    ranges: Literal["ema", "lsq"] = "ema"
    delay: float = 0.2
    embeddings: bool = True
    epochs: int | None = None
    learning_rate: float = 5e-5
    distil: Distil = None
    ZERO: ClassVar[dict[str, Any] | None] = None  # rounding and training always change something

    def __post_init__(self) -> None:
        check_choice("qat", "granularity", self.granularity, ("row", "matrix"))
        check_choice("qat", "activations", self.activations, ("dynamic", "static", "float"))
        check_choice("qat", "ranges", self.ranges, ("ema", "lsq"))
        if type(self.delay) not in (int, float) or not 0 <= self.delay < 1:
            raise ConfigError(f"qat: delay is {self.delay!r}; allowed: a number from 0 to below 1")
        check_choice("qat", "embeddings", self.embeddings, (True, False))
        check_training("qat", self.epochs, self.learning_rate)
        check_choice("qat", "distil", self.distil, (None, "logits", "hidden"))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy, trained and packed. Interrupted, it goes on from run.folder.

        Errors: DataError where nothing can be learnt from.
        """
        model = model.copy()
        data = taught_data(run.data, self.distil, run.seed, run.loss)
        epochs = epochs_of(self.epochs, data)
        settings = TrainingSettings(epochs=epochs, learning_rate=self.learning_rate, seed=run.seed)
        n_steps = epochs * math.ceil(len(data.train) / settings.batch_size)
        tokens = RealTokens()
        for _, module, _ in model.matrices():
            module.weight_quantizer = self._weights(module)
            if isinstance(module, Linear):
                module.input_quantizer = self._inputs(tokens, n_steps)
        if self.activations == "static":
            for layer in model.encoder.layers:
                if isinstance(layer, Layer):
                    layer.attention.qkv.output_quantizer = StaticAttention(tokens, delay=round(self.delay * n_steps))
        return fit_taught(
            model,
            data,
            settings,
            teacher=run.teacher,
            distil=self.distil,
            loss=run.loss,
            while_training=partial(with_mask, tokens=tokens),
            device=run.device,
            folder=run.folder,
            progress=run.progress,
        )

    def _weights(self, module: Matrix) -> WeightQuantizer | None:
        """The quantizer of one matrix's weights; embedding rows, which come and go while training, keep no state."""
        if isinstance(module, Embedding):
            return Int8Rows() if self.embeddings else None
        if self.ranges == "lsq":
            return LearnedRows(module.weight, per_row=self.granularity == "row", mask=module.mask)
        return Int8Rows() if self.granularity == "row" else Int8Matrix()

    def _inputs(self, tokens: RealTokens, n_steps: int) -> DynamicInput | StaticInput | None:
        """The quantizer of one matrix's input."""
        if self.activations == "dynamic":
            return DynamicInput()
        if self.activations == "static":
            return StaticInput(tokens, delay=round(self.delay * n_steps), learned=self.ranges == "lsq")
        return None
