"""Matrices with three independent parts: values (float, int8, codes), mask layout, activation quantizer.

The forward pass simulates the engine: weights are what the packed form decodes to, 0 outside the mask; activations are
rounded to int8 exactly as the engine rounds them. Rounding passes gradients straight through (Bengio et al. 2013,
arXiv:1308.3432), so that the same forward serves quantization-aware training.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.artifact import RECURRENT_STEP
from flyweight.forms import Float32, Form, Int8, Sparse

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
    `mask` (n_out, n_in) bool: which weights are there, None: all. Weights outside it are 0, and stay so in training.
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
        self.mask: Tensor | None
        self.register_buffer("mask", None, persistent=False)  # goes along to a device, not into a training's state
        self.activations: Activations = "float"
        self.input_scale: float | None = None
        self.output_scales: tuple[float, float, float] | None = None
        self.weight_quantizer: nn.Module | None = None
        self.input_quantizer: nn.Module | None = None
        self.output_quantizer: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n_in) -> (..., n_out)."""
        return F.linear(self.multiplied(x), self.simulated(), self.bias)

    def multiplied(self, x: Tensor) -> Tensor:
        """The input as the engine takes it: x (..., n_in), quantized or as it is."""
        if self.input_quantizer is not None:
            return cast(Tensor, self.input_quantizer(x))
        if self.activations == "int8":
            return quantize_activations(x)
        if self.activations == "static" and self.input_scale is not None:
            return quantize_static(x, self.input_scale)
        return x

    def simulated(self) -> Tensor:
        """The weight that multiplies, (n_out, n_in): quantized where a training says so, 0 outside the mask."""
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        # The mask is behind the quantizer: no centre of a table need be 0.
        return weight if self.mask is None else weight * self.mask


class Recurrent(Linear):
    """R h_{t-1} of one direction of an LSTM: (4u, u), no bias.

    h lies in [-1, 1]. Where weights are packed it is rounded to int8 in constant steps of 1/127: activations are float
    or static, whatever step is wanted, and any input_quantizer rounds so.
    """

    def __init__(self, units: int):
        super().__init__(units, 4 * units, bias=False)

    @property
    def activations(self) -> Activations:
        """float, or static in constant steps."""
        return self._activations

    @activations.setter
    def activations(self, value: Activations) -> None:
        self._activations: Activations = "float" if value == "float" else "static"

    @property
    def input_scale(self) -> float | None:
        """The constant step where it is used."""
        return RECURRENT_STEP if self.activations == "static" else None

    @input_scale.setter
    def input_scale(self, value: float | None) -> None:
        """No other can be chosen."""

    @property
    def rounds(self) -> bool:
        """Whether h is rounded."""
        return self.input_quantizer is not None or self.activations == "static"

    def multiplied(self, x: Tensor) -> Tensor:
        """h (..., u) -> the same, rounded or as it is."""
        return quantize_static(x, RECURRENT_STEP) if self.rounds else x


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
    """Make the module compute with what `form` decodes to, without static steps: those are set after this.

    A module with a mask gets the form's survivors only, a sparse form brings its mask along. Int8 with a shift stores
    every weight, so the mask goes; zeros stay zeros. Floats are no packed form: `form` is None then.
    """
    if isinstance(module, Linear):
        if module.mask is not None and not isinstance(form, Sparse) and not (isinstance(form, Int8) and form.shift):
            form = Sparse(form, module.mask.cpu().numpy())
        module.mask = torch.from_numpy(form.mask).to(module.weight.device) if isinstance(form, Sparse) else None
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(form.dense()))
    values = form.values if isinstance(form, Sparse) else form
    module.form = None if isinstance(values, Float32) else form
    set_computes(module, {"activations": activations})


def set_mask(module: Linear, mask: Tensor) -> None:
    """Make the module a float matrix whose weights outside the mask (n_out, n_in) are gone."""
    set_form(module, Sparse(Float32(module.weight.detach().float().cpu().numpy()), mask.cpu().numpy()))


def float_form(module: Matrix) -> Form:
    """What is stored of a module that is not packed."""
    form, mask = Float32(np.ascontiguousarray(module.weight.detach().float().cpu().numpy())), mask_of(module)
    return form if mask is None else Sparse(form, mask)


def mask_of(module: Matrix) -> np.ndarray | None:
    """The mask (n_out, n_in) bool of a pruned matrix; None for any other."""
    mask = module.mask if isinstance(module, Linear) else None
    return None if mask is None else mask.cpu().numpy()


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
