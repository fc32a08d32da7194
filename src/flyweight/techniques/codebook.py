"""Codebook: k-means; every weight becomes an index of log2(k) bits into a small table of centres.

    minimise sum_i h_i (w_i - c[z_i])^2 over k centres c and codes z    a table a row, a group of rows, or the matrix
    h_i = 1, or the diagonal Fisher information E[(dL/dw_i)^2] on labelled training messages (SqueezeLLM)

Real, not "pseudo": codes are stored in ceil(log2 k) bits and, with int8 activations, the centres are int8 too
(centre = table * scale), so that the engine multiplies integers:
    y[t, r] = s_x[t] s_w[r] sum_c x8[t, c] table[r, z[r, c]] + b[r]
activations="float" is the founding experiment's form: float32 centres, float32 products.

Embeddings keep h = 1: words that do not occur have no gradient, and would lose their meaning.
Changes: ceil(log2 k) bits a weight + the tables. Post-training; messages only for the sensitivity. Below 4 bits at 12
layers expect to train afterwards.
Sources: Han et al. 2015, arXiv:1510.00149; Cheong & Daniel 2019; Fisher: Kim et al. 2023, arXiv:2306.07629.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from flyweight.errors import ConfigError
from flyweight.forms import Int8
from flyweight.forms.codes import MAX_CENTRES, Codes
from flyweight.forms.kmeans import STARTS, Granularity, Start, kmeans_codes
from flyweight.model.linear import Embedding, Linear, mask_of, set_form
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice, check_count
from flyweight.training.fisher import diagonal_fisher

MAX_GROUP = 4096


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """k-means codes, post-training.

    encoder: centres in attention and FFN matrices; embeddings: in word and position rows (and the label embeddings of
    a similarity head); heads: in linear heads. Each 2 to 256, or None: that part stays as it is.
    granularity: row (a table an output row; of more than 64 centres 16 rows share one, in embeddings all; 256 int8
    centres of a row are int8 rows, and stored so) | group (a table for every `group` rows) | matrix (one table)
    activations: int8 (quantized per token, centres rounded to int8) | float
    sensitivity: what an error of a weight counts: plain (1) | fisher (needs labelled training messages)
    start: of Lloyd's iteration: best | linear | kmeans++ | quantile, see flyweight.forms.kmeans
    group: rows that share a table where granularity is group, 2 to 4096
    """

    encoder: int | None = 16
    embeddings: int | None = 256
    heads: int | None = 256
    granularity: Granularity = "row"
    activations: Literal["int8", "float"] = "int8"
    sensitivity: Literal["plain", "fisher"] = "plain"
    start: Start = "best"
    group: int = 16
    ZERO: ClassVar[dict[str, Any] | None] = {"encoder": None, "embeddings": None, "heads": None}

    def __post_init__(self) -> None:
        for name in ("encoder", "embeddings", "heads"):
            check_count("codebook", name, getattr(self, name), 2, MAX_CENTRES)
        check_choice("codebook", "granularity", self.granularity, ("row", "group", "matrix"))
        check_choice("codebook", "activations", self.activations, ("int8", "float"))
        check_choice("codebook", "sensitivity", self.sensitivity, ("plain", "fisher"))
        check_choice("codebook", "start", self.start, STARTS)
        if type(self.group) is not int or not 2 <= self.group <= MAX_GROUP:
            raise ConfigError(f"codebook: group is {self.group!r}; allowed: a whole number from 2 to {MAX_GROUP}")

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with packed matrices. BERT-base takes under a minute on two cores, with Fisher weights under two.

        Errors: DataError where Fisher weights are wanted and no training message has a label.
        """
        model = model.copy()
        counts = {"encoder": self.encoder, "embeddings": self.embeddings, "heads": self.heads}
        chosen = [(name, module, k) for name, module, part in model.matrices() if (k := counts[part]) is not None]
        if chosen:  # an integer_only encoder is static throughout
            model.encoder.config = replace(model.encoder.config, integer_only=False)
        fisher: dict[str, np.ndarray] = {}
        if self.sensitivity == "fisher":
            linear = {name: module for name, module, _ in chosen if isinstance(module, Linear)}
            fisher = diagonal_fisher(model, linear, run.data.train, run.loss, run.seed, run.device, run.progress)

        def quantize(item: tuple[str, Any, int]) -> Codes | Int8:
            name, module, k = item
            w = module.weight.detach().float().cpu().numpy()
            integer = self.activations == "int8" and not isinstance(module, Embedding)
            h = fisher.get(name)
            mask = mask_of(module)
            return kmeans_codes(w, k, self.granularity, integer, h=h, start=self.start, group=self.group, mask=mask)

        # NumPy releases the GIL in its large loops: two matrices at a time use two cores.
        with ThreadPoolExecutor(2) as pool, bar("k-means", len(chosen), show=run.progress) as advance:
            for (_, module, _), form in zip(chosen, pool.map(quantize, chosen), strict=True):
                set_form(module, form, "int8" if form.scale is not None else "float")
                advance()
        return model
