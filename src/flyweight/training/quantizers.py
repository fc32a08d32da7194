"""What a matrix computes with while it is trained to be packed: modules that simulate a form, and give it.

    weights       Centres      W -> table[r, z] (* scale[r]): nearest centre; centres are trained, W straight through
                  Fixed        W as it is packed already; not trained
                  Int8Rows     W -> round(W / s[r]) s[r],  s[r] = max|W[r, :]| / 127
                  Int8Matrix   W -> (round(W / s + shift) - shift) s, the founding text's scale and shift of a matrix
                  LearnedRows  W -> round(W / s) s, s learned (LSQ), one a row or one a matrix
    activations   DynamicInput x -> int8 steps of each token's own size;  StaticInput: of one size, averaged or learned

A quantizer of weights is a function of the float weight W that goes on being trained; `form(W)` is what the file will
hold, and decodes to the very bits that `forward(W)` gave. Gradients pass straight through the rounding.
Sources: centres, Han et al. 2015, arXiv:1510.00149; ranges and delay, Jacob et al. 2017, arXiv:1712.05877; learned
steps (LSQ), Esser et al. 2019, arXiv:1902.08153.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.forms import Form
from flyweight.forms.codes import Codes
from flyweight.forms.int8 import Int8, matrix_steps
from flyweight.model.linear import (
    STEPS,
    Linear,
    quantize_activations,
    quantize_static,
    round_through,
    set_form,
)
from flyweight.model.nlu import NLUModel
from flyweight.training.losses import Batch, Loss

DEAD = 2.0**-100  # smaller ranges are none
AVERAGE = 0.99  # of the running range, the share that a batch leaves


class Quantizer(nn.Module):
    """A simulation while training; its printed form is part of a training's identity."""

    @property
    def settled(self) -> bool:
        """Whether it simulates what will be packed: no epoch before is the best one."""
        return True


class WeightQuantizer(Quantizer):
    """W (R, C) float32 -> W as the packed matrix decodes to."""

    def form(self, weight: Tensor) -> Form:
        """What the file holds of this weight: decodes to `self(weight)`, bit for bit."""
        raise NotImplementedError


# weights ------------------------------------------------------------------------------------------------------------


class _Pick(torch.autograd.Function):
    """table[r, codes[r, c]]; backward dL/dtable[r, k] = sum of dL/dW[r, c] over codes[r, c] = k, dL/dW as it comes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.shape = table.shape
        return _picked(table, codes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (codes,) = ctx.saved_tensors
        (grad,) = grads
        by_table = (1, -1) if ctx.shape[0] == 1 else codes.shape
        found = grad.new_zeros(ctx.shape).scatter_add_(1, codes.long().view(by_table), grad.reshape(by_table))
        return grad, found, None


def _picked(table: Tensor, codes: Tensor) -> Tensor:
    """table (R or 1, k), codes (R, C) uint8 -> (R, C)."""
    if len(table) == 1:
        return table[0][codes.long()]
    return table.gather(1, codes.long())


def nearest_codes(weight: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest centre, (R, C) uint8; of two at the same distance the lower centre. table (R or 1, k).

    Centres need not ascend: training moves them past each other.
    """
    order = table.argsort(dim=1, stable=True)
    ascending = table.gather(1, order)
    edges = (ascending[:, 1:] + ascending[:, :-1]) / 2
    if len(edges) == 1 and edges.shape[1] > 8:
        rank = torch.bucketize(weight, edges[0]).to(torch.uint8)
    else:
        rank = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        for j in range(edges.shape[1]):
            rank += weight > edges[:, j : j + 1]
    if bool((table[:, 1:] >= table[:, :-1]).all()):
        return rank
    return _picked(order, rank).to(torch.uint8)


class Centres(WeightQuantizer):
    """Each weight becomes the nearest centre of its row's (or the matrix's) table; centres are parameters.

    integer: centres are rounded to int8 steps of max|centre| / 127 in every forward pass, as the file holds them.
    reassign: training steps between two assignments of weights to centres; None: those of the start stay.
    group: rows that share a table; there is a row of centres for each group.
    Starts from `centres` (R, ceil(R / group) or 1, k), e.g. of k-means. Assignments that outlive a step belong to the
    weight given.
    """

    def __init__(self, centres: np.ndarray, weight: Tensor, *, integer: bool, reassign: int | None = 1, group: int = 1):
        super().__init__()
        self.centres = nn.Parameter(torch.from_numpy(np.sort(centres, axis=1).astype(np.float32)))
        self.integer, self.reassign, self.group, self.n_rows = integer, reassign, group, len(weight)
        self.codes: Tensor | None
        if reassign == 1:
            self.register_buffer("codes", None)
        else:
            self.register_buffer("codes", nearest_codes(weight.detach().float(), self.table().detach()))
            self.age: Tensor
            self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    @classmethod
    def of(cls, form: Codes, *, reassign: int | None = 1) -> Centres:
        """Starts from a packed matrix: its centres, the rows that share them, its assignments."""
        table = form.table if form.scale is None else form.table * form.scale[:, None]
        weight = torch.from_numpy(form.dense())
        return cls(table[:: form.group], weight, integer=form.scale is not None, reassign=reassign, group=form.group)

    def extra_repr(self) -> str:
        """Settings, for a training's identity."""
        return f"integer={self.integer}, reassign={self.reassign}, group={self.group}"

    def by_row(self, stored: Tensor) -> Tensor:
        """What there is one of for each table, (tables, n), repeated for every row of a group: (R or 1, n)."""
        return stored if self.group == 1 else stored.repeat_interleave(self.group, dim=0)[: self.n_rows]

    def grid(self) -> tuple[Tensor, Tensor]:
        """Integer centres (tables, k) as floats, and their steps (tables, 1)."""
        absmax = self.centres.detach().abs().amax(dim=1, keepdim=True)
        scale = torch.where(absmax >= DEAD, absmax / STEPS, torch.zeros_like(absmax))
        inv = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
        return round_through(self.centres * inv).clamp(-STEPS, STEPS), scale

    def table(self) -> Tensor:
        """The centres that the engine will multiply, (R or 1, k)."""
        if not self.integer:
            return self.by_row(self.centres)
        table, scale = self.grid()
        return self.by_row(table * scale)

    def forward(self, weight: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        table = self.table()
        if self.codes is not None and self.training:
            self.age.add_(1)
            if self.reassign is not None and self.age % self.reassign == 0:
                self.codes.copy_(nearest_codes(weight.detach(), table.detach()))
        found: Tensor = _Pick.apply(weight, table, self._codes(weight.detach(), table.detach()))
        return found

    def _codes(self, weight: Tensor, table: Tensor) -> Tensor:
        return nearest_codes(weight, table) if self.codes is None else self.codes.clone()

    @torch.no_grad()
    def form(self, weight: Tensor) -> Codes:
        """Codes with int8 or float32 tables."""
        codes = self._codes(weight, self.table()).cpu().numpy()
        if not self.integer:
            return Codes(codes, self.table().cpu().numpy().copy(), group=self.group)
        table, scale = (self.by_row(stored) for stored in self.grid())
        return Codes(codes, table.to(torch.int8).cpu().numpy(), scale[:, 0].cpu().numpy(), self.group)


class Fixed(WeightQuantizer):
    """A matrix that stays as it is packed: no gradient reaches its weights, which decode from `packed` already."""

    def __init__(self, packed: Form):
        super().__init__()
        self.packed = packed

    def forward(self, weight: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        return weight.detach()

    def form(self, weight: Tensor) -> Form:
        """The form that was given."""
        return self.packed


class Int8Rows(WeightQuantizer):
    """Symmetric int8, one step a row, of the row as it is (see forms/int8.py). Keeps nothing: rows may come and go."""

    def forward(self, weight: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        q, scale = self._integers(weight)
        return q * scale

    @staticmethod
    def _integers(weight: Tensor) -> tuple[Tensor, Tensor]:
        """q (R, C) as floats, steps (R, 1)."""
        if not weight.numel():
            return weight, weight.new_zeros(len(weight), 1)
        absmax = weight.detach().abs().amax(dim=1, keepdim=True)
        live = absmax >= DEAD
        inv = torch.where(live, STEPS / absmax.clamp_min(DEAD), torch.zeros_like(absmax))
        scale = torch.where(live, absmax / STEPS, torch.zeros_like(absmax))
        return round_through(weight * inv).clamp(-STEPS, STEPS), scale

    @torch.no_grad()
    def form(self, weight: Tensor) -> Int8:
        """Int8 with a scale a row."""
        return _int8(*self._integers(weight))


class Int8Matrix(WeightQuantizer):
    """W8 = W / scale + shift, one scale and shift a matrix, of the matrix as it is: see forms/int8.py."""

    def forward(self, weight: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        q, scale, shift = self._integers(weight)
        return (q - shift) * scale

    @staticmethod
    def _integers(weight: Tensor) -> tuple[Tensor, Tensor, int]:
        """q (R, C) as floats, the step (), the shift."""
        low, high = (float(a) for a in weight.detach().aminmax()) if weight.numel() else (0.0, 0.0)
        step, shift = matrix_steps(low, high)
        scale = torch.full((), float(step), dtype=torch.float32, device=weight.device)
        if not step:
            return round_through(weight * 0), scale, shift
        return round_through(weight / scale + shift).clamp(-STEPS, STEPS), scale, shift

    @torch.no_grad()
    def form(self, weight: Tensor) -> Int8:
        """Int8 with a scale and shift of the matrix."""
        q, scale, shift = self._integers(weight)
        return _int8(q, scale.view(1, 1), shift)


class LearnedRows(WeightQuantizer):
    """LSQ: W -> clamp(round(W / s), +-127) s with learned steps s, one a row or one for the matrix.

    dL/ds = sum_c g[c] (round(w / s) - w / s inside the range, +-127 outside) / sqrt(127 n), n weights a step.
    A step is `ratio` times its start, 2 mean|w| / sqrt(127): AdamW moves a parameter by about its learning rate
    whatever the gradient, which a ratio of about 1 survives and a step of 0.001 does not.
    """

    def __init__(self, weight: Tensor, *, per_row: bool = True, mask: Tensor | None = None):
        super().__init__()
        rows = weight.detach().float().abs()
        there = torch.ones_like(rows) if mask is None else mask.float()  # pruned weights are 0 and take no step
        total, count = rows.sum(dim=1, keepdim=True), there.sum(dim=1, keepdim=True)  # (R, 1)
        mean = total / count.clamp_min(1) if per_row else (total.sum() / count.sum().clamp_min(1)).view(1, 1)
        mean = torch.where(mean >= DEAD, mean, torch.full_like(mean, 1.0))  # nothing to learn: rows of zeros, or none
        self.start: Tensor
        self.register_buffer("start", 2 * mean / STEPS**0.5)
        self.ratio = nn.Parameter(torch.ones_like(mean))

    def forward(self, weight: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        q, step = self._integers(weight)
        return q * step

    def _integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """q (R, C) as floats, steps (R or 1, 1)."""
        n = max(1, weight.numel() // max(1, len(self.start)))
        step = (self.start * _scaled(self.ratio, (n * STEPS) ** -0.5)).clamp_min(DEAD)
        return round_through(weight / step).clamp(-STEPS, STEPS), step

    @torch.no_grad()
    def form(self, weight: Tensor) -> Int8:
        """Int8 with the learned scales."""
        return _int8(*self._integers(weight))


def _scaled(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient times `factor`."""
    return (x * factor) + (x * (1 - factor)).detach()


def _int8(q: Tensor, scale: Tensor, shift: int = 0) -> Int8:
    """q (R, C) whole numbers, scale (R or 1, 1)."""
    return Int8(q.to(torch.int8).cpu().numpy(), scale[:, 0].detach().cpu().numpy().copy(), shift)


# activations --------------------------------------------------------------------------------------------------------


class DynamicInput(Quantizer):
    """Each token's vector in int8 steps of its own size: what the engine does with activations "int8"."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return quantize_activations(x)


class RealTokens:
    """Which positions of the batch at hand are tokens and not filling: set by `with_mask`, read by StaticInput."""

    mask: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """The rows of x (B, T, D) or (B, H, T, d) that are tokens; anything else as it is."""
        if self.mask is None or x.ndim < 3:
            return x
        return (x.transpose(1, 2) if x.ndim == 4 else x)[self.mask]


class StaticInput(Quantizer):
    """x in int8 steps of one size, range / 127, from `delay` training steps on; before, the range is only watched.

    range: moving average of each batch's max|x| over real tokens, 0.99 of it kept a step, the first taken whole.
    learned: from `delay` on the range stays and the step is learned as a ratio of it (LSQ, see LearnedRows; n = D).
    Not training, x is always quantized: validation sees what the file will do.
    """

    def __init__(self, tokens: RealTokens, *, delay: int = 0, learned: bool = False):
        super().__init__()
        self.tokens, self.delay, self.learned = tokens, delay, learned
        self.range: Tensor
        self.seen: Tensor
        self.register_buffer("range", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if learned:
            self.ratio = nn.Parameter(torch.ones(()))

    def extra_repr(self) -> str:
        """Settings, for a training's identity."""
        return f"delay={self.delay}, learned={self.learned}"

    def scale(self, n: int = 1) -> Tensor:
        """The step, (); n features share its gradient."""
        scale = self.range / STEPS
        if self.learned:
            scale = scale * _scaled(self.ratio, (max(n, 1) * STEPS) ** -0.5)
        return scale.clamp_min(DEAD)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return quantize_static(x, self.scale(x.shape[-1])) if self.counts(x) else x

    def counts(self, x: Tensor) -> bool:
        """Whether x is to be quantized; while training it is looked at first, and the step is counted."""
        if not self.training:
            return bool(self.seen)
        if not self.learned or self.seen < max(self.delay, 1):
            real = self.tokens.of(x.detach())
            if real.numel():
                absmax = real.abs().max().float()
                self.range.copy_(AVERAGE * self.range + (1 - AVERAGE) * absmax if self.range else absmax)
        self.seen.add_(1)
        return bool(self.seen > self.delay)


class StaticAttention(Quantizer):
    """The steps in which an attention multiplies Q, K and V as int8, by moving averages (see StaticInput)."""

    def __init__(self, tokens: RealTokens, *, delay: int = 0):
        super().__init__()
        self.q, self.k, self.v = (StaticInput(tokens, delay=delay) for _ in range(3))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[float, float, float] | None:
        """(s_q, s_k, s_v), or None before they count: float attention. q, k, v (B, H, T, d)."""
        counts = [self.q.counts(q), self.k.counts(k), self.v.counts(v)]
        return self.scales() if all(counts) else None

    def scales(self) -> tuple[float, float, float]:
        """(s_q, s_k, s_v)."""
        return float(self.q.scale()), float(self.k.scale()), float(self.v.scale())


def with_mask(loss: Loss, tokens: RealTokens) -> Loss:
    """The same loss; static quantizers that share `tokens` see the batch's mask."""

    def masked(model: NLUModel, batch: Batch) -> Tensor:
        tokens.mask = batch.mask
        return loss(model, batch)

    masked.__name__ = getattr(loss, "__name__", type(loss).__name__)
    return masked


# the end ------------------------------------------------------------------------------------------------------------


def pack_quantized(model: NLUModel) -> NLUModel:
    """Pack every matrix that has a quantizer into its form, and take the quantizers away (in place)."""
    for _, module, _ in model.matrices():
        weights, inputs = module.weight_quantizer, getattr(module, "input_quantizer", None)
        if isinstance(weights, WeightQuantizer):
            set_form(module, weights.form(module.weight.detach()))
        module.weight_quantizer = None
        if isinstance(module, Linear):
            if isinstance(inputs, DynamicInput):
                module.activations = "int8"
            elif isinstance(inputs, StaticInput) and inputs.range and module.weight.numel():
                module.activations, module.input_scale = "static", float(inputs.scale().detach())
            elif isinstance(inputs, StaticInput):  # a part that was cut off: nothing was seen, nothing is multiplied
                module.activations = "int8"
            if isinstance(module.output_quantizer, StaticAttention) and module.output_quantizer.q.range:
                module.output_scales = module.output_quantizer.scales()
            module.input_quantizer = module.output_quantizer = None
    return model
