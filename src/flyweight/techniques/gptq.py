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
import torch
from torch import Tensor

from flyweight.data.messages import Message
from flyweight.errors import ConfigError, DataError
from flyweight.forms import Codes, Int8
from flyweight.forms.codes import MAX_CENTRES
from flyweight.forms.int8 import LIMIT, int8_rows
from flyweight.forms.kmeans import ROW_TABLE_LIMIT, kmeans_codes
from flyweight.model.linear import Embedding, Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.progress import Advance, bar
from flyweight.techniques.room import Run, check_choice, check_count
from flyweight.training.inputs import second_moment, stages
from flyweight.training.loop import pick_device

BLOCK = 128  # columns whose errors reach the columns behind them in one product
SHRINKS = np.linspace(1.0, 0.1, 31)  # of a row's range, tried for the uniform grid


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
                    set_form(module, self._form(module, k, second_moment(module, stage.replay)), "int8")
                    advance(note=name)

    def _form(self, module: Linear, k: int, h: Tensor) -> Codes | Int8:
        """The packed matrix. h (n_in, n_in): second moments of its inputs."""
        w = module.weight.detach()
        start = grid(w, k, h.diagonal(), self.grid)
        if w.numel() == 0:
            return start
        if isinstance(start, Int8):
            steps = torch.arange(-LIMIT, LIMIT + 1, device=w.device)
            centres = steps * torch.from_numpy(start.scale).to(w.device)[:, None]
            codes = compensated(w, centres, h, self.damp, self.act_order)
            return replace(start, q=(codes.cpu().to(torch.int16) - LIMIT).to(torch.int8).numpy())
        assert start.scale is not None  # centres of multiplied matrices are int8
        centres = torch.from_numpy(start.table * start.scale[:, None]).to(w.device)
        return replace(start, codes=compensated(w, centres, h, self.damp, self.act_order).cpu().numpy())


def compensated(w: Tensor, centres: Tensor, h: Tensor, damp: float, act_order: bool = False) -> Tensor:
    """Codes of every weight such that the error of the product is small, (R, C) uint8.

    w (R, C); centres (R or 1, k) ascending; h (C, C) second moments. Factors in float64, columns in float32.
    """
    n = w.shape[1]
    order = h.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(n, device=w.device)
    h = h[order][:, order].double()
    mean = float(h.diagonal().mean())
    h.diagonal().add_(damp * mean if mean > 0 else 1.0)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    rest = w.t()[order].contiguous()  # (C, R)
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=w.device)
    edges = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
    shared = len(centres) == 1
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        errors = torch.empty(end - begin, len(w), device=w.device)
        for j in range(begin, end):
            if shared:
                code = torch.searchsorted(edges[0], rest[j])
                q = centres[0][code]
            else:
                code = torch.searchsorted(edges, rest[j][:, None])
                q = centres.gather(1, code)[:, 0]
            codes[j] = code.flatten().to(torch.uint8)
            errors[j - begin] = (rest[j] - q) / u[j, j]
            rest[j + 1 : end].addr_(u[j, j + 1 : end], errors[j - begin], alpha=-1)
        rest[end:].addmm_(u[begin:end, end:].t(), errors, alpha=-1)
    found = torch.empty_like(codes)
    found[order] = codes
    return found.t().contiguous()


def grid(w: Tensor, k: int, h: Tensor, kind: str) -> Codes | Int8:
    """Where weights may lie: a form whose centres stand, its codes still to be chosen.

    w (R, C); h (C,): how much the error of a column counts.
    """
    values = w.cpu().numpy()
    if kind == "uniform" and k > ROW_TABLE_LIMIT:
        return int8_rows(values)
    if kind == "kmeans" or w.numel() == 0:
        return kmeans_codes(values, k, "row", True, h=np.broadcast_to(h.cpu().numpy(), values.shape))
    table, scale = even_levels(w, k, h)
    return Codes(np.zeros(values.shape, np.uint8), table.to(torch.int8).cpu().numpy(), scale.cpu().numpy())


def even_levels(w: Tensor, k: int, h: Tensor) -> tuple[Tensor, Tensor]:
    """k equally spaced int8 centres of each row and their scale, (R, k) and (R,), k at most 64.

    From shrunk ranges p [min(w, 0), max(w, 0)] that with the least sum_c h_c (w_c - q_c)^2. With the step s between
    centres and the larger end m: centres lie d = floor(127 s / m) apart on the int8 grid, whose scale is s / d.
    """
    low, high = w.amin(dim=1).clamp_max(0), w.amax(dim=1).clamp_min(0)  # (R,)
    step = ((high - low) / (k - 1)).clamp_min(2.0**-100)
    apart = (LIMIT * step / torch.maximum(-low, high).clamp_min(2.0**-100)).floor().clamp(1, 2 * LIMIT // (k - 1))
    lowest = (low / step * apart).round()  # in steps of the int8 grid, the same for every shrink
    least, best = torch.full_like(low, torch.inf), torch.zeros_like(low)
    for shrink in SHRINKS.tolist():
        scale = shrink * step / apart
        x = w / scale[:, None]
        q = ((x - lowest[:, None]) / apart[:, None]).round_().clamp_(0, k - 1) * apart[:, None] + lowest[:, None]
        error = scale**2 * ((x - q) ** 2 @ h)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    table = lowest[:, None] + apart[:, None] * torch.arange(k, device=w.device)
    return table, torch.where(high - low >= 2.0**-100, best, 0.0)
