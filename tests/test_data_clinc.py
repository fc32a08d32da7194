"""CLINC150's JSON and JSON rows: which part is whose, and every error with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyweight.data import Entity, Message, load_data, read_messages
from flyweight.data.clinc import PARTS, read_clinc
from flyweight.errors import DataError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def rows(words: str, intent: str) -> list[list[str]]:
    return [[word, intent] for word in words]


FULL = {
    "oos_val": rows("v", "oos"),
    "val": rows("kl", "x"),
    "train": rows("abcdefghij", "x"),
    "oos_test": rows("tu", "oos"),
    "test": [[" m ", " y "]],
    "oos_train": rows("s", "oos"),
}


@pytest.mark.parametrize("indent", [None, 2])
def test_every_part_is_its_own(tmp_path: Path, indent: int | None) -> None:
    path = write(tmp_path / "data_full.json", "\ufeff" + json.dumps(FULL, indent=indent))
    data = load_data(path, test=0.5, validation=0.5)
    assert ["".join(m.text for m in part) for part in (data.train, data.validation, data.test)] == [
        "abcdefghijs",
        "vkl",
        "tum",
    ]
    assert [m.intent for m in data.test] == ["oos", "oos", "y"]
    assert data.intents == ["oos", "x", "y"]
    assert (data.split, data.source) == ({}, str(path))
    assert data.notes == ("1 of the 3 test messages have an intent that training lacks: 'y'",)
    assert read_messages(path) == data.train + data.validation + data.test


def test_parts_that_are_absent_or_empty_are_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps({"train": FULL["train"], "val": [], "test": FULL["test"]}))
    data = load_data(path)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 1, 1)
    assert data.split == {"validation": 0.1, "seed": 0}


PAIR = 'allowed: ["text", "intent"], two strings that are not empty'
WHOLE = 'allowed: {"train": [["text", "intent"], ...], "val": ..., "test": ..., "oos_train": ..., ...}'


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ('{"train": [["a", "x"],\n["b"]]}', 2, f"row is ['b']; {PAIR}"),
        ('{"train": [["a", "x"],\n\n["b", 5]]}', 3, f"row is ['b', 5]; {PAIR}"),
        ('{"train": [["a", " "]]}', 1, f"row is ['a', ' ']; {PAIR}"),
        ('{"train": [["\\udc00", "x"]]}', 1, f"row is ['\\udc00', 'x']; {PAIR}"),
        ('{"train": [{"text": "a", "intent": "b"}]}', 1, f"row is {{'text': 'a', 'intent': 'b'}}; {PAIR}"),
        ('{"train": [],\n"oos_tests": []}', 2, f"unknown key 'oos_tests'; allowed: {', '.join(PARTS)}"),
        ('{"train": [],\n"train": []}', 2, "key 'train' twice in the file; allowed: each key once"),
        ('{"train": [["a", "b"]],\n"val": {}}', 2, 'val is {}; allowed: a list of ["text", "intent"]'),
        ('{"train": [\n["a", "b"],\n]}', 3, f"not JSON (Expecting value); {WHOLE}"),
    ],
)
def test_malformed(tmp_path: Path, source: str, line: int, error: str) -> None:
    path = write(tmp_path / "a.json", source)
    with pytest.raises(DataError) as caught:
        load_data(path)
    message = str(caught.value)
    # Python 3.13 has words of its own for a trailing comma, and points to it.
    assert message == f"{path}:{line}: {error}" or ("not JSON" in error and message.endswith(f"); {WHOLE}"))


def test_files_without_messages_or_train(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"train": [], "test": []}')
    with pytest.raises(DataError) as caught:
        read_clinc(path)
    assert str(caught.value) == f"{path}: no messages; {WHOLE}"
    path = write(tmp_path / "b.json", '{"oos_train": [], "test": [["a", "b"]]}')
    with pytest.raises(DataError, match="no train part beside 'test'"):
        load_data(path)


def test_a_file_with_parts_is_no_part_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.json", json.dumps(FULL))
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: 'train.json' for train, a file with parts of its own; allowed: the path of that file alone"
    )


# JSON rows ----------------------------------------------------------------------------------------------------------

ROWS = """\
[
  {"text": "to NYC", "intent": "go", "entities": [{"start": 3, "end": 6, "entity": "city", "value": "New York"}]},
  {"Query": "hi", "label": 3}
]
"""


def test_a_list_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "\ufeff" + ROWS)
    wanted = (Message("to NYC", "go", (Entity(3, 6, "city", "New York"),)), Message("hi", "3"))
    assert read_messages(path) == wanted
    assert load_data(path, test=0, validation=0).synonyms == {"nyc": "New York"}
    write(tmp_path / "d/train.json", ROWS)
    write(tmp_path / "d/test.json", '[{"text": "bye", "intent": "go"}]')
    data = load_data(tmp_path / "d", validation=0)
    assert (data.train, data.test) == (wanted, (Message("bye", "go"),))
    path = write(tmp_path / "b.json", '[{"phrase": "hi", "goal": "greet"}]')
    assert read_messages(path, text_column="phrase", intent_column="goal") == (Message("hi", "greet"),)


@pytest.mark.parametrize(
    ("source", "where", "error"),
    [
        ("[]", "", "no messages; allowed: at least one row with a text"),
        ("[\n5]", ":2", "row is 5; allowed: a JSON list of objects"),
        (
            '[{"text": "a", "intent": "b"},\n\n{"text": " ", "intent": "b"}]',
            ":3",
            "empty text; allowed: at least one character",
        ),
        (
            '[\n{"text": "a", "text": "b"}]',
            ":2",
            "key 'text' twice in an object; allowed: each key once",
        ),
        (
            '[\n{"text": "a",\n "intent": "b" "c"}]',
            ":3",
            "not JSON (Expecting ',' delimiter); allowed: a JSON list of objects",
        ),
        (
            '[{"text": "a",\n"intent": ' + "9" * 5_000 + "}]",
            "",
            "not JSON (a number of too many digits); allowed: a JSON list of objects",
        ),
        ("[" * 100_000, "", "not JSON (nested too deeply); allowed: a JSON list of objects"),
    ],
)
def test_malformed_rows(tmp_path: Path, source: str, where: str, error: str) -> None:
    path = write(tmp_path / "a.json", source)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == f"{path}{where}: {error}"


@pytest.mark.parametrize("source", ["", "5", '{"a": [1]}', '{"train": {}}', '{"text": "a", "intent": "b"}', "\x00"])
def test_json_of_no_known_form(tmp_path: Path, source: str) -> None:
    path = write(tmp_path / "a.json", source)
    with pytest.raises(DataError, match=r"a\.json: a file of the unknown form '\.json'; allowed: "):
        load_data(path)
