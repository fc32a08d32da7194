"""Int8 through the technique: golden numbers by hand, the bound of its error, which parts it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_models import all_logits, quiet_run, random_model

from flyweight.data.messages import NLUData
from flyweight.forms import Int8 as Int8Form
from flyweight.model.nlu import NLUModel
from flyweight.techniques.int8 import Int8

# q = rint(w * inv) and dense = q * scale are each rounded twice in float32: 4 roundings of up to 127 steps.
ROUNDING_STEPS = 4 * 127 * 2.0**-24


def head(
    like: NLUModel, data: NLUData, weights: list[list[float]], biases: list[float], **settings: object
) -> NLUModel:
    """A model of width 4 with these intent weights, after Int8(**settings)."""
    model = random_model(like, hidden=4, head_size=2, layers=((1, 3),))
    with torch.no_grad():
        model.intent_head.weight.copy_(torch.tensor(weights))
        model.intent_head.bias.copy_(torch.tensor(biases))  # type: ignore[union-attr]
    return Int8(**settings).apply(model, quiet_run(data, model))  # type: ignore[arg-type]


def form_of(model: NLUModel, name: str) -> Int8Form:
    form = next(m.form for n, m, _ in model.matrices() if n == name)
    assert isinstance(form, Int8Form)
    return form


def test_rows_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    weights = [[-10, -3, 5, 2], [0, 0, 0, 0], [127, 0.5, 1.5, -2.5], [0.254, 0, 0, -0.127]]
    model = head(tiny_model, tiny_data, weights, [1, 2, 3, 4])
    form = form_of(model, "heads.intent")
    # 127/10 = 12.7: -38.1, 63.5 -> 64, 25.4; scale 1: halves go to the even integer; 127/0.254 = 500: -63.5 -> -64
    assert form.q.tolist() == [[-127, -38, 64, 25], [0, 0, 0, 0], [127, 0, 2, -2], [127, 0, 0, -64]]
    assert form.scale.tolist() == [np.float32(s) / np.float32(127) for s in (10, 0, 127, np.float32(0.254))]
    assert form.shift == 0
    assert model.intent_head.activations == "int8"
    # x8 = [-127, -38, 64, 25], s_x = 10/127; integer sums:
    #   127^2 + 38^2 + 64^2 + 25^2 = 22294;  0;  -127^2 + 2*64 - 2*25 = -16051;  -127^2 - 64*25 = -17729
    found = model.intent_head(torch.tensor([[-10.0, -3, 5, 2]]))[0]
    sums, scales = np.array([22294, 0, -16051, -17729]), np.array([10, 0, 127, 0.254]) / 127
    wanted = sums * (10 / 127) * scales + [1, 2, 3, 4]
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


def test_matrix_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    weights = [[-1, 0, 1.54, 0.5], [0.25, 1, 0, 0], [0, 0, 0, 0], [-0.5, 0.01, 0, 0]]
    model = head(tiny_model, tiny_data, weights, [0, 0, 5, 0], granularity="matrix")
    form = form_of(model, "heads.intent")
    # scale (1.54 + 1) / 254 = 0.01, shift -127 + 100 = -27: q = 100 w - 27
    assert form.scale.tolist() == [np.float32(2.54 / 254)]
    assert form.shift == -27
    assert form.q.tolist() == [[-127, -27, 127, 23], [-2, 73, -27, -27], [-27] * 4, [-77, -26, -27, -27]]
    # x8 = [127, 0, -64, 64] (63.5 -> 64), s_x = 2/127, sum of x8 = 127. Sum of x8 * q, less the shift * 127:
    #   127*-127 - 64*127 + 64*23 + 27*127 = -19356;  127*-2 + 27*127 = 3175;  0;  127*-77 + 27*127 = -6350
    found = model.intent_head(torch.tensor([[2.0, 0, -1, 1]]))[0]
    wanted = np.array([-19356, 3175, 0, -6350]) * (2 / 127) * 0.01 + [0, 0, 5, 0]
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_the_error_is_within_its_bound_and_of_its_size(
    granularity: str, tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    child = Int8(granularity=granularity).apply(tiny_model, quiet_run(tiny_data, tiny_model))  # type: ignore[arg-type]
    for (name, before, _), (_, after, _) in zip(tiny_model.matrices(), child.matrices(), strict=True):
        w, scale = before.weight.detach().double().numpy(), form_of(child, name).scale.astype(np.float64)
        steps = np.abs(w - after.weight.detach().numpy()) / scale[:, None]
        # row: half a step. matrix: another half by the rounded shift, at the clipped end only.
        assert steps.max() <= (0.5 if granularity == "row" else 1.0) + ROUNDING_STEPS
        assert (steps <= 0.5 + ROUNDING_STEPS).mean() > 0.99
        # Rounding errors are even between -1/2 and 1/2 step: their mean square is 1/12. A 7-bit grid would give 4/12.
        assert (steps**2).mean() == pytest.approx(1 / 12, rel=0.15), name
        largest = np.abs(form_of(child, name).q).max(axis=1 if granularity == "row" else None)
        assert np.all(largest == 127)  # the grid is used to its end


def test_what_is_left_out_stays_as_it_was(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    packed = {}
    for embeddings in (True, False):
        for heads in (True, False):
            child = Int8(embeddings=embeddings, heads=heads).apply(tiny_model, quiet_run(tiny_data, tiny_model))
            packed[embeddings, heads] = {n for n, m, _ in child.matrices() if m.form is not None}
            activations = {n for n, m, _ in child.matrices() if m.activations == "int8"}
            assert activations == packed[embeddings, heads] - {"embeddings.words", "embeddings.positions"}
    layers = {n for n in packed[True, True] if n.startswith("layers.")}
    assert len(layers) == 8
    assert packed[False, False] == layers
    # The label embeddings of a similarity head belong to the embeddings.
    assert packed[True, False] - layers == {"embeddings.words", "embeddings.positions", "heads.intent"}
    assert packed[False, True] - layers == {"heads.tags"}
    assert packed[True, True] == packed[True, False] | packed[False, True]


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_a_trained_model_keeps_its_answers(granularity: str, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    texts = [m.text for m in tiny_data.messages]
    child = Int8(granularity=granularity).apply(tiny_model, quiet_run(tiny_data, tiny_model))  # type: ignore[arg-type]
    kept = [a.frame == b.frame for a, b in zip(tiny_model.answers(texts), child.answers(texts), strict=True)]
    assert np.mean(kept) >= 0.95
    pairs = zip(all_logits(tiny_model, texts), all_logits(child, texts), strict=True)
    noise, signal = np.array([[((a - b) ** 2).sum(), (a**2).sum()] for a, b in pairs]).sum(axis=0)
    assert 1e-7 < noise / signal < 1e-3  # more than nothing, less than 3% of the logits
    assert child.size_bytes() < 0.27 * tiny_model.size_bytes()
