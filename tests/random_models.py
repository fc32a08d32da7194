"""Small models with random weights, biases and norms: every part matters to the logits, none is zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from flyweight.data.messages import NLUData
from flyweight.model.encoder import ConvolutionShape, EncoderConfig, LayerShape, LSTMShape, Shape
from flyweight.model.nlu import NLUModel
from flyweight.runtime.reference import rms_difference
from flyweight.techniques.room import Run
from flyweight.tokenizer import Tokenizer

# Widths that no power of two divides well: packed rows end within a byte.
HIDDEN, HEAD_SIZE = 28, 7
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no entities": {"entities": False},
    "cut": {"layers": ((0, 37), (3, 0), (0, 0), (2, 21))},
    "relative": {"relative_buckets": 32, "layers": ((3, 37), (0, 21), (2, 21))},
    "similarity": {"intent_head": "similarity", "activation": "relu", "pooling": "cls"},
    "pooler": {"pooling": "cls+tanh", "activation": "gelu_tanh"},
    "projected": {"embedding": 13, "pooling": "cls+gelu"},
    "entities only": {"intents": False, "embedding": 35, "relative_buckets": 32},
}
# A layer in short: (heads, FFN width) of a transformer's, the width of a convolution, or "lstm".
Short = tuple[int, int] | int | str
# Students: layers of other kinds, or none.
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"layers": ("lstm", "lstm")},
    "lstm alone": {"layers": ("lstm",), "hidden": 2, "head_size": 1, "entities": False},
    "convolution": {"layers": (3, 1, 5), "pooling": "max"},
    "wide convolution": {"layers": (15,), "activation": "relu", "embedding": 13},
    "bag": {"layers": (), "ngrams": 50, "pooling": "max"},
    "bag of means": {"layers": (), "ngrams": 7, "embedding": 13, "entities": False},
    "kinds mixed": {"layers": (3, "lstm", (3, 37), 5, "lstm", (0, 21)), "ngrams": 64, "relative_buckets": 32},
    "lstm, cls": {"layers": ("lstm", (2, 21)), "pooling": "cls+tanh", "activation": "gelu_tanh", "ngrams": 1},
}


def shape_of(layer: Short) -> Shape:
    """The shape that a short name stands for."""
    if isinstance(layer, tuple):
        return LayerShape(heads=layer[0], ffn=layer[1])
    return LSTMShape() if layer == "lstm" else ConvolutionShape(width=int(layer))


def random_model(
    like: NLUModel,
    *,
    layers: Sequence[Short] = ((3, 37), (2, 21)),
    hidden: int = HIDDEN,
    head_size: int = HEAD_SIZE,
    embedding: int = 0,
    relative_buckets: int = 0,
    ngrams: int = 0,
    activation: str = "gelu",
    pooling: Any = "mean",
    intent_head: Any = "linear",
    intents: bool = True,
    entities: bool = True,
    std: float = 0.15,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
) -> NLUModel:
    """A model with labels and card of `like`, and its tokenizer unless another one."""
    tokenizer = tokenizer or Tokenizer(like.tokenizer.source, 40)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden=hidden,
        head_size=head_size,
        embedding=embedding,
        layers=tuple(shape_of(layer) for layer in layers),
        max_positions=40,
        relative_buckets=relative_buckets,
        ngrams=ngrams,
        activation=activation,
    )
    labels = replace(
        like.labels,
        intents=like.labels.intents if intents else (),
        entity_labels=like.labels.entity_labels if entities else (),
    )
    model = NLUModel(config, tokenizer, labels, pooling=pooling, intent_head=intent_head)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(torch.from_numpy(rng.normal(mean, std, tuple(parameter.shape)).astype(np.float32)))
    model.card = replace(like.card, steps=list(like.card.steps))
    return model.eval()


def variant(like: NLUModel, name: str) -> NLUModel:
    """One of VARIANTS or KINDS."""
    return random_model(like, **(VARIANTS | KINDS)[name])


def quiet_run(data: NLUData, teacher: NLUModel) -> Run:
    """What a technique is given, without bars."""
    return Run(data, teacher, device="cpu", progress=False)


def same_bits(a: NLUModel, b: NLUModel, texts: Sequence[str]) -> bool:
    """Whether both models give the same logits, bit for bit."""
    rows = zip(all_logits(a, texts), all_logits(b, texts), strict=True)
    return all(np.array_equal(x, y) for x, y in rows)


def all_logits(model: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Logits of a model in PyTorch or a parser: intent (C,) and tags (W, n) of the first message, the second, ..."""
    encoded = model.tokenizer.encode_batch(list(texts))
    rows = model.logits(encoded) if isinstance(model, NLUModel) else model.engine.logits(encoded)
    return [a for row in rows for a in row if a is not None]


def rms_gap(a: Any, b: Any, texts: Sequence[str]) -> float:
    """Root mean square of logit of a - logit of b."""
    return rms_difference(all_logits(a, texts), all_logits(b, texts))


def largest_difference(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """max |found - wanted| over all arrays."""
    return float(np.max([np.abs(a - b).max(initial=0.0) for a, b in zip(found, wanted, strict=True)]))


def counted(clock: Any, config: EncoderConfig, n_calls: int) -> tuple[float, float]:
    """`Clock.measure` without a clock: a dense message takes 2 ms, a shape its share of the encoder's weights.

    Embeddings and heads count 400 weights, a layer that is there 1 for each norm; heads and neurons what they have.
    """

    def weights(of: EncoderConfig) -> int:
        return 400 + sum(
            2 + 4 * of.hidden * of.head_size * layer.heads + 2 * of.hidden * layer.ffn
            for layer in of.transformer_shapes("counted")
        )

    return 2.0, weights(config) / weights(clock.config)
