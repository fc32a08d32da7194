"""The peers' source: the benchmark's model as plain PyTorch, nothing but nn.Linear, nn.LayerNorm and products.

Weights are those of the NLUModel. Q, K and V are one matrix or three: exporters and quantizers differ in which they
run faster. MPNet's relative position bias is added to the scores.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flyweight.model.encoder import Encoder
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.positions import relative_buckets

MAX_TOKENS = 128


class PlainBert(nn.Module):
    """ids (B, T) and, for padded batches, mask (B, T) of 0 and 1 -> intent logits (B, C).

    tags: a model with an entity head also gives the tag logits of every token (B, T, n_tags).
    """

    def __init__(self, model: NLUModel, one_qkv: bool, tags: bool = False):
        super().__init__()
        encoder = model.encoder
        self.words = nn.Embedding.from_pretrained(encoder.words.weight.detach())
        self.positions = nn.Parameter(encoder.positions.weight.detach())
        self.norm = encoder.norm
        self.layers = nn.ModuleList(PlainLayer(layer, one_qkv) for layer in encoder.layers)
        for layer, bias in zip(self.layers, _relative_biases(encoder), strict=True):
            layer.register_buffer("relative_bias", bias)
        self.head = _linear(model.intent_head)
        self.tag_head = _linear(model.tag_head) if tags and model.tag_head is not None else None
        self.eval().requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The intent head on the mean over the message's tokens, the entity head on every token."""
        additive = None if mask is None else (mask[:, None, None].float() - 1) * 1e9
        x = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, additive)
        if mask is None:
            pooled = x.mean(1)
        else:
            weights = mask.to(x.dtype)[:, :, None]
            pooled = (x * weights).sum(1) / weights.sum(1)
        return self.head(pooled) if self.tag_head is None else (self.head(pooled), self.tag_head(x))


class PlainLayer(nn.Module):
    """Attention and FFN, post-norm."""

    def __init__(self, layer: nn.Module, one_qkv: bool):
        super().__init__()
        a, f = layer.attention, layer.ffn
        self.heads, self.size = a.heads, a.head_size
        self.qkv = nn.ModuleList([_linear(a.qkv)] if one_qkv else _split(a.qkv))
        self.out, self.attention_norm = _linear(a.out), a.norm
        self.up, self.down, self.ffn_norm = _linear(f.up), _linear(f.down), f.norm
        self.activation = nn.GELU()

    def forward(self, x: Tensor, additive: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        B, T, _ = x.shape
        parts = [linear(x) for linear in self.qkv]
        if len(parts) == 1:
            parts = list(parts[0].split(self.heads * self.size, dim=-1))
        q, k, v = (part.view(B, T, self.heads, self.size).transpose(1, 2) for part in parts)  # (B, H, T, d)
        scores = (q * self.size**-0.5) @ k.transpose(-1, -2)
        if self.relative_bias is not None:
            scores = scores + self.relative_bias[:, :T, :T]
        if additive is not None:
            scores = scores + additive
        y = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, self.heads * self.size)
        x = self.attention_norm(x + self.out(y))
        return self.ffn_norm(x + self.down(self.activation(self.up(x))))


def _relative_biases(encoder: Encoder) -> list[Tensor | None]:
    """(H, T, T) of every layer for messages of up to MAX_TOKENS; None where the encoder has no such bias."""
    config = encoder.config
    if not config.relative_buckets:
        return [None] * len(encoder.layers)
    table = relative_buckets(MAX_TOKENS, config.relative_buckets, config.relative_max_distance)
    buckets = torch.from_numpy(table)
    return [layer.attention.relative_bias.detach()[buckets].permute(2, 0, 1) for layer in encoder.layers]


def plain_bert(folder: Path, one_qkv: bool = True, tags: bool = False) -> PlainBert:
    """Read a model folder."""
    return PlainBert(NLUModel.load(folder), one_qkv, tags)


def _linear(source: Linear) -> nn.Linear:
    made = nn.Linear(source.weight.shape[1], source.weight.shape[0], bias=source.bias is not None)
    made.weight.data = source.weight.detach().clone()
    if source.bias is not None:
        made.bias.data = source.bias.detach().clone()
    return made


def _split(source: Linear) -> list[nn.Linear]:
    made = []
    for weight, bias in zip(source.weight.detach().chunk(3), source.bias.detach().chunk(3), strict=True):
        part = nn.Linear(weight.shape[1], weight.shape[0])
        part.weight.data, part.bias.data = weight.clone(), bias.clone()
        made.append(part)
    return made
