"""What stands between a file or a message and the engines: both must say the same, and say no together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_model, variant

from flyweight.artifact import read, write
from flyweight.data.messages import NLUData
from flyweight.errors import ArtifactError, ParityError
from flyweight.export.fly import contents, save
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native, parser
from flyweight.runtime.parser import EngineName, load, pick_engine

ENGINES: list[EngineName] = ["numpy", "native"] if native.module() is not None else ["numpy"]
NO_GOLDEN = {"texts": [], "tolerance": 0.0, "made_by": "numpy"}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineName:
    name: EngineName = request.param
    return name


def test_a_bias_that_the_model_does_not_have_is_no_bias(
    engine: EngineName, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path
) -> None:
    model = variant(tiny_model, "similarity")
    manifest, arrays = contents(model)
    texts = [m.text for m in tiny_data.messages[:5]]
    stray = np.linspace(-50, 50, len(model.labels.intents)).astype(np.float32)
    found = []
    for extra in ({}, {"heads.intent.bias": stray}):
        path = write(tmp_path / f"{len(extra)}.fly", manifest | {"golden": NO_GOLDEN}, arrays | extra)
        found.append([a.probabilities for a in load(path, engine=engine).answers(texts)])
    assert np.array_equal(*found)


def test_token_ids_beyond_the_embeddings_are_refused_at_loading(
    engine: EngineName, tiny_model: NLUModel, tmp_path: Path
) -> None:
    model = random_model(tiny_model)
    manifest, arrays = contents(model)
    spec = json.loads(model.tokenizer.source)
    vocabulary = spec["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[last] = len(vocabulary) + 7  # as many tokens as before, one of them far away
    arrays["tokenizer.json"] = np.frombuffer(json.dumps(spec).encode(), np.uint8)
    path = write(tmp_path / "gap.fly", manifest | {"golden": NO_GOLDEN}, arrays)
    with pytest.raises(ArtifactError, match=rf"tokenizer of {len(vocabulary) + 8} ids for {len(vocabulary)} word"):
        load(path, engine=engine)


def made(model: NLUModel, folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """The file of a model, once `change` has had the manifest's model and the manifest's weights."""
    manifest, arrays = contents(model)
    manifest = json.loads(json.dumps(manifest))
    change(manifest["model"], manifest["weights"])
    return write(folder / "m.fly", manifest | {"golden": NO_GOLDEN}, arrays)


@pytest.mark.parametrize("value", [-1, 2**31, 13.0, "13", True, False, None, [13]])
def test_an_embedding_width_that_is_no_width(
    value: object, engine: EngineName, tiny_model: NLUModel, tmp_path: Path
) -> None:
    path = made(variant(tiny_model, "projected"), tmp_path, lambda m, _: m["encoder"].update(embedding=value))
    wanted = rf"encoder\.embedding is {re.escape(repr(value))}; allowed: whole numbers from 0 to 2\^31 - 1$"
    with pytest.raises(ArtifactError, match=wanted):
        load(path, engine=engine)


MISFITS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "another width": ("projected", lambda m, _: m["encoder"].update(embedding=14), r"embeddings.words is \(\d+, 13\)"),
    "huge": ("projected", lambda m, _: m["encoder"].update(embedding=2**31 - 1), r"says \(\d+, 2147483647\)"),
    "no width": ("projected", lambda m, _: m["encoder"].pop("embedding"), r"embeddings.words is \(\d+, 13\)"),
    "no projection": ("projected", lambda _, w: w.pop("embeddings.projection"), "'embeddings.projection' is missing"),
    "a width too much": ("plain", lambda m, _: m["encoder"].update(embedding=28), "'embeddings.projection' is missing"),
    "to another width": (
        "projected",
        lambda _, w: w["embeddings.projection"].update(shape=[27, 13]),
        r"embeddings.projection.* shape \(\d+,\)|embeddings.projection is \(27, 13\); the model says \(28, 13\)",
    ),
    "no pooler": ("plain", lambda m, _: m.update(pooling="cls+relu"), "'heads.pooler' is missing"),
    "no such pooling": (
        "plain",
        lambda m, _: m.update(pooling="cls+swish"),
        r"mean, max, cls, cls\+tanh, cls\+relu, cls\+gelu",
    ),
    "no labels": ("plain", lambda m, _: m["labels"].update(intents=[], entity_labels=[]), "neither intents nor entity"),
    "a label without a row": (
        "entities only",
        lambda m, _: m["labels"].update(intents=["greet"]),
        r"heads.intent is \(0, 28\); the model says \(1, 28\)",
    ),
    "rows without a label": (
        "plain",
        lambda m, _: m["labels"].update(intents=[]),
        r"heads.intent is \(4, 28\); the model says \(0, 28\)",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_widths_and_heads_that_do_not_fit(what: str, engine: EngineName, tiny_model: NLUModel, tmp_path: Path) -> None:
    of, change, message = MISFITS[what]
    path = made(variant(tiny_model, of), tmp_path, change)
    with pytest.raises(ArtifactError, match=message) as refused:
        pick_engine(read(path), 1, engine)
    assert "\n" not in str(refused.value)


def test_a_file_of_before_has_no_embedding_width(engine: EngineName, tiny_model: NLUModel, tmp_path: Path) -> None:
    texts = ["book a flight to Rome", ""]
    found = [
        [
            a.probabilities
            for a in load(made(variant(tiny_model, "plain"), tmp_path, change), engine=engine).answers(texts)
        ]
        for change in (lambda m, _: None, lambda m, _: m["encoder"].pop("embedding"))
    ]
    assert np.array_equal(*found)


def test_numbers_that_overflow_in_a_norm_are_refused(engine: EngineName, tiny_model: NLUModel, tmp_path: Path) -> None:
    """(1e25)^2 is infinite in float32: 1 / sqrt would be 0, and the answer a finite bias."""
    model = random_model(tiny_model)
    with torch.no_grad():
        model.encoder.words.weight.mul_(1e25)
    manifest, arrays = contents(model)
    nlu = load(write(tmp_path / "m.fly", manifest | {"golden": NO_GOLDEN}, arrays), engine=engine)
    with np.errstate(all="ignore"), pytest.raises(ParityError, match="not finite"):
        nlu.parse("book a flight to Rome")


def test_a_long_batch_is_computed_in_slices(
    engine: EngineName, tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nlu = load(save(random_model(tiny_model), tmp_path / "m.fly"), engine=engine)
    texts = [m.text for m in tiny_data.messages[:10]]
    whole = nlu.parse_batch(texts)
    monkeypatch.setattr(parser, "SLICE", 3)
    sizes: list[int] = []
    if isinstance(nlu.engine, native.Native):
        real = nlu.engine.rankings
        monkeypatch.setattr(
            nlu.engine, "rankings", lambda names, t, part, c: sizes.append(len(part)) or real(names, t, part, c)
        )
    assert nlu.parse_batch(texts) == whole == [nlu.parse(text) for text in texts]
    assert sizes[:4] == ([3, 3, 3, 1] if engine == "native" else [])
    assert nlu.parse_batch([]) == []


@pytest.mark.skipif(native.module() is None or sys.platform != "linux", reason="needs the native engine and /proc")
def test_one_huge_message_leaves_no_memory_behind(tiny_model: NLUModel, tmp_path: Path) -> None:
    path = save(random_model(tiny_model), tmp_path / "m.fly")
    code = f"""
import flyweight
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) / 1024
nlu = flyweight.load({str(path)!r})
nlu.parse("hello")
before = resident()
nlu.parse("\\u00e9 " + "a" * 4_000_000)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60  # MB; the work needed about 240
    assert read(path).size_bytes > 0
