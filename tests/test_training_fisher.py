"""Diagonal Fisher information: the closed form of a linear head, message by message, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_models import quiet_run, random_model
from torch import Tensor

from flyweight.data.messages import NLUData
from flyweight.errors import DataError
from flyweight.model.nlu import NLUModel, pad
from flyweight.techniques.codebook import Codebook
from flyweight.training.fisher import N_MESSAGES, diagonal_fisher
from flyweight.training.losses import Batch, labels_loss


def test_a_linear_head_by_the_closed_form(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """L = CE(W p + b, y): dL/dW[c, i] = (softmax_c - [c = y]) p_i, so h = mean over messages of its square."""
    model = random_model(tiny_model, entities=False)
    train = tiny_data.train[:20]
    found = diagonal_fisher(model, {"head": model.intent_head}, train, labels_loss, device="cpu")["head"]
    wanted = np.zeros_like(found, dtype=np.float64)
    with torch.no_grad():
        for message in train:
            ids, mask = pad([model.tokenizer.encode_batch([message.text])[0].ids])
            logits, hidden = model(ids, mask)
            gradient = torch.softmax(logits[0], 0)
            gradient[model.labels.intents.index(message.intent or "")] -= 1
            wanted += np.outer(gradient, model.pool(hidden, mask)[0]).astype(np.float64) ** 2 / len(train)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-7 * wanted.max())


def test_the_squared_loss_of_a_product_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """L = (sum of one matrix's weights)^2 / 2: every gradient is that sum, every h its square; other matrices 0."""
    model = random_model(tiny_model)
    up, down = model.encoder.layers[0].ffn.up, model.encoder.layers[0].ffn.down

    def loss(model: NLUModel, batch: Batch) -> Tensor:
        return up.weight.sum() ** 2 / 2

    found = diagonal_fisher(model, {"up": up, "down": down}, tiny_data.train[:3], loss, device="cpu")
    assert found["up"] == pytest.approx(float(up.weight.detach().sum()) ** 2, rel=1e-5)
    assert not found["down"].any()


def test_one_labelled_message_at_a_time(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Each batch is one message, its row the place among all training messages; unlabelled ones are left out."""
    model = random_model(tiny_model)
    train = [replace(m, intent=None, entities=()) if i % 2 else m for i, m in enumerate(tiny_data.train)]
    rows: list[int] = []

    def loss(model: NLUModel, batch: Batch) -> Tensor:
        assert len(batch.ids) == 1
        assert not model.training
        rows.extend(batch.rows.tolist())
        (row,) = batch.rows.tolist()
        assert model.labels.intents[int(batch.intents[0])] == train[row].intent
        return labels_loss(model, batch)

    diagonal_fisher(model.train(), {"head": model.intent_head}, train, loss, device="cpu")
    assert len(set(rows)) == len(rows) == min(N_MESSAGES, len(range(0, len(train), 2)))
    assert all(row % 2 == 0 for row in rows)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_no_labels_no_sensitivity(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    bare = NLUData(tuple(replace(m, intent=None, entities=()) for m in tiny_data.train))
    wanted = "^no labelled training message; Fisher sensitivity needs at least one$"
    for data in (bare, NLUData(())):
        with pytest.raises(DataError, match=wanted):
            Codebook(sensitivity="fisher").apply(tiny_model, quiet_run(data, tiny_model))


def test_centres_move_to_where_the_loss_is_sensitive(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Weighted centres lose less by h, and more without it."""
    w = {}
    for sensitivity in ("plain", "fisher"):
        child = Codebook(encoder=4, embeddings=None, heads=None, activations="float", sensitivity=sensitivity).apply(
            tiny_model, quiet_run(tiny_data, tiny_model)
        )
        w[sensitivity] = child.encoder.layers[1].ffn.up.weight.detach().numpy()
    up = tiny_model.encoder.layers[1].ffn.up
    h = diagonal_fisher(tiny_model, {"up": up}, tiny_data.train, labels_loss, device="cpu")["up"]
    original = up.weight.detach().numpy()
    plain, weighted = ((original - w[s]) ** 2 for s in ("plain", "fisher"))
    assert (h * weighted).sum() < 0.98 * (h * plain).sum()
    assert weighted.sum() > plain.sum()
