"""What heads and neurons matter to the loss: gradients of their masks, one message at a time.

    g_x[u] = dL_x / dm_u at m = 1 = <a_u(x), dL_x / da_u>    a_u: output of head u (T, d) or neuron u (T,), message x

    I_h = mean_x |g_x[h]|             heads: Michel et al. 2019, arXiv:1905.10650
    I_n = mean_x |g_x[n]| / T_x       neurons: |mean over tokens of a * dL/da|, Molchanov et al. 2016, arXiv:1611.06440
    F_u = mean_x g_x[u]^2             both: the Fisher information of Kwon et al. 2022, arXiv:2204.09656

I are divided by their l2 norm in each layer, since layers differ in the size of their gradients more than in what they
matter; F is not: it estimates the loss itself, 1/2 sum of F over what is removed.
Cost: a forward and a backward pass a message (the weights need no gradient), and 4 bytes a message and unit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from flyweight.data.messages import Message
from flyweight.errors import DataError
from flyweight.model.encoder import masked
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.training.loop import collate, encode, pick_device
from flyweight.training.losses import Batch, Loss, labels_loss


@dataclass(frozen=True)
class MaskGradients:
    """g of N messages: heads, neurons: for each layer (N, H) and (N, n) float32; lengths (N,): tokens of a message."""

    heads: list[np.ndarray]
    neurons: list[np.ndarray]
    lengths: np.ndarray


def mask_gradients(
    model: NLUModel,
    messages: Sequence[Message],
    n_messages: int,
    *,
    loss: Loss = labels_loss,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> MaskGradients:
    """g of at most `n_messages`, drawn by `representative`. The model is as it was afterwards, on the CPU; no dropout.

    An intent that the model lacks counts as none. Errors: DataError if no message has a label that the model was made
    for.
    """
    chosen = representative(model, messages, n_messages, seed)
    at, training, layers = pick_device(device), model.training, range(len(model.encoder.layers))
    model.to(at).eval()
    examples = encode(model, [message for _, message in chosen])
    shapes = model.encoder.config.transformer_shapes("importance of heads and neurons")
    masks = [torch.ones(s.heads, device=at, requires_grad=True) for s in shapes]
    masks += [torch.ones(s.ffn, device=at, requires_grad=True) for s in shapes]
    found = [np.zeros((len(chosen), len(mask)), np.float32) for mask in masks]
    try:
        with (
            masked(model, heads=dict(zip(layers, masks, strict=False)), neurons=dict(enumerate(masks[len(layers) :]))),
            bar("importance", len(chosen), show=progress) as advance,
        ):
            for row, (i, _) in enumerate(chosen):
                batch = replace(collate(examples, [row]), rows=torch.tensor([i]))
                value = loss(model, Batch(*(getattr(batch, f.name).to(at) for f in fields(batch))))
                for g, of_mask in zip(found, _gradients(value, masks), strict=True):
                    g[row] = of_mask
                advance()
    finally:
        model.to("cpu").train(training)
    lengths = np.array([len(e.encoded.ids) for e in examples])
    return MaskGradients(found[: len(layers)], found[len(layers) :], lengths)


def _gradients(value: Tensor, masks: Sequence[Tensor]) -> list[np.ndarray]:
    """dvalue / dmask of each mask; 0 where a mask is empty or does not reach the value."""
    if not value.requires_grad or not masks:
        return [np.zeros(len(mask), np.float32) for mask in masks]
    found = torch.autograd.grad(value, masks, allow_unused=True)
    return [np.zeros(len(m), np.float32) if g is None else g.cpu().numpy() for g, m in zip(found, masks, strict=True)]


def head_importance(gradients: MaskGradients) -> list[np.ndarray]:
    """I_h of each layer, (H,), l2 norm 1 (0 where all are 0)."""
    return [normalised(np.abs(g).mean(axis=0)) for g in gradients.heads]


def neuron_importance(gradients: MaskGradients) -> list[np.ndarray]:
    """I_n of each layer, (n,), l2 norm 1 (0 where all are 0)."""
    tokens = gradients.lengths[:, None]
    return [normalised((np.abs(g) / tokens).mean(axis=0)) for g in gradients.neurons]


def fisher(gradients: Sequence[np.ndarray]) -> list[np.ndarray]:
    """F of each layer, from g (N, units)."""
    return [np.square(g, dtype=np.float64).mean(axis=0) for g in gradients]


def normalised(scores: np.ndarray) -> np.ndarray:
    """scores / |scores|_2; zeros stay zeros."""
    norm = np.linalg.norm(scores)
    return scores / norm if norm > 0 else scores


def counts(total: int, keep: float, step: float) -> list[int]:
    """Units kept after each round: total less ceil(step * total) a round, down to round(keep * total).

    Empty where that is all of them: nothing is to be removed.
    """
    last, removed = round(keep * total), math.ceil(step * total)
    return [*range(total - removed, last, -removed), last] if last < total else []


def most_important(scores: Sequence[np.ndarray], count: int) -> dict[int, list[int]]:
    """layer -> indices of the `count` highest scores over all layers; of equal ones the earlier layer and index."""
    units = [(-float(s), layer, i) for layer, of_layer in enumerate(scores) for i, s in enumerate(of_layer)]
    kept: dict[int, list[int]] = {layer: [] for layer in range(len(scores))}
    for _, layer, i in sorted(units)[: max(count, 0)]:
        kept[layer].append(i)
    return {layer: sorted(indices) for layer, indices in kept.items()}


def representative(model: NLUModel, messages: Sequence[Message], n: int, seed: int) -> list[tuple[int, Message]]:
    """At most n labelled messages and their numbers: one of every intent, then a second of every intent, ...

    Intents in an order drawn from the seed, messages within an intent too; those that are only tagged are one more
    group. Errors: DataError if no message has a label that the model was made for.
    """
    known, groups = set(model.labels.intents), defaultdict(list)
    for i, m in enumerate(messages):
        message = m if m.intent in known else replace(m, intent=None)
        if message.intent is not None or (message.entities and model.tag_head is not None):
            groups[message.intent].append((i, message))
    if not groups:
        raise DataError(
            "no labelled message",
            allowed="what the loss of the labels decides needs at least one, of an intent of the model",
        )
    rng = np.random.default_rng(seed)
    names = [list(groups)[i] for i in rng.permutation(len(groups))]
    drawn = [[groups[name][i] for i in rng.permutation(len(groups[name]))] for name in names]
    turns = range(max(map(len, drawn)))
    return [group[turn] for turn in turns for group in drawn if turn < len(group)][:n]
