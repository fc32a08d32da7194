"""Students' layers from training to file: manifests that lie, the reference by scalars, small trainings, rooms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import artifact_of, packed
from random_models import KINDS, all_logits, quiet_run, random_model, variant

from flyweight.analyse.costs import kind_of, kinds
from flyweight.artifact import RECURRENT_STEP, Artifact
from flyweight.data.messages import NLUData
from flyweight.errors import ArtifactError, ConfigError
from flyweight.export.fly import save
from flyweight.forms.int8 import int8_rows
from flyweight.measure.quality import macro_f1
from flyweight.model.linear import set_form
from flyweight.model.nlu import NLUModel
from flyweight.model.recurrent import LSTMLayer
from flyweight.positions import bigram_buckets
from flyweight.runtime.native import config
from flyweight.runtime.parser import load
from flyweight.runtime.parts import check_parts
from flyweight.runtime.reference import Reference
from flyweight.techniques.hidden_pruning import HiddenPruning
from flyweight.techniques.static_int8 import StaticInt8
from flyweight.techniques.vocabulary import Vocabulary
from flyweight.training.loop import TrainingSettings, fit

# the file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_file_answers_like_the_model(kind: str, tiny_model: NLUModel, tmp_path: Path) -> None:
    model = variant(tiny_model, kind)
    nlu = load(save(model, tmp_path / "m.fly"))
    assert nlu.check_golden().passed
    pairs = zip(all_logits(nlu, model.card.golden), all_logits(model, model.card.golden), strict=True)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_what_the_engine_is_told(tiny_model: NLUModel) -> None:
    found = config(artifact_of(variant(tiny_model, "kinds mixed")))
    kinds = ["convolution", "lstm", "transformer", "convolution", "lstm", "transformer"]
    assert found["kinds"] == kinds
    assert found["widths"] == [3, 0, 0, 5, 0, 0]
    assert found["heads"] == [0, 0, 3, 0, 0, 0]
    assert found["ffn"] == [0, 0, 37, 0, 0, 21]
    assert found["ngrams"] == 64


def test_the_reference_by_scalars(tiny_model: NLUModel) -> None:
    """One int8 LSTM layer in Python's floats and integers: h in steps of 1/127, whole sums."""
    model = random_model(tiny_model, layers=("lstm",), hidden=4, head_size=2)
    layer = model.encoder.layers[0]
    assert isinstance(layer, LSTMLayer)
    for recurrent in (layer.ahead, layer.back):
        set_form(recurrent, int8_rows(recurrent.weight.detach().numpy()), "int8")
    reference = Reference(artifact_of(model))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    gates = (x @ layer.input.weight.detach().numpy().T + layer.input.bias.detach().numpy()).astype(float)  # type: ignore[union-attr]

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    def direction(rows: list[list[float]], form: Any) -> list[list[float]]:
        h, c, found = [0.0, 0.0], [0.0, 0.0], []
        for row in rows:
            q = [round(127 * value) for value in h]
            sums = [sum(int(w) * k for w, k in zip(weights, q, strict=True)) for weights in form.q]
            z = [a + s * float(form.scale[r]) / 127 for r, (a, s) in enumerate(zip(row, sums, strict=True))]
            for j in (0, 1):
                i, f, g, o = z[j], z[2 + j], z[4 + j], z[6 + j]
                c[j] = sigmoid(f) * c[j] + sigmoid(i) * math.tanh(g)
                h[j] = sigmoid(o) * math.tanh(c[j])
            found.append(list(h))
        return found

    ahead = direction(gates[:, :8].tolist(), layer.ahead.form)
    back = direction(gates[::-1, 8:].tolist(), layer.back.form)[::-1]
    y = x + np.concatenate([ahead, back], axis=1)
    weight, bias = layer.norm.weight.detach().numpy(), layer.norm.bias.detach().numpy()
    wanted = (y - y.mean(axis=1, keepdims=True)) / y.std(axis=1, keepdims=True) * weight + bias
    assert np.allclose(reference.layers[0](x, None), wanted, atol=1e-5)


def test_what_is_not_finite_stays_so(tiny_model: NLUModel) -> None:
    """Sigmoid and tanh would make 1 of infinity."""
    reference = Reference(artifact_of(random_model(tiny_model, layers=("lstm",))))
    x = np.zeros((2, 28), np.float32)
    x[1, 3] = np.inf
    with np.errstate(all="ignore"):
        assert np.isnan(reference.layers[0](x, None)).any(axis=1).all()


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]  # of manifest and arrays, in place


def _layers(i: int, layer: Any) -> Edit:
    return lambda m, a: m["model"]["encoder"]["layers"].__setitem__(i, layer)


MISFITS: list[tuple[Edit, str]] = [
    (_layers(0, {"convolution": 4}), r"layers\[0\]\.convolution is 4; allowed: odd whole numbers from 1 to 15"),
    (_layers(0, {"convolution": "3"}), r"layers\[0\]\.convolution is '3'; allowed: odd"),
    (_layers(0, {"convolution": 5}), r"layers\.0\.convolution is \(28, 84\); the model says \(28, 140\)"),
    (_layers(0, {"convolution": 3, "heads": 1}), r"layers\[0\] is \{.*\}; allowed: heads and ffn, or lstm, or conv"),
    (_layers(1, {"lstm": 1}), r"layers\[1\]\.lstm is 1; allowed: true"),
    (_layers(1, {"lstm": False}), r"layers\[1\]\.lstm is False; allowed: true"),
    (_layers(1, {"gru": True}), r"layers\[1\]\.heads is None; allowed: whole numbers from 0"),
    (_layers(1, {"convolution": 1}), r"matrix 'layers\.1\.convolution' is missing"),
    (_layers(0, {"lstm": True}), r"matrix 'layers\.0\.lstm\.input' is missing"),
    (
        lambda m, a: m["model"]["encoder"].update(hidden=27),
        r"layers\[1\] is an LSTM in a model of hidden 27; allowed: e",
    ),
    (lambda m, a: m["model"]["encoder"].update(ngrams=-1), "encoder.ngrams is -1; allowed: whole numbers from 0"),
    (
        lambda m, a: m["model"]["encoder"].update(ngrams=65),
        r"embeddings\.ngrams is \(64, 28\); the model says \(65, 28",
    ),
    (lambda m, a: m["model"]["encoder"].update(ngrams=True), "encoder.ngrams is True; allowed: whole numbers"),
    (lambda m, a: m["weights"].pop("embeddings.ngrams"), r"matrix 'embeddings\.ngrams' is missing"),
    (lambda m, a: a.pop("layers.0.convolution.norm.bias"), r"tensor 'layers\.0\.convolution\.norm\.bias' is missing"),
    (lambda m, a: a.pop("layers.1.lstm.input.bias"), r"tensor 'layers\.1\.lstm\.input\.bias' is missing"),
    (
        lambda m, a: a.update({"layers.1.lstm.norm.weight": np.full(28, np.nan, np.float32)}),
        r"layers\.1\.lstm\.norm\.weight is float32 \(28,\); allowed: finite float32",
    ),
    (
        lambda m, a: m["weights"]["layers.1.lstm.forward"].update(input_scale=0.5),
        r"lstm\.forward has activations 'static' and the step 0\.5; allowed: 'float', or 'static' with",
    ),
    (
        lambda m, a: (
            m["weights"]["layers.1.lstm.backward"].update(activations="int8"),
            m["weights"]["layers.1.lstm.backward"].pop("input_scale"),
        ),
        r"lstm\.backward has activations 'int8' and the step None; allowed: 'float'",
    ),
    (
        lambda m, a: m["weights"]["embeddings.ngrams"].update(activations="int8"),
        r"embeddings\.ngrams is looked up, its activations must be 'float'",
    ),
    (
        lambda m, a: m["model"]["encoder"].update(integer_only=True),
        "integer_only with convolution layers, lstm layers, bigrams; allowed: transformer layers, without bigrams",
    ),
]


@pytest.mark.parametrize(("edit", "message"), MISFITS, ids=[message[:40] for _, message in MISFITS])
def test_manifests_that_lie_are_refused_in_one_line(edit: Edit, message: str, tiny_model: NLUModel) -> None:
    sound = artifact_of(packed(tiny_model, "kinds mixed", "int8 row"))
    check_parts(sound)
    manifest, arrays = sound.manifest, dict(sound.arrays)
    edit(manifest, arrays)
    with pytest.raises(ArtifactError, match=message) as error:
        check_parts(Artifact(Path("m.fly"), manifest, arrays, 0))
    assert "\n" not in str(error.value)


# training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        {"layers": ("lstm",), "hidden": 32, "head_size": 8},
        {"layers": (3, 3), "hidden": 32, "head_size": 8, "pooling": "max"},
        {"layers": (), "hidden": 32, "head_size": 8, "ngrams": 500},
    ],
    ids=["lstm", "convolution", "bag"],
)
def test_students_learn(made: dict[str, Any], tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, **made, std=0.1)
    settings = TrainingSettings(epochs=12, batch_size=8, learning_rate=5e-3)
    fit(model, tiny_data.train, tiny_data.validation, settings, progress=False)
    intents = [a.intent for a in model.answers([m.text for m in tiny_data.test])]
    assert macro_f1([str(m.intent) for m in tiny_data.test], intents) > 0.9


def test_training_moves_the_rows_of_true_bigrams_alone(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Word rows are renumbered within a training; which bigram row a token finds must not change by that."""
    model = random_model(tiny_model, layers=(), ngrams=10_007)
    assert model.encoder.ngrams is not None
    before = model.encoder.ngrams.weight.detach().clone()
    encoded = model.tokenizer.encode_batch([m.text for m in tiny_data.train])
    occur = np.unique(np.concatenate([bigram_buckets(e.ids, 10_007) for e in encoded]))
    settings = TrainingSettings(epochs=1, learning_rate=1e-2, weight_decay=0.0)
    fit(model, tiny_data.train, settings=settings, progress=False)
    assert model.encoder.renumbered is None
    moved = (model.encoder.ngrams.weight.detach() != before).any(dim=1)
    assert np.array_equal(torch.nonzero(moved)[:, 0].numpy(), occur)


def test_scores_within_a_training_are_those_of_the_model(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=("lstm",), ngrams=97)
    said: list[list[np.ndarray]] = []

    def score(logits: list[tuple[np.ndarray, np.ndarray | None]]) -> float:
        said.append([row[0] for row in logits])
        return float(len(said))

    fit(model, tiny_data.train, tiny_data.validation, TrainingSettings(epochs=2), score=score, progress=False)
    found = model.logits(model.tokenizer.encode_batch([m.text for m in tiny_data.validation]))
    assert all(np.allclose(a, b[0], atol=1e-6) for a, b in zip(said[-1], found, strict=True))


# rooms --------------------------------------------------------------------------------------------------------------


def test_static_steps_of_a_mixed_model(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "kinds mixed")
    found = StaticInt8(n_messages=16, fallback=None, smooth=0.5).apply(model, quiet_run(tiny_data, model))
    steps = {
        name: module.input_scale
        for name, module, part in found.matrices()
        if part == "encoder" and module.weight.numel()
    }  # type: ignore[union-attr]
    assert steps["layers.1.lstm.forward"] == steps["layers.4.lstm.backward"] == RECURRENT_STEP
    others = [step for name, step in steps.items() if not name.endswith(("forward", "backward"))]
    assert all(step is not None for step in others)
    assert RECURRENT_STEP not in others


def test_rooms_that_cannot_work_say_so_in_one_line(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    mixed, pooled = variant(tiny_model, "kinds mixed"), random_model(tiny_model, pooling="max")
    for step, model, message in (
        (
            StaticInt8(integer_only=True, fallback=None),
            mixed,
            "^static_int8: the model is integer_only with convolution",
        ),
        (
            StaticInt8(integer_only=True, fallback=None),
            pooled,
            "^static_int8: the model is integer_only with pooling 'max'",
        ),
        (Vocabulary(common=0), mixed, "^the model has rows of token bigrams"),
        (
            HiddenPruning(),
            pooled,
            "^a narrower residual stream is fitted to means or single tokens, but pooling is 'max'",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            step.apply(model, quiet_run(tiny_data, model))
        assert "\n" not in str(error.value)


def test_kinds_of_matrices(tiny_model: NLUModel) -> None:
    assert kind_of("layers.12.lstm.input") == "lstm.input"
    assert kind_of("layers.0.convolution") == "convolution"
    assert kind_of("heads.intent") == ""
    lstm = ("lstm.input", "lstm.forward", "lstm.backward")
    transformer = ("attention.qkv", "attention.out", "ffn.up", "ffn.down")
    assert kinds(variant(tiny_model, "kinds mixed")) == ("convolution", *lstm, *transformer)
    assert kinds(variant(tiny_model, "bag")) == ()
