"""The pure parts of benchmarks/headline.py, students.py and ablation.py, and of the tables they fill."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.answers import Answer
from flyweight.data.messages import Entity, NLUData
from flyweight.measure.bootstrap import Loss
from flyweight.model.nlu import NLUModel
from flyweight.techniques.distillation import HINTS_SHARE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script by name, which lies outside the package."""
    for folder in ("benchmarks", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module


class Clock:
    """Nanoseconds that pass only where a contender works."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_contenders_take_turns_and_each_call_in_turn_is_followed_by_one_in_a_row(script: Any) -> None:
    wall, cpu, asked = Clock(), Clock(), []

    def contender(name: str, wall_ns: int, cpu_ns: int) -> Callable[[str], None]:
        def call(text: str) -> None:
            asked.append((name, text))
            wall.now, cpu.now = wall.now + wall_ns * len(text), cpu.now + cpu_ns * len(text)

        return call

    calls = {"slow": contender("slow", 100, 90), "fast": contender("fast", 10, 5)}
    texts = ["a", "bb", "cccc"]
    times = script("headline_measure").alternate(calls, texts, 4, n_warmup=0, wall=wall, cpu=cpu)
    order = [texts[i] for i in np.random.default_rng(0).permutation(3)]
    this = [order[i % 3] for i in range(4)]
    following = [order[(i + 1) % 3] for i in range(4)]
    assert times["slow"].turn.tolist() == [100 * len(text) for text in this]
    assert times["slow"].row.tolist() == [100 * len(text) for text in following]
    assert times["fast"].cpu.tolist() == [5 * len(text) for text in this]
    # turn(): slow fast | fast slow | fast slow | slow fast
    assert [name for name, _ in asked[::2]] == ["slow", "fast", "fast", "slow", "fast", "slow", "slow", "fast"]
    assert [text for _, text in asked[:4]] == [this[0], following[0], this[0], following[0]]


def test_warm_up_is_not_timed(script: Any) -> None:
    clock, asked = Clock(), []
    times = script("headline_measure").alternate(
        {"one": asked.append}, ["a", "b"], 1, n_warmup=3, wall=clock, cpu=clock
    )
    assert len(asked) == 3 + 2
    assert len(times["one"].turn) == 1


def test_the_ratio_is_that_of_means_and_its_interval_pairs_the_calls(script: Any) -> None:
    measure = script("headline_measure")
    this = np.array([1, 3, 2, 10])
    assert measure.ratio(7 * this, this) == {"ratio": 7.0, "low": 7.0, "high": 7.0}
    found = measure.ratio(np.array([10, 2]), np.array([1, 2]))  # draws: 10, 12/3, 1 with shares 1/4, 1/2, 1/4
    assert found == {"ratio": 4.0, "low": 1.0, "high": 10.0}


def test_the_fastest_is_the_one_with_the_smallest_mean(script: Any) -> None:
    measure = script("headline_measure")
    times = {
        name: measure.Times(*(np.array(ns, dtype=np.int64) for _ in range(3)))
        for name, ns in {"a": [5, 5, 5], "b": [1, 1, 10], "ours": [1, 1, 1]}.items()
    }
    assert measure.fastest(times, ("a", "b", "not opened")) == "b"
    assert measure.fastest(times, ("not opened",)) is None
    row = measure.timed_row(times, "ours", {"parent": "a", "int8": None})
    assert (row["parent"]["reference"], row["parent"]["ratio"], row["parent"]["row"]["ratio"]) == ("a", 5.0, 5.0)
    assert row["mean_ms"] == row["row_mean_ms"] == 1e-6
    assert "int8" not in row


def loss(percent: float, half: float = 0.5) -> dict[str, float]:
    """A loss against a parent of 0.8, with its interval."""
    return Loss(0.8, 0.8 * (1 - percent / 100), percent, percent - half, percent + half).to_dict()


def test_losses_are_means_over_seeds_then_over_sets(script: Any) -> None:
    measure = script("headline_measure")
    mean = measure.mean_loss([loss(1.0), loss(3.0)])
    assert (mean.loss_percent, mean.low_percent, mean.high_percent) == pytest.approx((2.0, 1.5, 2.5))
    found = measure.verdict_over_sets([mean, Loss(**loss(0.4))], 1.0)
    assert found["loss_percent"] == pytest.approx(1.2)
    assert (found["verdict"], found["missed_by"]) == ("missed", pytest.approx(0.2))
    assert measure.verdict_over_sets([mean], 2.0)["verdict"] == "met"
    assert measure.verdict_over_sets([mean], 2.6) == measure.verdict_over_sets([mean], 2.6) | {
        "verdict": "proved",
        "missed_by": 0.0,
    }


def test_a_message_runs_in_the_shortest_graph_that_holds_it(script: Any) -> None:
    peers = script("headline_peers")
    assert peers.lengths_up_to(1) == [8]
    assert peers.lengths_up_to(16) == [8, 16]
    assert peers.lengths_up_to(17) == [8, 16, 24]
    row, mask = peers.padded(np.arange(1, 10), [8, 16])
    assert row.tolist() == [[*range(1, 10), *[0] * 7]]
    assert mask.tolist() == [[1] * 9 + [0] * 7]
    assert peers.padded(np.ones(8), [8, 16])[0].shape == (1, 8)
    with pytest.raises(ValueError, match="a message of 17 tokens; the longest graph holds 16"):
        peers.padded(np.ones(17), [8, 16])


def test_outputs_are_told_apart_whatever_their_order_and_padding_goes(script: Any) -> None:
    intent, tags = np.arange(3.0)[None], np.arange(24.0).reshape(1, 8, 3)
    for arrays in ([intent, tags], [tags, intent]):
        found = script("headline_peers").outputs(arrays, 5)
        assert found[0].tolist() == [0, 1, 2]
        assert found[1].shape == (5, 3)
        assert found[1][4].tolist() == [12, 13, 14]
    assert script("headline_peers").outputs([intent], 5)[1] is None


@pytest.mark.parametrize("pad_to", [None, 32])
def test_the_peers_model_is_ours_padded_or_not(
    script: Any, tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path, pad_to: int | None
) -> None:
    peers, folder = script("headline_peers"), tiny_model.save(tmp_path / "tiny")
    module = script("peers_bert").plain_bert(folder, one_qkv=False, tags=True)

    def call(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        inputs = (ids[None],) if pad_to is None else peers.padded(ids, [pad_to])
        return peers.outputs([t.numpy() for t in module(*map(torch.from_numpy, inputs))], len(ids))

    texts = [m.text for m in tiny_data.test]
    peer = peers.PeerModel(folder, call)
    found, wanted = peer.answers(texts), tiny_model.answers(texts)
    assert [a.frame for a in found] == [a.frame for a in wanted]
    assert any(a.entities for a in found)
    # Sums of up to 512 float32 products in another order: 512 * 2^-24 = 3e-5 of logits of a few units.
    assert np.abs([a.probabilities - b.probabilities for a, b in zip(found, wanted, strict=True)]).max() < 1e-4
    for text, answer in zip(texts, wanted, strict=True):
        intent, confidence, tags = peer.parse(text)
        assert intent == tiny_model.labels.intents[int(answer.probabilities.argmax())]
        assert len(tags) == len(tiny_model.tokenizer.encode(text).words)
        assert confidence > 0.25


def test_answers_that_are_kept_are_the_same_answers(script: Any, tmp_path: Path) -> None:
    kept, texts = script("headline_answers"), ["play jazz", "hello"]
    answers = [
        Answer(texts[0], ("greet", "play"), np.array([0.2, 0.8]), (Entity(5, 9, "genre", role="main"),), 0.3),
        Answer(texts[1], ("greet", "play"), np.array([0.6, 0.4]), (), 0.3),
    ]
    kept.store(tmp_path / "a.npz", answers)
    found = kept.stored(tmp_path / "a.npz", texts)
    assert [a.frame for a in found] == [a.frame for a in answers]
    assert [a.confidence for a in found] == [0.8, 0.6]
    assert found[0].threshold == 0.3


def test_other_files_libraries_or_texts_are_asked_again(
    script: Any, tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, n_asked = script("headline_answers"), 0
    monkeypatch.setattr(kept, "CACHE", tmp_path / "cache")
    folder, graph = tiny_model.save(tmp_path / "model"), tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")
    versions, texts = {"torch": "2.8.0", "onnxruntime": "1.22.0"}, ["hello"]

    def asked() -> list[Answer]:
        nonlocal n_asked
        n_asked += 1
        return [Answer(text, ("a", "b"), np.array([1.0, 0.0])) for text in texts]

    def asks(name: str = "peer", **changes: str) -> bool:
        before = n_asked
        for _ in range(2):
            kept.remembered(name, [folder, graph], versions | changes, texts, asked)
        assert n_asked <= before + 1  # the second time the answers are there
        return n_asked > before

    assert asks()
    assert not asks()
    assert asks("another peer")
    assert asks(torch="2.9.0")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    for path in (*files, graph):
        path.write_bytes(path.read_bytes() + b" ")
        assert asks(), path.name
    files[0].rename(folder / "renamed")
    assert asks()
    texts.append("goodbye")
    assert asks()


def student_row(name: str, seed: int, percent: float, ms: float, speedup: float, size: int = 1000) -> dict[str, Any]:
    """What headline.row and timed_row make of a student."""
    metrics = ("intent_macro_f1", "intent_accuracy", "span_f1")
    ratio = {"ratio": speedup, "low": 0.9 * speedup, "high": 1.1 * speedup}
    times = {"mean_ms": ms, "row_mean_ms": ms / 2}
    times |= {key: {"reference": key, **ratio, "row": ratio, "cpu": ratio} for key in ("parent", "int8")}
    return {
        "name": f"{name}, seed {seed}",
        "group": "student",
        "label": name,
        "seed": seed,
        "size_bytes": size,
        "quality": dict.fromkeys(metrics, 0.8) | {"losses": {m: loss(percent) for m in metrics}},
        "validation_losses": {m: loss(percent) for m in metrics},
        "times": times,
    }


def parent_row(**changes: Any) -> dict[str, Any]:
    """The teacher in PyTorch."""
    row = student_row("PyTorch fp32", 0, 0.0, 50.0, 1.0, 400_000) | {"group": "teacher", "label": None, "seed": None}
    return {k: v for k, v in row.items() if k != "validation_losses"} | {"name": "PyTorch fp32"} | changes


def measured(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One set of a results file."""
    return {
        "set": name,
        "contenders": [r["name"] for r in rows],
        "calls": 300,
        "fastest_int8": "LiteRT int8",
        "machine": {"cpu": "a CPU"},
        "rows": rows,
    }


@pytest.fixture
def two_sets() -> list[dict[str, Any]]:
    """BANKING77 with three seeds and SNIPS with one, of the 1000x student."""
    seeds = [student_row("1000x", seed, percent, 0.05, 1100.0) for seed, percent in enumerate((1.0, 2.0, 2.7))]
    return [
        measured("banking77", [parent_row(), *seeds]),
        measured("snips", [parent_row(), student_row("1000x", 0, 0.5, 0.06, 900.0)]),
    ]


def test_a_target_is_judged_over_all_sets(script: Any, two_sets: list[dict[str, Any]]) -> None:
    [found] = script("headline").targets(two_sets)
    assert found["label"] == "1000x"
    assert [x["seeds"] for x in found["sets"]] == [3, 1]
    assert list(found["sets"][0]["losses"]) == ["intent_macro_f1"]
    assert list(found["sets"][1]["losses"]) == ["intent_accuracy", "span_f1"]
    assert found["intent"]["loss_percent"] == pytest.approx((1.9 + 0.5) / 2)
    assert found["intent"]["verdict"] == "met"
    assert found["worst_percent"] == 2.7
    assert found["worst_met"] is False
    assert found["speed_met"] is False
    assert found["span"]["loss_percent"] == 0.5  # SNIPS alone has spans that count
    assert found["span"]["verdict"] == "proved"


def test_results_go_on_where_they_stopped(script: Any, two_sets: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "headline.json"
    script("headline").Results(path).keep(two_sets[1])
    results = script("headline").Results(path, {"more": 1})
    names = two_sets[1]["contenders"]
    assert results.has("snips", names, 300)
    assert not results.has("snips", names, 301)
    assert not results.has("snips", [*names, "another"], 300)
    assert not results.has("banking77", names, 300)
    results.keep(two_sets[0])
    written = json.loads(path.read_text())
    assert [each["set"] for each in written["sets"]] == ["banking77", "snips"]
    assert written["more"] == 1
    assert len(written["targets"][0]["sets"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["headline.json"]


@pytest.fixture
def tables(script: Any, two_sets: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """docs/headline_tables.py on these results."""
    script("headline").Results(tmp_path / "headline.json").keep(two_sets[0])
    script("headline").Results(tmp_path / "headline.json").keep(two_sets[1])
    monkeypatch.setattr(script("quantization_tables"), "RESULTS", tmp_path)
    return script("headline_tables")


def test_the_sentence_names_both_ratios_and_what_was_missed(tables: Any) -> None:
    [sentence] = tables.sentences().splitlines()
    assert sentence == (
        "- **1000x** (BANKING77, SNIPS): 900 to 1100 times as fast as the fp32 teacher in PyTorch (missed), "
        "**900 to 1100 times the same model in the fastest int8 runtime of today** (LiteRT int8), at a mean loss of "
        "+1.20% (+0.70 to +1.70) in intents and +0.50% (+0.00 to +1.00) in span F1: met (bound 1.5%); span F1 proved "
        "(bound 1.5%); largest single loss +2.70%, missed."
    )


def test_tables_without_results_say_so(tables: Any, tmp_path: Path) -> None:
    (tmp_path / "headline.json").unlink()
    made = (tables.sentences, tables.targets, tables.contenders, tables.suggested, tables.ablation, tables.on_disk)
    assert {make() for make in made} == {"Not measured yet."}


def test_the_smallest_file_is_chosen_on_validation_messages_by_every_metric(tables: Any) -> None:
    large, small, lossy = (
        student_row(name, 0, 0.9, 1.0, 1.0, size) for name, size in zip("abc", (9, 5, 2), strict=True)
    )
    small["quality"]["losses"]["span_f1"] = loss(7.0)  # test messages choose nothing
    lossy["validation_losses"]["span_f1"] = loss(1.1)
    metrics = ("intent_accuracy", "span_f1")
    assert tables.smallest([large, small, lossy, parent_row()], metrics) is small
    assert tables.smallest([large, small, lossy], ("intent_accuracy",)) is lossy
    assert tables.smallest([parent_row()], metrics) is None


def test_a_line_of_the_chart_is_sorted_by_time(script: Any, tmp_path: Path) -> None:
    students = script("students")
    shapes = list(students.FAMILIES["BiLSTM"])
    rows = [student_row(label, 0, 1.0, ms, 50 / ms) for label, ms in zip(shapes, (0.3, 0.1, 0.2), strict=True)]
    classic = parent_row(name=students.CLASSIC, group="classic")
    found = measured("banking77", [parent_row(), *rows, classic, student_row(students.SHAPE, 0, 0.1, 2.0, 25.0)])
    lines, anchors = students.points(found)
    assert list(lines) == ["BiLSTM"]
    assert [r["label"] for r in lines["BiLSTM"]] == [shapes[1], shapes[2], shapes[0]]
    assert [students.model_and_runtime(r) for r in anchors] == [
        ("teacher", "PyTorch fp32"),
        ("DistilBERT shape", "Flyweight int8"),
        ("TF-IDF + SVM", "TF-IDF + SVM"),
    ]
    assert students.draw(found, tmp_path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def recipes(script: Any) -> Iterator[Any]:
    """The table of students."""
    return script("student_recipes")


def test_every_student_can_be_built_and_goes_on_from_one_that_exists(recipes: Any) -> None:
    named: list[str] = []

    def path_of(label: str) -> str:
        named.append(label)
        return label

    for label, recipe in recipes.STUDENTS.items():
        steps = recipe.steps(recipes.Sources("banking77", "teacher.fly", path_of, path_of))
        assert steps, label
        chain = [label]
        while (before := recipes.STUDENTS[chain[-1]].after) is not None:
            chain.append(before)
            assert len(chain) < 10, chain
    assert set(named) <= recipes.STUDENTS.keys()


def test_every_student_that_is_compared_has_a_recipe(recipes: Any, script: Any) -> None:
    pairs = [*recipes.ABLATIONS.values(), *recipes.SUGGESTED.values()]
    compared = {*recipes.TARGETS, *script("students").SHAPES, script("students").SHAPE}
    compared |= {label for pair in pairs for label in pair}
    assert compared <= recipes.STUDENTS.keys()
    for label in {label for pair in recipes.ABLATIONS.values() for label in pair}:
        assert f"{label}, float" in recipes.STUDENTS, label
    assert [recipes.seeds_of(name) for name in ("banking77", "snips")] == [(0, 1, 2), (0,)]


def test_ablations_differ_in_the_ingredient_alone(recipes: Any) -> None:
    def parts(label: str) -> tuple[dict[str, Any], Any]:
        recipe = recipes.STUDENTS[f"{label}, float"]
        student, distillation = recipe.steps(
            recipes.Sources("banking77", "teacher.fly", "{}.fly".format, "{} in PyTorch".format)
        )
        return {"student": student, "cut from": recipe.after, **vars(distillation)}, distillation

    def passes(d: Any) -> int:
        """Over as much text as the training messages are."""
        hints = math.ceil(HINTS_SHARE * d.epochs) if "hints" in d.losses else 0
        return (1 + d.transfer) * (d.epochs + hints)

    differ: dict[str, dict[str, tuple[Any, Any]]] = {}
    for question, (label, other) in recipes.ABLATIONS.items():
        (ours, with_it), (theirs, without) = parts(label), parts(other)
        differ[question] = {k: (ours[k], theirs[k]) for k in ours if ours[k] != theirs[k]}
        assert passes(with_it) == passes(without), question
    assert differ == {
        "distillation itself": {"soft": (0.8, 0.0)},
        "transfer text": {"transfer": (30, 0), "epochs": (2, 62)},
        "assistant": {"teacher": ("assistant.fly", "teacher.fly")},
        "hints": {"losses": ("hints+logits", "logits"), "epochs": (4, 5)},
    }


def test_students_are_made_again_after_a_change_of_any_code_that_trains_them(
    script: Any, recipes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = script("student_models")

    def versions() -> dict[str, list[Any]]:
        of = recipes.Sources("banking77", "teacher.fly", str, str)
        return {label: models.versions_of(recipe.steps(of)) for label, recipe in recipes.STUDENTS.items()}

    before = versions()
    training = sys.modules["compressed"]
    monkeypatch.setattr(training, "VERSIONS", {kind: n + 1 for kind, n in training.VERSIONS.items()})
    assert {label for label, found in versions().items() if found != before[label]} == {"100x", "smallest"}
    monkeypatch.setattr(models, "VERSION", models.VERSION + 1)
    assert all(found != before[label] for label, found in versions().items())
