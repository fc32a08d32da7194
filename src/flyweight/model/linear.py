"""Matrices with three independent parts: values (float, int8, codes), mask layout, activation quantizer.

The forward pass simulates the engine: weights are what the packed form decodes to, activations are rounded to int8
exactly as the engine rounds them. (Mask layouts beyond dense arrive with the sparse forms.) Rounding passes gradients
straight through (Bengio et al. 2013, arXiv:1308.3432), so that the same forward serves quantization-aware training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.forms import Form

Activations = Literal["float", "int8", "static"]
STEPS = 127  # int8 steps on each side of 0


class _RoundThrough(torch.autograd.Function):
    """Rounds half to even; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_through(x: Tensor) -> Tensor:
    """round-half-even(x) forward, the identity backward."""
    found: Tensor = _RoundThrough.apply(x)
    return found


def quantize_activations(x: Tensor) -> Tensor:
    """Round each token's vector to int8 steps and back: the engine's dynamic activation quantizer.

    inv = 127 / absmax(x[t]), 0 when absmax < 2^-100; q = round-half-even(x * inv) in [-127, 127]; q * absmax / 127.
    x (..., D) float32 -> the same shape. Computed in float32 whatever the autocast.
    """
    x = x.float()
    if x.shape[-1] == 0:  # behind an FFN of width 0
        return x
    absmax = x.detach().abs().amax(dim=-1, keepdim=True)
    live = absmax >= 2.0**-100
    inv = torch.where(live, STEPS / absmax.clamp_min(2.0**-100), torch.zeros_like(absmax))
    q = round_through(x * inv).clamp(-STEPS, STEPS)
    return q * (absmax / STEPS) * live


def quantize_static(x: Tensor, scale: float | Tensor) -> Tensor:
    """Round to int8 steps of one calibrated size and back: the engine's static activation quantizer.

    q = round-half-even(x * (1 / scale)) in [-127, 127]; q * scale. x any shape, in float32 whatever the autocast.
    """
    return static_steps(x, scale) * scale


def static_steps(x: Tensor, scale: float | Tensor) -> Tensor:
    """The q of `quantize_static`: whole numbers from -127 to 127, as float32."""
    inv = torch.ones((), dtype=torch.float32, device=x.device) / scale
    return round_through(x.float() * inv).clamp(-STEPS, STEPS)


class Linear(nn.Module):
    """y = x W^T + b with W (n_out, n_in).

    `form` holds the packed weight once a technique has packed it: then `weight` equals `form.dense()`.
    `activations` says what the engine multiplies with: float32, int8 quantized per token, or (static) int8 in steps of
    `input_scale`. `output_scales`, of an attention's Q, K and V: the steps in which they are multiplied as int8.
    While training, `weight_quantizer` simulates the weight, `input_quantizer` the input, and `output_quantizer` gives
    the `output_scales` of q, k and v; techniques that set them pack the result and take them away.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.form: Form | None = None
        self.activations: Activations = "float"
        self.input_scale: float | None = None
        self.output_scales: tuple[float, float, float] | None = None
        self.weight_quantizer: nn.Module | None = None
        self.input_quantizer: nn.Module | None = None
        self.output_quantizer: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n_in) -> (..., n_out)."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        elif self.activations == "int8":
            x = quantize_activations(x)
        elif self.activations == "static" and self.input_scale is not None:
            x = quantize_static(x, self.input_scale)
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return F.linear(x, weight, self.bias)


class Embedding(nn.Module):
    """Rows looked up by id: (n_rows, dim). `form` as in Linear; `weight_quantizer` gets only the rows looked up."""

    def __init__(self, n_rows: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, dim).normal_(std=0.02))
        self.bias = None
        self.form: Form | None = None
        self.activations: Activations = "float"
        self.weight_quantizer: nn.Module | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) int64 -> (..., dim)."""
        rows = F.embedding(ids, self.weight)
        if self.weight_quantizer is None:
            return rows
        found: Tensor = self.weight_quantizer(rows.view(-1, rows.shape[-1])).view(rows.shape)
        return found


Matrix = Linear | Embedding


def set_form(module: Matrix, form: Form, activations: Activations = "float") -> None:
    """Make the module compute with what `form` decodes to, without static steps: those are set after this."""
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(form.dense()))
    module.form = form
    set_computes(module, {"activations": activations})


def computes(module: Matrix) -> dict[str, Any]:
    """How the module multiplies, as the file says it: activations, and the scales that are set."""
    found: dict[str, Any] = {"activations": module.activations}
    if isinstance(module, Linear) and module.activations == "static":
        found["input_scale"] = module.input_scale
    if isinstance(module, Linear) and module.output_scales is not None:
        found["output_scales"] = list(module.output_scales)
    return found


def set_computes(module: Matrix, entry: dict[str, Any]) -> None:
    """The inverse of `computes`."""
    module.activations = entry["activations"]
    if isinstance(module, Linear):
        module.input_scale = entry.get("input_scale")
        scales = entry.get("output_scales")
        module.output_scales = None if scales is None else (scales[0], scales[1], scales[2])
