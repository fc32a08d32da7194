"""The command line: train, compress, demo."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_cases import Call, Place, cells_of
from torch import Tensor

from flyweight import demo as demo_module
from flyweight.cli import compress as compress_module
from flyweight.cli import receipts, show
from flyweight.data.load import load_data
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.training import quantized
from flyweight.training.loop import TrainingSettings, fit
from flyweight.training.losses import Batch
from flyweight.training.teacher import train


def test_train_says_what_it_made(place: Place) -> None:
    done = place.log[0]
    found = json.loads(done.out)
    data = load_data(place.csv)
    assert found["model"] == str(place.teacher)
    assert found["messages"] == len(data.train)
    assert (found["training"]["epochs"], found["training"]["learning_rate"]) == (2, 0.003)
    assert 1 <= found["best_epoch"] <= 2
    assert found["test"]["n_messages"] == len(data.test)
    assert "flips" not in found["test"]
    n_steps = 2 * -(-len(data.train) // found["training"]["batch_size"])
    assert found["steps"] == n_steps
    said = done.err.splitlines()
    counts = f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test messages"
    assert said[0] == f"{counts}; 4 intents, 0 entity types"
    assert said[-1].startswith(f"training: {n_steps}/{n_steps}, 0 s left  loss ")
    card = NLUModel.load(place.teacher).card
    assert (card.base, card.data_fingerprint) == ("small", data.fingerprint())
    assert card.split == {"test": 0.2, "validation": 0.1, "seed": 0}
    assert {p.name for p in place.teacher.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_train_writes_over_a_model_only_when_told(place: Place, tmp_path: Path, call: Call) -> None:
    arguments = ["train", place.csv, "--out", tmp_path / "m", "--base", "small", "--epochs", 1]
    done = call(*arguments)
    assert done.code == 0
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path / 'm'))}: best epoch 1, validation F1 0\.\d+\n"
        r"test \(\d+ messages\): macro-F1 0\.\d{4}, accuracy 0\.\d{4}\n",
        done.out,
    )
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    refused = call(*arguments, "--seed", 5)
    assert (refused.code, refused.out) == (1, "")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert call(*arguments, "--seed", 5, "--overwrite").code == 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != before


def test_train_uses_the_named_columns_and_says_what_is_odd(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [("hello", "a"), ("hi", "a"), ("hey you", "a"), ("bye", "b"), ("so long", "b"), ("see you", "b")]
    (folder / "train.csv").write_text("words,mood\n" + "".join(f"{t},{i}\n" for t, i in rows))
    (folder / "test.csv").write_text("words,mood\nhello,a\nciao,c\n")
    done = call(
        *("train", folder, "--out", tmp_path / "m", "--base", "small", "--epochs", 1, "--json"),
        *("--text-column", "words", "--intent-column", "mood", "--validation", 0.2),
    )
    assert done.code == 0, done.err
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert "1 of the 2 test messages also stand in training" in notes[0]
    assert "have an intent that training lacks: 'c'" in notes[1]
    assert json.loads(done.out)["test"]["n_messages"] == 2


def test_compress_says_what_it_measured(place: Place) -> None:
    found = json.loads(place.log[1].out)
    assert found["file"] == str(place.int8)
    [receipt] = found["receipts"]
    assert receipt["settings"] == {"granularity": "matrix", "embeddings": True, "heads": True}
    data = load_data(place.csv)
    assert receipt["quality"]["n_messages"] == len(data.validation)
    assert place.int8.stat().st_size < 0.4 * (place.teacher / "model.safetensors").stat().st_size
    table = place.log[2].out
    assert f"{place.codes}: measured on {len(data.validation)} validation messages" in table
    assert [row[0] for row in cells_of(table)] == ["codebook encoder=4 embeddings=4 heads=none", "int8"]
    assert re.search(r"^int8: loss of macro-F1 \S+% \(95% interval \S+% to \S+%\)$", table, re.MULTILINE)
    assert "span" not in table  # the data have no entities
    n = sum(part != "heads" for _, _, part in NLUModel.load(place.teacher).matrices())
    assert place.log[2].err.splitlines()[-1] == f"note: int8 packed {n} matrices anew that had been packed before it"
    begins = ("k-means: ", "measuring ", "note: ", "1/2 codebook ", "2/2 int8: ")
    assert all(line.startswith(begins) for line in place.log[2].err.splitlines())


def test_compress_by_a_recipe_into_a_folder(place: Place, tmp_path: Path, call: Call) -> None:
    (tmp_path / "r.yml").write_text("techniques:\n  - int8: {granularity: matrix}\n")
    done = call("compress", place.teacher, place.csv, "--recipe", tmp_path / "r.yml", "--out", tmp_path / "m", "--json")
    assert done.code == 0, done.err
    again = NLUModel.load(tmp_path / "m")
    assert save(again, tmp_path / "m.fly").stat().st_size == pytest.approx(place.int8.stat().st_size, abs=128)
    assert [s.get("technique", "training") for s in again.card.steps] == ["training", "int8"]
    again = ["compress", tmp_path / "m", place.csv, "-t", "int8", "--out", tmp_path / "n.fly"]
    assert call(*again).code == 0
    made = (tmp_path / "n.fly").stat().st_mtime_ns
    assert call(*again).code == 1
    assert (tmp_path / "n.fly").stat().st_mtime_ns == made
    assert call(*again, "--overwrite").code == 0
    assert (tmp_path / "n.fly").stat().st_mtime_ns > made


def test_an_interrupted_compression_goes_on(
    place: Place, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second training: neither is made again, and nothing stays beside the file."""
    n_steps = 2 * -(-len(load_data(place.csv).train) // TrainingSettings.batch_size)  # of an epoch each
    calls = 0

    def interrupting(*args: Any, loss: Any, **settings: Any) -> NLUModel:
        def one(model: NLUModel, batch: Batch) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == n_steps // 2 + 1:
                os.kill(os.getpid(), signal.SIGINT)
            found: Tensor = loss(model, batch)
            return found

        one.__name__ = loss.__name__
        return fit(*args, loss=one, **settings)

    monkeypatch.setattr(quantized, "fit", interrupting)
    out = tmp_path / "m.fly"
    command = ["compress", place.teacher, place.csv, "-t", "qat:epochs=1", "-t", "qat:epochs=1", "--out", out, "--json"]
    assert call(*command).code == 130
    assert calls == n_steps // 2 + 1
    assert [p.name for p in tmp_path.iterdir()] == [".m.fly.work"]
    done = call(*command)
    assert done.code == 0, done.err
    assert calls == n_steps
    assert [p.name for p in tmp_path.iterdir()] == ["m.fly"]


def test_demo(tiny_data: NLUData, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demonstration on small data with a small teacher."""
    small = replace(tiny_data, validation=tiny_data.validation[:4], test=tiny_data.test[:6])

    def quick(data: NLUData, base: str, settings: object, out: Path) -> NLUModel:
        assert (data, base, settings) == (small, "minilm", demo_module.SETTINGS)
        return train(data, "small", demo_module.SETTINGS, out=out, progress=False)

    monkeypatch.setattr(demo_module, "SETTINGS", TrainingSettings(epochs=1))
    monkeypatch.setattr(demo_module, "load_data", lambda name: small)
    monkeypatch.setattr(demo_module, "train", quick)
    monkeypatch.setattr(demo_module, "N_LATENCY_CALLS", 2)
    monkeypatch.setitem(demo_module.RECIPES, "assistant-4bit.fly", [Codebook(encoder=16, embeddings=16, heads=16)])
    first = call("demo", "--out", tmp_path, "--json")
    assert first.code == 0, first.err
    assert "teacher: fine-tuning MiniLM" in first.err
    table = json.loads(first.out)["table"]
    names = ["teacher, fp32", "assistant-int8.fly", "assistant-4bit.fly", "TF-IDF + SVM"]
    assert [row["name"] for row in table] == names
    assert [row["quality"]["n_messages"] for row in table] == [6] * 4
    assert table[1]["size_bytes"] == (tmp_path / "assistant-int8.fly").stat().st_size
    assert table[0]["size_bytes"] > 2.5 * table[1]["size_bytes"] > 2.5 * table[2]["size_bytes"]
    assert [a["text"] for a in json.loads(first.out)["answers"]] == list(demo_module.SENTENCES)
    again = call("demo", "--out", tmp_path)
    assert again.code == 0
    assert f"teacher: found in {tmp_path / 'teacher'}" in again.err
    assert all(f"> {sentence}\n" in again.out for sentence in demo_module.SENTENCES)
    assert f'flyweight parse {tmp_path / "assistant-4bit.fly"} "{demo_module.SENTENCES[0]}"' in again.out
    monkeypatch.setattr(show, "PIPE_WIDTH", 80)
    table_80 = call("demo", "--out", tmp_path).out.partition("The .fly files")[0]
    assert max(map(len, table_80.splitlines())) <= 80
    for row in table:
        q = row["quality"]
        numbers = [f"{q['intent_macro_f1']:.4f}", f"{q['intent_accuracy']:.4f}", f"{q['span_f1']:.4f}"]
        assert all(n in table_80 for n in numbers[: 3 if row["tags_entities"] else 2])


def test_the_note_on_speed_names_what_ran() -> None:
    """Only NumPy is called a reference: `scalar` and all other levels are the engine."""
    notes = {engine: compress_module._slow_note(engine) for engine in ("numpy", "engine scalar", "engine avx2")}
    for engine, text in notes.items():
        assert text.startswith(f"note: on this machine the file, run by {engine}, is no faster than its parent in Py")
        assert ("reference" in text) == (engine == "numpy")
    assert notes["engine avx2"].endswith("it is smaller.")


def test_demo_uses_no_other_teacher(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, call: Call) -> None:
    """Another model in out/teacher is neither taken for the demonstration's nor written over."""

    def refused(teacher: NLUModel, data: NLUData, settings: TrainingSettings) -> bool:
        folder = teacher.save(tmp_path / "teacher")
        before = (folder / "config.json").read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo_module, "SETTINGS", settings)
            patch.setattr(demo_module, "load_data", lambda name: data)
            patch.setattr(demo_module, "RECIPES", {})
            patch.setattr(demo_module, "ClassicClassifier", None)  # what comes after the teacher is of no interest
            try:
                done = call("demo", "--out", tmp_path)
            except AttributeError:
                return False
        assert done.code == 1
        last = f"flyweight: {folder} holds a model that this demonstration did not train (other data or settings); "
        assert done.err.splitlines()[-1] == last + "choose another --out"
        assert (folder / "config.json").read_bytes() == before
        return True

    settings = TrainingSettings(**tiny_model.card.steps[0]["training"])
    assert not refused(tiny_model, tiny_data, settings)
    assert refused(tiny_model, tiny_data, replace(settings, seed=settings.seed + 1))
    assert refused(tiny_model, replace(tiny_data, train=tiny_data.train[:-1]), settings)
    packed = compress(tiny_model, tiny_data, [Int8()], measure=False, progress=False)
    assert refused(packed, tiny_data, settings)


def test_lines_on_what_was_reached() -> None:
    assert receipts.reached_lines({}) == []
    times = {"dense_ms": 2.0, "wanted_ms": 0.66667, "predicted_ms": 0.65, "measured_ms": 0.64}
    found = receipts.reached_lines(times | {"times_faster": 3.125, "bits": 8, "layers": [[4, 64], [0, 16]]})
    assert found == [
        "0.64 ms a message, wanted 0.6667, predicted 0.65; the dense model 2, so 3.12 times faster "
        "(int8, engine, without tokenizer)",
        "heads x neurons left, layer by layer: 4x64 0x16",
    ]
    found = receipts.reached_lines(times | {"times_faster": 3.125, "bits": 4, "layers": []})
    assert "(4-bit codes, engine" in found[0]
    assert found[1].endswith("layer by layer: no layer")


def test_lines_on_sparse_matrices() -> None:
    assert receipts.sparse_lines({}) == []
    stored = {"a": "int8", "b": "sparse in blocks", "c": "int8"}
    even = {"384 x 384, block 1, 8 bits": 0.913, "8 x 8, block 4, 8 bits": None}
    assert receipts.sparse_lines({"stored": stored}) == ["pruned matrices stored 2 int8, 1 sparse in blocks"]
    assert receipts.sparse_lines({"stored": stored, "break_even": even})[1] == (
        "sparse is faster here: from 91% (384 x 384, block 1, 8 bits), never (8 x 8, block 4, 8 bits)"
    )
    assert len(receipts.sparse_lines({"stored": stored, "break_even": {}})) == 1


def test_a_refused_compression_leaves_no_folder(
    place: Place, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, kept = tmp_path / ".m.fly.work", ["shapes-12.json"]

    def refuse(*_: Any, folder: Path, **__: Any) -> None:
        folder.mkdir(exist_ok=True)
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        raise ConfigError("no such speed")

    monkeypatch.setattr("flyweight.recipe.compress", refuse)
    command = ("compress", place.teacher, place.csv, "-t", "int8", "--out", tmp_path / "m.fly")
    done = call(*command)
    assert (done.code, done.err) == (1, "flyweight: no such speed\n")
    assert not work.exists()
    kept.append("taught-12/checkpoint.pt")
    assert call(*command).code == 1
    assert (work / "taught-12" / "checkpoint.pt").is_file()  # what a training left is worth keeping
