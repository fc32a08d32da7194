"""Export: what the file holds, that it is reproducible, and that the gate lets no wrong file out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import all_logits, quiet_run, random_model, rms_gap, same_bits, variant
from safetensors.torch import save_file

import flyweight
from flyweight.artifact import read, write
from flyweight.data.messages import NLUData
from flyweight.data.seen import remember
from flyweight.errors import ArtifactError, ConfigError, FlyweightError, ParityError
from flyweight.export import fly
from flyweight.export.fly import save
from flyweight.model.nlu import NLUModel
from flyweight.runtime import reference as reference_module
from flyweight.runtime.parser import load
from flyweight.runtime.reference import Reference
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.techniques.room import Technique
from flyweight.training.loop import TrainingSettings
from flyweight.training.teacher import N_GOLDEN, build, golden_messages, train

PACKINGS: dict[str, list[Technique]] = {
    "float": [],
    "int8": [Int8()],
    "int8 matrix": [Int8(granularity="matrix")],
    "codes": [Codebook(encoder=8, embeddings=8, heads=8)],
}


def packed(model: NLUModel, data: NLUData, packing: str) -> NLUModel:
    for step in PACKINGS[packing]:
        model = step.apply(model, quiet_run(data, model))
    return model


# what the file holds -------------------------------------------------------------------------------------------------


def test_manifest(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    m = read(save(tiny_model, tmp_path / "m.fly")).manifest
    assert (m["format_version"], m["numerics_version"], m["layout"]) == (1, 1, "panels")
    assert m["model"]["encoder"] == tiny_model.encoder.config.to_dict()
    assert (m["model"]["pooling"], m["model"]["intent_head"]) == ("mean", "similarity")
    assert m["model"]["max_tokens"] == tiny_model.tokenizer.max_tokens == 128
    labels = m["model"]["labels"]
    assert labels["intents"] == ["book_flight", "greet", "thanks", "weather"]
    assert labels["entity_labels"] == ["city", "city#from", "city#to", "date"]
    assert labels["synonyms"] == {"nyc": "New York"}
    assert labels["temperature"] == tiny_model.labels.temperature != 1
    assert m["tensors"]["tokenizer.json"]["sha256"] == tiny_model.tokenizer.sha256
    lineage = m["lineage"]
    assert set(lineage) == {"base", "data_fingerprint", "split", "seen", "steps", "versions"}
    assert (lineage["base"], lineage["data_fingerprint"]) == ("small", tiny_data.fingerprint())
    assert lineage["seen"] == remember(tiny_data.train + tiny_data.validation)
    assert [set(step) >= {"training", "steps", "messages", "best_epoch"} for step in lineage["steps"]] == [True]
    assert lineage["steps"][0]["training"]["seed"] == 0
    installed = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "tokenizers")}
    own = {"flyweight": flyweight.__version__, "python": platform.python_version()}
    assert lineage["versions"] == own | installed
    assert m["metrics"] == tiny_model.card.metrics


def test_temperature_and_length_limit_are_those_of_the_file(tiny_model: NLUModel, tmp_path: Path) -> None:
    warm = tiny_model.copy()
    warm.labels = replace(warm.labels, temperature=7.5)
    warm.tokenizer = type(warm.tokenizer)(warm.tokenizer.source, 6)
    nlu, plain = load(save(warm, tmp_path / "w.fly")), load(save(tiny_model, tmp_path / "p.fly"))
    assert nlu.artifact.manifest["model"]["max_tokens"] == nlu.tokenizer.max_tokens == 6
    text = "book a flight from Oslo to Rome tomorrow"
    assert len(nlu.tokenizer.encode(text).ids) == 6
    assert [a.intent for a in nlu.answers([text])] == [a.intent for a in warm.answers([text])]
    short = "hello"
    cold, hot = plain.answers([short])[0], nlu.answers([short])[0]
    log_odds = [
        np.log(a.probabilities[1] / a.probabilities[2]) * a_t
        for a, a_t in ((cold, plain.labels.temperature), (hot, 7.5))
    ]
    assert log_odds[0] == pytest.approx(log_odds[1], rel=1e-5)


def test_golden_samples_are_messages_with_their_logits(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    file = read(save(packed(tiny_model, tiny_data, "int8"), tmp_path / "m.fly"))
    golden = file.manifest["golden"]
    lengths = sorted(len(m.text) for m in tiny_data.train)
    assert len(golden["texts"]) == len(set(golden["texts"])) == N_GOLDEN == 16
    assert {len(golden["texts"][0]), len(golden["texts"][-1])} == {lengths[0], lengths[-1]}
    assert set(golden["texts"]) <= {m.text for m in tiny_data.train}
    engine = load(file.path).engine
    assert golden["made_by"] == engine.name
    logits = engine.logits(tiny_model.tokenizer.encode_batch(golden["texts"]))
    assert np.array_equal(file.array("golden.intent"), np.stack([i for i, _ in logits]))
    assert np.array_equal(file.array("golden.tags"), np.concatenate([t for _, t in logits if t is not None]))
    size = np.sqrt(np.mean(np.concatenate([file.array(f"golden.{k}").ravel() for k in ("intent", "tags")]) ** 2))
    assert 0.99e-3 * size <= golden["tolerance"] <= 0.03 * size


def test_a_model_without_entities_has_no_golden_tags(tiny_model: NLUModel, tmp_path: Path) -> None:
    file = read(save(variant(tiny_model, "no entities"), tmp_path / "m.fly"))
    assert {k for k in file.arrays if k.startswith(("golden", "heads"))} == {
        "golden.intent",
        "heads.intent.values",
        "heads.intent.bias",
    }


def test_few_messages_are_all_golden(tiny_data: NLUData) -> None:
    assert golden_messages(tiny_data.train[:3]) == sorted({m.text for m in tiny_data.train[:3]}, key=len)
    assert len(golden_messages(tiny_data.train, 5)) == 5


def test_without_golden_messages_nothing_is_written(tiny_model: NLUModel, tmp_path: Path) -> None:
    model = tiny_model.copy()
    model.card = replace(model.card, golden=[])
    with pytest.raises(ConfigError, match="the model has no golden messages; models made by train"):
        save(model, tmp_path / "m.fly")
    assert list(tmp_path.iterdir()) == []


def test_save_chooses_by_the_name(tiny_model: NLUModel, tmp_path: Path) -> None:
    assert save(tiny_model, tmp_path / "deep" / "bot.fly").is_file()
    folder = save(tiny_model, tmp_path / "bot")
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_file_is_reproducible_and_the_model_untouched(
    packing: str, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    model = packed(variant(tiny_model, "plain"), tiny_data, packing)
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first = save(model, tmp_path / "one.fly").read_bytes()
    assert save(model, tmp_path / "other name.fly").read_bytes() == first
    assert save(model, tmp_path / "one.fly").read_bytes() == first  # over an older file
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {p.name for p in tmp_path.iterdir()} == {"one.fly", "other name.fly"}


def test_no_path_of_the_machine_is_in_the_file(tiny_data: NLUData, tmp_path: Path) -> None:
    """Neither of the base's folder, nor of the data, the model or the interpreter."""
    folder = tmp_path / "secret place" / "my-base"
    bert_folder(tiny_data, folder)
    data = replace(tiny_data, source=str(tmp_path / "secret data" / "nlu.yml"))
    settings = TrainingSettings(epochs=1, batch_size=32)
    model = train(data, str(folder), settings, device="cpu", out=tmp_path / "teacher", progress=False)
    assert model.card.base == "my-base"
    stored = save(model, tmp_path / "m.fly").read_bytes() + (tmp_path / "teacher" / "config.json").read_bytes()
    for secret in (str(tmp_path), "secret place", "secret data", os.getcwd(), str(Path.home()), platform.node()):
        assert len(secret) < 4 or secret.encode() not in stored, secret


def bert_folder(data: NLUData, folder: Path) -> None:
    """A tiny BERT checkpoint in Hugging Face's form."""
    source = build(data, "small").tokenizer
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(source.source, encoding="utf-8")
    config = {
        "model_type": "bert",
        "vocab_size": source.vocab_size,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "max_position_embeddings": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (source.vocab_size, 8),
        "embeddings.position_embeddings.weight": (32, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    layer = "encoder.layer.0."
    for name, rows, columns in (
        *((f"attention.self.{k}", 8, 8) for k in ("query", "key", "value")),
        ("attention.output.dense", 8, 8),
        ("intermediate.dense", 12, 8),
        ("output.dense", 8, 12),
    ):
        shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (rows,)}
    for name in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        shapes |= {f"{name}.weight": (8,), f"{name}.bias": (8,)}
    torch.manual_seed(0)
    save_file({k: torch.randn(s) for k, s in shapes.items()}, str(folder / "model.safetensors"))


# the gate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["int8", "codes"])
@pytest.mark.parametrize("seed", range(4))
def test_right_files_pass_the_gate_with_room(
    packing: str, seed: int, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    """Rounding moves an int8 activation now and then; the tolerance must hold on messages that were not golden too."""
    model = packed(
        random_model(tiny_model, seed=seed, hidden=64, head_size=16, layers=((4, 128),) * 2), tiny_data, packing
    )
    nlu = load(save(model, tmp_path / "m.fly"))
    assert rms_gap(nlu, model, [m.text for m in tiny_data.messages]) <= nlu.check_golden().tolerance


Change = Callable[[Any, pytest.MonkeyPatch], None]


def wrong(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A file in which the arrays of that name are changed, before it is written."""

    def apply(_: Any, patch: pytest.MonkeyPatch) -> None:
        right = fly.contents

        def contents(model: NLUModel) -> Any:
            manifest, arrays = right(model)
            hits = [k for k in arrays if k.startswith(name) and not k.endswith(".bias")]
            assert hits, name
            return manifest, arrays | {
                k: change(arrays[k].copy()) for k in hits if arrays[k].dtype != np.uint8 or "codes" in k
            }

        patch.setattr(fly, "contents", contents)

    return apply


def swap_rows(a: np.ndarray) -> np.ndarray:
    """Rows 0 and 1 of scales and tables, (P, C, 16) or (P, n, 16, 64)."""
    rows = np.moveaxis(a, {3: 2, 4: 2}.get(a.ndim, 0), 0)
    rows[[0, 1]] = rows[[1, 0]]
    return a


def other_reference(**methods: Any) -> Change:
    """A reference that computes something else."""

    def apply(_: Any, patch: pytest.MonkeyPatch) -> None:
        for name, value in methods.items():
            patch.setattr(reference_module, name, value)

    return apply


def relu_for_gelu(_: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(reference_module.ACTIVATIONS, "gelu", reference_module.relu)


def positions_from_one(_: Any, patch: pytest.MonkeyPatch) -> None:
    class Shifted(Reference):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.positions.weight = np.roll(self.positions.weight, -1, axis=0)

    patch.setattr(fly, "Reference", Shifted)


def keys_and_values_swapped(_: Any, patch: pytest.MonkeyPatch) -> None:
    class Swapped(Reference):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for layer in self.layers:
                q, k, v = np.split(layer.qkv.weight, 3)
                layer.qkv.weight = np.concatenate([q, v, k])

    patch.setattr(fly, "Reference", Swapped)


def bias_lost(_: Any, patch: pytest.MonkeyPatch) -> None:
    class Unbiased(Reference):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.layers[1].up.bias = np.zeros_like(self.layers[1].up.bias)

    patch.setattr(fly, "Reference", Unbiased)


FLOAT_FAULTS: dict[str, Change] = {
    "a bias lost": bias_lost,
    "one layer's rows swapped": wrong("layers.0.attention.qkv", swap_rows),
    "one head's rows swapped": wrong("heads.intent", swap_rows),
    "a norm's weight": wrong("layers.1.ffn.norm.weight", lambda a: a * np.float32(1.05)),
    "relu for gelu": relu_for_gelu,
    "positions from one": positions_from_one,
    "keys for values": keys_and_values_swapped,
}
PACKED_FAULTS: dict[str, Change] = {
    "a bias lost": bias_lost,
    "activations not quantized": other_reference(quantize_rows=lambda x: (x, np.ones(len(x), x.dtype))),
    "scale of a layer": wrong("layers.1.ffn.up", lambda a: a * np.float32(1.2) if a.dtype == np.float32 else a),
    "scale of the tags": wrong("heads.tags", lambda a: a * np.float32(1.1) if a.dtype == np.float32 else a),
    "one layer's rows swapped": wrong("layers.0.attention.qkv", swap_rows),
    "relu for gelu": relu_for_gelu,
    "positions from one": positions_from_one,
    "keys for values": keys_and_values_swapped,
    "activations of 6 bits": other_reference(
        quantize_rows=lambda x: (np.rint(x * (31 / np.abs(x).max(axis=1)[:, None])), np.abs(x).max(axis=1) / 31)
    ),
}


@pytest.mark.parametrize(
    ("packing", "fault"),
    [*(("float", f) for f in FLOAT_FAULTS), *((p, f) for p in ("int8", "codes") for f in PACKED_FAULTS)],
)
def test_the_gate_refuses(
    packing: str, fault: str, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed(variant(tiny_model, "plain"), tiny_data, packing)
    older = save(model, tmp_path / "m.fly").read_bytes()
    {**PACKED_FAULTS, **(FLOAT_FAULTS if packing == "float" else {})}[fault](model, monkeypatch)
    with pytest.raises(
        ParityError, match=r"(decodes to other|differs? from the model's|given the model's input).*nothing was written"
    ):
        save(model, tmp_path / "new.fly")
    with pytest.raises(ParityError):
        save(model, tmp_path / "m.fly")
    assert [p.name for p in tmp_path.iterdir()] == ["m.fly"]  # no new file, no trial
    assert (tmp_path / "m.fly").read_bytes() == older


@pytest.mark.parametrize("packing", ["float", "int8"])
def test_weights_that_are_not_finite_are_refused(
    packing: str, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    def spoilt(value: float, get: Callable[[NLUModel], torch.Tensor]) -> NLUModel:
        model = packed(variant(tiny_model, "relative"), tiny_data, packing)
        with torch.no_grad():
            get(model).view(-1)[3] = value
        return model

    parameters: list[Callable[[NLUModel], Any]] = [
        lambda m: m.intent_head.bias,
        lambda m: m.tag_head.bias,
        lambda m: m.encoder.layers[0].attention.qkv.bias,
        lambda m: m.encoder.layers[0].attention.out.bias,
        lambda m: m.encoder.layers[0].attention.norm.weight,
        lambda m: m.encoder.layers[2].ffn.norm.bias,
        lambda m: m.encoder.norm.weight,
        lambda m: m.encoder.layers[0].attention.relative_bias,
    ]
    if packing == "float":
        parameters += [lambda m: m.tag_head.weight, lambda m: m.encoder.layers[2].ffn.down.weight]
    for get in parameters:
        for value in (float("nan"), float("inf")):
            with pytest.raises((ArtifactError, ParityError), match="finite"):
                save(spoilt(value, get), tmp_path / "m.fly")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(
    tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fly, "golden_samples", full)
    with pytest.raises(OSError, match="No space left"):
        save(tiny_model, tmp_path / "m.fly")
    assert list(tmp_path.iterdir()) == []


# golden samples at load ----------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> Path:
    """The file again, with its manifest or arrays changed and all checksums right."""
    file = read(path)
    manifest = {k: v for k, v in file.manifest.items() if k != "tensors"}
    arrays = {k: a.copy() for k, a in file.arrays.items()}
    change(manifest, arrays)
    return write(path.with_name("changed.fly"), manifest, arrays)


@pytest.mark.parametrize("name", ["golden.intent", "golden.tags"])
@pytest.mark.parametrize("by", [1.0, float("nan"), float("inf")])
def test_tampered_golden_samples_are_refused(name: str, by: float, tiny_model: NLUModel, tmp_path: Path) -> None:
    path = save(tiny_model, tmp_path / "m.fly")

    def change(_: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays[name].flat[-1] += by

    changed = rewrite(path, change)
    with pytest.raises(ParityError, match=r"golden samples differ by .*, allowed is .*: run flyweight verify"):
        load(changed)
    assert not load(changed, check=False).check_golden().passed
    assert load(path).check_golden().passed


def test_tampered_weights_are_refused_by_the_golden_samples(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    path = save(packed(tiny_model, tiny_data, "int8"), tmp_path / "m.fly")
    text = "book a flight"

    def change(_: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["layers.0.ffn.down.scale"] *= 3

    changed = rewrite(path, change)
    with pytest.raises(ParityError, match="golden samples differ"):
        load(changed)
    assert load(changed, check=False).parse(text) != load(path).parse(text)


@pytest.mark.parametrize(
    ("golden", "error"),
    [
        ({"tolerance": float("nan")}, ParityError),
        ({"tolerance": -1.0}, ParityError),
        ({"tolerance": "wide"}, ArtifactError),
        ({"texts": ["hello"]}, ArtifactError),
        ({"texts": None}, ArtifactError),
    ],
)
def test_broken_golden_entries_are_refused(
    golden: dict[str, Any], error: type[FlyweightError], tiny_model: NLUModel, tmp_path: Path
) -> None:
    changed = rewrite(save(tiny_model, tmp_path / "m.fly"), lambda m, _: m["golden"].update(golden))
    with pytest.raises(error):
        load(changed)


def test_a_loaded_model_exports_the_same(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    """Folder and file hold the same model: the way over a folder loses nothing."""
    model = packed(tiny_model, tiny_data, "codes")
    again = NLUModel.load(save(model, tmp_path / "folder"))
    texts = [m.text for m in tiny_data.messages]
    assert same_bits(model, again, texts)
    assert save(model, tmp_path / "a.fly").read_bytes() == save(again, tmp_path / "b.fly").read_bytes()
    a, b = load(tmp_path / "a.fly"), load(tmp_path / "b.fly")
    assert all(np.array_equal(x, y) for x, y in zip(all_logits(a, texts), all_logits(b, texts), strict=True))
