"""What stands between a file or a message and the engines: both must say the same, and say no together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
from flyweight.runtime.parser import EngineName, load

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
        real = nlu.engine.answers
        monkeypatch.setattr(nlu.engine, "answers", lambda t, part, c: sizes.append(len(part)) or real(t, part, c))
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
