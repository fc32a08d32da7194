"""How much the loss depends on each weight: the diagonal of the empirical Fisher information.

    h_i = E_x (dL(x, y) / dw_i)^2       over labelled training messages x with their labels y

To second order an error e_i of each weight of a trained model costs sum_i h_i e_i^2 / 2, were weights independent.
One message at a time: the square of a batch's mean gradient mixes in the products of different messages, and any loss
can be used as it is. Source: Kim et al. 2023, SqueezeLLM, arXiv:2306.07629.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from flyweight.data.messages import Message
from flyweight.errors import DataError
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.training.loop import collate, encode, pick_device
from flyweight.training.losses import Batch, Loss

N_MESSAGES = 128  # drawn from the training split; SqueezeLLM takes 100


def diagonal_fisher(
    model: NLUModel,
    wanted: Mapping[str, Linear],
    train: Sequence[Message],
    loss: Loss,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """h of the wanted matrices of `model`, each (n_out, n_in) float32. The model is as it was afterwards.

    Without dropout. An intent that the model lacks counts as none. Errors: DataError if no message has a label that the
    model was made for.
    """
    known = set(model.labels.intents)
    train = [m if m.intent in known else replace(m, intent=None) for m in train]
    labelled = [i for i, m in enumerate(train) if m.intent or (m.entities and model.tag_head is not None)]
    if not labelled:
        raise DataError("no labelled training message", allowed="Fisher sensitivity needs at least one")
    chosen = [labelled[i] for i in np.random.default_rng(seed).permutation(len(labelled))[:N_MESSAGES]]
    examples = encode(model, [train[i] for i in chosen])
    at, was_training = pick_device(device), model.training
    model.to(at).eval()
    try:
        weights = [module.weight for module in wanted.values()]
        sums = [torch.zeros_like(w, requires_grad=False) for w in weights]
        with bar("sensitivity", len(chosen), show=progress) as advance:
            for row, i in enumerate(chosen):
                batch = replace(collate(examples, [row]), rows=torch.tensor([i]))
                value = loss(model, Batch(*(getattr(batch, f.name).to(at) for f in fields(batch))))
                for h, g in zip(sums, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
                    if g is not None:
                        h.addcmul_(g, g)
                advance()
    finally:
        model.to("cpu").train(was_training)
    return {name: (h / len(chosen)).cpu().numpy() for name, h in zip(wanted, sums, strict=True)}
