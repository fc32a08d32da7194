"""An encoder that computes with integers alone, from token ids to the sums of the heads: I-BERT's way, blocks in NumPy.

    between matrices  v = q 2^-10, |q| < 2^16: residual stream, what GELU takes, scores of attention
    y = W8 x8         z[t, r] = requantize(sum_c W8[r, c] x8[t, c], s_x s_w[r] / step) + round(b[r] / step)
    embeddings        requantized to 2^-13 (their norm takes any step), words + positions, norm
    attention         q8, k8, v8: z in 1/256 of their steps, rounded to whole ones; score = q8 k8 and relative bias
                      -> 2^-10;  e8, and the average in the steps of what `out` takes, as in integer_math
    FFN               z -> 2^-10, gelu or relu -> the steps of what `down` takes
    norms             of x + z, both 2^-10
    mean              sum over tokens / tokens, to the nearest
    heads             float(sum W8 x8) (s_x s_w[r]) + b: here numbers become floats, as they do in static int8

Blocks hand each other float32 arrays of whole multiples of 2^-10, which floats hold exactly: so they stand where float
blocks would. The engine has the integers themselves. Every constant is made once from the file's floats.
Source: Kim et al. 2021, arXiv:2101.01321.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight import integer_math as im
from flyweight.errors import ConfigError
from flyweight.forms import Float32, Form, Int8

STEP, EMBEDDING_STEP = 2.0**-10, 2.0**-13
LIMIT = 2**16 - 1  # of what lies between matrices
SUM_LIMIT = 2**24  # of a matrix's outputs and its bias, before they are added
PART_BITS = 8  # q, k, v are finer by that before they are rounded to int8
EXACT_COLUMNS = 512  # 255 * 127 * 512 = 16,581,120 < 2^24: float32 sums of so many products are exact


def steps_of(x: np.ndarray) -> np.ndarray:
    """Floats that are whole multiples of 2^-10 -> how many, int64."""
    return np.rint(x.astype(np.float64) / STEP).astype(np.int64)


def floats_of(q: np.ndarray) -> np.ndarray:
    """The inverse of `steps_of`, float32: exact."""
    return (q * STEP).astype(np.float32)


def limited(q: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """Within +-limit."""
    found: np.ndarray = np.clip(q, -limit, limit)
    return found


def in_steps(values: np.ndarray, steps: np.ndarray | float, limit: int) -> np.ndarray:
    """round-half-even(value / step) within +-limit: constants of the file as integers."""
    found = np.rint(values.astype(np.float64) / steps)
    return np.clip(found, -limit, limit).astype(np.int64)


@dataclass(frozen=True)
class Matrix:
    """A static matrix. q (R, C) whole numbers as float32; scale (R,) float32, s_x s_w; bias (R,) float32.

    steps (R,): of each output.
    """

    q: np.ndarray
    shift: int
    input_scale: float
    scale: np.ndarray
    bias: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(
        cls, name: str, form: Form, entry: dict[str, Any], bias: np.ndarray, steps: Sequence[float] = (STEP,)
    ) -> Matrix:
        """From a weight form and how it is multiplied. steps: of equal parts of the outputs. Errors: ConfigError."""
        rows, columns = form.shape
        spread = np.repeat(np.array(steps, np.float64), rows // len(steps))
        if not rows * columns:  # y = b
            empty = np.zeros(form.shape, np.float32)
            return cls(empty, 0, 1.0, np.zeros(rows, np.float32), bias, spread)
        if entry["activations"] != "static" or isinstance(form, Float32) or form.scale is None:
            raise ConfigError(
                f"{name} has {entry['activations']} activations, but the model is integer_only: all must be static; "
                "apply static_int8 again"
            )
        q, shift = (form.q, form.shift) if isinstance(form, Int8) else (form.integers(), 0)
        scale = np.float32(entry["input_scale"]) * np.broadcast_to(np.asarray(form.scale, np.float32), (rows,))
        return cls(q.astype(np.float32), shift, entry["input_scale"], scale, bias, spread)

    def take(self, q: np.ndarray, step: float = STEP) -> np.ndarray:
        """q in `step` -> the int8 input."""
        return im.requantize(q, step / self.input_scale)

    def sums(self, x8: np.ndarray) -> np.ndarray:
        """x8 (T, C) -> exact (T, R)."""
        total = np.zeros((len(x8), len(self.scale)), np.int64)
        for at in range(0, x8.shape[1], EXACT_COLUMNS):
            block = slice(at, at + EXACT_COLUMNS)
            total += (x8[:, block].astype(np.float32) @ self.q[:, block].T).astype(np.int64)
        return total - self.shift * x8.sum(axis=1)[:, None]

    def __call__(self, x8: np.ndarray) -> np.ndarray:
        """x8 (T, C) -> (T, R) in `steps`, within +-2^25."""
        ratio = self.scale.astype(np.float64) / self.steps
        return im.requantize(self.sums(x8), ratio, SUM_LIMIT) + self.constant

    @property
    def constant(self) -> np.ndarray:
        """The bias in `steps`, (R,)."""
        return in_steps(self.bias, self.steps, SUM_LIMIT)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """x (T, C) floats -> y = fma(float(sum), s_x s_w, b), (T, R) float32."""
        total = self.sums(self.take(steps_of(x))).astype(np.float32).astype(np.float64)
        return (total * self.scale.astype(np.float64) + self.bias).astype(np.float32)


class Norm:
    """LayerNorm, to 2^-10."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray):
        self.weight, self.bias = im.norm_constants(weight, bias)

    def __call__(self, q: np.ndarray) -> np.ndarray:
        """q (T, D), |q| < 2^16, in any step -> (T, D)."""
        found, scale = im.layer_norm(q, self.weight, self.bias)
        down = round(math.log2(STEP / scale))
        return limited((found + (1 << (down - 1))) >> down)


@dataclass(frozen=True)
class Embeddings:
    """Rows of int8 tables, their norm, and a projection where they are narrower than the layers."""

    words: Int8
    positions: Int8
    norm: Norm
    projection: Matrix | None

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """ids (T,) -> (T, D) float32."""
        x = self.norm(limited(looked_up(self.words, ids) + looked_up(self.positions, np.arange(len(ids)))))
        if self.projection is not None:
            x = limited(self.projection(self.projection.take(x)))
        return floats_of(x)


def looked_up(table: Int8, ids: np.ndarray) -> np.ndarray:
    """Rows in 2^-13: ids (T,) -> (T, E)."""
    m, shift = im.multipliers(np.broadcast_to(table.scale, (table.shape[0],)).astype(np.float64) / EMBEDDING_STEP)
    return im.scaled(table.q[ids].astype(np.int64) - table.shift, m[ids, None], shift, LIMIT)


@dataclass(frozen=True)
class Block:
    """Attention and FFN of one layer. output_scales: steps of q, k, v; relative_bias (n_buckets, H) float, or None."""

    heads: int
    size: int
    qkv: Matrix
    out: Matrix
    up: Matrix
    down: Matrix
    attention_norm: Norm
    ffn_norm: Norm
    output_scales: Sequence[float]
    relative_bias: np.ndarray | None
    relu: bool

    def __call__(self, x: np.ndarray, buckets: np.ndarray | None) -> np.ndarray:
        """(T, D) -> (T, D) float32; buckets (T, T) or None."""
        q = steps_of(x)
        attended = self.out(self._attend(q, buckets)) if self.heads else self.out.constant
        q = self.attention_norm(limited(q + limited(attended)))
        return floats_of(self.ffn_norm(limited(q + limited(self._feed_forward(q)))))

    def _feed_forward(self, q: np.ndarray) -> np.ndarray:
        if not len(self.up.scale):
            return self.down.constant
        z = limited(self.up(self.up.take(q)))
        found, scale = (np.maximum(z, 0), STEP) if self.relu else im.gelu(z, STEP)
        return self.down(self.down.take(found, scale))

    def _attend(self, q: np.ndarray, buckets: np.ndarray | None) -> np.ndarray:
        """What `out` takes, (T, H d)."""
        n, half = len(q), 1 << (PART_BITS - 1)
        parts = limited((self.qkv(self.qkv.take(q)) + half) >> PART_BITS, im.LIMIT)
        q8, k8, v8 = parts.reshape(n, 3, self.heads, self.size).transpose(1, 2, 0, 3)  # each (H, T, d)
        s_q, s_k, s_v = (np.float32(s) for s in self.output_scales)
        factor = float(s_q * s_k * np.float32(self.size**-0.5))
        scores = im.requantize(q8 @ k8.transpose(0, 2, 1), factor / STEP, LIMIT)  # (H, T, T)
        if self.relative_bias is not None and buckets is not None:
            scores = limited(scores + in_steps(self.relative_bias, STEP, LIMIT)[buckets].transpose(2, 0, 1))
        found = im.attention_average(im.softmax_steps(scores, STEP), v8, float(s_v) / self.out.input_scale)
        return found.transpose(1, 0, 2).reshape(n, self.heads * self.size)


def qkv_steps(scales: Sequence[float]) -> list[float]:
    """Steps of the outputs of an attention's qkv."""
    return [s / 2**PART_BITS for s in scales]


def mean(x: np.ndarray) -> np.ndarray:
    """Over tokens: x (T, D) floats -> (D,) float32."""
    return floats_of(im.divide(steps_of(x).sum(axis=0), len(x)))
