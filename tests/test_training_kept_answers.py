"""What a teacher has said is kept: asked once, whoever asks, whatever interrupts it."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.data.messages import Message
from flyweight.errors import DataError
from flyweight.model.linear import set_mask
from flyweight.model.nlu import NLUModel
from flyweight.techniques.int8 import Int8
from flyweight.techniques.room import Run
from flyweight.training.kept_answers import Answers, packed, unpacked
from flyweight.training.logits import Ensemble, LogitsTeacher, ask_teacher, content_of, soft_labels_loss
from flyweight.training.taught import Taught

INTENTS = ("book_flight", "greet", "thanks", "weather")  # of tiny_data
PLAIN = Taught(np.array([1.5, -2.0]))
TAGGED = Taught(np.array([0.1, 2], np.float32), [(0, 2), (3, 8)], np.array([[1, 2, 3], [4, 5, 6.5]], np.float32))


def counting(log: list[str], version: str | None = "1") -> LogitsTeacher:
    """A teacher that writes down what it was asked."""

    def function(texts: list[str]) -> np.ndarray:
        log.extend(texts)
        return np.array([[len(t), ord(t[0]), 0.25, 0] for t in texts])

    return LogitsTeacher(function, INTENTS, version=version)


def same(a: Taught, b: Taught) -> bool:
    """Equal bits, types and words."""
    pairs = [(a.intent, b.intent), (np.array(a.tags), np.array(b.tags))]
    return list(a.words) == list(b.words) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


# bytes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        PLAIN,
        TAGGED,
        replace(TAGGED, tags=None),
        Taught(np.zeros(0), [], np.zeros((0, 5), np.float32)),
        Taught(np.array([1.0]), [(0, 1)], np.zeros((1, 0))),
    ],
)
def test_an_answer_comes_back_as_it_was(said: Taught) -> None:
    assert same(unpacked(packed(said)), said)


def test_the_bytes() -> None:
    assert packed(PLAIN).hex() == "".join(
        (
            "0200000000000000ffffffff0800000004000000",  # 2 intents, 0 words, no tags; 8 and 4 bytes each
            "000000000000f83f00000000000000c0",  # 1.5, -2
        )
    )
    assert len(packed(TAGGED)) == 20 + 2 * 4 + 2 * 8 + 2 * 3 * 4


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:10], lambda b: b"\xff" * len(b)]
)
def test_broken_bytes_are_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    with Answers(tmp_path, "x") as kept:
        kept.keep(["a"], [TAGGED])
        with kept.connection:
            kept.connection.execute("UPDATE answers SET said = ?", (change(packed(TAGGED)),))
        with pytest.raises(
            DataError, match=r"x.sqlite: .*\(an answer of a wrong length\); delete the file to ask the "
        ):
            kept.look_up(["a"])


# the file -----------------------------------------------------------------------------------------------------------


def test_answers_are_found_by_text(tmp_path: Path) -> None:
    with Answers(tmp_path / "new", "x") as kept:
        assert kept.missing(["a", "b", "a", ""]) == ["a", "b", ""]
        kept.keep(["a", ""], [TAGGED, PLAIN])
        kept.keep(["a"], [PLAIN])  # what is known stays
        assert kept.missing(["b", "a", "B", "\ud83d"]) == ["b", "B", "\ud83d"]
    with Answers(tmp_path / "new", "x") as kept:
        assert [same(a, b) for a, b in zip(kept.look_up(["", "a", ""]), [PLAIN, TAGGED, PLAIN], strict=True)] == [
            True
        ] * 3
    with Answers(tmp_path / "new", "y") as other:
        assert other.missing(["a"]) == ["a"]


def test_texts_are_not_stored(tmp_path: Path) -> None:
    with Answers(tmp_path, "x") as kept:
        kept.keep(["my secret"], [PLAIN])
    assert b"secret" not in (tmp_path / "x.sqlite").read_bytes()


def test_many_texts(tmp_path: Path) -> None:
    texts = [str(i) for i in range(1201)]  # more than one query takes
    with Answers(tmp_path, "x") as kept:
        kept.keep(texts, [Taught(np.array([float(i)])) for i in range(1201)])
        assert kept.missing([*texts, "new"]) == ["new"]
        assert [t.intent[0] for t in kept.look_up(texts[::-1])] == list(range(1200, -1, -1))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"no data base, but long enough to be taken for one" * 40)
    with pytest.raises(DataError, match=r"x.sqlite: a teacher's answers cannot be read or written \(file is not a "):
        Answers(tmp_path, "x")
    with sqlite3.connect(tmp_path / "y.sqlite") as later:
        later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(DataError, match=r"y.sqlite: answers of format 9; this version knows 1"):
        Answers(tmp_path, "y")


# asking -------------------------------------------------------------------------------------------------------------


def test_only_new_texts_are_asked(tmp_path: Path) -> None:
    log: list[str] = []
    first = ask_teacher(counting(log), ["b", "a", "b"], False, tmp_path)
    assert log == ["b", "a"]
    again = ask_teacher(counting(log), ["a", "ab", "b"], False, tmp_path)
    assert log == ["b", "a", "ab"]
    assert [t.intent.tolist() for t in again] == [[1, 97, 0.25, 0], [2, 97, 0.25, 0], [1, 98, 0.25, 0]]
    assert same(first[0], again[2])
    assert same(first[0], first[2])
    assert same(first[0], ask_teacher(counting(log), ["b"], False)[0])  # as without a folder
    ask_teacher(counting(log, "2"), ["a"], False, tmp_path)
    ask_teacher(counting(log, None), ["a"], False, tmp_path)
    ask_teacher(counting(log, None), ["a"], False, tmp_path)  # without a version nothing is kept
    assert log[4:] == ["a", "a", "a"]
    assert len(list(tmp_path.iterdir())) == 2
    assert ask_teacher(counting(log), [], False, tmp_path) == []


def test_an_interrupted_asking_loses_one_block(tmp_path: Path) -> None:
    texts, log = [f"t{i}" for i in range(600)], []

    def function(asked: list[str]) -> np.ndarray:
        if "t512" in asked and len(log) < 600:
            log.extend(asked)
            raise KeyboardInterrupt
        log.extend(asked)
        return np.zeros((len(asked), 4))

    teacher = LogitsTeacher(function, INTENTS, version="1")
    with pytest.raises(KeyboardInterrupt):
        ask_teacher(teacher, texts, False, tmp_path)
    assert log == texts
    assert len(ask_teacher(teacher, texts, False, tmp_path)) == 600
    assert log[600:] == texts[512:]


def ask_in_a_process(folder: Path, first: int) -> None:
    ask_teacher(counting([]), [f"t{i}" for i in range(first, first + 700)], False, folder)


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ask_in_a_process, args=(tmp_path, first)) for first in (0, 300)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    log: list[str] = []
    found = ask_teacher(counting(log), [f"t{i}" for i in range(1000)], False, tmp_path)
    assert log == []
    assert [t.intent[0] for t in found] == [len(f"t{i}") for i in range(1000)]


def test_a_model_is_asked_once(tiny_model: NLUModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["hello", "fly to Rome", ""]
    wanted = ask_teacher(tiny_model, texts, False)
    assert all(same(*pair) for pair in zip(wanted, ask_teacher(tiny_model, texts, False, tmp_path), strict=True))
    loss = soft_labels_loss(tiny_model, tiny_model, [Message(t) for t in texts], False)
    monkeypatch.setattr(NLUModel, "logits", None)
    assert all(same(*pair) for pair in zip(wanted, ask_teacher(tiny_model.copy(), texts, False, tmp_path), strict=True))
    kept = soft_labels_loss(tiny_model, tiny_model, [Message(t) for t in texts], False, folder=tmp_path)
    assert kept.__name__ == loss.__name__  # the same training, so that it resumes


def test_whatever_changes_a_models_answers_changes_its_content(tiny_model: NLUModel, tiny_data: Any) -> None:
    def changed(change: Callable[[NLUModel], Any]) -> NLUModel:
        model = tiny_model.copy()
        with torch.no_grad():
            change(model)
        return model

    with_mask = tiny_model.encoder.layers[0].ffn.up.weight != 0
    variants = [
        tiny_model,
        changed(lambda m: m.intent_head.weight[0, 0].add_(1e-3)),
        changed(lambda m: m.encoder.norm.bias[0].add_(1e-3)),
        changed(lambda m: m.encoder.words.weight[-1, 0].add_(1e-3)),
        changed(lambda m: setattr(m.intent_head, "activations", "int8")),
        changed(lambda m: setattr(m, "labels", replace(m.labels, intents=m.labels.intents[::-1]))),
        changed(lambda m: setattr(m, "pooling", "cls")),
        changed(lambda m: set_mask(m.encoder.layers[0].ffn.up, with_mask)),
        Int8().apply(tiny_model, Run(tiny_data, tiny_model)),
    ]
    found = [content_of(model) for model in variants]
    assert len(set(found)) == len(found)
    calibrated = changed(lambda m: setattr(m, "labels", replace(m.labels, temperature=3.0, threshold=0.5)))
    assert content_of(calibrated) == found[0] == content_of(tiny_model.copy())


def test_members_of_an_ensemble_are_kept_apart(tiny_model: NLUModel, tmp_path: Path) -> None:
    log: list[str] = []
    ask_teacher(Ensemble([counting(log), tiny_model]), ["hello"], False, tmp_path)
    ask_teacher(Ensemble([counting(log), counting(log, "2")]), ["hello"], False, tmp_path)
    assert log == ["hello", "hello"]
    assert len(list(tmp_path.iterdir())) == 3
