"""Codebook: k-means; every weight becomes an index of log2(k) bits into a small table of centres.

    minimise sum_i (w_i - c[z_i])^2 over k centres c and codes z        one table a row, or one a matrix

Real, not "pseudo": codes are stored in ceil(log2 k) bits and, with int8 activations, the centres are int8 too
(centre = table * scale), so that the engine multiplies integers:
    y[t, r] = s_x[t] s_w[r] sum_c x8[t, c] table[r, z[r, c]] + b[r]
activations="float" is the founding experiment's form: float32 centres, float32 products.

Changes: ceil(log2 k) bits a weight + the tables. Post-training, no messages needed; below 4 bits at 12 layers expect
to train afterwards. Source: Han et al. 2015, arXiv:1510.00149; Cheong & Daniel 2019.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from flyweight.forms.codes import MAX_CENTRES, Codes, codes_from_centres
from flyweight.forms.kmeans import centres
from flyweight.model.linear import Embedding, set_form
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice, check_count

ROW_TABLE_LIMIT = 64  # more centres than this would make a row's table as large as its codes: they share one table


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """k-means codes, post-training.

    encoder: centres in attention and FFN matrices; embeddings: in word and position rows (and the label embeddings of
    a similarity head); heads: in linear heads. Each 2 to 256, or None: that part stays as it is.
    granularity: row (a table an output row; above 64 centres the matrix shares one) | matrix (one table a matrix)
    activations: int8 (quantized per token, centres rounded to int8) | float
    """

    encoder: int | None = 16
    embeddings: int | None = 256
    heads: int | None = 256
    granularity: Literal["row", "matrix"] = "row"
    activations: Literal["int8", "float"] = "int8"
    ZERO: ClassVar[dict[str, Any] | None] = {"encoder": None, "embeddings": None, "heads": None}

    def __post_init__(self) -> None:
        for name in ("encoder", "embeddings", "heads"):
            check_count("codebook", name, getattr(self, name), 2, MAX_CENTRES)
        check_choice("codebook", "granularity", self.granularity, ("row", "matrix"))
        check_choice("codebook", "activations", self.activations, ("int8", "float"))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with packed matrices. BERT-base takes under a minute on two cores."""
        model = model.copy()
        counts = {"encoder": self.encoder, "embeddings": self.embeddings, "heads": self.heads}
        chosen = [(module, k) for _, module, part in model.matrices() if (k := counts[part]) is not None]

        def quantize(item: tuple[Any, int]) -> Codes:
            module, k = item
            w = module.weight.detach().float().cpu().numpy()
            integer = self.activations == "int8" and not isinstance(module, Embedding)
            return kmeans_codes(w, k, self.granularity, integer)

        # NumPy releases the GIL in its large loops: two matrices at a time use two cores.
        with ThreadPoolExecutor(2) as pool, bar("k-means", len(chosen), show=run.progress) as advance:
            for (module, _), form in zip(chosen, pool.map(quantize, chosen), strict=True):
                set_form(module, form, "int8" if form.scale is not None else "float")
                advance()
        return model


def kmeans_codes(w: np.ndarray, k: int, granularity: str, integer: bool) -> Codes:
    """k-means codes of one matrix. w (R, C) float32; integer: int8 centres with a scale, else float32 centres.

    Rows shorter than k need fewer centres than k: the table then repeats the last ones.
    """
    if w.size == 0:
        return codes_from_centres(w, np.zeros((1, k)), integer)
    if granularity == "matrix" or k > ROW_TABLE_LIMIT:
        return codes_from_centres(w, centres(w.reshape(1, -1), k), integer)
    return codes_from_centres(w, centres(w, k), integer)
