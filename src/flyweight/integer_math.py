"""exp, softmax, GELU, square root and LayerNorm on integers with static scales: I-BERT's, pinned to the operation.

A number is q * scale: q int64 here, scale a Python float. Constants are made once from the scale, in float64; after
that there are only +, -, *, >> (of negative numbers too: rounds down), and whole division that rounds down, so that
another language repeats every bit. Each function says what it bears without overflow.
Source: Kim et al. 2021, arXiv:2101.01321 (polynomials, decompositions, the square root); requantization by a
fixed-point multiplier: Jacob et al. 2017, arXiv:1712.05877.
"""

from __future__ import annotations

import math

import numpy as np

EXP = (0.3585, 1.353, 0.344)  # a (p + b)^2 + c = exp(p) on [-ln 2, 0], within 1.9e-3
ERF = (-0.2888, -1.769, 1.0)  # a (x + b)^2 + c = erf(x) on [0, 1.769]; within 0.02 everywhere, 1 beyond
PROBABILITY_STEPS = 255
NORM_BITS, ROOT_BITS, WEIGHT_BITS = 14, 8, 14  # binary places of a normed value, of a deviation, of norm weights
LIMIT = 127


def divide(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """a / b to the nearest whole number, halves up: floor((2a + b) / 2b). b > 0; |a|, b < 2^61."""
    found: np.ndarray = (2 * a + b) // (2 * b)
    return found


def multipliers(ratio: np.ndarray | float) -> tuple[np.ndarray, int]:
    """ratio ~ m / 2^shift, one shift for all: the largest m lies in [2^30, 2^31).

    Where all are below 2^-31 they count as 0, above 2^29 as 2^29: then every result but 0 is beyond any limit in use.
    """
    found = np.clip(np.asarray(ratio, np.float64), 0, 2.0**29)
    top = float(found.max(initial=0))
    shift = 31 - math.frexp(top)[1] if top >= 2.0**-31 else 31
    return np.minimum(np.rint(found * 2.0**shift), 2**31 - 1).astype(np.int64), shift


def requantize(q: np.ndarray, ratio: np.ndarray | float, limit: int = LIMIT) -> np.ndarray:
    """q * ratio to the nearest whole number, halves up, within +-limit: from one scale to another, scale / new scale.

    |q| < 2^31, limit <= 2^29.
    """
    return scaled(q, *multipliers(ratio), limit)


def scaled(q: np.ndarray, m: np.ndarray, shift: int, limit: int) -> np.ndarray:
    """(q m + 2^(shift - 1)) >> shift within +-limit: what `multipliers` are for."""
    found: np.ndarray = np.clip((q * m + (1 << (shift - 1))) >> shift, -limit, limit)
    return found


def reciprocals(n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 / n ~ m / 2^shift, m in [2^29, 2^30], shift = 29 + the bits of n: one division for many. 0 < n < 2^32."""
    shift = 29 + np.frexp(n.astype(np.float64))[1].astype(np.int64)
    return divide(np.left_shift(1, shift), n), shift


def exp(q: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """exp(q scale) for q <= 0, at a scale of its own; error below 2.5e-3 where scale <= 2^-10.

    q = -z ln2 + p, p in (-ln2, 0];  exp = ((p + b)^2 + c) >> z. For scale >= 2^-14, 32 bits are enough.
    """
    a, b, c = EXP
    ln2 = math.floor(math.log(2) / scale)
    q_b, q_c = math.floor(b / scale), math.floor(c / (a * scale * scale))
    q = np.maximum(q, -30 * ln2)  # 2^-30 is 0 at every scale that is allowed
    z = -q // ln2
    p = q + z * ln2
    return ((p + q_b) ** 2 + q_c) >> z, a * scale * scale


def softmax_steps(q: np.ndarray, scale: float) -> np.ndarray:
    """exp(q scale - its row's largest) in steps of 1/255, 0 to 255: the e8 of int8 attention. q (..., T).

    Whoever multiplies by them divides by their sum. For scale >= 2^-14, 42 bits are enough, 32 but for the division.
    """
    found, _ = exp(q - q.max(axis=-1, keepdims=True), scale)
    one, _ = exp(np.zeros(1, np.int64), scale)
    return divide(PROBABILITY_STEPS * found, int(one[0]))


def attention_average(e8: np.ndarray, v8: np.ndarray, ratio: float) -> np.ndarray:
    """sum_t e8[t] v8[t] / sum_t e8[t] in steps that are 1 / ratio of v8's, within +-127.

    e8 (..., T, T) from `softmax_steps`, v8 (..., T, d) -> (..., T, d). ratio: step of v8 / step of the result, below
    2^8 or taken as that, kept to 16 binary places. One division a row: by = 2^30 ratio / total, below 2^31; the
    product needs 62 bits at T = 65536.
    """
    factor = round(min(ratio, 2.0**8) * 2**16)
    by = divide(np.int64(factor << 14), e8.sum(axis=-1, keepdims=True))
    sums: np.ndarray = np.clip(((e8 @ v8) * by + (1 << 29)) >> 30, -LIMIT, LIMIT)
    return sums


def erf(q: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """erf(q scale) at a (negative) scale of its own: sign(q) ((min(|q|, -b) + b)^2 + c). 32 bits for scale >= 2^-14."""
    a, b, c = ERF
    q_b, q_c = math.floor(b / scale), math.floor(c / (a * scale * scale))
    clipped = np.minimum(np.abs(q), -q_b)
    return np.sign(q) * ((clipped + q_b) ** 2 + q_c), a * scale * scale


def gelu(q: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """x/2 (1 + erf(x / sqrt 2)) of x = q scale; error below 0.02. 1 + erf is cut to 15 bits: 32 for |q| < 2^16."""
    found, found_scale = erf(q, scale / math.sqrt(2))
    one = math.floor(1 / found_scale)  # negative, as the scale is: both turn
    cut = max(0, (-2 * one).bit_length() - 15)
    return q * ((-found - one) >> cut), -scale * found_scale / 2 * 2**cut


def square_root(n: np.ndarray) -> np.ndarray:
    """floor(sqrt(n)) of whole numbers 0 <= n < 2^62, by Newton's steps from above until they no longer fall.

    x <- (x + n // x) >> 1 from x = 2^ceil(bits / 2); each element stops for itself.
    """
    flat = n.reshape(-1)
    x = np.array([1 << ((int(v).bit_length() + 1) // 2) for v in flat], np.int64)
    while True:
        lower = (x + flat // np.maximum(x, 1)) >> 1
        if not (lower < x).any():
            return np.where(flat == 0, 0, x).reshape(n.shape)
        x = np.minimum(x, lower)


def layer_norm(q: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, float]:
    """(q - mean) / deviation * weight + bias over the last axis, at scale 2^-28; the scale of q does not matter.

    q (..., D), |q| < 2^16, D <= 2^12; weight, bias (D,) of `norm_constants`. A row of equal numbers gives the bias: the
    epsilon of the float version, 1e-12, is far below a step.
    """
    centred = q - divide(q.sum(axis=-1, keepdims=True), q.shape[-1])
    variance = divide((centred * centred << 2 * ROOT_BITS).sum(axis=-1, keepdims=True), q.shape[-1])
    deviation = np.maximum(square_root(variance), 1)
    m, shift = reciprocals(deviation)
    up = shift - NORM_BITS - ROOT_BITS
    normed = (centred * m + (1 << (up - 1))) >> up
    return normed * weight + bias, 2.0 ** -(NORM_BITS + WEIGHT_BITS)


def norm_constants(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float weight and bias (D,) of a norm -> integers for `layer_norm`, steps 2^-14 and 2^-28; within +-2^15."""
    w, b = (np.clip(x.astype(np.float64), -(2.0**15), 2.0**15) for x in (weight, bias))
    found = np.rint(w * 2**WEIGHT_BITS).astype(np.int64)
    return found, np.rint(b * 2.0 ** (NORM_BITS + WEIGHT_BITS)).astype(np.int64)
