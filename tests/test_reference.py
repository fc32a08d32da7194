"""The NumPy reference: equal to PyTorch on float models, to slow exact integers on packed ones."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import KINDS, VARIANTS, all_logits, largest_difference, random_model, variant
from torch.nn import functional as F

from flyweight.artifact import Artifact
from flyweight.data.messages import NLUData
from flyweight.errors import ArtifactError
from flyweight.export.fly import save
from flyweight.forms import Codes, Form, Int8, describe, multiplied_layout, pack
from flyweight.forms.codes import codes_from_centres
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.forms.kmeans import centres
from flyweight.model.encoder import ACTIVATIONS as TORCH_ACTIVATIONS
from flyweight.model.linear import quantize_activations
from flyweight.model.nlu import NLUModel
from flyweight.runtime.parser import load
from flyweight.runtime.parts import POOLINGS, check_matrix
from flyweight.runtime.reference import (
    ACTIVATIONS,
    EXACT_COLUMNS,
    GoldenCheck,
    Reference,
    _Matrix,
    erf,
    quantize_rows,
    rms_difference,
)

FLOAT_TOLERANCE = 1e-4  # the promise for float models of usual size, whose logits are a few units
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden": 128, "head_size": 32, "layers": ((4, 512), (4, 512)), "intent_head": "similarity"},
    "bert": {"hidden": 96, "head_size": 16, "layers": ((6, 384),) * 4},
    "mpnet": {"hidden": 96, "head_size": 24, "layers": ((4, 384),) * 3, "relative_buckets": 32},
    "electra": {"hidden": 96, "head_size": 24, "layers": ((4, 384),) * 3, "embedding": 48},
    **{pooling: {"pooling": pooling} for pooling in POOLINGS},
    "relu": {"activation": "relu", "pooling": "mean"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    **VARIANTS,
    **KINDS,
}


# whole models --------------------------------------------------------------------------------------------------------


def texts_of(data: NLUData) -> list[str]:
    """All lengths, the longest cut off, none, and characters that the tokenizer does not know."""
    return [m.text for m in data.messages[::2]] + ["", "?", "go to " * 40, "日本 hello", "x" * 120]


@pytest.mark.parametrize("shape", SHAPES)
def test_float_models_equal_pytorch(shape: str, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    model = random_model(tiny_model, **({"std": 0.08} | SHAPES[shape]))
    nlu = load(save(model, tmp_path / "m.fly"))
    texts = texts_of(tiny_data)
    found, wanted = all_logits(nlu, texts), all_logits(model, texts)
    assert [a.shape for a in found] == [a.shape for a in wanted]
    assert all(a.dtype == np.float32 for a in found)
    assert largest_difference(found, wanted) <= FLOAT_TOLERANCE
    n_outputs = len(model.labels.intents or model.labels.tags)
    rows = np.concatenate([np.atleast_2d(a) for a in wanted if a.shape[-1] == n_outputs])
    assert np.ptp(rows, axis=0).max() > 100 * FLOAT_TOLERANCE  # messages differ: this is no comparison of biases
    answers = zip(nlu.answers(texts), model.answers(texts), strict=True)
    assert all(a.frame == b.frame for a, b in answers)


def test_the_trained_model_equals_pytorch(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    nlu = load(save(tiny_model, tmp_path / "m.fly"))
    texts = texts_of(tiny_data)
    assert largest_difference(all_logits(nlu, texts), all_logits(tiny_model, texts)) <= FLOAT_TOLERANCE
    for a, b in zip(nlu.parse_batch(texts), [tiny_model.parse(t) for t in texts], strict=True):
        assert a["entities"] == b["entities"]  # values of synonyms and roles among them
        assert [r["name"] for r in a["intent_ranking"]] == [r["name"] for r in b["intent_ranking"]]
        assert a["intent"]["confidence"] == pytest.approx(b["intent"]["confidence"], abs=1e-4)


def test_double_precision_is_nearer_to_double_precision(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    """dtype=float64 computes in float64 throughout: as PyTorch does after .double()."""
    model = variant(tiny_model, "relative")
    artifact = load(save(model, tmp_path / "m.fly")).artifact
    encoded = model.tokenizer.encode_batch(texts_of(tiny_data))
    found = [row[0] for row in Reference(artifact, np.float64).logits(encoded)]
    assert {a.dtype for a in found} == {np.dtype(np.float64)}
    double = model.copy().double()
    with torch.no_grad():
        wanted = [
            double(torch.from_numpy(e.ids.astype(np.int64))[None], torch.ones(1, len(e.ids), dtype=torch.bool))[0][0]
            for e in encoded
        ]
    single = [row[0] for row in Reference(artifact).logits(encoded)]
    exact = [w.numpy() for w in wanted]
    # erf's rational form is good to 4e-7; all else to 1e-15
    assert largest_difference(found, exact) < 3e-6
    assert 0 < largest_difference(single, found) < FLOAT_TOLERANCE


@pytest.mark.parametrize("of", ["float", "int8", "codes"])
def test_a_ragged_batch_is_its_messages_one_by_one(
    of: str, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    model = variant(tiny_model, "relative")
    if of != "float":
        pack_all(model, int8_rows if of == "int8" else lambda w: codes_from_centres(w, centres(w, 4), True))
    nlu = load(save(model, tmp_path / "m.fly"))
    texts = texts_of(tiny_data)
    together = nlu.engine.logits(nlu.tokenizer.encode_batch(texts))
    for text, (intent, tags) in zip(texts, together, strict=True):
        [(one, one_tags)] = nlu.engine.logits([nlu.tokenizer.encode(text)])
        assert np.array_equal(intent, one)
        assert tags is not None
        assert np.array_equal(tags, one_tags)
    assert nlu.parse_batch(texts) == [nlu.parse(t) for t in texts]
    assert nlu.parse_batch([]) == []


def pack_all(model: NLUModel, make: Any) -> None:
    from flyweight.model.linear import set_form

    for _, module, part in model.matrices():
        if module.weight.numel() and part != "embeddings":
            set_form(module, make(module.weight.detach().numpy()), "int8")


# one matrix, integers ------------------------------------------------------------------------------------------------


def matrix(form: Form, bias: np.ndarray | None, activations: str = "int8", dtype: Any = np.float32) -> _Matrix:
    """A Linear of the reference from a weight form."""
    layout = multiplied_layout(describe(form), activations)
    entry, arrays = pack(form, layout)
    stored = {f"m.{k}": a for k, a in arrays.items()} | ({} if bias is None else {"m.bias": bias})
    weights = {"m": entry | {"activations": activations, "layout": layout}}
    artifact = Artifact(Path("m.fly"), {"weights": weights}, stored, 0)
    check_matrix(artifact, "m", form.shape)
    return _Matrix(artifact, "m", dtype, biased=bias is not None)


def slowly(form: Int8 | Codes, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y = fma(sum q8 W8, s_x * s_w, b) as the design pins it: Python integers, one exact sum, one rounding."""
    f32 = np.float32
    weight = form.q if isinstance(form, Int8) else form.integers()
    shift = form.shift if isinstance(form, Int8) else 0
    assert form.scale is not None
    y = np.zeros((len(x), weight.shape[0]), np.float32)
    for t, row in enumerate(x):
        absmax = max(abs(v) for v in row)
        inv = f32(127) / absmax if absmax >= 2.0**-100 else f32(0)
        q = [max(-127, min(127, round(Fraction(float(v * inv))))) for v in row]  # round() of a Fraction: half to even
        s_x = absmax / f32(127) if absmax >= 2.0**-100 else f32(0)
        for r in range(weight.shape[0]):
            total = sum(a * (int(b) - shift) for a, b in zip(q, weight[r], strict=True))
            scale = s_x * form.scale[r if len(form.scale) > 1 else 0]  # a float32 product
            exact = total * Fraction(float(scale)) + Fraction(float(bias[r]))
            y[t, r] = nearest_float32(exact)
    return y


def nearest_float32(x: Fraction) -> np.float32:
    """The float32 next to an exact number."""
    near = np.float32(float(x))
    around = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda v: abs(Fraction(float(v)) - x))


def forms(rng: np.random.Generator, rows: int, columns: int) -> dict[str, Int8 | Codes]:
    w = rng.normal(0.02, 0.1, (rows, columns)).astype(np.float32)
    return {
        "int8 row": int8_rows(w),
        "int8 matrix": int8_matrix(w),
        "codes row": codes_from_centres(w, centres(w, 5), True),
        "codes matrix": codes_from_centres(w, centres(w.reshape(1, -1), 16), True),
    }


@pytest.mark.parametrize("kind", ["int8 row", "int8 matrix", "codes row", "codes matrix"])
@pytest.mark.parametrize("columns", [1, 7, 130])
def test_a_packed_matrix_equals_exact_integers(kind: str, columns: int) -> None:
    rng = np.random.default_rng(columns)
    form = forms(rng, 6, columns)[kind]
    shifted = isinstance(form, Int8) and form.shift != 0
    assert shifted == (kind == "int8 matrix" and columns > 1)
    bias = rng.normal(0, 0.5, 6).astype(np.float32)
    x = rng.normal(0, 2, (9, columns)).astype(np.float32)
    x[1] = 0
    x[2] *= 2.0**-104  # below 2^-100: counts as zero
    x[3] *= 1e6
    x[4, 0] = 500  # an outlier stretches its token's scale, no other's
    found = matrix(form, bias)(x)
    assert found.dtype == np.float32
    assert np.array_equal(found, slowly(form, bias, x))
    assert np.array_equal(found[1], bias)
    # PyTorch simulates the same with floats: each of the products and sums is rounded.
    simulated = F.linear(
        quantize_activations(torch.from_numpy(x)), torch.from_numpy(form.dense()), torch.from_numpy(bias)
    )
    bound = 2.0**-24 * (columns + 4) * (np.abs(x) @ np.abs(form.dense()).T + np.abs(bias)) * 1.1
    assert (np.abs(found - simulated.numpy()) <= bound + 1e-30).all()


def test_without_bias_and_with_float_activations() -> None:
    form = forms(np.random.default_rng(0), 5, 33)["codes row"]
    x = np.random.default_rng(1).normal(size=(4, 33)).astype(np.float32)
    assert np.array_equal(matrix(form, None)(x), slowly(form, np.zeros(5, np.float32), x))
    plain = matrix(form, None, "float")(x)
    assert np.array_equal(plain, x @ form.dense().T)
    assert not np.array_equal(plain, matrix(form, None)(x))


@pytest.mark.parametrize("columns", [EXACT_COLUMNS, EXACT_COLUMNS + 1, 3071, 3072])
def test_sums_are_exact_at_the_extremes(columns: int) -> None:
    """All +-127: up to 3072 * 127^2 = 49,548,288, beyond the 2^24 to which float32 counts. The bias takes the sum's
    float32 neighbour off again, so that a lost unit is seen."""
    signs = np.where(np.random.default_rng(0).random(columns) < 0.3, -1, 1)
    q = np.stack([np.full(columns, 127), np.full(columns, -127), 127 * signs, np.full(columns, 127)]).astype(np.int8)
    q[3, -1] = 126
    sums = q.astype(np.int64).sum(axis=1) * 127  # x8 is 127 everywhere
    bias = (-sums).astype(np.float32)
    x = np.full((1, columns), 127, np.float32)  # scale 1
    for shift in (0, -127):
        form = Int8(q, np.ones(4 if shift == 0 else 1, np.float32), shift)
        wanted = sums - shift * 127 * columns
        bias = (-wanted).astype(np.float32)
        exact = matrix(form, bias, dtype=np.float64)(x.astype(np.float64))
        assert exact.tolist() == [(wanted + bias.astype(np.int64)).tolist()]
        # In float32 the sum itself is rounded first, as the design pins it: fma(float(sum), s_x s_w, b).
        assert matrix(form, bias)(x).tolist() == [(wanted.astype(np.float32) + bias).tolist()]


def test_a_plain_float32_sum_would_not_do() -> None:
    """The test above sees what it should: 1040 columns at once lose the last unit."""
    q = np.full((1, 1040 * 3), 127, np.float32)
    q[0, -1] = 126
    exact = int(q.astype(np.int64).sum()) * 127
    assert float(np.add.accumulate(q[0] * np.float32(127), dtype=np.float32)[-1]) != exact


def test_no_rows_no_columns() -> None:
    bias = np.array([1, -2, 3], np.float32)
    empty = matrix(int8_rows(np.zeros((3, 0), np.float32)), bias)
    assert empty(np.zeros((2, 0), np.float32)).tolist() == [[1, -2, 3]] * 2
    assert matrix(int8_rows(np.zeros((0, 4), np.float32)), np.zeros(0, np.float32))(
        np.ones((2, 4), np.float32)
    ).shape == (2, 0)
    assert matrix(forms(np.random.default_rng(0), 5, 9)["int8 matrix"], None)(np.zeros((0, 9), np.float32)).shape == (
        0,
        5,
    )


def test_float_weights_cannot_have_int8_activations() -> None:
    form = codes_from_centres(np.ones((2, 3), np.float32), np.array([[1.0, 2.0]]), False)
    with pytest.raises(ArtifactError, match="m has float weights; int8 activations need integer weights"):
        matrix(form, None)


# the activation quantizer --------------------------------------------------------------------------------------------


def test_quantize_rows_by_hand() -> None:
    x = np.array([[-10, -3, 5, 2], [0, 0, 0, 0], [127, 0.5, 1.5, -2.5], [2.0**-100, -(2.0**-101), 0, 0]], np.float32)
    q, scale = quantize_rows(x)
    # 12.7 * 5 = 63.5 -> 64; halves to even; 2^-100 is the smallest live row
    assert q.tolist() == [[-127, -38, 64, 25], [0, 0, 0, 0], [127, 0, 2, -2], [127, -64, 0, 0]]
    assert scale.tolist() == [np.float32(10) / np.float32(127), 0, 1, np.float32(2.0**-100) / np.float32(127)]
    assert (q.dtype, scale.dtype) == (np.float32, np.float32)
    below, none = quantize_rows(np.array([[2.0**-101, 0, 0, -(2.0**-102)]], np.float32))
    assert (below.tolist(), none.tolist()) == ([[0, 0, 0, 0]], [0])
    assert quantize_rows(np.zeros((2, 0), np.float32))[1].tolist() == [0, 0]


def test_quantize_rows_is_what_pytorch_simulates() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 48)) * 10.0 ** rng.integers(-35, 35, (200, 1))).astype(np.float32)
    x[:5] = 0
    q, scale = quantize_rows(x)
    assert np.array_equal(q * scale[:, None], quantize_activations(torch.from_numpy(x)).numpy())
    live = np.abs(x).max(axis=1) >= 2.0**-100
    assert 20 < live.sum() < 200
    assert (np.abs(q).max(axis=1) == np.where(live, 127, 0)).all()
    steps = np.abs(x[live] - q[live] * scale[live, None]) / scale[live, None]
    assert steps.max() <= 0.5 + 4 * 127 * 2.0**-24


# functions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf(dtype: Any) -> None:
    x = np.concatenate([np.linspace(-6, 6, 40001), 10.0 ** np.arange(-30, 0.1, 0.5), [0.0, 1e10, -1e10]]).astype(dtype)
    found = erf(x)
    assert found.dtype == dtype
    wanted = np.array([math.erf(v) for v in x.astype(np.float64)])
    bound = 5e-7 if dtype == np.float32 else 7e-8
    assert np.abs(found - wanted).max() <= bound
    small = np.abs(x) < 0.1
    assert np.abs(found - wanted)[small].max() <= 0.1 * bound  # near 0 the error is relative
    assert np.array_equal(erf(-x), -found)
    assert erf(np.zeros(1, dtype)).tolist() == [0]


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu"])
def test_activations_equal_pytorch(name: str) -> None:
    assert set(ACTIVATIONS) == set(TORCH_ACTIVATIONS)
    x = np.concatenate([np.linspace(-12, 12, 20001), [-1e4, 1e4, 0]]).astype(np.float32)
    found = ACTIVATIONS[name](x)
    wanted = TORCH_ACTIVATIONS[name](torch.from_numpy(x).double()).numpy()
    assert found.dtype == np.float32
    # |x|/2 times the error of erf or tanh (5e-7, where x/sqrt 2 is below 4), and the roundings of the result
    assert (np.abs(found - wanted) <= 5e-7 * np.minimum(np.abs(x), 6) / 2 + 2.0**-22 * np.abs(wanted) + 1e-7).all()
    assert ACTIVATIONS[name](np.zeros((2, 0), np.float32)).shape == (2, 0)


# golden check --------------------------------------------------------------------------------------------------------


def test_a_golden_check_never_passes_nan() -> None:
    assert GoldenCheck(0.1, 0.1).passed
    assert not GoldenCheck(0.11, 0.1).passed
    assert not GoldenCheck(math.nan, 0.1).passed
    assert not GoldenCheck(0.1, math.nan).passed
    a, nan = np.zeros(3), np.array([0, math.nan, 0])
    assert math.isnan(rms_difference([a, a], [a, nan]))
    assert math.isnan(rms_difference([nan, a], [a, a + 5]))
    assert rms_difference([a, a - 2], [a, a]) == pytest.approx(2**0.5)  # half of the numbers differ by 2
    assert rms_difference([np.zeros((0, 3))], [np.zeros((0, 3))]) == 0
