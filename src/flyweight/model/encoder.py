"""The BERT-family encoder in PyTorch; every layer owns its number of heads and its FFN width, zero included.

One class covers BERT, MiniLM, ERNIE, RoBERTa, XLM-R, DistilBERT (absolute positions), MPNet (relative position bias
beside them) and ELECTRA (embeddings narrower than the layers). Options are plain fields of EncoderConfig; a pruned
model is an ordinary model with other numbers in `layers`. Students may have layers of other kinds in any order, LSTMs
(recurrent.py) and convolutions (convolution.py), or none: embeddings of words and bigrams alone are a bag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.artifact import MAX_WIDTH
from flyweight.errors import CheckpointError, ConfigError
from flyweight.model import integers
from flyweight.model.convolution import ConvolutionLayer
from flyweight.model.linear import Embedding, Linear, round_through, static_steps
from flyweight.model.recurrent import LSTMLayer
from flyweight.positions import bigram_buckets, relative_buckets

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What a transformer layer has: number of attention heads and FFN width; 0 means that the part is gone."""

    kind: ClassVar[str] = "transformer"
    heads: int
    ffn: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"heads": self.heads, "ffn": self.ffn}


@dataclass(frozen=True, kw_only=True)
class LSTMShape:
    """A bidirectional LSTM layer: half of the hidden width a direction, so that has to be even."""

    kind: ClassVar[str] = "lstm"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"lstm": True}


@dataclass(frozen=True, kw_only=True)
class ConvolutionShape:
    """A convolution over `width` neighbouring tokens, the middle one its own: odd, from 1 to 15."""

    kind: ClassVar[str] = "convolution"
    width: int

    def __post_init__(self) -> None:
        if type(self.width) is not int or not 1 <= self.width <= MAX_WIDTH or self.width % 2 == 0:
            raise CheckpointError(
                f"a convolution has width {self.width!r}; allowed: odd whole numbers from 1 to {MAX_WIDTH}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"convolution": self.width}


Shape = LayerShape | LSTMShape | ConvolutionShape


def shape_from_dict(entry: dict[str, Any]) -> Shape:
    """The inverse of a shape's `to_dict`. Errors: CheckpointError."""
    if entry == {"lstm": True}:
        return LSTMShape()
    if set(entry) == {"convolution"}:
        return ConvolutionShape(width=entry["convolution"])
    if set(entry) != {"heads", "ffn"}:
        raise CheckpointError(
            f'a layer is {entry}; allowed: {{"heads": H, "ffn": N}}, {{"lstm": true}}, {{"convolution": WIDTH}}'
        )
    return LayerShape(**entry)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and variant of an encoder.

    hidden: width D; head_size: d of every head (a layer with H heads has Q, K, V of (H*d, D));
    layers: shapes, of any kinds; head_size and relative_buckets concern transformer layers alone;
    embedding: width E of the embeddings where it is not D: a projection (D, E) follows their norm; 0 for none;
    ngrams: rows of the table of hashed token bigrams (see positions.bigram_buckets); 0 for none;
    max_positions: longest message in tokens; relative_buckets: 0 for none, else MPNet's bias with that many buckets;
    activation: gelu | gelu_tanh | relu; norm_eps: LayerNorm's epsilon;
    integer_only: all is static int8 and what lies between in integers too; see flyweight.integer_only.
    """

    vocab_size: int
    hidden: int
    head_size: int
    layers: tuple[Shape, ...]
    max_positions: int
    relative_buckets: int = 0
    relative_max_distance: int = 128
    embedding: int = 0
    ngrams: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-12
    integer_only: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise CheckpointError(f"activation '{self.activation}' is unknown; allowed: {', '.join(ACTIVATIONS)}")
        for name in ("vocab_size", "hidden", "head_size", "max_positions"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"encoder field {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("embedding", "ngrams"):
            if getattr(self, name) < 0:
                raise CheckpointError(f"encoder field {name} is {getattr(self, name)}; it must be 0 or more")
        if self.hidden % 2 and any(shape.kind == "lstm" for shape in self.layers):
            raise CheckpointError(
                f"encoder field hidden is {self.hidden}; an LSTM layer has half of it a direction, so it must be even"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form: written to config.json and to the .fly manifest."""
        return asdict(self) | {"layers": [shape.to_dict() for shape in self.layers]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> EncoderConfig:
        """The inverse of `to_dict`."""
        return cls(**(fields | {"layers": tuple(shape_from_dict(layer) for layer in fields["layers"])}))

    def transformer_shapes(self, who: str) -> tuple[LayerShape, ...]:
        """`layers`, for work that knows transformer layers alone. Errors: ConfigError for others, in the name `who`."""
        found = tuple(shape for shape in self.layers if isinstance(shape, LayerShape))
        if len(found) < len(self.layers):
            i, shape = next((i, s) for i, s in enumerate(self.layers) if not isinstance(s, LayerShape))
            raise ConfigError(
                f"{who} works on transformer layers, but layers.{i} is of kind {shape.kind}; leave it out"
            )
        return found


class Attention(nn.Module):
    """Multi-head self-attention with H heads of size d, then residual and LayerNorm (post-norm).

    `qkv` stacks Q, K and V: (3*H*d, D). relative_bias (n_buckets, H) where the encoder has one.
    head_mask: factors of the heads, see `masked`.
    """

    def __init__(self, config: EncoderConfig, heads: int):
        super().__init__()
        self.heads, self.head_size = heads, config.head_size
        self.head_mask: Tensor | None = None
        self.qkv = Linear(config.hidden, 3 * heads * config.head_size)
        self.out = Linear(heads * config.head_size, config.hidden)
        buckets = config.relative_buckets
        self.relative_bias = nn.Parameter(torch.zeros(buckets, heads)) if buckets else None
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor | None, dropout: float) -> Tensor:
        """x (B, T, D), mask (B, 1, 1, T) additive float, buckets (T, T) -> (B, T, D)."""
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        if self.relative_bias is not None and buckets is not None:
            mask = mask + F.embedding(buckets, self.relative_bias).permute(2, 0, 1)  # (B, H, T, T)
        watched = self.qkv.output_quantizer  # while training
        scales = self.qkv.output_scales if watched is None else watched(q, k, v)
        if scales is not None:
            y = _int8_attention(q, k, v, mask, scales)
        else:
            # Plain products: torch 2.13's fused attention has a bf16 backward 8x slower than this on CPUs without AMX.
            scores = (q * self.head_size**-0.5) @ k.transpose(-1, -2) + mask.to(q.dtype)  # (B, H, T, T)
            y = torch.softmax(scores, dim=-1).to(v.dtype) @ v  # (B, H, T, d)
        if self.head_mask is not None:
            y = y * self.head_mask[..., None, None]  # (H, 1, 1) or (B, H, 1, 1)
        y = self.out(y.transpose(1, 2).reshape(B, T, self.heads * self.head_size))
        return self.norm(x + F.dropout(y, dropout, self.training))


def _int8_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scales: tuple[float, float, float]) -> Tensor:
    """softmax(q k^T / sqrt d + bias) v as the engine multiplies it: both products of integers.

    q8, k8, v8 in steps of s_q, s_k, s_v;  score = (q8 k8^T) (s_q s_k d^-1/2) + bias;  e8 = round(255 exp(score - max))
    y = (e8 v8) (s_v / sum e8): normalised by the sum of what was rounded.
    q, k, v (B, H, T, d), bias to (B, H, T, T), -inf where masked -> (B, H, T, d). The sums are exact in float32 up to
    d = 1040 (127 * 127 d < 2^24) and T = 518 (255 * 127 T < 2^24).
    """
    q8, k8, v8 = (static_steps(a, s) for a, s in zip((q, k, v), scales, strict=True))
    s_q, s_k, s_v = (np.float32(s) for s in scales)
    factor = float(s_q * s_k * np.float32(q.shape[-1] ** -0.5))
    scores = (q8 @ k8.transpose(-1, -2)).float() * factor + bias.float()  # (B, H, T, T)
    e8 = round_through(255 * torch.exp(scores - scores.detach().amax(dim=-1, keepdim=True)))
    return (e8 @ v8).float() * (float(s_v) / e8.sum(dim=-1, keepdim=True))


class FeedForward(nn.Module):
    """D -> n -> D with the activation between, then residual and LayerNorm (post-norm).

    neuron_mask: factors of the neurons, see `masked`.
    """

    def __init__(self, config: EncoderConfig, ffn: int):
        super().__init__()
        self.neuron_mask: Tensor | None = None
        self.up = Linear(config.hidden, ffn)
        self.down = Linear(ffn, config.hidden)
        self.activation, self.relu = ACTIVATIONS[config.activation], config.activation == "relu"
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        a = self.activation(self.up(x))  # (B, T, n)
        if self.neuron_mask is not None:
            a = a * self.neuron_mask[..., None, :]  # (1, n) or (B, 1, n)
        return self.norm(x + F.dropout(self.down(a), dropout, self.training))


class Layer(nn.Module):
    """Attention, then FFN; a part of size zero leaves only its bias, residual and norm.

    With no head the attention output is its bias alone, with no neuron likewise: what the masked model computes.
    """

    def __init__(self, config: EncoderConfig, shape: LayerShape):
        super().__init__()
        self.attention = Attention(config, shape.heads)
        self.ffn = FeedForward(config, shape.ffn)

    def matrices(self) -> Iterator[tuple[str, Linear]]:
        """(name within the layer, module), in the order in which they multiply."""
        yield "attention.qkv", self.attention.qkv
        yield "attention.out", self.attention.out
        yield "ffn.up", self.ffn.up
        yield "ffn.down", self.ffn.down

    def norms(self) -> Iterator[tuple[str, nn.LayerNorm]]:
        """(name within the layer, module)."""
        yield "attention.norm", self.attention.norm
        yield "ffn.norm", self.ffn.norm

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor | None, dropout: float) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if self.attention.heads:
            x = self.attention(x, mask, buckets, dropout)
        else:
            assert self.attention.out.bias is not None  # encoder matrices always have a bias
            x = self.attention.norm(x + self.attention.out.bias)
        return self.ffn(x, dropout)


AnyLayer = Layer | LSTMLayer | ConvolutionLayer


def new_layer(config: EncoderConfig, shape: Shape) -> AnyLayer:
    """A layer of that shape, its weights drawn at random."""
    if isinstance(shape, LSTMShape):
        return LSTMLayer(config.hidden, config.norm_eps)
    if isinstance(shape, ConvolutionShape):
        return ConvolutionLayer(config.hidden, shape.width, ACTIVATIONS[config.activation], config.norm_eps)
    return Layer(config, shape)


@dataclass(frozen=True)
class Renumbered:
    """While only some rows of the embeddings are there (see training/loop.py).

    ids (n_words,) int64: the true token id of each word row; rows (ngrams,) int64: where the row of a bucket is now.
    """

    ids: Tensor
    rows: Tensor


class Encoder(nn.Module):
    """Word, position and bigram embeddings, LayerNorm, a projection where they are narrower, then the layers.

    Hidden states (B, T, D) come out. `renumbered`: what the ids that come in stand for; None: themselves.
    """

    def __init__(self, config: EncoderConfig, dropout: float = 0.1):
        super().__init__()
        self.config, self.dropout = config, dropout
        width = config.embedding or config.hidden
        self.words = Embedding(config.vocab_size, width)
        self.positions = Embedding(config.max_positions, width)
        self.ngrams = Embedding(config.ngrams, width) if config.ngrams else None
        if self.ngrams is not None:
            nn.init.zeros_(self.ngrams.weight)  # bigrams that no message has taught say nothing
        self.renumbered: Renumbered | None = None
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = Linear(width, config.hidden) if config.embedding else None
        self.layers = cast(Sequence[AnyLayer], nn.ModuleList(new_layer(config, shape) for shape in config.layers))

    def transformer_layers(self, who: str) -> Sequence[Layer]:
        """`layers`, for work that knows transformer layers alone. Errors: ConfigError, see the config's."""
        self.config.transformer_shapes(who)
        return cast(Sequence[Layer], self.layers)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T) int64, mask (B, T) bool, True for real tokens -> (B, T, D)."""
        return self.hidden_states(ids, mask)[-1]

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """What every layer sees and the last one gives: embeddings, then the output of each layer, each (B, T, D)."""
        return self.states_from(0, self.embed(ids), mask)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> what the first layer sees, (B, T, D)."""
        if self.config.integer_only:
            return integers.embed(self, ids)
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        if self.ngrams is not None:
            x = x + self.ngrams(self._bigram_rows(ids))
        x = F.dropout(self.norm(x), self.dropout, self.training)
        return x if self.projection is None else self.projection(x)

    def _bigram_rows(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> the row of `ngrams` of each token and the one before it, (B, T) int64."""
        true = ids if self.renumbered is None else self.renumbered.ids[ids]
        rows = torch.from_numpy(bigram_buckets(true.cpu().numpy(), self.config.ngrams)).to(ids.device)
        return rows if self.renumbered is None else self.renumbered.rows[rows]

    def states_from(self, first: int, x: Tensor, mask: Tensor) -> list[Tensor]:
        """x (B, T, D), which layer `first` sees, then the output of it and each later layer, each (B, T, D)."""
        if self.config.integer_only:
            return integers.states_from(self, first, x, mask)
        T = x.shape[1]
        additive = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -math.inf)[:, None, None]
        buckets = None
        if self.config.relative_buckets:
            table = relative_buckets(T, self.config.relative_buckets, self.config.relative_max_distance)
            buckets = torch.from_numpy(table).to(x.device)
        states = [x]
        for layer in self.layers[first:]:
            states.append(layer(states[-1], additive, buckets, self.dropout))
        return states


@contextmanager
def masked(
    model: nn.Module, *, heads: Mapping[int, Tensor] | None = None, neurons: Mapping[int, Tensor] | None = None
) -> Iterator[None]:
    """Within it, layer i multiplies its heads' outputs by heads[i] and its neurons' activations by neurons[i].

    heads[i] (H,) or, one row a message, (B, H); neurons[i] (n,) or (B, n); 1 = as it is, 0 = as if it were removed
    (surgery.py removes it). Gradients reach the masks. Layers that are absent stay as they are. `model`: an Encoder,
    or what has one in `encoder`. Errors: ConfigError where not all layers have heads and neurons.
    """
    layers = cast(Encoder, getattr(model, "encoder", model)).transformer_layers("masking heads and neurons")
    try:
        for i, mask in (heads or {}).items():
            layers[i].attention.head_mask = mask
        for i, mask in (neurons or {}).items():
            layers[i].ffn.neuron_mask = mask
        yield
    finally:
        for layer in layers:
            layer.attention.head_mask = layer.ffn.neuron_mask = None
