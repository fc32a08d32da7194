"""Int8: 8-bit weights, and activations quantized per token on the fly; integer products, one correction at the end.

    W8[r, :] = round(W32[r, :] / s[r]),  s[r] = max|W32[r, :]| / 127                      granularity="row"
    W8 = round(W32 / scale + shift), one scale and integer shift a matrix                  granularity="matrix"
    y[t, r] = s_x[t] s_w[r] sum_c x8[t, c] W8[r, c] + b[r],  s_x[t] = max|x[t, :]| / 127

The int32 sum is exact; with a shift, shift * sum_c x8[t, c] is taken off it once. Post-training, no messages needed.
Changes: 1 byte a weight instead of 4. Gives up: nothing trained, so an outlier stretches its row's scale.
Sources: Bhandare et al. 2019, arXiv:1906.00532 (rows, dynamic activations); scale and shift: the founding experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.model.linear import Embedding, set_form
from flyweight.model.nlu import NLUModel
from flyweight.techniques.room import Run, check_choice


@dataclass(frozen=True, kw_only=True)
class Int8:
    """8-bit weights and dynamic 8-bit activations.

    granularity: row (one symmetric scale an output row) | matrix (one scale and shift a matrix, the founding text's)
    embeddings: also the embedding rows (word rows are the largest matrix of MiniLM)
    heads: also the intent and entity heads
    """

    granularity: Literal["row", "matrix"] = "row"
    embeddings: bool = True
    heads: bool = True
    ZERO: ClassVar[dict[str, Any] | None] = None  # rounding always changes something

    def __post_init__(self) -> None:
        check_choice("int8", "granularity", self.granularity, ("row", "matrix"))
        check_choice("int8", "embeddings", self.embeddings, (True, False))
        check_choice("int8", "heads", self.heads, (True, False))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with packed matrices. Costs a second; weights already packed are packed anew, static steps go."""
        model = model.copy()
        model.encoder.config = replace(model.encoder.config, integer_only=False)
        quantize = int8_rows if self.granularity == "row" else int8_matrix
        wanted = {"encoder": True, "embeddings": self.embeddings, "heads": self.heads}
        for _, module, part in model.matrices():
            if wanted[part]:
                form = quantize(module.weight.detach().float().cpu().numpy())
                set_form(module, form, "float" if isinstance(module, Embedding) else "int8")
        return model
