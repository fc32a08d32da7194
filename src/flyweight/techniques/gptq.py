"""GPTQ: round a matrix column by column; what a column loses, the columns not yet rounded compensate.

    minimise |W X - Q X|^2 over Q on a grid;   H = 2 X X^T + damp mean(diag(2 X X^T)) I,  U = upper Cholesky of H^-1
    for each column j:   q_j = nearest(w_j),   e_j = (w_j - q_j) / U[j, j],   w_k -= U[j, k] e_j for all k > j

X are the inputs of the matrix at the real tokens of some unlabelled training messages; layer by layer, behind layers
that are rounded already. H's factor 2 changes no e_j U[j, k] and is left out.
Grid "uniform": k equally spaced int8 centres a row, their range shrunk for the least error; above 64, the 255 steps
of int8. Grid "kmeans": centres by k-means first, an error counting as much as its input is large (diag H), then codes.
Embeddings have no inputs: k-means.
Changes: ceil(log2 k) bits a weight + the tables, as codebook does; activations int8 per token. Post-training.
Sources: Frantar et al. 2022, GPTQ, arXiv:2210.17323; Frantar & Alistarh 2022, OBQ, arXiv:2208.11580.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from flyweight.data.messages import Message
from flyweight.errors import ConfigError, DataError
from flyweight.forms.codes import MAX_CENTRES
from flyweight.forms.kmeans import kmeans_codes
from flyweight.model.linear import Embedding, Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.progress import Advance, bar
from flyweight.techniques.room import Run, check_choice, check_count
from flyweight.training.compensated import rounded
from flyweight.training.inputs import second_moment, stages
from flyweight.training.loop import pick_device


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Error-compensated rounding, post-training, from unlabelled messages.

    encoder: centres in attention and FFN matrices; embeddings: in word and position rows (and the label embeddings of
    a similarity head); heads: in linear heads. Each 2 to 256, or None: that part stays as it is.
    grid: uniform (equally spaced centres) | kmeans (centres by k-means)
    n_messages: of the training split, 1 to 100000, fewer where it has fewer
    damp: of the mean of H's diagonal, added to it; above 0, at most 1
    act_order: round the columns with the largest inputs first
    """

    encoder: int | None = 16
    embeddings: int | None = 256
    heads: int | None = 256
    grid: Literal["uniform", "kmeans"] = "kmeans"
    n_messages: int = 512
    damp: float = 0.01
    act_order: bool = True
    ZERO: ClassVar[dict[str, Any] | None] = {"encoder": None, "embeddings": None, "heads": None}

    def __post_init__(self) -> None:
        for name in ("encoder", "embeddings", "heads"):
            check_count("gptq", name, getattr(self, name), 2, MAX_CENTRES)
        check_choice("gptq", "grid", self.grid, ("uniform", "kmeans"))
        if type(self.n_messages) is not int or not 1 <= self.n_messages <= 100_000:
            raise ConfigError(f"gptq: n_messages is {self.n_messages!r}; allowed: a whole number from 1 to 100000")
        if type(self.damp) not in (int, float) or not 0 < self.damp <= 1:
            raise ConfigError(f"gptq: damp is {self.damp!r}; allowed: a number above 0, at most 1")
        check_choice("gptq", "act_order", self.act_order, (True, False))

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with packed matrices. Errors: DataError without training messages where matrices need inputs."""
        model = model.copy().to(pick_device(run.device))
        training = model.training
        model.eval()
        counts = {"encoder": self.encoder, "embeddings": self.embeddings, "heads": self.heads}
        chosen = {name: (module, k) for name, module, part in model.matrices() if (k := counts[part]) is not None}
        if chosen:  # an integer_only encoder is static throughout
            model.encoder.config = replace(model.encoder.config, integer_only=False)
        with bar("gptq", len(chosen), show=run.progress) as advance:
            for module, k in chosen.values():
                if isinstance(module, Embedding):
                    set_form(module, kmeans_codes(module.weight.detach().cpu().numpy(), k, "row", False))
                    advance()
            linear = {name: (m, k) for name, (m, k) in chosen.items() if isinstance(m, Linear)}
            if linear:
                self._round(model, linear, run.data.train, run.seed, advance)
        return model.to("cpu").train(training)

    def _round(
        self,
        model: NLUModel,
        chosen: dict[str, tuple[Linear, int]],
        train: Sequence[Message],
        seed: int,
        advance: Advance,
    ) -> None:
        """Pack the chosen matrices in the order in which they multiply."""
        if not train:
            raise DataError("no training messages", allowed="gptq needs at least one, labelled or not")
        drawn = np.random.default_rng(seed).permutation(len(train))[: self.n_messages]
        encoded = model.tokenizer.encode_batch([train[i].text for i in drawn])
        for stage in stages(model, encoded):
            for name in stage.names:
                if name in chosen:
                    module, k = chosen[name]
                    h = second_moment(module, stage.replay)
                    w = module.weight.detach()
                    form = rounded(w, k, h, self.grid, self.damp, self.act_order, module.mask)
                    set_form(module, form, "int8")
                    advance(note=name)
