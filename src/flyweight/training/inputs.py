"""What matrices are multiplied by: messages passed through a model stage by stage, and the second moments of inputs.

    H = sum_t x_t x_t^T       x_t (n_in,): inputs of one matrix at all real tokens, rounded to int8 as the engine does
                              (per token; those of a recurrent matrix, h_{t-1}, in steps of 1/127)

A stage is one layer, or what lies before or behind the layers. Its inputs are kept, so that a stage can be run again
and again while its matrices change; what the next stage sees comes from the changed ones. Kept are n_tokens x D floats
(256 messages and BERT-base: 12 MB), and one H at a time (BERT-base's largest, 3072 x 3072: 38 MB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyweight.artifact import RECURRENT_STEP
from flyweight.model.encoder import Encoder
from flyweight.model.linear import Linear, Recurrent, quantize_activations, quantize_static
from flyweight.model.nlu import NLUModel, pad
from flyweight.tokenizer import Encoded

BATCH = 32


class Stage(NamedTuple):
    """names: of its matrices (as in the file), in the order in which they multiply; replay: run it on all messages."""

    names: list[str]
    replay: Callable[[], None]


def second_moment(module: Linear, replay: Callable[[], None], constant: bool = False) -> Tensor:
    """H of one matrix, (n_in, n_in) float32, by a replay of its stage.

    constant: with a 1 behind the inputs, which the bias is the column of.
    """
    n = module.weight.shape[1] + constant
    h = torch.zeros(n, n, device=module.weight.device)

    def add(_: Any, inputs: tuple[Tensor]) -> None:
        recurrent = isinstance(module, Recurrent)
        x = quantize_static(inputs[0], RECURRENT_STEP) if recurrent else quantize_activations(inputs[0])
        x = x.flatten(0, -2)
        x = F.pad(x, (0, 1), value=1.0) if constant else x
        h.addmm_(x.t(), x)

    handle = module.register_forward_pre_hook(add)
    try:
        replay()
    finally:
        handle.remove()
    return h


@torch.no_grad()
def stages(model: NLUModel, encoded: Sequence[Encoded]) -> Iterator[Stage]:
    """The stages of a model in order. Change the matrices of one before asking for the next.

    The model must be in evaluation mode, on any device. Messages of one length pass together: no token is padding.
    """
    device, encoder = model.intent_head.weight.device, model.encoder
    batches = list(_one_length(encoded))
    masked = [tuple(a.to(device) for a in pad([e.ids for e in batch])) for batch in batches]
    if encoder.projection is not None:
        yield Stage(["embeddings.projection"], lambda: _each(_arguments, [(encoder, *m) for m in masked]))
    arguments = [_arguments(encoder, *m) for m in masked]
    for i, layer in enumerate(encoder.layers):
        names = [f"layers.{i}.{name}" for name, _ in layer.matrices()]
        yield Stage(names, lambda layer=layer, given=arguments: _each(layer, given))  # type: ignore[misc]
        arguments = [(layer(*a), *a[1:]) for a in arguments]
    first = [torch.from_numpy(_word_starts(batch)).to(device) for batch in batches]

    def heads(hidden: Tensor, mask: Tensor, words: Tensor) -> None:
        model.intent_head(model.pool(hidden, mask))
        if model.tag_head is not None:
            model.tag_head(hidden.flatten(0, 1)[words])

    names = ["heads.pooler", "heads.intent", "heads.tags"]
    there = [model.pooler is not None, True, model.tag_head is not None]
    given = [(a[0], m[1], f) for a, m, f in zip(arguments, masked, first, strict=True)]
    yield Stage([n for n, t in zip(names, there, strict=True) if t], lambda: _each(heads, given))


def _each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call it on the arguments of every batch."""
    with torch.no_grad():  # a generator's own no_grad does not reach its consumer
        for given in arguments:
            function(*given)


def _one_length(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Batches of messages of the same number of tokens."""
    for _, same in groupby(sorted(encoded, key=lambda e: len(e.ids)), key=lambda e: len(e.ids)):
        found = list(same)
        yield from (found[at : at + BATCH] for at in range(0, len(found), BATCH))


def _word_starts(batch: Sequence[Encoded]) -> np.ndarray:
    """Where the words of a batch begin, as flat positions b*T + t."""
    return np.concatenate([b * len(e.ids) + e.first for b, e in enumerate(batch)]).astype(np.int64)


class _Reached(Exception):  # noqa: N818 - no error
    """The first layer is reached: its arguments are known."""


def _arguments(encoder: Encoder, ids: Tensor, mask: Tensor) -> tuple[Any, ...]:
    """What the first layer is given, the hidden states first; without layers, the hidden states."""
    if not encoder.layers:
        return (encoder(ids, mask),)
    found: list[tuple[Any, ...]] = []

    def catch(_: Any, given: tuple[Any, ...]) -> None:
        found.append(given)
        raise _Reached

    handle = encoder.layers[0].register_forward_pre_hook(catch)
    try:
        encoder(ids, mask)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
