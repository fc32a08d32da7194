"""Models side by side, with answerers whose answers are known; and how the command line shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flyweight.answers import Answer
from flyweight.cli import show
from flyweight.data.messages import Entity, Message
from flyweight.report.comparison import Contender, Row, ask_one, comparison

INTENTS = ("greet", "leave")
ROME = Entity(3, 7, "city")
MESSAGES = [
    Message("hi there", "greet"),
    Message("to Rome", "leave", (ROME,)),
    Message("bye bye", "leave"),
    Message("hey", "greet"),
]


class Fake:
    """Answers by a table: text -> (intent, confidence, entities)."""

    def __init__(self, **changes: tuple[str, float, tuple[Entity, ...]]):
        right = {m.text: (str(m.intent), 0.9, m.entities) for m in MESSAGES}
        self.table = right | {k.replace("_", " "): v for k, v in changes.items()}
        self.asked: list[list[str]] = []

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        self.asked.append(list(texts))
        found = []
        for text in texts:
            intent, confidence, entities = self.table[text]
            other = (1 - confidence) / (len(INTENTS) - 1)
            probabilities = np.array([confidence if name == intent else other for name in INTENTS])
            found.append(Answer(text, INTENTS, probabilities, entities))
        return found


def parent_and_child() -> list[Contender]:
    parent = Fake(hey=("leave", 0.8, ()))  # one intent wrong
    child = Fake(to_Rome=("leave", 0.9, ()))  # one span missing, and right where the parent is wrong
    rival = Fake(hi_there=("leave", 0.6, ()))
    return [
        Contender("parent", "PyTorch", parent),
        Contender("child", "numpy", child),
        Contender("rival", "scikit-learn", rival, child=False),
    ]


def test_quality_and_flips_against_the_first() -> None:
    rows = comparison(parent_and_child(), MESSAGES, progress=False)
    parent, child, rival = (row.quality for row in rows)
    assert [row.name for row in rows] == ["parent", "child", "rival"]
    assert [row.engine for row in rows] == ["PyTorch", "numpy", "scikit-learn"]
    assert [q.intent_accuracy for q in (parent, child, rival)] == [0.75, 1.0, 0.75]
    # parent: greet has 1 of 2, F1 2/3; leave 2 right and one too many, F1 4/5
    assert parent.intent_macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert [q.span_f1 for q in (parent, child, rival)] == [1.0, 0.0, 1.0]
    assert [q.exact_frame_accuracy for q in (parent, child, rival)] == [0.75, 0.75, 0.75]
    assert parent.n_flips is None
    assert not parent.losses
    assert child.n_flips == 2
    assert {flip["text"] for flip in child.flips} == {"hey", "to Rome"}
    assert child.losses["intent_accuracy"].loss_percent == pytest.approx((0.75 - 1) / 0.75 * 100)
    # a rival was not made from the parent: its answers are no flips
    assert rival.n_flips is None
    assert not rival.losses


def test_without_latency_there_is_none() -> None:
    contenders = parent_and_child()
    rows = comparison(contenders, MESSAGES, progress=False)
    assert [(row.latency, row.speedup, row.size_bytes) for row in rows] == [(None, None, None)] * 3
    assert [fake.asked for fake in (c.model for c in contenders)] == [[[m.text for m in MESSAGES]]] * 3  # type: ignore[attr-defined]


def test_messages_are_asked_in_blocks() -> None:
    many = [Message(m.text, m.intent, m.entities) for m in MESSAGES] * 40
    contender = parent_and_child()[0]
    rows = comparison([contender], many, progress=False)
    asked = contender.model.asked  # type: ignore[attr-defined]
    assert [len(block) for block in asked] == [64, 64, 32]
    assert [text for block in asked for text in block] == [m.text for m in many]
    assert rows[0].quality.n_messages == 160


def test_latency_is_timed_one_message_at_a_time_on_the_same_messages() -> None:
    contenders = parent_and_child()
    rows = comparison(contenders, MESSAGES, n_latency_calls=6, progress=False)
    timed = [c.model.asked[1:] for c in contenders]  # type: ignore[attr-defined]
    assert all(len(block) == 1 for asked in timed for block in asked)
    assert timed[0] == timed[1] == timed[2]
    assert len(timed[0]) > 6  # warm-up
    for row in rows:
        assert row.latency is not None
        assert row.latency.n_calls == 6
        assert row.speedup is not None
        assert rows[0].latency is not None
        assert row.speedup == pytest.approx(rows[0].latency.mean_ms / row.latency.mean_ms)
    assert rows[0].speedup == 1


def test_sizes_are_those_on_disk(tmp_path: Path) -> None:
    (tmp_path / "bot.fly").write_bytes(bytes(1234))
    folder = tmp_path / "bot"
    folder.mkdir()
    (folder / "a").write_bytes(bytes(1000))
    (folder / "b").write_bytes(bytes(34))
    contenders = [Contender("a", "x", Fake(), folder), Contender("b", "x", Fake(), tmp_path / "bot.fly")]
    assert [row.size_bytes for row in comparison(contenders, MESSAGES, progress=False)] == [1034, 1234]


def test_rows_are_json() -> None:
    for n_calls in (0, 2):
        rows = comparison(parent_and_child(), MESSAGES, n_latency_calls=n_calls, progress=False)
        found = json.loads(json.dumps([row.to_dict() for row in rows]))
        assert set(found[0]) == {"name", "engine", "quality", "size_bytes", "latency", "speedup"}
        assert found[1]["quality"]["flips"][0]["parent"]["intent"] == "leave"
        assert (found[1]["latency"] is None) == (n_calls == 0)
        assert n_calls == 0 or "calls_ms" not in found[1]["latency"]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    comparison(parent_and_child(), MESSAGES, n_latency_calls=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == ["asking: 12/12", "timing: 2/2"]


def test_asking_one_message() -> None:
    fake = Fake()
    assert [a.intent for a in ask_one(fake)("hey")] == ["greet"]  # type: ignore[attr-defined]
    assert fake.asked == [["hey"]]


# how rows are shown ---------------------------------------------------------------------------------------------------


def cells_of(capsys: pytest.CaptureFixture[str], rows: Sequence[Row]) -> list[list[str]]:
    show.comparison_table(rows, "a title")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].strip() == "a title"
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in printed if line.startswith("│")]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bot.fly").write_bytes(bytes(1_234_567))
    parent, child, rival = parent_and_child()
    child = Contender("a model with a rather long name.fly", "numpy reference", child.model, tmp_path / "bot.fly")
    rows = comparison([parent, child, rival], MESSAGES, n_latency_calls=2, progress=False)
    found = cells_of(capsys, rows)
    assert found[0][:7] == ["parent", "PyTorch", "0.7333", "0.7500", "1.0000", "-", "-"]
    assert found[1][:2] == ["a model with a rather long name.fly", "numpy reference"]  # names are never cut
    assert found[1][2:7] == ["1.0000", "1.0000", "-", "2", "1.23"]  # no span found: no span F1
    assert found[2][5] == "-"
    assert [row[8][-1] for row in found] == ["x"] * 3
    untimed = cells_of(capsys, comparison([parent], MESSAGES, progress=False))
    assert untimed[0][7:] == ["-", "-"]


def test_columns_of_numbers_are_right_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(["name", "loss"], [["a", "+1.5%"], ["bb", "-"], ["c", "-10.25%"]])
    body = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert body == ["│ a    │   +1.5% │", "│ bb   │       - │", "│ c    │ -10.25% │"]


def test_frames_and_entities_in_one_line() -> None:
    assert show.frame_text({"intent": "leave", "entities": [[3, 7, "city#to"]]}) == "leave city#to[3:7]"
    assert show.frame_text({"intent": None, "entities": []}) == "None"
    entities = [{"entity": "city", "role": "to", "value": "Rome"}, {"entity": "date", "value": "it's"}]
    assert show.entities_text(entities) == "city:to='Rome'  date=\"it's\""
