"""Codebook through the technique: golden numbers by hand, errors against baselines, tables shared as promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_models import all_logits, quiet_run, random_model

from flyweight.data.messages import NLUData
from flyweight.forms import Codes
from flyweight.forms.codes import code_bits
from flyweight.forms.kmeans import ROW_TABLE_LIMIT, kmeans_codes
from flyweight.model.nlu import NLUModel
from flyweight.techniques.codebook import Codebook

ROUNDING = 2.0**-22  # relative, of a centre that is a mean in float64, rounded to float32, times a float32 scale


def apply(model: NLUModel, data: NLUData, **settings: Any) -> NLUModel:
    return Codebook(**settings).apply(model, quiet_run(data, model))


def form_of(model: NLUModel, name: str) -> Codes:
    form = next(m.form for n, m, _ in model.matrices() if n == name)
    assert isinstance(form, Codes)
    return form


def with_intent_weights(like: NLUModel, weights: list[list[float]]) -> NLUModel:
    model = random_model(like, hidden=4, head_size=2, layers=((1, 3),))
    with torch.no_grad():
        model.intent_head.weight.copy_(torch.tensor(weights))
    return model


WEIGHTS = [[0, 0.2, 0.8, 1.0], [-3, -3, 1, 1], [0, 0, 0, 0], [-1.27, 0.01, -1.25, -0.01]]


def test_rows_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Two clusters a row; int8 centres on a grid of the larger centre / 127."""
    parent = with_intent_weights(tiny_model, WEIGHTS)
    child = apply(parent, tiny_data, encoder=None, embeddings=None, heads=2)
    form = form_of(child, "heads.intent")
    assert form.codes.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    # centres 0.1, 0.9: 0.1 * 127 / 0.9 = 14.1;  -3, 1: 42.3;  0, 0;  -1.26, 0
    assert form.table.tolist() == [[14, 127], [-127, 42], [0, 0], [-127, 0]]
    assert form.table.dtype == np.int8
    assert form.scale is not None
    assert form.scale.tolist() == pytest.approx([0.9 / 127, 3 / 127, 0, 1.26 / 127], rel=ROUNDING)
    # x8 = [127, -64, 0, 32] (63.5 -> 64, 31.75), s_x = 4/127; integer sums:
    #   14*(127-64) + 127*32 = 4946;  -127*(127-64) + 42*32 = -6657;  0;  -127*127 = -16129
    found = child.intent_head(torch.tensor([[4.0, -2, 0, 1]]))[0] - child.intent_head.bias
    wanted = np.array([4946, -6657, 0, -16129]) * (4 / 127) * np.array([0.9, 3, 0, 1.26]) / 127
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-6)


def test_float_centres_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = with_intent_weights(tiny_model, WEIGHTS)
    child = apply(parent, tiny_data, encoder=None, embeddings=None, heads=2, activations="float")
    form = form_of(child, "heads.intent")
    assert form.scale is None
    assert form.table.dtype == np.float32
    assert form.table.ravel().tolist() == pytest.approx([0.1, 0.9, -3, 1, 0, 0, -1.26, 0], rel=1e-6, abs=1e-9)
    found = child.intent_head(torch.tensor([[4.0, -2, 0, 1]]))[0] - child.intent_head.bias
    assert found.tolist() == pytest.approx([1.1, -5, 0, -5.04], rel=1e-5, abs=1e-6)


def test_one_table_for_the_matrix_by_hand(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    weights = [[0, 0.1, 0, 0.1], [1, 1.1, 1, 1.1], [0.05, 0.05, 2, 2], [-1.05, -1.05, -1.0, -1.1]]
    parent = with_intent_weights(tiny_model, weights)
    child = apply(parent, tiny_data, encoder=None, embeddings=None, heads=4, granularity="matrix", activations="float")
    form = form_of(child, "heads.intent")
    assert form.table.tolist()[0] == pytest.approx([-1.05, 0.05, 1.05, 2], rel=1e-6)
    assert form.table.shape == (1, 4)
    assert form.codes.tolist() == [[1] * 4, [2] * 4, [1, 1, 3, 3], [0] * 4]


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_tables_are_shared_as_promised(
    granularity: str, activations: str, tiny_data: NLUData, tiny_model: NLUModel
) -> None:
    model = random_model(tiny_model)
    child = apply(
        model, tiny_data, encoder=5, embeddings=4, heads=100, granularity=granularity, activations=activations
    )
    for name, module, part in child.matrices():
        form = form_of(child, name)
        k = {"encoder": 5, "embeddings": 4, "heads": 100}[part]
        shared = granularity == "matrix" or k > ROW_TABLE_LIMIT
        assert form.table.shape == (1 if shared else form.shape[0], k)
        different = len(np.unique(module.weight.detach().numpy()))
        if shared:
            assert different <= k
        else:
            assert all(len(np.unique(row)) <= k for row in module.weight.detach().numpy())
            assert different > k  # each row has centres of its own
        integer = activations == "int8" and not name.startswith("embeddings.")
        assert (form.scale is not None) == (module.activations == "int8") == integer


def linear(w: np.ndarray, k: int) -> np.ndarray:
    """The nearest of k evenly spaced levels between a row's smallest and largest weight."""
    low, step = w.min(axis=1, keepdims=True), np.ptp(w, axis=1)[:, None] / (k - 1)
    return low + np.round((w - low) / step) * step


def quantile(w: np.ndarray, k: int) -> np.ndarray:
    """The mean of the k-th of a row's weights that a weight belongs to."""
    rank = w.argsort(axis=1).argsort(axis=1) * k // w.shape[1]
    means = np.stack([np.where(rank == j, w, 0).sum(axis=1) / (rank == j).sum(axis=1) for j in range(k)], axis=1)
    return np.take_along_axis(means, rank, axis=1)


@pytest.mark.parametrize("k", [2, 3, 4, 16])
@pytest.mark.parametrize("heavy", [False, True])
def test_never_worse_than_even_levels_or_quantiles(k: int, heavy: bool, tiny_model: NLUModel) -> None:
    w = tiny_model.encoder.layers[0].ffn.up.weight.detach().double().numpy()[:200]  # (200, 128)
    if heavy:
        w = np.random.default_rng(k).standard_t(3, w.shape)
    for rows in (w, w.reshape(1, -1)):
        form = kmeans_codes(rows.astype(np.float32), k, "row", False)
        error = ((rows - form.dense()) ** 2).sum(axis=1)
        assert (error <= ((rows - linear(rows, k)) ** 2).sum(axis=1) * (1 + 1e-6)).all()
        parts = ((rows - quantile(rows, k)) ** 2).sum(axis=1)
        # Few centres have local optima: some rows of a heavy tail lie up to 5% above the means of equal parts.
        assert (error <= parts * (1.06 if k <= 3 else 1 + 1e-6)).all()
        assert error.sum() <= parts.sum()
        assert code_bits(form.table.shape[1]) == form.bits
        # int8 centres: each is off by at most half a step of its own grid
        integer = kmeans_codes(rows.astype(np.float32), k, "row", True)
        assert integer.scale is not None
        centres = integer.table * integer.scale[:, None]
        assert (np.abs(centres - form.table) <= integer.scale[:, None] * 0.501).all()


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_more_centres_less_error(activations: str, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    w = tiny_model.encoder.layers[1].attention.qkv.weight.detach().numpy()
    errors = []
    for k in (2, 4, 8, 16, 32, 64, 256):
        dense = kmeans_codes(w, k, "row", activations == "int8").dense()
        errors.append(float(((w - dense) ** 2).sum() / (w**2).sum()))
    assert errors == sorted(errors, reverse=True)
    # Gaussian weights at best: 36.3% at 1 bit, 11.8% at 2, 3.45% at 3, 0.95% at 4 (Max 1960); rows of 128 do better.
    for error, gaussian in zip(errors, (0.3634, 0.1175, 0.03454, 0.009497), strict=False):
        assert 0.5 * gaussian < error < 1.05 * gaussian
    assert errors[-1] < 2e-4


def test_256_centres_lose_next_to_nothing(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    texts = [m.text for m in tiny_data.messages]
    wanted = all_logits(tiny_model, texts)
    errors = {}
    for k in (256, 4):
        child = apply(tiny_model, tiny_data, encoder=k, embeddings=k, heads=k)
        pairs = zip(wanted, all_logits(child, texts), strict=True)
        noise, signal = np.array([[((a - b) ** 2).sum(), (a**2).sum()] for a, b in pairs]).sum(axis=0)
        errors[k] = noise / signal
        if k == 256:
            same = [a.frame == b.frame for a, b in zip(child.answers(texts), tiny_model.answers(texts), strict=True)]
            assert np.mean(same) >= 0.98
    assert errors[256] < 5e-4
    assert errors[4] > 20 * errors[256]


@pytest.mark.parametrize("k", [100, 256])
def test_an_outlier_makes_no_other_rows_coarse(tiny_data: NLUData, tiny_model: NLUModel, k: int) -> None:
    """One weight of 1000 times the others' size: steps of it / 127 would round all others to 0."""
    parent = tiny_model.copy()
    weight = parent.encoder.layers[0].ffn.down.weight
    with torch.no_grad():
        weight[3, 5] = 1000 * weight.abs().max()
    child = apply(parent, tiny_data, encoder=k, embeddings=None, heads=None)
    found = child.encoder.layers[0].ffn.down
    far = slice(16, None)  # rows of other tables
    gap = (found.weight - weight)[far].norm() / weight[far].norm()
    assert gap < 0.03
    assert found.form is not None
    assert found.form.fields() == (
        {"per": "row", "shift": 0} if k == 256 else {"centres": 100, "table": "int8", "per": "group", "rows": 16}
    )


def test_more_centres_than_weights(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """A head of 4 x 4 weights and 256 centres: every weight has its own, so float centres are exact."""
    parent = with_intent_weights(tiny_model, WEIGHTS)
    child = apply(parent, tiny_data, encoder=None, embeddings=None, heads=256, activations="float")
    assert torch.equal(child.intent_head.weight, parent.intent_head.weight)


def test_what_is_none_stays_as_it_was(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    for part in ("encoder", "embeddings", "heads"):
        settings: dict[str, Any] = {"encoder": None, "embeddings": None, "heads": None, part: 2}
        child = apply(tiny_model, tiny_data, **settings)
        for (name, before, of), (_, after, _) in zip(tiny_model.matrices(), child.matrices(), strict=True):
            assert (after.form is not None) == (of == part), name
            assert torch.equal(before.weight, after.weight) == (of != part), name
