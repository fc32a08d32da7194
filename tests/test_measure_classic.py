"""The TF-IDF + SVM line: its face, its errors, and the figures it is known to reach."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flyweight.data.messages import Message
from flyweight.errors import DataError, MissingExtraError
from flyweight.measure.classic import ClassicClassifier
from flyweight.measure.quality import evaluate

DATA = Path(os.environ.get("FLYWEIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
MESSAGES = [
    Message("hello there", "greet"),
    Message("Hi and hello", "greet"),
    Message("good bye", "bye"),
    Message("bye bye then", "bye"),
    Message("book a table", "book"),
    Message("book me a room", "book"),
    Message("bye hello book", None),
]


def test_it_answers() -> None:
    pytest.importorskip("sklearn")
    model = ClassicClassifier.fit(MESSAGES)
    assert model.intents == ("book", "bye", "greet")
    texts = ["HELLO", "bye", "book a flight"]
    answers = model.answers(texts)
    assert [a.text for a in answers] == texts
    assert [a.intent for a in answers] == ["greet", "bye", "book"]
    assert all(a.entities == () for a in answers)
    assert all(a.probabilities.sum() == pytest.approx(1.0) for a in answers)
    assert model.answers([]) == []
    assert evaluate(model, MESSAGES, against=model, n_bootstrap=5).n_flips == 0


def test_the_same_seed_gives_the_same_answers() -> None:
    pytest.importorskip("sklearn")
    texts = ["good morning", "a table"]
    first, second = (ClassicClassifier.fit(MESSAGES, seed=3).answers(texts) for _ in range(2))
    assert all((a.probabilities == b.probabilities).all() for a, b in zip(first, second, strict=True))


def test_two_intents() -> None:
    pytest.importorskip("sklearn")
    model = ClassicClassifier.fit(MESSAGES[:4])
    answers = model.answers(["hello", "bye"])
    assert [a.intent for a in answers] == ["greet", "bye"]
    assert all(a.probabilities.shape == (2,) and np.isclose(a.probabilities.sum(), 1.0) for a in answers)


def test_one_intent_is_refused() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(DataError, match="1 different intents to learn; a classifier needs at least 2"):
        ClassicClassifier.fit([*MESSAGES[:2], MESSAGES[-1]])


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MissingExtraError, match=r"the TF-IDF \+ SVM line needs the package 'scikit-learn'"):
        ClassicClassifier.fit(MESSAGES)


def test_importing_it_does_not_load_scikit_learn() -> None:
    code = "import sys, flyweight.measure.classic; print('sklearn' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def read(path: Path) -> list[Message]:
    if not path.exists():
        pytest.skip(f"{path} is absent; set FLYWEIGHT_DATA to the folder of the data sets")
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return [Message(row["text"], row["category"]) for row in csv.DictReader(file)]
        return [Message(row["text"], row["intent"]) for row in map(json.loads, file)]


@pytest.mark.parametrize(
    ("folder", "suffix", "expected_f1", "expected_accuracy"),
    [
        ("sara-dedup", "jsonl", 0.796, 0.811),
        pytest.param("banking77", "csv", 0.912, 0.912, marks=pytest.mark.slow),
    ],
)
def test_reference_figures(folder: str, suffix: str, expected_f1: float, expected_accuracy: float) -> None:
    pytest.importorskip("sklearn")
    model = ClassicClassifier.fit(read(DATA / folder / f"train.{suffix}"))
    quality = evaluate(model, read(DATA / folder / f"test.{suffix}"))
    # three digits are known; 0.003 leaves room for another release of scikit-learn
    assert quality.intent_macro_f1 == pytest.approx(expected_f1, abs=0.003)
    assert quality.intent_accuracy == pytest.approx(expected_accuracy, abs=0.003)
