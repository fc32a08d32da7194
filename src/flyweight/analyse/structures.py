"""What heads, neurons and layers are worth, and which of them a model can afford within a time.

    kl[b, n] = mean_x KL(p(x) || p'(x)) + mean_w KL(t(w) || t'(w))      nats; block b (attention or FFN of a layer) with
                                                                       n heads or neurons left, all others whole
    minimise sum_b kl[b, n_b]  with  time(shape) <= budget              a knapsack over measured times

Which of a block's go first: those whose removal its output notices least, when the rest is fitted anew to make up for
them (training/reconstruction.py; inputs from training messages); kl is measured with that fit, at LEVELS of a block's
size, and lies on straight lines between. A layer without heads and neurons may be dropped whole.
Source: ZipLM, Kurtic et al. 2023, arXiv:2302.04089, whose prior is the error of the layer's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flyweight.analyse.knapsack import frontier
from flyweight.analyse.sensitivity import Measured
from flyweight.analyse.shapes import ShapeTimes
from flyweight.data.messages import Message
from flyweight.model.encoder import LayerShape
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_heads, keep_layers, keep_neurons
from flyweight.progress import bar
from flyweight.training.inputs import second_moment, stages
from flyweight.training.reconstruction import refitted, removal_order

LEVELS = (
    0.0,
    1 / 48,
    1 / 24,
    1 / 12,
    1 / 6,
    1 / 3,
    1 / 2,
    3 / 4,
)  # shares of a block left at which kl is measured; whole it is 0
N_ROUNDS = 96  # in which a block's neurons are put in order
POINTS = 250  # a layer's (heads, neurons) that are tried, at most: choices of a knapsack are bytes
LIMIT = 4000  # points of the whole model's frontier
LAYERS, HEADS, NEURONS = "layers", "heads", "neurons"


@dataclass(frozen=True)
class Block:
    """Attention or FFN of a layer: the matrix that its heads or neurons feed, and what is known of them.

    size: inputs of one; h (C + 1, C + 1): second moments of the inputs and a constant; order: who goes first;
    counts, kl: nats lost with so many left, ascending.
    """

    name: str
    size: int
    h: Tensor
    order: tuple[int, ...]
    counts: tuple[int, ...] = ()
    kl: tuple[float, ...] = ()

    def left(self, n: int) -> list[int]:
        """The n that stay, ascending."""
        return sorted(self.order[len(self.order) - n :])

    def loss(self, n: int) -> float:
        """kl on straight lines between what was measured; more left is never worse."""
        return float(np.interp(n, self.counts, np.minimum.accumulate(self.kl)))

    def fitted(self, module: Linear, n: int) -> tuple[Tensor, Tensor]:
        """Weight (R, n * size) and bias (R,) with which the n left give what all gave."""
        at = (torch.tensor(self.left(n), dtype=torch.int64)[:, None] * self.size + torch.arange(self.size)).flatten()
        found = refitted(_with_bias(module), self.h, [*at.tolist(), len(self.h) - 1])
        return found[:, :-1].contiguous(), found[:, -1].contiguous()


class Parts(NamedTuple):
    """A layer. dropped: nats lost without the whole of it, its norms too; the next is given what it was given."""

    attention: Block
    ffn: Block
    dropped: float


def _with_bias(module: Linear) -> Tensor:
    """(R, C + 1): the weight, and the bias as the column of the constant."""
    assert module.bias is not None
    return torch.cat([module.weight.detach(), module.bias.detach()[:, None]], dim=1)


def blocks_of(
    model: NLUModel, fitted_on: Sequence[str], measured_on: Sequence[Message], progress: bool = True
) -> list[Parts]:
    """Attention and FFN of every layer. fitted_on: texts of training messages; measured_on: those that kl is of."""
    found: list[Parts] = []
    layers = model.encoder.transformer_layers("measuring heads and neurons")
    n_layers = len(layers)
    with bar("heads and neurons", 2 * n_layers, show=progress) as advance:
        measured = Measured(model, measured_on)
        for stage in stages(model, model.tokenizer.encode_batch(list(fitted_on))):
            number = stage.names[0].split(".")[1] if stage.names else ""
            if not number.isdigit():
                continue
            layer = layers[int(number)]
            pair = []
            for part, module, n in (
                ("attention.out", layer.attention.out, layer.attention.heads),
                ("ffn.down", layer.ffn.down, layer.ffn.down.weight.shape[1]),
            ):
                h = second_moment(module, stage.replay, constant=True)
                order = removal_order(_with_bias(module), h, n, at_once=max(1, n // N_ROUNDS))
                size = module.weight.shape[1] // max(n, 1)
                pair.append(_measured(measured, Block(f"layers.{number}.{part}", size, h, tuple(order))))
                advance()
            dropped = measured.kl(measured.logits(int(number) + 1, given=int(number)))
            found.append(Parts(pair[0], pair[1], dropped))
    return found


@torch.no_grad()
def _measured(measured: Measured, block: Block) -> Block:
    """With kl at LEVELS."""
    module, whole = measured.modules[block.name], len(block.order)
    assert isinstance(module, Linear)
    assert module.bias is not None
    weight, bias = module.weight.clone(), module.bias.clone()
    kl = {whole: 0.0}
    for n in sorted({round(share * whole) for share in LEVELS} - {whole}):
        fitted, module.bias.data = block.fitted(module, n)
        at = [i * block.size + j for i in block.left(n) for j in range(block.size)]
        module.weight.zero_()
        module.weight[:, at] = fitted
        kl[n] = measured.kl(measured.logits(int(block.name.split(".")[1])))
        module.weight.copy_(weight)
        module.bias.data = bias.clone()
    counts = sorted(kl)
    return Block(block.name, block.size, block.h, block.order, tuple(counts), tuple(kl[n] for n in counts))


@dataclass(frozen=True)
class Choice:
    """A shape: of each layer what is left of it, or None where it is dropped. kl, share: predicted."""

    layers: tuple[LayerShape | None, ...]
    kl: float
    share: float


def choices(blocks: Sequence[Parts], times: ShapeTimes, structures: Sequence[str]) -> list[Choice]:
    """The best shapes, slowest last. structures: what may go, of layers, heads, neurons."""
    options = [_layer_options(parts, times, structures) for parts in blocks]
    best = frontier([[kl for kl, _, _ in of] for of in options], [[ms for _, ms, _ in of] for of in options], LIMIT)
    return [
        Choice(tuple(of[z][2] for of, z in zip(options, row, strict=True)), float(loss), times.base + float(cost))
        for row, loss, cost in zip(best.choices.tolist(), best.losses, best.costs, strict=True)
    ]


Option = tuple[float, float, LayerShape | None]  # kl, share of the time, what is left


def _layer_options(parts: Parts, times: ShapeTimes, structures: Sequence[str]) -> list[Option]:
    """What can become of a layer; those that nothing beats."""
    attention, ffn, dropped = parts
    all_heads, all_neurons = len(attention.order), len(ffn.order)
    heads = range(all_heads + 1) if HEADS in structures else [all_heads]
    neurons = [n for n in times.ffn if n < all_neurons and NEURONS in structures] + [all_neurons]
    losses = [[attention.loss(h) for h in heads], [ffn.loss(n) for n in neurons]]
    costs = [[times.attention[h] for h in heads], [times.ffn_share(n) for n in neurons]]
    best = frontier(losses, costs, POINTS)
    found: list[Option] = [
        (float(loss), float(cost), LayerShape(heads=heads[h], ffn=neurons[n]))
        for (h, n), loss, cost in zip(best.choices.tolist(), best.losses, best.costs, strict=True)
    ]
    if LAYERS in structures:
        found = [o for o in found if o[2] != LayerShape(heads=0, ffn=0)]
        found.append((dropped, 0.0, None))
    return found


def cut(model: NLUModel, blocks: Sequence[Parts], layers: Sequence[LayerShape | None]) -> NLUModel:
    """A new model with these shapes: the best of each block are left, and fitted to make up for the others."""
    there = {i: shape for i, shape in enumerate(layers) if shape is not None}
    heads = {i: blocks[i].attention.left(shape.heads) for i, shape in there.items()}
    neurons = {i: blocks[i].ffn.left(shape.ffn) for i, shape in there.items()}
    found = keep_neurons(keep_heads(model, heads), neurons)
    with torch.no_grad():
        for i, shape in there.items():
            layer, old = (of.encoder.transformer_layers("cutting structures")[i] for of in (found, model))
            for block, module, before, n in (
                (blocks[i].attention, layer.attention.out, old.attention.out, shape.heads),
                (blocks[i].ffn, layer.ffn.down, old.ffn.down, shape.ffn),
            ):
                if n < len(block.order):
                    weight, bias = block.fitted(before, n)
                    module.weight.copy_(weight)
                    assert module.bias is not None
                    module.bias.copy_(bias)
    return keep_layers(found, sorted(there))
