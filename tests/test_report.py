"""Models side by side, with answerers whose answers are known; and how the command line shows them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyweight.answers import Answer, Labels
from flyweight.cli import receipts, show
from flyweight.data.messages import Entity, Message, NLUData
from flyweight.errors import ConfigError
from flyweight.measure.latency import Latency
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.report.comparison import Contender, ask_one, comparison
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8

INTENTS = ("greet", "leave")
ROME = Entity(3, 7, "city")
MESSAGES = [
    Message("hi there", "greet"),
    Message("to Rome", "leave", (ROME,)),
    Message("bye bye", "leave"),
    Message("hey", "greet"),
]


class Fake:
    """Answers by a table: text -> (intent, confidence, entities). It has an entity head."""

    labels = Labels(INTENTS, ("city",))

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


class Classic(Fake):
    """Intents only; like scikit-learn's line it knows no labels object."""

    labels = None  # type: ignore[assignment]


def parent_and_child() -> list[Contender]:
    parent = Fake(hey=("leave", 0.8, ()))  # one intent wrong
    child = Fake(to_Rome=("leave", 0.9, ()))  # one span missing, and right where the parent is wrong
    rival = Classic(hi_there=("leave", 0.6, ()), to_Rome=("leave", 0.9, ()))
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
    assert [q.span_f1 for q in (parent, child, rival)] == [1.0, 0.0, 0.0]
    assert [q.exact_frame_accuracy for q in (parent, child, rival)] == [0.75, 0.75, 0.5]
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


def test_two_of_one_name_cannot_be_timed() -> None:
    twice = [Contender("a.fly", "numpy", Fake()), Contender("a.fly", "numpy", Fake())]
    with pytest.raises(ConfigError, match=r"^a\.fly is given twice; allowed: each model once$"):
        comparison(twice, MESSAGES, n_latency_calls=2, progress=False)
    assert len(comparison(twice, MESSAGES, progress=False)) == 2


def test_who_has_a_span_score() -> None:
    """A dead entity head scores 0; what has no entity head, or had no span to find and found none, has no score."""
    dead = Fake(to_Rome=("leave", 0.9, ()))
    rows = comparison([Contender(n, "x", m) for n, m in (("dead", dead), ("classic", Classic()))], MESSAGES)
    assert [(r.tags_entities, r.scores_spans) for r in rows] == [(True, True), (False, False)]
    assert (rows[0].quality.n_predicted_spans, rows[0].quality.span_f1) == (0, 0.0)
    without = [m for m in MESSAGES if not m.entities]
    [silent] = comparison([Contender("silent", "x", Fake())], without, progress=False)
    assert (silent.tags_entities, silent.scores_spans) == (True, False)
    loud = Fake(hey=("greet", 0.9, (Entity(0, 3, "city"),)))
    assert comparison([Contender("loud", "x", loud)], without, progress=False)[0].scores_spans
    no_head = Fake()
    no_head.labels = Labels(INTENTS)  # type: ignore[misc]
    assert not Contender("m", "x", no_head).tags_entities


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
        assert set(found[0]) == {"name", "engine", "tags_entities", "quality", "size_bytes", "latency", "speedup"}
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


def cells_of(printed: str) -> list[list[str]]:
    """Rows of a table at a width at which nothing folds."""
    lines = printed.splitlines()
    rule = next(i for i, line in enumerate(lines) if line and set(line) == {"─"})
    return [re.split(r" {2,}", line.strip()) for line in lines[rule + 1 :] if line.strip()]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bot.fly").write_bytes(bytes(1_234_567))
    parent, child, rival = parent_and_child()
    child = Contender("a longer name.fly", "numpy reference", child.model, tmp_path / "bot.fly")
    rows = comparison([parent, child, rival], MESSAGES, n_latency_calls=2, progress=False)
    capsys.readouterr()
    show.comparison_table(rows, "a title")
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "a title"
    found = cells_of(printed)
    assert found[0][:6] == ["parent (PyTorch)", "0.7333", "0.7500", "1.0000", "-", "-"]
    assert found[1][:6] == ["a longer name.fly (numpy reference)", "1.0000", "1.0000", "0.0000", "2", "1.23"]
    assert found[2][3:6] == ["-", "-", "-"]
    assert [row[7][-1] for row in found] == ["x"] * 3


def test_columns_of_nothing_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    without = [m for m in MESSAGES if not m.entities]
    rows = comparison([Contender("parent", "PyTorch", Fake())], without, progress=False)
    show.comparison_table(rows)
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "macro-F1", "accuracy"]
    assert row.split() == ["parent", "(PyTorch)", "1.0000", "1.0000"]


def test_columns_of_numbers_are_right_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(["name", "loss"], [["a", "+1.5%"], ["bb", "-"], ["c", "-10.25%"]])
    body = capsys.readouterr().out.splitlines()[2:]
    assert body == ["a       +1.5%", "bb          -", "c     -10.25%"]


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(["name", "n"], [["[bold]a[/bold] :smile:", "1"]], "[red]title")
    printed = capsys.readouterr().out
    assert "[bold]a[/bold] :smile:" in printed
    assert printed.startswith("[red]title\n")


NUMBERS = ["1.0000", "1.0000", "1.0000", "12345", "438.12", "1234.56", "123.45x"]


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("place", ["pipe", "terminal"])
def test_numbers_are_never_cut(
    width: int, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long names fold; every number of the widest table stands whole on a line."""
    [row] = comparison([Contender("/srv/models/customer-service/" * 3 + "bot.fly", "numpy", Fake())], MESSAGES)
    slow = Latency(1.0, 1.0, 1.0, mean_ms=1234.56, best_ms=1.0, n_calls=1, calls_ms=())
    many = replace(row.quality, n_flips=12345)
    row = replace(row, size_bytes=438_120_000, speedup=123.45, quality=many, latency=slow)
    if place == "pipe":
        monkeypatch.setattr(show, "PIPE_WIDTH", width)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    capsys.readouterr()
    show.comparison_table([row])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert any(line.split()[-7:] == NUMBERS for line in lines)
    assert width < 80 or max(map(len, lines)) <= width
    assert "".join(line.split()[0] for line in lines[2:]).startswith(row.name)
    assert "…" not in "".join(lines)


# receipts -------------------------------------------------------------------------------------------------------------


def test_receipts_show_every_loss_with_its_interval(
    tiny_data: NLUData, tiny_model: NLUModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = compress(tiny_model, tiny_data, [Codebook(encoder=4, heads=None), Int8()], progress=False)
    steps = small.card.steps[-2:]
    monkeypatch.setattr(show, "PIPE_WIDTH", 200)
    receipts.print_receipts(steps, tags_entities=True, title="a title")
    printed = capsys.readouterr().out
    table, losses = printed.split("codebook: loss", 1)
    found = cells_of(table)
    assert [row[0] for row in found] == ["codebook encoder=4 heads=none", "int8"]  # defaults are not repeated
    for step, row in zip(steps, found, strict=True):
        q = step["quality"]
        wanted = [f"{q['intent_macro_f1']:.4f}", f"{q['span_f1']:.4f}", str(q["n_flips"])]
        wanted += [f"{step['file_bytes'] / 1e6:.2f}", f"{step['latency_ms']:.2f} / {step['parent_ms']:.2f}"]
        assert row[1:] == [*wanted, f"{step['minutes']:.2f}"]
    said = ("codebook: loss" + losses).splitlines()
    names = ("macro-F1", "span F1")
    assert [line.split(" ")[:4] for line in said] == [
        f"{s['technique']}: loss of {name}".split(" ")[:4] for s in steps for name in names
    ]
    for metric, line in zip(("intent_macro_f1", "span_f1") * 2, said, strict=True):
        loss = steps[said.index(line) // 2]["quality"]["losses"][metric]
        interval = f"(95% interval {loss['low_percent']:+.3f}% to {loss['high_percent']:+.3f}%)"
        assert line.endswith(f" {loss['loss_percent']:+.3f}% {interval}")
    monkeypatch.setattr(show, "PIPE_WIDTH", 80)
    receipts.print_receipts(steps, tags_entities=True, title="a title")
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80
    assert all(number in narrow for row in found for number in row[1:])
    receipts.print_receipts(steps, tags_entities=False, title="a title")
    assert "span" not in capsys.readouterr().out


def test_frames_and_entities_in_one_line() -> None:
    assert show.frame_text({"intent": "leave", "entities": [[3, 7, "city#to"]]}) == "leave city#to[3:7]"
    assert show.frame_text({"intent": None, "entities": []}) == "None"
    entities = [{"entity": "city", "role": "to", "value": "Rome"}, {"entity": "date", "value": "it's"}]
    assert show.entities_text(entities) == "city:to='Rome'  date=\"it's\""
