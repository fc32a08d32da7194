"""Importance: scores from gradients by hand, gradients of masks against what removing does, the representative set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_models import random_model, variant

from flyweight.data.messages import Message, NLUData
from flyweight.errors import DataError
from flyweight.model.encoder import masked
from flyweight.model.nlu import NLUModel
from flyweight.training.importance import (
    MaskGradients,
    fisher,
    head_importance,
    mask_gradients,
    most_important,
    neuron_importance,
    normalised,
    representative,
)
from flyweight.training.loop import collate, encode
from flyweight.training.losses import labels_loss


def test_scores_by_hand() -> None:
    """Heads: mean |g| = (3, 4), norm 5. Neurons: |g| / T = ((1, 0), (2, 6)), mean (1.5, 3), norm sqrt(11.25)."""
    g = MaskGradients(
        heads=[np.array([[-6.0, 2.0], [0.0, -6.0]], np.float32), np.zeros((2, 0), np.float32)],
        neurons=[np.array([[-4.0, 0.0], [4.0, 12.0]], np.float32), np.zeros((2, 3), np.float32)],
        lengths=np.array([4, 2]),
    )
    first, second = head_importance(g)
    assert first == pytest.approx([0.6, 0.8])
    assert second.shape == (0,)
    first, second = neuron_importance(g)
    assert first == pytest.approx([1.5 / 11.25**0.5, 3 / 11.25**0.5])
    assert second.tolist() == [0, 0, 0]
    assert [f.tolist() for f in fisher(g.neurons)] == [[16, 72], [0, 0, 0]]
    assert [f.tolist() for f in fisher(g.heads)] == [[18, 20], []]


def test_normalised_edges() -> None:
    assert normalised(np.array([0.0, 0.0])).tolist() == [0, 0]
    assert normalised(np.array([-3.0, 4.0])).tolist() == [-0.6, 0.8]
    assert normalised(np.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (0, {0: [], 1: [], 2: []}),
        (-1, {0: [], 1: [], 2: []}),
        (1, {0: [], 1: [1], 2: []}),
        (2, {0: [0], 1: [1], 2: []}),
        (3, {0: [0, 2], 1: [1], 2: []}),
        (9, {0: [0, 1, 2], 1: [0, 1], 2: []}),
    ],
)
def test_the_most_important_of_all_layers(count: int, wanted: dict[int, list[int]]) -> None:
    scores = [np.array([0.5, 0.1, 0.5]), np.array([0.2, 0.9]), np.zeros(0)]
    assert most_important(scores, count) == wanted


@pytest.mark.parametrize("name", ["plain", "relative", "cut", "no entities", "entities only", "pooler"])
def test_gradients_are_those_of_the_masks_of_each_message(tiny_data: NLUData, tiny_model: NLUModel, name: str) -> None:
    """Against central differences of the loss: (L(1 + e) - L(1 - e)) / 2e."""
    model = variant(tiny_model, name)
    shapes = model.encoder.config.layers
    found = mask_gradients(model, tiny_data.train, 5, device="cpu")
    chosen = [m for _, m in representative(model, tiny_data.train, 5, 0)]
    examples, step = encode(model, chosen), 1e-2
    assert found.lengths.tolist() == [len(e.encoded.ids) for e in examples]
    assert [g.shape for g in found.heads] == [(5, s.heads) for s in shapes]
    assert [g.shape for g in found.neurons] == [(5, s.ffn) for s in shapes]
    rng = np.random.default_rng(0)
    for kind, gradients, counts in (
        ("heads", found.heads, [s.heads for s in shapes]),
        ("neurons", found.neurons, [s.ffn for s in shapes]),
    ):
        for layer, count in enumerate(counts):
            for unit in rng.permutation(count)[:2]:
                values: list[list[float]] = []
                for sign in (1, -1):
                    mask = torch.ones(count)
                    mask[unit] += sign * step
                    masks = {kind: {layer: mask}}
                    with torch.no_grad(), masked(model, heads=masks.get("heads"), neurons=masks.get("neurons")):
                        values.append([float(labels_loss(model, collate(examples, [row]))) for row in range(5)])
                wanted = np.subtract(values[0], values[1]) / (2 * step)
                # float32 losses near 1 are known to 1e-7: their difference by 2e-2 to 1e-5; curvature adds e^2.
                assert gradients[layer][:, unit] == pytest.approx(wanted, rel=2e-3, abs=1e-4)


def test_the_model_is_as_it_was(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, again = (mask_gradients(model, tiny_data.train, 7, seed=3, device="cpu") for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.neurons, again.neurons, strict=True))  # no dropout
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.encoder.layers[0].attention.head_mask is None


def test_a_representative_set_has_every_intent_alike(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    messages = [*tiny_data.train, Message("nothing known"), Message("of another bot", "order_pizza")]
    for n, counts in ((4, {1}), (6, {1, 2}), (12, {3}), (1, {1})):
        chosen = representative(tiny_model, messages, n, seed=0)
        found = [m.intent for _, m in chosen]
        assert len(found) == n
        assert {found.count(i) for i in found} == counts
        assert all(messages[i].text == m.text for i, m in chosen)
    every = representative(tiny_model, messages, 1000, seed=0)
    assert sorted(i for i, _ in every) == list(range(60))
    assert representative(tiny_model, messages, 6, seed=1) != representative(tiny_model, messages, 6, seed=2)


def test_no_label_is_an_error(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    bare = [replace(m, intent=None, entities=()) for m in tiny_data.train]
    with pytest.raises(DataError, match=r"^no labelled message;"):
        mask_gradients(tiny_model, bare, 8, device="cpu")
