"""Matrices with three independent parts: values (float, int8, codes), mask layout, activation quantizer.

The forward pass simulates the engine: weights are what the packed form decodes to, activations are rounded to int8
exactly as the engine rounds them. (Mask layouts beyond dense arrive with the sparse forms.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.forms import Form

Activations = Literal["float", "int8"]


def quantize_activations(x: Tensor) -> Tensor:
    """Round each token's vector to int8 steps and back: the engine's dynamic activation quantizer.

    inv = 127 / absmax(x[t]), 0 when absmax < 2^-100; q = round-half-even(x * inv) in [-127, 127]; q * absmax / 127.
    x (..., D) float32 -> the same shape. Computed in float32 whatever the autocast.
    """
    x = x.float()
    if x.shape[-1] == 0:  # behind an FFN of width 0
        return x
    absmax = x.abs().amax(dim=-1, keepdim=True)
    live = absmax >= 2.0**-100
    inv = torch.where(live, 127.0 / absmax.clamp_min(2.0**-100), torch.zeros_like(absmax))
    q = torch.round(x * inv).clamp_(-127, 127)
    return q * (absmax / 127.0) * live


class Linear(nn.Module):
    """y = x W^T + b with W (n_out, n_in).

    `form` holds the packed weight once a technique has packed it: then `weight` equals `form.dense()`.
    `activations` says what the engine multiplies with: float32, or int8 quantized per token.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.form: Form | None = None
        self.activations: Activations = "float"

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n_in) -> (..., n_out)."""
        if self.activations == "int8":
            x = quantize_activations(x)
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows looked up by id: (n_rows, dim). `form` as in Linear."""

    def __init__(self, n_rows: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, dim).normal_(std=0.02))
        self.bias = None
        self.form: Form | None = None
        self.activations: Activations = "float"

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) int64 -> (..., dim)."""
        return F.embedding(ids, self.weight)


Matrix = Linear | Embedding


def set_form(module: Matrix, form: Form, activations: Activations = "float") -> None:
    """Make the module compute with what `form` decodes to."""
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(form.dense()))
    module.form = form
    module.activations = activations
