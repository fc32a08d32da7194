"""The command line: evaluate, bench, doctor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_cases import Call, Place, cells_of, engine_title, write_csv

import flyweight
from flyweight.cli import show
from flyweight.data.load import load_data
from flyweight.data.messages import Message
from flyweight.model.nlu import NLUModel


def test_evaluate_against_the_parent(place: Place, call: Call) -> None:
    done = call("evaluate", place.codes, place.csv, "--against", place.teacher, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    data = load_data(place.csv)
    n_test, n_seen = len(data.test), len(data.train + data.validation)
    unseen = f"{n_test} messages of {place.csv} that the model has not seen ({n_seen} were trained on, left out)"
    assert found["messages"] == unseen
    assert [m["name"] for m in found["models"]] == [str(place.teacher), str(place.codes), "TF-IDF + SVM"]
    assert [m["engine"] for m in found["models"]] == ["PyTorch", engine_title(), "scikit-learn"]
    parent, child, svm = (m["quality"] for m in found["models"])
    assert parent["n_messages"] == child["n_messages"] == svm["n_messages"] == n_test
    assert parent["n_flips"] is svm["n_flips"] is None
    assert child["n_flips"] == len(child["flips"])
    assert set(child["losses"]) == {"intent_accuracy", "intent_macro_f1", "span_f1"}
    assert found["models"][1]["size_bytes"] == place.codes.stat().st_size
    assert done.err.splitlines()[0] == f"measured on {found['messages']}"
    shown = call("evaluate", place.codes, place.csv, "--against", place.teacher)
    assert shown.code == 0
    loss = child["losses"]["intent_macro_f1"]
    assert f"loss of macro-F1 {loss['loss_percent']:+.3f}% (95% interval " in shown.out
    assert shown.out.count("flip: ") == min(10, child["n_flips"])
    assert f"{child['intent_macro_f1']:.4f}" in shown.out
    without = call("evaluate", place.codes, place.csv, "--no-classic", "--json")
    assert [m["name"] for m in json.loads(without.out)["models"]] == [str(place.codes)]


@pytest.mark.parametrize("model", ["teacher", "int8"])
def test_which_messages_a_model_is_judged_on(model: str, place: Place, tmp_path: Path, call: Call) -> None:
    """What it has not seen of any source without a test part; a rival is trained on what it has seen of it."""
    path = getattr(place, model)
    data = load_data(place.csv)

    def judged(*arguments: object) -> tuple[str, list[str]]:
        done = call("evaluate", path, *arguments, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        return found["messages"], [m["name"] for m in found["models"]]

    n, n_test, both = len(data.messages), len(data.test), [str(path), "TF-IDF + SVM"]
    seen = f"that the model has not seen ({n - n_test} were trained on, left out)"
    assert judged(place.csv) == (f"{n_test} messages of {place.csv} {seen}", both)
    reordered = write_csv(tmp_path / "reordered.csv", data.messages[::-1])
    assert judged(reordered)[0] == f"{n_test} messages of {reordered} {seen}"
    # One message more or less makes no other source of it.
    more = write_csv(tmp_path / "more.csv", (*data.messages, Message("a message from later", "greet")))
    assert judged(more) == (f"{n_test + 1} messages of {more} {seen}", both)
    fewer = write_csv(tmp_path / "fewer.csv", data.messages[:-1])  # the last one is a test message
    assert judged(fewer) == (f"{n_test - 1} messages of {fewer} {seen}", both)
    new = write_csv(tmp_path / "new.csv", data.test)
    assert judged(new) == (f"{n_test} messages of {new} that the model has not seen", [str(path)])
    old = write_csv(tmp_path / "old.csv", data.train)
    done = call("evaluate", path, old)
    assert (done.code, done.err) == (
        1,
        f"flyweight: {old}: the model was trained on all {len(data.train)} messages; "
        "allowed: other messages, or another part: train, validation, test or all\n",
    )
    all_of_it = f"all {n} messages of {place.csv}; {n - n_test} of them were trained on"
    assert judged(place.csv, "--part", "all") == (all_of_it, [str(path)])
    assert judged(place.csv, "--part", "test") == (f"{n_test} test messages, held out of {place.csv}", both)
    which, models = judged(place.csv, "--part", "validation")
    assert which == f"{len(data.validation)} validation messages, held out of {place.csv}"
    assert models == [str(path)]
    folder = tmp_path / "parts"
    folder.mkdir()
    write_csv(folder / "train.csv", data.train)
    write_csv(folder / "test.csv", data.test[:5])
    assert judged(folder) == (f"5 test messages, the source's own part of {folder}", both)
    write_csv(folder / "test.csv", data.test[:5] + data.train[:2])
    leaks = "2 of them were trained on"
    assert judged(folder)[0] == f"7 test messages, the source's own part of {folder}; {leaks}"


def test_the_split_of_the_training_is_used_again(place: Place, tmp_path: Path, call: Call) -> None:
    training = ["train", place.csv, "--out", tmp_path / "m", "--base", "small", "--epochs", 1]
    assert call(*training, "--test", 0.4, "--seed", 3).code == 0
    wanted = load_data(place.csv, test=0.4, seed=3)
    done = call("evaluate", tmp_path / "m", place.csv, "--json")
    found = json.loads(done.out)["models"][0]["quality"]
    model = NLUModel.load(tmp_path / "m")
    assert found == json.loads(json.dumps(flyweight.evaluate(model, wanted.test).to_dict()))
    assert found["n_messages"] == len(wanted.test) != len(load_data(place.csv).test)


def test_unknown_intents_are_pointed_out(place: Place, tmp_path: Path, call: Call) -> None:
    other = write_csv(tmp_path / "o.csv", (Message("hello", "greet"), Message("tell a joke", "joke")))
    done = call("evaluate", place.int8, other, "--json")
    assert done.code == 0
    assert f"note: 1 of them have an intent that {place.int8} does not know" in done.err


def test_bench(place: Place, call: Call) -> None:
    done = call("bench", place.teacher, place.int8, "--data", place.csv, "--calls", 3, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["threads"] == 1
    assert found["machine"]["n_cores_usable"] >= 1
    teacher, fly = found["models"]
    assert (teacher["model"], teacher["engine"], fly["engine"]) == (str(place.teacher), "PyTorch", engine_title())
    for row in found["models"]:
        assert row["n_calls"] == 3
        assert 0 < row["best_ms"] <= row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["messages_per_second"] > 0
        assert row["speedup"] == pytest.approx(teacher["mean_ms"] / row["mean_ms"])
    assert fly["size_bytes"] == place.int8.stat().st_size
    assert teacher["serving_memory_mb"] is None
    assert fly["serving_memory_mb"] == pytest.approx(fly["serving_memory_mb"])  # a number
    assert done.err.splitlines()[-1] == "timing: 3/3, 0 s left  "


def test_bench_shows_a_table(place: Place, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        resident_mb = 12.4

    monkeypatch.setattr("flyweight.measure.memory.serving_memory", lambda path: Memory())
    monkeypatch.setattr(show, "PIPE_WIDTH", 200)
    done = call("bench", place.int8, place.teacher, "--data", place.csv, "--calls", 1)
    rows = cells_of(done.out)
    assert [row[0] for row in rows] == [f"{place.int8} ({engine_title()})", f"{place.teacher} (PyTorch)"]
    assert (rows[0][5], rows[0][-1], rows[1][-1]) == ("1.00x", "12", "-")
    monkeypatch.setattr(show, "PIPE_WIDTH", 80)
    narrow = call("bench", place.int8, place.teacher, "--data", place.csv, "--calls", 1).out
    assert max(map(len, narrow.splitlines())) <= 80
    numbers = [re.findall(r" {2,}(\d+\.\d\dx?|\d+|-)(?= |$)", line) for line in narrow.splitlines()]
    assert [len(n) for n in numbers if n] == [8, 8]


def test_doctor(call: Call) -> None:
    found = json.loads(call("doctor", "--json").out)
    assert found["able"]["training (torch)"] is True
    assert found["engine"]["engine"] in ("engine", "numpy")
    assert 0 < found["memory_free_bytes"] < found["memory_total_bytes"]
    shown = call("doctor").out
    assert re.search(r"training \(torch\)\s+yes", shown)
    assert re.search(r"memory_free_bytes\s+\d+\.\d GB", shown)
