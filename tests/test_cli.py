"""The command line: every verb, what goes to stdout and stderr, exit codes, one-line errors, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer.main
from safetensors.numpy import load_file

import flyweight
from flyweight import demo as demo_module
from flyweight.cli import answer, show
from flyweight.cli.main import app, run
from flyweight.data.load import load_data
from flyweight.data.messages import Message, NLUData
from flyweight.export.fly import save
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.runtime.parser import load
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.training import loop
from flyweight.training.loop import TrainingSettings
from flyweight.training.teacher import train

VERBS = ["train", "compress", "evaluate", "bench", "parse", "inspect", "verify", "demo", "doctor"]
EPOCHS = 12  # of the training that is interrupted


class Done(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""

    def do(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return do


def cells_of(printed: str) -> list[list[str]]:
    """Rows of the last table, at a width at which nothing folds."""
    lines = printed.splitlines()
    rule = max(i for i, line in enumerate(lines) if line and set(line) == {"─"})
    rows = [re.split(r" {2,}", line.strip()) for line in lines[rule + 1 :]]
    return [row for row in rows if len(row) == len(rows[0])]


def command(*arguments: object) -> list[str]:
    """The same as its own process."""
    return [sys.executable, "-c", "from flyweight.cli.main import main; main()", *map(str, arguments)]


def write_csv(path: Path, messages: tuple[Message, ...]) -> Path:
    path.write_text("text,intent\n" + "".join(f'"{m.text}",{m.intent}\n' for m in messages))
    return path


class Place(NamedTuple):
    """Files that most tests share: data, the trained folder, two files of it."""

    csv: Path
    teacher: Path
    int8: Path
    codes: Path
    log: list[Done]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_data: NLUData) -> Place:
    """train -> compress -> compress, by the command line; its words are kept in `log`."""
    folder = tmp_path_factory.mktemp("cli")
    csv = write_csv(folder / "nlu.csv", tiny_data.messages)
    made = Place(csv, folder / "bot", folder / "int8.fly", folder / "codes.fly", [])

    def do(*arguments: object) -> None:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            patch.setattr(show, "PIPE_WIDTH", 200)
            code = run([str(a) for a in arguments])
        assert code == 0, err.getvalue()
        made.log.append(Done(code, out.getvalue(), err.getvalue()))

    do("train", csv, "--out", made.teacher, "--base", "small", "--epochs", 2, "--learning-rate", 0.003, "--json")
    do("compress", made.teacher, csv, "-t", "int8:granularity=matrix", "--out", made.int8, "--json")
    do(
        "compress",
        made.teacher,
        csv,
        "-t",
        "codebook:encoder=4,embeddings=4,heads=none",
        "-t",
        "int8",
        "--out",
        made.codes,
    )
    return made


@pytest.fixture(scope="module")
def bot(tiny_data: NLUData, tiny_model: NLUModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with entities, roles and synonyms."""
    small = compress(tiny_model, tiny_data, [Int8()], measure=False, progress=False)
    return save(small, tmp_path_factory.mktemp("bot") / "bot.fly")


# help and usage ------------------------------------------------------------------------------------------------------


def test_every_verb_is_tested_here() -> None:
    assert [c.name for c in app.registered_commands] == VERBS


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_examples(verb: str, flag: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call(verb, flag)
    assert (done.code, done.err) == (0, "")
    examples = re.findall(rf"^\W*(flyweight {verb}\b.*)$", done.out, re.MULTILINE)
    assert len(examples) >= 2
    assert "Usage: flyweight" in done.out
    command: Any = typer.main.get_command(app)
    written = [line for line in command.commands[verb].help.splitlines() if line.startswith("flyweight ")]
    assert [e.strip() for e in examples] == written  # none is broken over two lines


def test_help_of_the_whole_and_version(call: Call) -> None:
    for arguments in (["-h"], []):
        done = call(*arguments)
        assert (done.code, done.err) == (0, "")
        assert all(re.search(rf"^\W*{verb}\b", done.out, re.MULTILINE) for verb in VERBS)
        assert len(re.findall(r"^ flyweight \w+ .+$", done.out, re.MULTILINE)) >= 2
    assert call("--version") == Done(0, f"flyweight {flyweight.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "flyweight train: Missing argument"),
        (["train", "x.csv"], "flyweight train: Missing option '--out'"),
        (["train", "x.csv", "--out", "y", "--epochs", "two"], "flyweight train: Invalid value for '--epochs'"),
        (["train", "x.csv", "--out", "y", "--seed", "-1"], "flyweight train: Invalid value for '--seed'"),
        (["train", "x.csv", "--out", "y", "--seed", "1.5"], "flyweight train: Invalid value for '--seed'"),
        (["train", "x.csv", "--out", "y", "--seed", str(2**63)], "flyweight train: Invalid value for '--seed'"),
        (["compress", "b", "x.csv", "--out", "y", "--seed", "-1"], "flyweight compress: Invalid value for '--seed'"),
        (["parse"], "flyweight parse: Missing argument"),
        (["bench"], "flyweight bench: Missing argument"),
        (["inspect", "a.fly", "b.fly"], "flyweight inspect: Got unexpected extra argument"),
        (["verify", "a.fly", "--quick"], "flyweight verify: No such option: --quick"),
        (["prune"], "flyweight: No such command 'prune'"),
        (["--nosuch"], "flyweight: No such option: --nosuch"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], message: str, call: Call) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(message)
    assert done.err.endswith(" -h)\n")
    assert done.err.count("\n") == 1


# errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train NONE --out NEW", "none.csv: no such file or folder; allowed: a Rasa NLU file"),
        ("train BAD --out NEW --base small", r"bad\.csv:3: row with 1 fields, the header has 2; allowed: as many"),
        ("train CSV --out TEACHER", "already holds a model; choose another --out, or add --overwrite"),
        ("train CSV --out NEW --base nosuch", "base 'nosuch' is no folder here; allowed: minilm, small,"),
        ("train CSV --out NEW --base small --epochs 0", "training setting epochs is 0; allowed: none, or a whole"),
        ("train CSV --out NEW --base small --pooling max", "pooling is 'max'; allowed: mean, cls, cls"),
        ("train CSV --out NEW --base small --max-tokens 2", "max_tokens is 2; at least 4"),
        ("train CSV --out NEW --base small --test 1.5", r"test is 1\.5; allowed: a share of the messages"),
        ("train CSV --out NEW --base small --device toaster", "device 'toaster' is .*; allowed: auto, cpu"),
        ("train CSV --out NEW --intent-column mood", "no column 'mood' among 'text', 'intent'; .*--intent-column"),
        ("compress TEACHER CSV --out NEW.fly", "give either --technique .* or --recipe"),
        ("compress TEACHER CSV --out NEW.fly -t int8 --recipe CSV", "give either --technique .* or --recipe"),
        ("compress TEACHER CSV --out NEW.fly -t int4", "technique 'int4' is unknown; allowed: int8, codebook"),
        ("compress TEACHER CSV --out NEW.fly -t int8:bits=4", "int8 has no setting 'bits'; allowed: granularity"),
        ("compress TEACHER CSV --out NEW.fly -t codebook:encoder=1", "codebook: encoder is 1; allowed: none, or"),
        ("compress TEACHER CSV --out NEW.fly --recipe NONE", "none.csv does not exist; name a YAML file"),
        ("compress TEACHER CSV --out TEACHER/ -t int8", "--out is .*bot, the model that is to be compressed"),
        ("compress TEACHER CSV --out TEACHER -t int8 --overwrite", "--out is .*bot, the model that is to be"),
        ("compress TEACHER CSV --out INT8 -t int8", "already holds a model; choose another --out, or add --overwrite"),
        ("compress TEACHER CSV --out PARENT -t int8", "already holds files; choose another --out, or add --overwrite"),
        ("compress NONE CSV --out NEW.fly -t int8", "config.json is missing; a model folder is what"),
        ("compress TEACHER NONE --out NEW.fly -t int8", "none.csv: no such file or folder"),
        ("evaluate NONE.fly CSV", r"none\.csv\.fly does not exist; name a \.fly file"),
        ("evaluate INT8 NONE", "none.csv: no such file or folder"),
        ("evaluate INT8 CSV --part half", "--part is 'half'; allowed: auto, train, validation, test, all"),
        ("evaluate INT8 CSV --against NONE", "config.json is missing; a model folder is what"),
        ("bench INT8 --data NONE", "none.csv: no such file or folder"),
        ("bench INT8 --data CSV --calls 0", "--calls is 0; allowed: at least 1"),
        ("bench INT8 TEACHER INT8 --data CSV", r"int8\.fly is given twice; allowed: each model once"),
        ("bench DAMAGED --data CSV", r"damaged\.fly"),
        ("parse NONE.fly hi", r"none\.csv\.fly does not exist; name a \.fly file"),
        ("parse CSV hi", r"nlu\.csv: header of \d+ bytes in a file of \d+; truncated, or no \.fly file"),
        ("parse TEACHER hi", r"bot is a folder; a \.fly file is needed"),
        ("parse DAMAGED hi", r"damaged\.fly: golden samples differ by .* run flyweight verify"),
        ("inspect SHORT", r"short\.fly has 40 bytes; that is too short for a \.fly file"),
        ("inspect CUT", r"cut\.fly: tensor '.*' ends at byte \d+ of \d+; the file is truncated"),
        ("verify DAMAGED", r"damaged\.fly: tensor '.*' has SHA-256 .* the file is damaged, copy or export it again"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_1(arguments: str, message: str, place: Place, tmp_path: Path, call: Call) -> None:
    names = {"NONE": tmp_path / "none.csv", "NEW": tmp_path / "new", "CSV": place.csv, "TEACHER": place.teacher}
    names |= {"INT8": place.int8, "PARENT": place.teacher.parent, "BAD": tmp_path / "bad.csv"}
    names["BAD"].write_text("text,intent\nhello,greet\nno comma here\n")
    whole = place.int8.read_bytes()
    at = len(whole) - 64 * 400  # in the weights of the last layers
    damaged = whole[:at] + bytes(64 * 300) + whole[at + 64 * 300 :]
    for name, data in {"DAMAGED": damaged, "SHORT": whole[:40], "CUT": whole[:-64]}.items():
        names[name] = tmp_path / f"{name.lower()}.fly"
        names[name].write_bytes(data)
    pattern = re.compile("|".join(sorted(names, key=len, reverse=True)))
    done = call(*(pattern.sub(lambda m: str(names[m[0]]), word) for word in arguments.split()))
    assert done.code == 1
    assert done.out == ""
    *notes, last = done.err.splitlines()
    assert last.startswith("flyweight: ")
    assert re.search(message, last), last
    assert all(re.match(r"\d+ training, ", line) for line in notes)  # what train says of the data it has read
    assert not (tmp_path / "new.fly").exists()


def test_a_message_of_several_lines_is_printed_in_one(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise flyweight.FlyweightError("one\n  two\n\nthree")

    monkeypatch.setattr("flyweight.runtime.parser.load", fail)
    assert call("parse", "x.fly", "hi") == Done(1, "", "flyweight: one two three\n")


def test_an_error_of_the_file_system_is_one_line(bot: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/bot.fly")

    monkeypatch.setattr("flyweight.artifact.read", fail)
    assert call("inspect", bot) == Done(1, "", "flyweight: /somewhere/bot.fly: Permission denied\n")


def test_our_own_mistakes_are_not_hidden(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("flyweight.runtime.parser.load", fail)
    with pytest.raises(ZeroDivisionError):
        call("parse", "x.fly", "hi")


@pytest.mark.parametrize("code", [0, 3, None, "words"])
def test_exits_of_others_are_left_alone(code: object, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("flyweight.runtime.parser.load", leave)
    with pytest.raises(SystemExit) as raised:
        call("parse", "x.fly", "hi")
    assert raised.value.code == code


# train, compress -----------------------------------------------------------------------------------------------------


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
    assert place.log[2].err.splitlines()[0] == f"note: int8 packs again what codebook had packed: {n} matrices"
    assert all(line.startswith(("k-means: ", "measuring ", "note: ")) for line in place.log[2].err.splitlines())


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


# evaluate ------------------------------------------------------------------------------------------------------------


def test_evaluate_against_the_parent(place: Place, call: Call) -> None:
    done = call("evaluate", place.codes, place.csv, "--against", place.teacher, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    data = load_data(place.csv)
    n_test, n_seen = len(data.test), len(data.train + data.validation)
    unseen = f"{n_test} messages of {place.csv} that the model has not seen ({n_seen} were trained on, left out)"
    assert found["messages"] == unseen
    assert [m["name"] for m in found["models"]] == [str(place.teacher), str(place.codes), "TF-IDF + SVM"]
    assert [m["engine"] for m in found["models"]] == ["PyTorch", "numpy", "scikit-learn"]
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


# bench, doctor, demo -------------------------------------------------------------------------------------------------


def test_bench(place: Place, call: Call) -> None:
    done = call("bench", place.teacher, place.int8, "--data", place.csv, "--calls", 3, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["threads"] == 1
    assert found["machine"]["n_cores_usable"] >= 1
    teacher, fly = found["models"]
    assert (teacher["model"], teacher["engine"], fly["engine"]) == (str(place.teacher), "PyTorch", "numpy")
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
    assert [row[0] for row in rows] == [f"{place.int8} (numpy)", f"{place.teacher} (PyTorch)"]
    assert (rows[0][5], rows[0][-1], rows[1][-1]) == ("1.00x", "12", "-")
    monkeypatch.setattr(show, "PIPE_WIDTH", 80)
    narrow = call("bench", place.int8, place.teacher, "--data", place.csv, "--calls", 1).out
    assert max(map(len, narrow.splitlines())) <= 80
    numbers = [re.findall(r" {2,}(\d+\.\d\dx?|\d+|-)(?= |$)", line) for line in narrow.splitlines()]
    assert [len(n) for n in numbers if n] == [8, 8]


def test_doctor(call: Call) -> None:
    found = json.loads(call("doctor", "--json").out)
    assert found["able"]["training (torch)"] is True
    assert "numpy" in found["engine"]
    shown = call("doctor").out
    assert re.search(r"training \(torch\)\s+yes", shown)


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


# parse, inspect, verify ----------------------------------------------------------------------------------------------


def test_parse_messages(bot: Path, call: Call) -> None:
    done = call("parse", bot, "book a flight from Oslo to NYC today", "hello bot")
    assert (done.code, done.err) == (0, "")
    first, second = done.out.splitlines()
    intent, confidence, entities = first.split("\t")
    assert intent == "book_flight"
    assert re.fullmatch(r"[01]\.\d{4}", confidence)
    found = load(bot).parse("book a flight from Oslo to NYC today")["entities"]
    named = [f"{e['entity']}:{e['role']}" if "role" in e else e["entity"] for e in found]
    assert entities == "  ".join(f"{name}='{e['value']}'" for name, e in zip(named, found, strict=True))
    assert "'Oslo'" in entities
    assert "'New York'" in entities  # the synonym's value
    assert re.fullmatch(r"greet\t[01]\.\d{4}\t", second)


def test_parse_json_is_rasas_result(bot: Path, call: Call) -> None:
    done = call("parse", bot, "--json", "book a flight from Oslo to NYC today", "")
    answer, empty = (json.loads(line) for line in done.out.splitlines())
    assert set(answer) == {"text", "intent", "intent_ranking", "entities"}
    assert answer["text"] == "book a flight from Oslo to NYC today"
    assert answer["intent"] == answer["intent_ranking"][0]
    assert sum(r["confidence"] for r in answer["intent_ranking"]) == pytest.approx(1)
    [nyc] = [e for e in answer["entities"] if e["start"] == 27]
    assert nyc.pop("role", "to") == "to"
    assert nyc == {"entity": "city", "start": 27, "end": 30, "value": "New York"}
    assert (empty["text"], empty["entities"]) == ("", [])


def test_parse_from_stdin(bot: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "hello bot\r\n\nwhat is the weather in Rome\nthanks a lot"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    done = call("parse", bot, "--json")
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert texts == ["hello bot", "", "what is the weather in Rome", "thanks a lot"]  # a line out for each line in


def test_parse_without_message_on_a_terminal(bot: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    said = "flyweight: no message: give one after the file, or pipe lines into stdin\n"
    assert call("parse", bot) == Done(1, "", said)


def test_inspect(place: Place, bot: Path, tiny_data: NLUData, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("inspect", place.codes, "--json").out)
    assert found["size_bytes"] == place.codes.stat().st_size
    assert found["lineage"]["data_fingerprint"] == load_data(place.csv).fingerprint()
    assert found["weights"]["heads.intent"]["form"] == "int8"
    shown = call("inspect", bot)
    assert (shown.code, shown.err) == (0, "")
    assert f"{bot.stat().st_size / 1e6:.2f} MB, format 1" in shown.out
    assert "4 intents, 4 entity types" in shown.out
    n_layers = len(json.loads(call("inspect", bot, "--json").out)["model"]["encoder"]["layers"])
    up = next(row for row in cells_of(shown.out) if row[0] == f"layers.0-{n_layers - 1}.ffn.up")
    # 512 x 128 int8 weights, 512 scales and biases: (65536 + 4096) bytes a layer, 8.5 bits a weight
    assert up[1:] == ["512x128", "int8 per=row shift=0", "int8", "8.50", f"{n_layers * 69.632:.1f}"]
    said = {line.split("  ")[0] for line in shown.out.splitlines()}
    assert said >= {"file", "encoder", "training", "int8", "golden samples"}
    monkeypatch.setattr(show, "PIPE_WIDTH", 80)
    narrow = call("inspect", bot).out
    assert max(map(len, narrow.splitlines())) <= 80
    assert all(number in narrow for row in cells_of(shown.out) for number in (row[1], *row[-2:]))


def test_inspect_puts_equal_layers_into_one_line() -> None:
    eight, four = {"form": "int8", "per": "row"}, {"form": "codes", "centres": 16}
    layers = [eight, eight, four, eight]
    weights = {"embeddings.words": eight} | {
        f"layers.{i}.ffn.{side}": form if side == "up" else eight
        for i, form in enumerate(layers)
        for side in ("up", "down")
    }
    manifest = {"weights": {k: v | {"shape": [2, 5], "activations": "int8"} for k, v in weights.items()}}
    arrays = {f"{name}.q": np.zeros(10, np.int8) for name in weights}
    groups = answer._groups(SimpleNamespace(manifest=manifest, arrays=arrays))  # type: ignore[arg-type]
    assert [(g.name, g.form, g.n_bytes, g.bits) for g in groups] == [
        ("embeddings.words", "int8 per=row", 10, "8.00"),
        ("layers.0-1.ffn.up", "int8 per=row", 20, "8.00"),
        ("layers.0-3.ffn.down", "int8 per=row", 40, "8.00"),
        ("layers.2.ffn.up", "codes centres=16", 10, "8.00"),
        ("layers.3.ffn.up", "int8 per=row", 10, "8.00"),
    ]


def test_verify(bot: Path, call: Call) -> None:
    done = call("verify", bot)
    assert re.fullmatch(r".*bot\.fly: \d+ tensors intact; golden samples within \S+ RMS \(allowed \S+\)\n", done.out)
    found = json.loads(call("verify", bot, "--json").out)
    assert found["golden_difference"] <= found["tolerance"]
    assert f"{found['tensors']} tensors" in done.out


# as processes --------------------------------------------------------------------------------------------------------


def test_data_goes_to_stdout_and_talk_to_stderr(bot: Path, tmp_path: Path) -> None:
    done = subprocess.run(command("parse", bot, "--json"), input="hello\nhi\n", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["hello", "hi"]
    missing = subprocess.run(command("parse", tmp_path / "no.fly", "hi"), capture_output=True, text=True)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.count("\n") == 1
    usage = subprocess.run(command("parse"), capture_output=True, text=True)
    assert (usage.returncode, usage.stdout, usage.stderr.count("\n")) == (2, "", 1)


def test_a_closed_pipe_is_no_error(bot: Path) -> None:
    process = subprocess.Popen(
        command("parse", bot), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("greet\t")  # an answer comes as soon as its line is in
    process.stdout.close()
    process.stdin.write("hello\n" * 10)
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("verb", ["inspect", "doctor", "-h"])
def test_a_closed_pipe_under_a_table_is_no_error(verb: str, bot: Path) -> None:
    arguments = [verb, bot] if verb == "inspect" else [verb]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.close()  # long before the first line
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    place: Place, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    options = ["--base", "small", "--epochs", EPOCHS, "--batch-size", 4, "--device", "cpu"]
    arguments = ["train", place.csv, "--out", out, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not (out / "training.pt").exists():  # written at the end of the first epoch
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    talk = [line for line in stderr.splitlines() if line.strip()]
    assert talk[-1] == "flyweight: interrupted; the same command goes on where it can"
    assert re.match(r"\d+ training, ", talk[0])
    assert len(talk) == 2
    assert not (out / "config.json").exists()
    done_steps = torch.load(out / "training.pt", weights_only=True)["step"]
    n_steps = EPOCHS * -(-len(load_data(place.csv).train) // 4)
    assert 0 < done_steps < n_steps

    steps = []
    right = loop._Run.train_step
    monkeypatch.setattr(loop._Run, "train_step", lambda self: steps.append(1) or right(self))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        finished = call(*arguments)
        assert finished.code == 0, finished.err
        assert len(steps) == n_steps - done_steps  # it went on; nothing was done twice
        assert not (out / "training.pt").exists()
        assert call("train", place.csv, "--out", tmp_path / "whole", *options).code == 0
    finally:
        torch.set_num_threads(threads)
    resumed, whole = (load_file(str(folder / "model.safetensors")) for folder in (out, tmp_path / "whole"))
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(a, whole[k]) for k, a in resumed.items())  # the bits of an uninterrupted training
