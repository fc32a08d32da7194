"""The command line: data check, data split, data convert; of data augment, what all verbs have."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_cases import Call, Done, cells_of, write_csv

from flyweight.cli import show
from flyweight.cli.main import app
from flyweight.data import Message, NLUData, load_data, read_messages
from flyweight.data.check import KINDS
from flyweight.data.write import write_file

VERBS = ["check", "split", "convert", "augment"]
LEAKY = {"train.csv": "text,intent\nhello,greet\nbye,bye\n", "test.csv": "text,intent\nHELLO,greet\nhello,bye\n"}


@pytest.fixture
def nlu(tmp_path: Path, tiny_data: NLUData) -> Path:
    """60 + 12 + 12 messages as one file."""
    return write_file(NLUData(tiny_data.messages), tmp_path / "nlu.yml")


def leaky(folder: Path) -> Path:
    folder.mkdir()
    for name, text in LEAKY.items():
        (folder / name).write_text(text)
    return folder


# help -----------------------------------------------------------------------------------------------------------------


def test_every_verb_is_tested_here() -> None:
    command: Any = typer.main.get_command(app)
    assert list(command.commands["data"].commands) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(verb: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call("data", verb, "-h")
    assert (done.code, done.err) == (0, "")
    examples = re.findall(rf"^\W*(flyweight data {verb}\b.*)$", done.out, re.MULTILINE)
    command: Any = typer.main.get_command(app)
    written = [
        line for line in command.commands["data"].commands[verb].help.splitlines() if line.startswith("flyweight ")
    ]
    assert len(examples) == 2
    assert [e.strip() for e in examples] == written  # none is broken over two lines


def test_help_of_the_group(call: Call) -> None:
    for arguments in (["data"], ["data", "-h"]):
        done = call(*arguments)
        assert (done.code, done.err) == (0, "")
        assert all(re.search(rf"^\W*{verb} ", done.out, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "check"], "flyweight data check: Missing argument"),
        (["data", "check", "x.yml", "--examples", "-1"], "flyweight data check: Invalid value for '--examples'"),
        (["data", "split", "x.yml"], "flyweight data split: Missing option '--out'"),
        (["data", "split", "x.yml", "--out", "y", "--seed", "-1"], "flyweight data split: Invalid value for '--seed'"),
        (["data", "convert", "x.yml"], "flyweight data convert: Missing option '--out'"),
        (["data", "augment", "x.yml"], "flyweight data augment: Missing option '--out'"),
        (
            ["data", "augment", "x.yml", "--out", "y", "--each", "0"],
            "flyweight data augment: Invalid value for '--each'",
        ),
        (["data", "clean"], "flyweight data: No such command 'clean'"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], message: str, call: Call) -> None:
    done = call(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check NONE", "no such file or folder; allowed: "),
        ("split CSV --out NEW --intent-column mood", "no column 'mood' among 'text', 'intent'"),
        ("split NONE --out NEW", "no such file or folder; allowed: "),
        ("split CSV --out NEW --test 1", "test is 1.0; allowed: a share of the messages"),
        ("split CSV --out NEW --form csv", "--form is 'csv'; allowed: yaml, jsonl"),
        ("split CSV --out FULL", "already holds 'a.txt'; choose another folder, or add --overwrite"),
        ("split CSV --out FULL --overwrite", "holds 'a.txt'; allowed: a folder with nothing but files of train,"),
        ("convert CSV --out CSV", "a file of the form '.csv' cannot be written; allowed: .yml, .yaml, .jsonl"),
        ("convert CSV --out NEW.yml --form jsonl", "the form jsonl; allowed: a file .jsonl, or a folder"),
        ("convert CSV --out OLD.yml", "already exists; choose another file, or add --overwrite"),
        ("convert assistant --out NEW.jsonl", "the lookup 'artist'; JSON Lines cannot hold it; allowed there: "),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_1(
    arguments: str, message: str, tmp_path: Path, tiny_data: NLUData, call: Call
) -> None:
    names = {"NONE": tmp_path / "none.yml", "NEW": tmp_path / "new", "OLD": tmp_path / "old", "FULL": tmp_path / "full"}
    names["CSV"] = write_csv(tmp_path / "a.csv", tiny_data.messages)
    (tmp_path / "old.yml").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    words = [re.sub("NONE|NEW|OLD|FULL|CSV", lambda m: str(names[m[0]]), word) for word in arguments.split()]
    done = call("data", *words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("flyweight: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


# check ----------------------------------------------------------------------------------------------------------------


def test_check_tells_counts_and_findings(tmp_path: Path, call: Call) -> None:
    done = call("data", "check", leaky(tmp_path / "d"))
    assert (done.code, done.err) == (1, "")
    assert cells_of(done.out.partition("\n\n")[0]) == [
        ["train", "2", "2", "2"],
        ["test", "2", "1", "2"],
        ["all", "4", "2", "2"],
    ]
    assert done.out.partition("\n\n")[2] == (
        "error: contradiction (1): texts with more than one intent\n"
        "    'hello': bye, greet\n"
        "\n"
        "error: leak (2): validation or test messages that also stand in an earlier part\n"
        "    'hello' (train, test)\n"
        "\n"
        "warning: few messages (2): intents with fewer than 5 training messages\n"
        "    bye: 1\n"
        "    greet: 1\n"
        "\n"
        "kinds of findings: 2 errors, 1 warning\n"
    )


def test_check_as_json(tmp_path: Path, call: Call) -> None:
    done = call("data", "check", leaky(tmp_path / "d"), "--json", "--examples", 1)
    assert (done.code, done.err) == (1, "")
    found = json.loads(done.out)
    assert found["parts"]["test"] == {
        "messages": 2,
        "texts": 1,
        "intents": 2,
        "without_intent": 0,
        "entity_spans": 0,
        "entity_types": 0,
    }
    assert list(found["parts"]) == ["train", "test", "all"]
    few = {"kind": "few messages", "severity": "warning", "count": 2, "what": KINDS["few messages"][1]}
    assert found["findings"][2] == few | {"examples": ["bye: 1"]}


def test_warnings_are_no_errors(tmp_path: Path, call: Call) -> None:
    path = write_csv(tmp_path / "a.csv", (Message("hello", "greet"),) * 5)
    done = call("data", "check", path)
    assert (done.code, done.err) == (0, "")
    assert "\nwarning: duplicate (4): " in done.out
    assert done.out.endswith("\nkinds of findings: 0 errors, 1 warning\n")


def test_nothing_to_find(tmp_path: Path, call: Call) -> None:
    texts = ("one of these", "a blue moon", "so it goes", "why not", "home by noon")
    path = write_csv(tmp_path / "a.csv", tuple(Message(text, "i") for text in texts))
    done = call("data", "check", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("\n\nno findings\n")
    assert json.loads(call("data", "check", path, "--json").out)["findings"] == []


def test_rows_at_fault_do_not_end_the_check(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,intent\n,greet\nhello,greet\nhello,greet\nbye\n")
    done = call("data", "check", path)
    assert (done.code, done.err) == (1, "")
    assert f"error: unreadable (2): {KINDS['unreadable'][1]}\n    {path}:2: empty text; " in done.out
    assert f"\n    {path}:5: row with 1 fields" in done.out
    assert "\nwarning: duplicate (1): " in done.out


def test_a_fault_that_ends_the_check(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "a.yml"
    path.write_text("nlu:\n- intent: a\n  examples: |\n    - one\n    two\n")
    note = "note: the reading ended at the last of these lines; nothing else was checked\n"
    done = call("data", "check", path)
    assert done.code == 1
    assert done.err == note
    assert done.out.startswith(f"\nerror: unreadable (1): {KINDS['unreadable'][1]}\n    {path}:5: example line 'two'; ")
    as_json = call("data", "check", path, "--json")
    assert (as_json.code, as_json.err) == (1, note)
    assert json.loads(as_json.out)["parts"] == {}


@pytest.mark.parametrize(("name", "text"), [("a.csv", ""), ("a.tsv", " \n\t\n"), ("a.jsonl", "\n")])
def test_an_empty_file_is_told_in_a_line(name: str, text: str, tmp_path: Path, call: Call) -> None:
    path = tmp_path / name
    path.write_text(text)
    done = call("data", "check", path)
    assert done.code == 1
    told = "no messages; allowed: at least one row" if name == "a.jsonl" else "no header; allowed: a line such as"
    assert (done.out + done.err).count(told) == 1
    assert str(path) in done.out + done.err


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(leaky(tmp_path / "d"))
    for done in (call("data", "check", ""), call("data", "convert", "", "--out", "a.yml")):
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("flyweight: the name of the data is empty; allowed: a Rasa NLU file")
        assert done.err.count("\n") == 1


def test_what_is_not_read_is_noted(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,intent\n1,hello,greet\n,,\n")
    notes = "note: columns that are not read: 'id'\nnote: blank rows that are skipped: 1\n"
    assert call("data", "check", path).err == notes
    assert call("data", "convert", path, "--out", tmp_path / "a.yml").err == notes
    assert call("data", "check", tmp_path / "a.yml").err == ""


def test_long_lines_go_on_indented_on_a_terminal(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    wide = call("data", "check", leaky(tmp_path / "d")).out
    assert max(map(len, wide.splitlines())) > 60  # a pipe gets a finding a line
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    narrow = re.sub("\x1b\\[[0-9;]*m", "", call("data", "check", tmp_path / "d").out)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "stand\n      in an earlier part\n" in narrow


# split and convert ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["yaml", "jsonl"])
def test_split(form: str, nlu: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "PIPE_WIDTH", 200)
    out = tmp_path / "parts"
    options = ["--test", 0.25, "--seed", 3, "--form", form]
    done = call("data", "split", nlu, "--out", out, *options)
    assert (done.code, done.err) == (0, "")
    wanted = load_data(nlu, test=0.25, seed=3)
    found = load_data(out)
    assert (found.train, found.validation, found.test) == (wanted.train, wanted.validation, wanted.test)
    assert done.out.startswith(f"{out}:\n")
    numbers = {row[0]: int(row[1]) for row in cells_of(done.out)}
    assert numbers == {
        "train": len(wanted.train),
        "validation": len(wanted.validation),
        "test": len(wanted.test),
        "all": 84,
    }
    again = call("data", "split", nlu, "--out", out, *options, "--overwrite", "--json")
    made = json.loads(again.out)
    assert (made["written"], made["split"]) == (str(out), {"test": 0.25, "validation": 0.1, "seed": 3})
    assert made["parts"]["test"]["messages"] == numbers["test"]


def test_split_keeps_the_parts_of_the_source(tmp_path: Path, call: Call) -> None:
    done = call("data", "split", leaky(tmp_path / "d"), "--out", tmp_path / "parts", "--validation", 0)
    assert done.code == 0
    assert done.err.splitlines() == [
        "note: 2 of the 2 test messages also stand in training: scores on them show memory, not understanding",
        "note: no validation part; whatever reads the folder holds one out of train, unless told not to",
        "note: the test part is the source's own",
    ]
    found = load_data(tmp_path / "parts", validation=0)
    assert ([m.text for m in found.train], [m.text for m in found.test]) == (["hello", "bye"], ["HELLO", "hello"])


@pytest.mark.parametrize("name", ["all.jsonl", "all.yml", "folder"])
def test_convert(name: str, tmp_path: Path, call: Call) -> None:
    source, out = leaky(tmp_path / "d"), tmp_path / name
    done = call("data", "convert", source, "--out", out)
    assert done.code == 0
    assert read_messages(out) == read_messages(source)
    note = "note: one file does not keep the parts: train, then validation, then test; a folder does"
    assert (note in done.err.splitlines()) == (name != "folder")
    assert done.out.startswith(f"{out}:\n")


def test_convert_replaces_its_own_source(nlu: Path, call: Call) -> None:
    before = read_messages(nlu)
    assert call("data", "convert", nlu, "--out", nlu, "--overwrite", "--json").code == 0
    assert read_messages(nlu) == before
    assert [p.name for p in nlu.parent.iterdir()] == [nlu.name]


def test_what_a_form_cannot_hold_is_one_line(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "to Rome", "entities": []}\n')
    done = call("data", "convert", path, "--out", tmp_path / "a.yml")
    told = "the message 'to Rome' has no intent; Rasa YAML cannot hold it; allowed there: write JSON Lines (.jsonl"
    assert done == Done(1, "", f"flyweight: {tmp_path / 'a.yml'}: {told}, --form jsonl), which holds it\n")


def test_messages_only_leaves_out_what_json_lines_cannot_hold(tmp_path: Path, call: Call) -> None:
    done = call("data", "convert", "assistant", "--out", str(tmp_path / "a.jsonl"), "--messages-only")
    assert done.code == 0
    assistant = load_data("assistant", test=0, validation=0)
    assert assistant.lookups
    found = read_messages(tmp_path / "a.jsonl")
    assert found == assistant.messages
