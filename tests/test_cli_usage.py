"""The command line: help, wrong usage, and errors: one line on stderr, exit code 1 or 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_cases import Call, Done, Place

import flyweight
from flyweight.cli.main import app

VERBS = [
    *("train", "import", "compress", "recipes", "evaluate", "bench", "sensitivity", "suggest", "survival"),
    *("parse", "inspect", "verify", "pack", "unpack", "demo", "doctor"),
]


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
        (["parse", "--threshold", "high"], "flyweight parse: Invalid value for '--threshold'"),
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
        ("train CSV --out NEW --base small --pooling sum", "pooling is 'sum'; allowed: mean, max, cls, cls"),
        ("train CSV --out NEW --base small --max-tokens 2", "max_tokens is 2; at least 4"),
        ("train CSV --out NEW --base small --test 1.5", r"test is 1\.5; allowed: a share of the messages"),
        ("train CSV --out NEW --base small --device toaster", "device 'toaster' is .*; allowed: auto, cpu"),
        ("train CSV --out NEW --intent-column mood", "no column 'mood' among 'text', 'intent'; .*--intent-column"),
        ("compress TEACHER CSV --out NEW.fly", "give either --technique .* or --recipe"),
        ("compress TEACHER CSV --out NEW.fly -t int8 --recipe CSV", "give either --technique .* or --recipe"),
        ("compress TEACHER CSV --out NEW.fly -t int4", "technique 'int4' is unknown; allowed: int8, "),
        ("compress TEACHER CSV --out NEW.fly -t int8:bits=4", "int8 has no setting 'bits'; allowed: granularity"),
        ("compress TEACHER CSV --out NEW.fly -t codebook:encoder=1", "codebook: encoder is 1; allowed: none, or"),
        ("compress TEACHER CSV --out NEW.fly --recipe NONE", "or a YAML file with a list 'techniques'"),
        ("compress TEACHER CSV --out TEACHER/ -t int8", "--out is .*bot, the model that is to be compressed"),
        ("compress TEACHER CSV --out TEACHER -t int8 --overwrite", "--out is .*bot, the model that is to be"),
        ("compress TEACHER CSV --out INT8 -t int8", "already holds a model; choose another --out, or add --overwrite"),
        ("compress TEACHER CSV --out PARENT -t int8", "already holds files; choose another --out, or add --overwrite"),
        ("compress NONE CSV --out NEW.fly -t int8", "is not there; a model folder is needed"),
        ("compress TEACHER NONE --out NEW.fly -t int8", "none.csv: no such file or folder"),
        ("sensitivity NONE CSV", "is not there; a model folder is needed: what"),
        ("sensitivity TEACHER NONE", "none.csv: no such file or folder"),
        ("sensitivity TEACHER CSV --bits 9", "--bits is '9'; allowed: whole numbers from 1 to 8 with commas"),
        ("sensitivity TEACHER CSV --bits 4,four", "--bits is '4,four'; allowed: whole numbers from 1 to 8"),
        ("sensitivity TEACHER CSV --bits 4,2,4", "--bits is '4,2,4'; allowed: .*each once"),
        ("evaluate NONE.fly CSV", r"none\.csv\.fly does not exist; name a \.fly file"),
        ("evaluate INT8 NONE", "none.csv: no such file or folder"),
        ("evaluate INT8 CSV --part half", "--part is 'half'; allowed: auto, train, validation, test, all"),
        ("evaluate INT8 CSV --against NONE", "no such file or folder; allowed: a .fly file"),
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
