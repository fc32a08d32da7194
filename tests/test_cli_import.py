"""The command line: import, teachers of other kinds, fallbacks, models of entities alone, the bundled model."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_cases import Call, Done, cells_of, engine_title
from test_model_finetuned import INTENTS, LETTERS, TAGS, city_data, finetuned

from flyweight.cli import show
from flyweight.data.messages import Message, NLUData
from flyweight.model.nlu import NLUModel
from flyweight.runtime import parser

FOUND = "bundled model 'assistant' (a household and travel assistant); name a .fly file for yours\n"


def write_jsonl(path: Path, messages: tuple[Message, ...], *, intents: bool = True) -> Path:
    """Rows with text, intent and entities."""
    rows = []
    for m in messages:
        row: dict[str, Any] = {"text": m.text}
        row |= {"intent": m.intent} if intents else {}
        row["entities"] = [{"start": e.start, "end": e.end, "entity": e.entity} for e in m.entities]
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "PIPE_WIDTH", 300)  # no name in a table folds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fine-tuned folder of intents that names its classes."""
    finetuned(tmp_path / "roberta", names=INTENTS, family="Roberta")
    return tmp_path / "roberta"


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    """A fine-tuned folder of tags."""
    finetuned(tmp_path / "ner", "ForTokenClassification", TAGS, "DistilBert")
    return tmp_path / "ner"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "nlu.jsonl", city_data().messages)


# import ---------------------------------------------------------------------------------------------------------------


def test_import_with_data(folder: Path, data: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "teacher"
    done = call("import", folder, "--data", data, "--out", out, "--fallback-rate", 0.25)
    assert (done.code, done.err) == (0, "")
    model = NLUModel.load(out)
    parameters = f"{model.n_parameters():,} parameters"
    assert done.out == f"{out}: roberta ForSequenceClassification, 4 intents, {parameters}\n"
    assert 0 < model.labels.threshold < 1
    assert model.labels.temperature != 1
    refused = call("import", folder, "--data", data, "--out", out)
    assert refused == Done(1, "", f"flyweight: {out} already holds a model; choose another --out, or add --overwrite\n")
    done = call("import", folder, "--data", data, "--out", out, "--overwrite", "--max-tokens", 9, "--json")
    assert json.loads(done.out) == {
        "model": str(out),
        "labels": list(INTENTS),
        "parameters": model.n_parameters(),
        "temperature": model.labels.temperature,
        "threshold": 0.0,
    }
    assert NLUModel.load(out).tokenizer.max_tokens == 9


def test_import_without_data_or_names(folder: Path, tmp_path: Path, call: Call) -> None:
    done = call("import", folder, "--out", tmp_path / "a")
    assert done.code == 0
    assert (
        done.err == "note: without --data confidences are not calibrated (temperature 1) and no threshold is fitted\n"
    )
    (tmp_path / "names.txt").write_text("\ufeffd\r\n c \n\nb\na\n")
    named = call("import", folder, "--out", tmp_path / "b", "--labels", tmp_path / "names.txt", "--json")
    assert json.loads(named.out)["labels"] == ["d", "c", "b", "a"]


def test_from_a_folder_to_answers(folder: Path, data: Path, tmp_path: Path, call: Call) -> None:
    out, fly = tmp_path / "teacher", tmp_path / "bot.fly"
    assert call("import", folder, "--data", data, "--out", out).code == 0
    done = call("compress", out, data, "--technique", "int8", "--out", fly)
    assert done.code == 0, done.err
    card = call("inspect", fly).out
    assert re.search(r"^imported +roberta ForSequenceClassification *$", card, re.MULTILINE)
    assert re.search(r"^int8 +granularity=row", card, re.MULTILINE)
    assert re.search(r"^base, data +roberta, [0-9a-f]{12} *$", card, re.MULTILINE)
    [line] = call("parse", fly, "fly to rome").out.splitlines()
    assert line.split("\t")[0] in INTENTS
    assert call("verify", fly).code == 0
    done = call("evaluate", fly, data, "--against", out, "--json")
    assert [row["quality"]["n_intent_messages"] > 0 for row in json.loads(done.out)["models"]] == [True] * 3


def test_a_tagger_from_folder_to_answers(tagger: Path, data: Path, tmp_path: Path, call: Call) -> None:
    """Intents, which it does not have, are neither scored nor shown; nor are those of the data held against it."""
    spans = write_jsonl(tmp_path / "spans.jsonl", city_data().messages, intents=False)
    out, fly = tmp_path / "tagger", tmp_path / "tagger.fly"
    done = call("import", tagger, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(out))}: distilbert ForTokenClassification, 2 entity types, .*\n", done.out)
    found = json.loads(call("import", tagger, "--out", out, "--overwrite", "--data", spans, "--json").out)
    assert found["labels"] == ["O", "B-city", "I-city", "B-date", "I-date"]
    for source in (data, spans):
        done = call("compress", out, source, "-t", "int8", "--out", fly, "--overwrite")
        assert done.code == 0, done.err
        assert "macro-F1" not in done.out
        assert "int8: loss of span F1 " in done.out
        done = call("evaluate", fly, source, "--against", out, "--no-classic")
        assert done.code == 0, done.err
        assert all(word not in done.out for word in ("macro-F1", "accuracy", "calibration", "exact frames"))
        assert re.search(rf"^{re.escape(str(fly))}: span precision \d\.\d{{4}}, recall \d\.\d{{4}}$", done.out, re.M)
        assert "does not know" not in done.err
        shown = [row[0] for row in cells_of("\n".join(done.out.splitlines()[:4]))]
        assert shown == [f"{out} (PyTorch)", f"{fly} ({engine_title()})"]
    [answered, empty] = call("parse", fly, "fly to rome", "").out.splitlines()
    assert answered.startswith("-\t0.0000\t")
    assert empty == "-\t0.0000\t"
    parsed = json.loads(call("parse", fly, "--json", "fly to rome").out)
    assert (parsed["intent"], parsed["intent_ranking"]) == ({"name": None, "confidence": 0.0}, [])
    card = call("inspect", fly).out
    assert "0 intents, 2 entity types" in card
    assert "macro-F1" not in card


def test_compressing_intents_with_data_of_none(folder: Path, data: Path, tmp_path: Path, call: Call) -> None:
    spans = write_jsonl(tmp_path / "spans.jsonl", city_data().messages, intents=False)
    assert call("import", folder, "--data", data, "--out", tmp_path / "t").code == 0
    done = call("compress", tmp_path / "t", spans, "-t", "int8", "--out", tmp_path / "t.fly")
    assert done.code == 0, done.err
    assert "macro-F1" not in done.out  # nothing was scored, so there is no 0.0000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("NONE --out NEW", "none' is no folder here; allowed: a model folder, or a Hub id: owner/name"),
        ("FOLDER --out FOLDER", "--out is .*roberta, the folder that is to be imported; choose another --out"),
        ("FOLDER --out FOLDER --overwrite", "--out is .*roberta, the folder that is to be imported"),
        ("FOLDER --out NEW --labels NONE", "none: cannot be read"),
        ("FOLDER --out NEW --labels THREE", r"'classifier\.out_proj\.weight' is \(4, 32\); config\.json and the"),
        ("FOLDER --out NEW --labels EMPTY", r"labels: 0 class name\(s\); allowed: at least 2"),
        ("FOLDER --out NEW --max-tokens 2", "max_tokens is 2; at least 4"),
        ("FOLDER --out NEW --fallback-rate 0.1", "fallback_rate is 0.1, but no validation message has an intent"),
        ("FOLDER --out NEW --fallback-rate 1 --data DATA", "fallback_rate is 1.0; allowed: a share of the messages"),
        ("FOLDER --out NEW --data NONE", "none: no such file or folder"),
        ("FOLDER --out NEW --data OTHER", r"no label of the data \('x', 'y'\) is one of the model's \('fly', 'greet'"),
        ("TAGGER --out NEW --labels THREE", r"'classifier\.weight' is \(5, 32\); config\.json and the class names"),
        ("TAGGER --out NEW --labels FIVE", "the tag 'two' among 5; allowed: O, B-name and I-name"),
        ("TAGGER --out NEW --fallback-rate 0.1 --data DATA", "a model without intents has no threshold, leave it out"),
    ],
)  # fmt: skip
def test_imports_that_are_refused(
    arguments: str, message: str, folder: Path, tagger: Path, data: Path, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "three.txt").write_text("O\ntwo\nthree\n")
    (tmp_path / "five.txt").write_text("O\ntwo\nthree\nB-a\nI-a\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    other = write_jsonl(
        tmp_path / "other.jsonl", tuple(Message(f"{c} {d}", "xy"[d < "h"]) for c in "ab" for d in LETTERS)
    )
    names = {"FOLDER": folder, "TAGGER": tagger, "DATA": data, "NONE": tmp_path / "none", "NEW": tmp_path / "new"}
    names |= {"THREE": tmp_path / "three.txt", "EMPTY": tmp_path / "empty.txt", "OTHER": other}
    names["FIVE"] = tmp_path / "five.txt"
    done = call("import", *(names.get(word, word) for word in arguments.split()))
    assert (done.code, done.out) == (1, "")
    assert re.search(message, done.err), done.err
    assert done.err.startswith("flyweight: ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


# teachers -------------------------------------------------------------------------------------------------------------


def logits_file(path: Path, data: NLUData) -> Path:
    """A teacher that knows every message's intent."""
    names = data.intents
    rows: list[Any] = [{"intents": names}]
    rows += [{"text": m.text, "intent": [6.0 * (n == m.intent) for n in names]} for m in data.messages]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_training_with_teachers(tiny_data: NLUData, tmp_path: Path, call: Call) -> None:
    data = write_jsonl(tmp_path / "nlu.jsonl", tiny_data.messages)
    options = ["--base", "small", "--epochs", 1, "--device", "cpu", "--json"]
    assert call("train", data, "--out", tmp_path / "plain", *options).code == 0
    (tmp_path / "other.jsonl").write_text('{"intents": ["a", "b"]}\n{"text": "x", "intent": [0, 1]}\n')
    for teacher in (logits_file(tmp_path / "teacher.jsonl", tiny_data), tmp_path / "plain"):
        done = call("train", data, "--out", tmp_path / teacher.stem / "student", *options, "--teacher", teacher)
        assert done.code == 0, done.err
        assert any(line.startswith("asking the teacher: ") for line in done.err.splitlines())
        taught = NLUModel.load(tmp_path / teacher.stem / "student").state_dict()
        plain = NLUModel.load(tmp_path / "plain").state_dict()
        assert any((taught[k] != plain[k]).any() for k in plain)
    short = tmp_path / "short.jsonl"
    short.write_text("".join((tmp_path / "teacher.jsonl").read_text().splitlines(keepends=True)[:3]))
    refused = call("train", data, "--out", tmp_path / "new", *options, "--teacher", short)
    assert refused.code == 1
    last = refused.err.splitlines()[-1]
    assert re.fullmatch(
        rf"flyweight: {re.escape(str(short))}: no logits of .*; a file of logits answers the texts that it holds, .*",
        last,
    )
    for teacher, message in (
        (tmp_path / "none", "none, which is not there; allowed: a model folder, a .fly or .jsonl file"),
        (tmp_path / "none.jsonl", r"none\.jsonl, which is not there; allowed: a model folder"),
        (data, r"nlu\.jsonl:1: intents is None; allowed: a first line"),
        (tmp_path / "other.jsonl", "the teacher lacks 4 of the 4 intents: 'book_flight', 'greet', 'thanks', 'weather'"),
    ):
        refused = call("train", data, "--out", tmp_path / "new", *options, "--teacher", teacher)
        assert refused.code == 1
        assert re.search(message, refused.err.splitlines()[-1]), refused.err


def test_training_with_a_fallback_rate(tiny_data: NLUData, tmp_path: Path, call: Call) -> None:
    data = write_jsonl(tmp_path / "nlu.jsonl", tiny_data.messages)
    options = ["--base", "small", "--epochs", 1, "--device", "cpu", "--fallback-rate", 0.2]
    assert call("train", data, "--out", tmp_path / "bot", *options).code == 0
    labels = NLUModel.load(tmp_path / "bot").labels
    assert (labels.fallback_rate, 0 < labels.threshold < 1) == (0.2, True)
    refused = call("train", data, "--out", tmp_path / "new", *options, "--validation", 0)
    assert refused.code == 1
    assert "fallback_rate is 0.2, but no validation message has an intent" in refused.err.splitlines()[-1]


def test_evaluating_a_file_of_logits(tiny_data: NLUData, tmp_path: Path, call: Call) -> None:
    data = write_jsonl(tmp_path / "nlu.jsonl", tiny_data.messages)
    teacher = logits_file(tmp_path / "teacher.jsonl", tiny_data)
    done = call("evaluate", teacher, data, "--part", "all", "--no-classic")
    assert done.code == 0, done.err
    [row] = [cells for cells in cells_of(done.out) if cells[0] == f"{teacher} (logits)"]
    assert float(row[2]) > 0.98  # accuracy; one text stands with two intents
    assert "out of scope" not in done.out  # the data have no such messages


def test_out_of_scope_is_one_line(tiny_data: NLUData, tmp_path: Path, call: Call) -> None:
    names = ["greet", "thanks"]
    rows: list[Any] = [{"intents": names}]
    rows += [
        {"text": t, "intent": logits} for t, logits in (("a", [4, 0]), ("b", [0, 3]), ("c", [0.5, 0]), ("d", [2, 0]))
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "nlu.jsonl").write_text(
        "".join(
            json.dumps({"text": t, "intent": i}) + "\n"
            for t, i in (("a", "greet"), ("b", "thanks"), ("c", "out_of_scope/chat"), ("d", "oos"))
        )
    )
    done = call("evaluate", tmp_path / "t.jsonl", tmp_path / "nlu.jsonl", "--part", "all", "--no-classic")
    assert done.code == 0, done.err
    assert (
        "out of scope (2 of 4 messages): AUROC 1.0000, recall 1.0000 at 5% false positives; "
        "answered so: 0.0000 of them, 0.0000 of the others\n"
    ) in done.out
    assert "does not know" not in done.err  # out of scope is nothing that one must know
    done = call("evaluate", tmp_path / "t.jsonl", tmp_path / "nlu.jsonl", "--part", "all", "--no-classic", "--json")
    [row] = json.loads(done.out)["models"]
    assert row["quality"]["out_of_scope"]["auroc"] == 1.0
    assert row["quality"]["n_intent_messages"] == 4


# parse ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundled(bot: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`bot` as the model inside the package; the working folder is empty."""
    monkeypatch.setattr(parser, "BUNDLED_FILE", bot)
    monkeypatch.chdir(tmp_path)
    return bot


def test_parse_without_a_file(bundled: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = call("parse", bundled, "hello bot", "thanks a lot")
    assert (wanted.code, wanted.err) == (0, "")
    note = f"answered by the {FOUND}"
    for words in (["hello bot", "thanks a lot"], ["assistant", "hello bot", "thanks a lot"]):
        assert call("parse", *words) == Done(0, wanted.out, note)
    for words in ([], ["assistant"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello bot\nthanks a lot\n"))
        assert call("parse", *words) == Done(0, wanted.out, note)
    assert json.loads(call("parse", "hello bot", "--json").out)["text"] == "hello bot"
    assert [a.intent for a in parser.load("assistant").answers(["hello bot"])] == ["greet"]


def test_what_is_a_message_and_what_is_a_model(bundled: Path, tiny_model: NLUModel, tmp_path: Path, call: Call) -> None:
    (tmp_path / "hello").mkdir()  # a folder is no model
    (tmp_path / "assistant").mkdir()
    assert call("parse", "hello").out.startswith("greet\t")
    for text in ("hello " * 200, "hello\x00bot", "/hello/bot", "~", "", ".", "hello.flying", "-"):
        done = call("parse", "--", text)
        assert (done.code, done.err) == (0, f"answered by the {FOUND}"), text
    tiny_model.save(tmp_path / "mine")
    refused = call("parse", "mine", "hello")
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert refused.err.startswith("flyweight: mine is a folder; a .fly file is needed")
    assert call("parse", "none.fly", "hello") == Done(1, "", "flyweight: none.fly does not exist; name a .fly file\n")
    (tmp_path / "notes.txt").write_text("hello")
    assert "too short for a .fly file" in call("parse", "notes.txt", "hello").err
    (tmp_path / "renamed").write_bytes(bundled.read_bytes())
    assert call("parse", "renamed", "hello").err == ""  # it is the file that answers


def test_parse_on_a_terminal_without_words(bundled: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    said = "flyweight: no message: give one after the file, or pipe lines into stdin\n"
    assert call("parse") == call("parse", "assistant") == Done(1, "", said)


def test_parse_without_the_bundled_model(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "BUNDLED_FILE", tmp_path / "assistant.fly")
    done = call("parse", "hello")
    assert done == Done(1, "", f"flyweight: {tmp_path / 'assistant.fly'} does not exist; name a .fly file\n")


def test_parse_with_a_threshold(bundled: Path, call: Call) -> None:
    [sure] = call("parse", bundled, "hello bot", "--threshold", 0).out.splitlines()
    assert sure.startswith("greet\t")
    [unsure] = call("parse", bundled, "hello bot", "--threshold", 0.9999).out.splitlines()
    assert unsure == "nlu_fallback\t0.9999\t"
    ranking = json.loads(call("parse", "hello bot", "--threshold", 0.9999, "--json").out)["intent_ranking"]
    assert [r["name"] for r in ranking][:2] == ["nlu_fallback", "greet"]
    for wrong in ("1", "-0.5", "nan", "inf"):
        done = call("parse", bundled, "hello", f"--threshold={wrong}")
        said = f"flyweight: threshold is {float(wrong)}; allowed: a confidence, 0 <= threshold < 1\n"
        assert done == Done(1, "", said)
    assert call("parse", bundled, "hello", "--threshold", "high").code == 2
