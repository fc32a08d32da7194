"""The forward pass in NumPy: every model kind and weight form, readable, the independent check of the engine.

It computes with the integers that the engine multiplies (int8 weights or int8 centres by int8 activations; int8
queries, keys and values; exact sums) and floats elsewhere. It is no fast path: codes are unpacked and widened at load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight.artifact import Artifact, layer_kind
from flyweight.forms import Float32, Int8
from flyweight.integer_only import STEP, Block, Embeddings, Matrix, Norm, mean, qkv_steps
from flyweight.positions import bigram_buckets, relative_buckets
from flyweight.runtime.parts import POOLERS, check_parts
from flyweight.runtime.reference_layers import LSTM, Convolution
from flyweight.tokenizer import Encoded

# Integers up to 2^24 are exact in float32: 1024 products of at most 127 * 127 sum to 16,516,096 < 16,777,216.
EXACT_COLUMNS = 1024


class Reference:
    """The model of a .fly file. `dtype` float64 shows how much float32 rounding matters (golden tolerance)."""

    name = title = "numpy"

    def __init__(self, artifact: Artifact, dtype: Any = np.float32):
        self.config, self.dtype = check_parts(artifact), dtype
        model = artifact.manifest["model"]
        self.pooling, layers = model["pooling"], self.config["layers"]
        self.vocab_size, self.has_tags = self.config["vocab_size"], bool(model["labels"]["entity_labels"])
        self.integers = _Integers(artifact, self.config) if self.config.get("integer_only") else None
        if self.integers:
            self.layers: Sequence[Any] = self.integers.layers
            return
        self.words = _Matrix(artifact, "embeddings.words", dtype, biased=False)
        self.positions = _Matrix(artifact, "embeddings.positions", dtype, biased=False)
        n_buckets = self.config.get("ngrams", 0)
        self.ngrams = _Matrix(artifact, "embeddings.ngrams", dtype, biased=False) if n_buckets else None
        self.norm = _Norm(artifact, "embeddings.norm", self.config)
        self.projection = _Matrix(artifact, "embeddings.projection", dtype) if self.config.get("embedding") else None
        self.layers = [_layer(artifact, f"layers.{i}", self.config, s, dtype) for i, s in enumerate(layers)]
        self.pooler = _Matrix(artifact, "heads.pooler", dtype) if self.pooling in POOLERS else None
        self.intent = _Matrix(artifact, "heads.intent", dtype, biased=model["intent_head"] == "linear")
        self.tags = _Matrix(artifact, "heads.tags", dtype) if model["labels"]["entity_labels"] else None

    def logits(self, encoded: list[Encoded]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Logits of each message: intent (C,), tags (W, n_tags) or None. Messages are ragged: no padding."""
        return [self._forward(e) for e in encoded]

    def _forward(self, e: Encoded) -> tuple[np.ndarray, np.ndarray | None]:
        x = self.embed(e)
        buckets = self.buckets(len(x))
        for layer in self.layers:
            x = layer(x, buckets)
        return self.heads(x, e)

    def embed(self, e: Encoded) -> np.ndarray:
        """What the first layer sees, (T, D)."""
        if self.integers:
            return self.integers.embed(e.ids)
        x = self.words.rows(e.ids) + self.positions.rows(np.arange(len(e.ids)))
        if self.ngrams is not None:
            x = x + self.ngrams.rows(bigram_buckets(e.ids, self.ngrams.shape[0]))
        x = self.norm(x)
        return x if self.projection is None else self.projection(x)

    def buckets(self, n_tokens: int) -> np.ndarray | None:
        """Relative position buckets (T, T), where the encoder has them."""
        n_buckets = self.config["relative_buckets"]
        return relative_buckets(n_tokens, n_buckets, self.config["relative_max_distance"]) if n_buckets else None

    def heads(self, x: np.ndarray, e: Encoded) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits from the last hidden states x (T, D)."""
        if self.integers:
            return self.integers.heads(x, e, self.pooling)
        pools = {"mean": lambda: x.sum(axis=0) / self.dtype(len(x)), "max": lambda: x.max(axis=0)}
        pooled = pools.get(self.pooling, lambda: x[0])()
        if self.pooler is not None:
            pooled = POOLED[self.pooling](self.pooler(pooled[None])[0])
        return self.intent(pooled[None])[0], None if self.tags is None else self.tags(x[e.first])


class _Matrix:
    """y = x W^T + b, or rows of an embedding, as the weight form and its activations say."""

    def __init__(self, artifact: Artifact, name: str, dtype: Any, biased: bool = True):
        form = artifact.form(name)
        self.name, self.shape, self.dtype = name, form.shape, dtype
        entry = artifact.entry(name)
        self.integer, step = entry["activations"] != "float", entry.get("input_scale")
        self.step = None if step is None else np.float32(step)  # of static activations; None: one a token
        bias = artifact.array(f"{name}.bias") if biased else np.zeros(form.shape[0])
        self.bias = bias.astype(dtype)
        if not self.integer:
            self.weight = form.dense().astype(dtype)
            return
        assert not isinstance(form, Float32)  # check_parts has refused it
        self.weight = (form.q if isinstance(form, Int8) else form.integers()).astype(np.float32)
        self.shift = form.shift if isinstance(form, Int8) else 0
        self.scale = np.asarray(form.scale, np.float32)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """(T,) -> (T, D)."""
        return self.weight[ids]

    def __call__(self, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """x (T, n_in) -> (T, n_out); bias (n_out,) or (T, n_out) in place of the matrix's own."""
        bias = self.bias if bias is None else bias
        if not self.integer:
            return x @ self.weight.T + bias
        q, s_x = quantize_rows(x) if self.step is None else quantize_static(x, self.step)
        total = np.zeros((len(x), self.shape[0]), np.float64)
        for at in range(0, self.shape[1], EXACT_COLUMNS):
            block = slice(at, at + EXACT_COLUMNS)
            total += q[:, block] @ self.weight[:, block].T
        if self.shift:
            total -= self.shift * q.sum(axis=1, dtype=np.float64)[:, None]
        scale = s_x[:, None] * self.scale[None, :].astype(x.dtype)
        # y = fma(float(sum), s_x s_w, b): float64 holds the product of two 24-bit numbers exactly.
        return (total.astype(x.dtype).astype(np.float64) * scale + bias).astype(x.dtype)


class _Norm:
    """LayerNorm: (x - mean) / sqrt(var + eps) * weight + bias, var without Bessel's correction."""

    def __init__(self, artifact: Artifact, name: str, config: dict[str, Any]):
        self.weight, self.bias = (artifact.array(f"{name}.{k}") for k in ("weight", "bias"))
        self.eps = config["norm_eps"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        # An infinite variance would give a finite answer, the bias alone: 0 * infinity is NaN, which is refused.
        return centred / np.sqrt(variance + x.dtype.type(self.eps)) * self.weight + self.bias + variance * 0


def _layer(artifact: Artifact, name: str, config: dict[str, Any], shape: dict[str, Any], dtype: Any) -> Any:
    """A layer of any kind, x (T, D), buckets (T, T) or None -> (T, D)."""
    kind = layer_kind(shape)
    if kind == "transformer":
        return _Layer(artifact, name, config, shape, dtype)
    norm = _Norm(artifact, f"{name}.{kind}.norm", config)
    if kind == "convolution":
        matrix, width = _Matrix(artifact, f"{name}.convolution", dtype), shape["convolution"]
        return Convolution(matrix, ACTIVATIONS[config["activation"]], width, norm)
    ahead, back = (_Matrix(artifact, f"{name}.lstm.{d}", dtype, biased=False) for d in ("forward", "backward"))
    return LSTM(_Matrix(artifact, f"{name}.lstm.input", dtype), ahead, back, norm)


class _Layer:
    """Attention and FFN of one layer; sizes of zero leave bias, residual and norm."""

    def __init__(self, artifact: Artifact, name: str, config: dict[str, Any], shape: dict[str, int], dtype: Any):
        self.heads, self.head_size = shape["heads"], config["head_size"]
        self.qkv = _Matrix(artifact, f"{name}.attention.qkv", dtype)
        self.steps = artifact.entry(f"{name}.attention.qkv").get("output_scales")  # int8 attention: of q, k, v
        self.out = _Matrix(artifact, f"{name}.attention.out", dtype)
        self.up = _Matrix(artifact, f"{name}.ffn.up", dtype)
        self.down = _Matrix(artifact, f"{name}.ffn.down", dtype)
        self.attention_norm = _Norm(artifact, f"{name}.attention.norm", config)
        self.ffn_norm = _Norm(artifact, f"{name}.ffn.norm", config)
        self.activation = ACTIVATIONS[config["activation"]]
        self.relative_bias = None
        if config["relative_buckets"]:
            self.relative_bias = artifact.array(f"{name}.attention.relative_bias")

    def __call__(self, x: np.ndarray, buckets: np.ndarray | None) -> np.ndarray:
        """(T, D) -> (T, D)."""
        attended = self._attend(x, buckets) if self.heads else self.out.bias
        x = self.attention_norm(x + attended)
        return self.ffn_norm(x + self.down(self.activation(self.up(x))))

    def _attend(self, x: np.ndarray, buckets: np.ndarray | None) -> np.ndarray:
        n = len(x)
        q, k, v = self.qkv(x).reshape(n, 3, self.heads, self.head_size).transpose(1, 2, 0, 3)  # each (H, T, d)
        if self.steps is None:
            scores = (q * x.dtype.type(self.head_size**-0.5)) @ k.transpose(0, 2, 1)  # (H, T, T)
        else:
            s_q, s_k, s_v = (np.float32(s) for s in self.steps)
            q, k, v = (quantize_static(a, s)[0] for a, s in ((q, s_q), (k, s_k), (v, s_v)))
            factor = s_q * s_k * np.float32(self.head_size**-0.5)
            scores = integer_product(q, k.transpose(0, 2, 1)).astype(x.dtype) * x.dtype.type(factor)
        if self.relative_bias is not None and buckets is not None:
            scores = scores + self.relative_bias[buckets].transpose(2, 0, 1)
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        if self.steps is None:
            attended = e / e.sum(axis=-1, keepdims=True) @ v  # (H, T, d)
        else:  # exponentials in 255 steps, normalised by the sum of what was rounded
            e = np.rint(x.dtype.type(255) * e)
            total = e.sum(axis=-1, keepdims=True, dtype=np.float64).astype(x.dtype)
            attended = integer_product(e, v).astype(x.dtype) * (x.dtype.type(s_v) / total)
        return self.out(attended.transpose(1, 0, 2).reshape(n, self.heads * self.head_size))


class _Integers:
    """The parts of an integer-only model."""

    def __init__(self, artifact: Artifact, config: dict[str, Any]):
        def matrix(name: str, steps: Sequence[float] = (STEP,), biased: bool = True) -> Matrix:
            form, bias = artifact.form(name), artifact.array(f"{name}.bias") if biased else None
            zeros = np.zeros(form.shape[0], np.float32)
            return Matrix.of(name, form, artifact.entry(name), zeros if bias is None else bias, steps)

        def norm(name: str) -> Norm:
            return Norm(artifact.array(f"{name}.weight"), artifact.array(f"{name}.bias"))

        def block(name: str, heads: int) -> Block:
            scales = artifact.entry(f"{name}.attention.qkv").get("output_scales", [1.0, 1.0, 1.0])
            bias = artifact.array(f"{name}.attention.relative_bias") if config["relative_buckets"] else None
            return Block(
                heads=heads,
                size=config["head_size"],
                qkv=matrix(f"{name}.attention.qkv", qkv_steps(scales)),
                out=matrix(f"{name}.attention.out"),
                up=matrix(f"{name}.ffn.up"),
                down=matrix(f"{name}.ffn.down"),
                attention_norm=norm(f"{name}.attention.norm"),
                ffn_norm=norm(f"{name}.ffn.norm"),
                output_scales=scales,
                relative_bias=bias,
                relu=config["activation"] == "relu",
            )

        model = artifact.manifest["model"]
        words, positions = artifact.form("embeddings.words"), artifact.form("embeddings.positions")
        assert isinstance(words, Int8)  # check_parts has refused others
        assert isinstance(positions, Int8)
        projection = matrix("embeddings.projection") if config.get("embedding") else None
        self.embed = Embeddings(words, positions, norm("embeddings.norm"), projection)
        self.layers = [block(f"layers.{i}", shape["heads"]) for i, shape in enumerate(config["layers"])]
        self.intent = matrix("heads.intent", biased=model["intent_head"] == "linear")
        self.tags = matrix("heads.tags") if model["labels"]["entity_labels"] else None

    def heads(self, x: np.ndarray, e: Encoded, pooling: str) -> tuple[np.ndarray, np.ndarray | None]:
        pooled = mean(x) if pooling == "mean" else x[0]
        tags = None if self.tags is None else self.tags.logits(x[e.first])
        return self.intent.logits(pooled[None])[0], tags


@dataclass(frozen=True)
class GoldenCheck:
    """Root mean square of computed minus golden logits, and what is allowed.

    equal: they are the same numbers; must_equal: they have to be (the same engine and numerics made the file).
    """

    difference: float
    tolerance: float
    equal: bool = False
    must_equal: bool = False

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return bool(self.difference <= self.tolerance) and (self.equal or not self.must_equal)

    def __str__(self) -> str:
        """What was found and what is allowed."""
        allowed = "none: the engine that wrote them promises equal bits" if self.must_equal else f"{self.tolerance:.3g}"
        return f"golden samples differ by {self.difference:.3g} (RMS), allowed is {allowed}"


def rms_difference(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """sqrt(mean((found - wanted)^2)) over all numbers of all arrays; NaN if there is any, 0 for none."""
    gaps = np.concatenate([(a.astype(np.float64) - b).ravel() for a, b in zip(found, wanted, strict=True)])
    return float(np.sqrt(np.mean(gaps * gaps))) if len(gaps) else 0.0


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The engine's activation quantizer: x (T, n) -> integers (T, n) as float32, scales (T,).

    inv = 127 / absmax, 0 when absmax < 2^-100; q = round-half-even(x * inv) in [-127, 127]; scale = absmax / 127.
    """
    absmax = np.abs(x).max(axis=1, initial=0)
    live = absmax >= 2.0**-100
    inv = np.divide(x.dtype.type(127), absmax, out=np.zeros_like(absmax), where=live)
    q = np.clip(np.rint(x * inv[:, None]), -127, 127).astype(np.float32)
    return q, np.where(live, absmax / x.dtype.type(127), x.dtype.type(0))


def quantize_static(x: np.ndarray, step: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The same in steps of one calibrated size: x (..., n) -> integers of its shape as float32, scales (1,).

    q = round-half-even(x * (1 / step)) in [-127, 127].
    """
    inv = x.dtype.type(np.float32(1) / step)
    return np.clip(np.rint(x * inv), -127, 127).astype(np.float32), np.array([step], x.dtype)


def integer_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b of integers that floats hold, (..., n, k) and (..., k, m) -> (..., n, m) float64: exact below 2^53."""
    found: np.ndarray = a.astype(np.float64) @ b.astype(np.float64)
    return found


# erf(x) = x P(x^2) / Q(x^2) on [-4, 4], beyond it +-1 in float32; error below 5e-7, in float64 7e-8 (Eigen's form).
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, absolute error below 5e-7 in float32."""
    x = np.clip(x, -4, 4)
    z = x * x
    return x * np.polyval(np.array(_ERF_P, x.dtype), z) / np.polyval(np.array(_ERF_Q, x.dtype), z)


def gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x / sqrt 2)). Source: Hendrycks & Gimpel 2016, arXiv:1606.08415."""
    return x * x.dtype.type(0.5) * (1 + erf(x * x.dtype.type(0.5**0.5)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return x * x.dtype.type(0.5) * (1 + np.tanh(x.dtype.type((2 / np.pi) ** 0.5) * (x + x.dtype.type(0.044715) * x**3)))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}
# Behind the pooler.
POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"cls+tanh": np.tanh, "cls+relu": relu, "cls+gelu": gelu}
