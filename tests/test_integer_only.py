"""Integer-only models: the engine gives the reference's bits at every level, PyTorch too; what is refused, and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import SHAPES, STEP, artifact_of, codes, engine_at, levels, packed, random_messages, same
from random_models import all_logits, quiet_run, random_model, rms_gap, same_bits

from flyweight import integer_only as io
from flyweight.artifact import Artifact
from flyweight.data.messages import NLUData
from flyweight.errors import ArtifactError, ConfigError
from flyweight.export.fly import save
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.model.linear import Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.runtime.native import Native
from flyweight.runtime.parser import load
from flyweight.runtime.reference import Reference
from flyweight.techniques.static_int8 import StaticInt8

INTEGER_SHAPES = [shape for shape, fields in SHAPES.items() if fields.get("pooling", "mean") in ("mean", "cls")]


def integers(like: NLUModel, shape: str, make: Any = int8_rows, std: float = 0.08) -> NLUModel:
    """A random model that computes with integers alone."""
    model = packed(like, shape, "static int8", std)
    for _, module, part in model.matrices():
        if isinstance(module, Linear) and module.weight.numel():
            form, scales = make if part == "encoder" else int8_rows, module.output_scales
            set_form(module, form(module.weight.detach().numpy()), "static")
            module.input_scale, module.output_scales = STEP, scales
    model.encoder.config = replace(model.encoder.config, integer_only=True)
    return model


@pytest.mark.parametrize("shape", INTEGER_SHAPES)
@pytest.mark.parametrize(
    "make", [int8_rows, int8_matrix, codes(16), codes(3, "matrix")], ids=["row", "shift", "16", "3"]
)
def test_every_level_gives_the_bits_of_the_reference(
    shape: str, make: Any, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = integers(tiny_model, shape, make)
    artifact = artifact_of(model)
    messages = random_messages(9, model.encoder.config.vocab_size, longest=40)
    wanted = Reference(artifact).logits(messages)
    assert same(model.logits(messages), wanted)
    assert np.ptp(np.stack([row[0] for row in wanted]), axis=0).max(initial=1 - len(wanted[0][0])) > 0.05
    for level in levels():
        engine = engine_at(level, artifact, monkeypatch)
        assert same(engine.logits(messages), wanted), level
        assert same([engine.logits([m])[0] for m in messages], wanted), level  # whatever goes with it
        assert same(engine.logits(messages, threads=3), wanted), level


def test_large_weights_saturate_alike(tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values far beyond +-64: sums, scores, norms and GELU at their ends."""
    model = integers(tiny_model, "relative", std=30.0)
    artifact = artifact_of(model)
    messages = random_messages(6, model.encoder.config.vocab_size, longest=40)
    wanted = Reference(artifact).logits(messages)
    for level in levels():
        assert same(engine_at(level, artifact, monkeypatch).logits(messages), wanted), level


def test_it_is_near_the_static_model(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    """The same steps with floats between them: gaps as a step makes them, not more."""
    model = StaticInt8(fallback=None).apply(tiny_model, quiet_run(tiny_data, tiny_model))
    whole = StaticInt8(fallback=None, integer_only=True).apply(tiny_model, quiet_run(tiny_data, tiny_model))
    assert [m.encoder.config.integer_only for m in (model, whole)] == [False, True]
    texts = [m.text for m in tiny_data.validation]
    size = float(np.sqrt(np.mean(np.concatenate([a.ravel() for a in all_logits(model, texts)]) ** 2)))
    assert 0 < rms_gap(whole, model, texts) < 0.1 * size
    assert 0 < rms_gap(model, tiny_model, texts) < 0.1 * size


def test_it_is_saved_and_exported(tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    model = StaticInt8(fallback=None, integer_only=True).apply(tiny_model, quiet_run(tiny_data, tiny_model))
    texts = [m.text for m in tiny_data.validation]
    again = NLUModel.load(model.save(tmp_path / "m"))
    assert again.encoder.config.integer_only
    assert same_bits(model, again, texts)
    nlu = load(save(model, tmp_path / "m.fly"), engine="native")
    assert nlu.check_golden().equal
    assert all(np.array_equal(a, b) for a, b in zip(all_logits(nlu, texts), all_logits(model, texts), strict=True))
    assert not model.copy().unpack().encoder.config.integer_only


def test_a_layer_by_hand() -> None:
    """One number, no head: x + bias of out, norm of one number = its bias; FFN likewise."""
    one = np.ones((1, 1), np.int8)
    form = int8_rows(one.astype(np.float32))
    matrix = io.Matrix.of("up", form, {"activations": "static", "input_scale": 0.5}, np.array([0.25], np.float32))
    # 3 in steps of 0.5 is 6; 6 * 0.5 * 1 (127/127) + 0.25 = 3.25 = 3328 steps of 2^-10
    assert matrix.take(np.array([[3072]])).tolist() == [[6]]
    assert matrix(np.array([[127 * 6]])).tolist()[0][0] == pytest.approx(127 * 3072 + 256, abs=1)
    norm = io.Norm(np.array([1.0, 2.0]), np.array([0.5, 0.0]))
    assert norm(np.array([[1024, 3072]])).tolist() == [[512 - 1024, 2048]]  # -1 + 0.5, 1 * 2


def test_gradients_are_refused(tiny_model: NLUModel) -> None:
    model = integers(tiny_model, "plain")
    with pytest.raises(ConfigError, match=r"^an integer_only model has no gradients; evaluate it under torch.no_grad"):
        model(torch.zeros((1, 3), dtype=torch.int64), torch.ones((1, 3), dtype=torch.bool))


def test_what_is_left_out_is_refused(tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    for field in ("attention", "embeddings", "heads"):
        with pytest.raises(ConfigError, match=r"^static_int8: integer_only is True; allowed: only with "):
            StaticInt8(integer_only=True, fallback=None, **{field: False})
    with pytest.raises(ConfigError, match="integer_only is True"):
        StaticInt8(integer_only=True)
    pooler = random_model(tiny_model, pooling="cls+tanh")
    with pytest.raises(
        ConfigError, match=r"^static_int8: the model is integer_only with pooling 'cls\+tanh'; allowed: "
    ):
        StaticInt8(integer_only=True, fallback=None).apply(pooler, quiet_run(tiny_data, tiny_model))
    model = integers(tiny_model, "plain")
    folder = model.save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["weights"]["layers.0.ffn.up"]["activations"] = "int8"
    del config["weights"]["layers.0.ffn.up"]["input_scale"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"is integer_only, but layers.0.ffn.up is int8; all must be static$"):
        NLUModel.load(folder)
    model.encoder.layers[0].attention.qkv.output_scales = None
    with pytest.raises(ConfigError, match=r"^layers.0.attention is float, but the model is integer_only"):
        all_logits(model, ["hello"])


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        (
            "layers.1.ffn.down",
            {"activations": "int8"},
            "is integer_only, but layers.1.ffn.down is int8; all must be static",
        ),
        ("heads.tags", {"activations": "int8"}, "is integer_only, but heads.tags is int8; all must be static"),
        ("layers.0.attention.qkv", {}, "layers.0.attention.qkv has no output_scales; attention must be int8"),
        ("encoder", 1, "encoder.integer_only is 1; allowed: true or false"),
        ("pooling", "cls+tanh", "heads.pooler"),
    ],
)
def test_files_that_are_not_whole_are_refused(name: str, entry: Any, message: str, tiny_model: NLUModel) -> None:
    artifact = artifact_of(integers(tiny_model, "plain"))
    manifest = json.loads(json.dumps(artifact.manifest))
    if name == "encoder":
        manifest["model"]["encoder"]["integer_only"] = entry
    elif name == "pooling":
        manifest["model"]["pooling"] = entry
    else:
        for key in ("activations", "input_scale") if entry else ("output_scales",):
            manifest["weights"][name].pop(key)
        manifest["weights"][name] |= entry
    damaged = Artifact(artifact.path, manifest, artifact.arrays, 0)
    for engine in (Reference, Native):
        with pytest.raises(ArtifactError, match=message.replace("+", r"\+")):
            engine(damaged)
