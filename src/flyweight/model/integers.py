"""The integer-only encoder in PyTorch: integer_only's blocks, made of the modules' forms, computed in NumPy.

For evaluation and the export gate alone: integers have no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.errors import ConfigError
from flyweight.forms import Float32, Form, Int8
from flyweight.integer_only import STEP, Block, Embeddings, Matrix, Norm, mean, qkv_steps
from flyweight.model.linear import Embedding, Linear, computes
from flyweight.positions import relative_buckets

if TYPE_CHECKING:
    from flyweight.model.encoder import Encoder, Layer


def embed(encoder: Encoder, ids: Tensor) -> Tensor:
    """ids (B, T) -> (B, T, D), whole multiples of 2^-10."""
    refuse_gradients()
    projection = None if encoder.projection is None else _matrix("embeddings.projection", encoder.projection)
    words, positions = _table("embeddings.words", encoder.words), _table("embeddings.positions", encoder.positions)
    of_message = Embeddings(words, positions, _norm(encoder.norm), projection)
    return torch.from_numpy(np.stack([of_message(row) for row in ids.cpu().numpy()])).to(ids.device)


def states_from(encoder: Encoder, first: int, x: Tensor, mask: Tensor) -> list[Tensor]:
    """Encoder.states_from, message by message; 0 behind the end of each."""
    refuse_gradients()
    config, states = encoder.config, [x]
    lengths = mask.sum(dim=1).tolist()
    layers = encoder.transformer_layers("integer_only")
    for i in range(first, len(layers)):
        block = _block(f"layers.{i}", layers[i])
        before = states[-1].cpu().numpy()
        after = np.zeros_like(before)
        for row, n in enumerate(lengths):
            buckets = None
            if config.relative_buckets:
                buckets = relative_buckets(n, config.relative_buckets, config.relative_max_distance)
            after[row, :n] = block(before[row, :n], buckets)
        states.append(torch.from_numpy(after).to(x.device))
    return states


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Means over the tokens of each message: (B, T, D) -> (B, D)."""
    refuse_gradients()
    rows = zip(hidden.cpu().numpy(), mask.sum(dim=1).tolist(), strict=True)
    return torch.from_numpy(np.stack([mean(row[:n]) for row, n in rows])).to(hidden.device)


def logits(name: str, head: Linear, x: Tensor) -> Tensor:
    """x (N, D), whole multiples of 2^-10 -> (N, n_out)."""
    refuse_gradients()
    return torch.from_numpy(_matrix(name, head).logits(x.cpu().numpy())).to(x.device)


def refuse_gradients() -> None:
    """Errors: ConfigError where PyTorch would keep gradients."""
    if torch.is_grad_enabled():
        raise ConfigError(
            "an integer_only model has no gradients; evaluate it under torch.no_grad(), or train model.unpack()"
        )


def _block(name: str, layer: Layer) -> Block:
    attention, ffn = layer.attention, layer.ffn
    scales = attention.qkv.output_scales
    if attention.heads and scales is None:
        raise ConfigError(f"{name}.attention is float, but the model is integer_only; apply static_int8 again")
    scales, bias = scales or (1.0, 1.0, 1.0), attention.relative_bias
    return Block(
        heads=attention.heads,
        size=attention.head_size,
        qkv=_matrix(f"{name}.attention.qkv", attention.qkv, steps=qkv_steps(scales)),
        out=_matrix(f"{name}.attention.out", attention.out),
        up=_matrix(f"{name}.ffn.up", ffn.up),
        down=_matrix(f"{name}.ffn.down", ffn.down),
        attention_norm=_norm(attention.norm),
        ffn_norm=_norm(ffn.norm),
        output_scales=scales,
        relative_bias=None if bias is None else _array(bias),
        relu=ffn.relu,
    )


def _matrix(name: str, linear: Linear, steps: Sequence[float] = (STEP,)) -> Matrix:
    form: Form = linear.form or Float32(_array(linear.weight))
    bias = np.zeros(len(linear.weight), np.float32) if linear.bias is None else _array(linear.bias)
    return Matrix.of(name, form, computes(linear), bias, steps)


def _table(name: str, embedding: Embedding) -> Int8:
    if not isinstance(embedding.form, Int8):
        raise ConfigError(f"{name} is not int8, but the model is integer_only; apply static_int8 again")
    return embedding.form


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(_array(norm.weight), _array(norm.bias))


def _array(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().float().cpu().numpy()
    return found
