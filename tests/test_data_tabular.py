"""CSV, TSV and JSONL: golden files and every error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyweight.data import Entity, Message
from flyweight.data.tabular import INTENT_COLUMNS, TEXT_COLUMNS, read_tabular
from flyweight.errors import DataError

GOLDEN = (Message("hi", "greet"), Message('say "yes", twice', "affirm"))


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.csv", 'text,intent\nhi,greet\n"say ""yes"", twice",affirm\n'),
        ("a.csv", '\ufeffText,Category\r\nhi,greet\r\n\r\n"say ""yes"", twice",affirm\r\n'),
        ("a.csv", 'id;UTTERANCE;Label\n1; hi ;greet\n2;"say ""yes"", twice";affirm'),
        ("a.CSV", 'label\tsentence\ngreet\thi\naffirm\t"say ""yes"", twice"\n'),
        ("a.tsv", 'class\tquery\ngreet\thi\naffirm\t"say ""yes"", twice"\n'),
        ("a.csv", 'content,label,label_text\nhi,0,greet\n"say ""yes"", twice",1,affirm\n,,\n'),
        ("a.jsonl", '{"text": "hi", "intent": "greet"}\n\n{"text": "say \\"yes\\", twice", "intent": "affirm"}'),
        ("a.jsonl", '{"Message": "hi", "target": "greet"}\r\n{"query": "say \\"yes\\", twice", "class": "affirm"}\n'),
    ],
)
def test_golden(tmp_path: Path, name: str, source: str) -> None:
    assert read_tabular(write(tmp_path / name, source)).train == GOLDEN


def test_columns_named_by_the_caller(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,Phrase,intent,Goal\nno,hi,no,greet\n")
    assert read_tabular(path, text_column="phrase", intent_column="Goal").train == (Message("hi", "greet"),)
    path = write(tmp_path / "a.jsonl", '{"text": "no", "phrase": "hi", "goal": "greet"}\n')
    assert read_tabular(path, text_column="phrase", intent_column="goal").train == (Message("hi", "greet"),)


def test_a_quoted_field_over_lines_moves_later_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,intent\n"one\ntwo",a\nthree,\n')
    with pytest.raises(DataError) as caught:
        read_tabular(path)
    assert str(caught.value) == f"{path}:4: row without intent; allowed: an intent, or entities"


def test_entities(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"text": "to New York or LA", "intent": "go", "entities": ['
        '{"start": 15, "end": 17, "entity": "city", "value": "Los Angeles", "role": "to", "group": 1, '
        '"extractor": "DIETClassifier", "confidence_entity": 0.9},'
        '{"start": 3, "end": 11, "entity": "city", "value": "New York", "role": null}]}\n'
        '{"text": "line\u2028separator", "entities": []}\n'
        '{"text": "seven", "intent": 7, "entities": null}\n',
    )
    assert read_tabular(path).train == (
        Message("to New York or LA", "go", (Entity(3, 11, "city"), Entity(15, 17, "city", "Los Angeles", "to", "1"))),
        Message("line\u2028separator"),
        Message("seven", "7"),
    )


TEXTS, INTENTS = ", ".join(TEXT_COLUMNS), ", ".join(INTENT_COLUMNS)
UTF8 = "allowed: text in UTF-8, with or without BOM; export it as UTF-8"
HEADER = "allowed: a line such as text,intent (delimiters: , ; tab)"


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("", 1, f"no header; {HEADER}"),
        ("\n ,\n", 1, f"no header; {HEADER}"),
        ("\ntext|intent\na|b\n", 2, f"header with the one column 'text|intent'; {HEADER}"),
        (
            "a,intent\n",
            1,
            f"no text column among 'a', 'intent'; allowed: {TEXTS}, or name it with text_column (--text-column)",
        ),
        (
            "\ntext,id\n",
            2,
            f"no intent column among 'text', 'id'; allowed: {INTENTS}, or name it with intent_column (--intent-column)",
        ),
        (
            "text,intent\na,b\nyes, please,affirm\n",
            3,
            "row with 3 fields, the header has 2; allowed: as many; quote a text with delimiters",
        ),
        ("text,intent\na\n", 2, "row with 1 fields, the header has 2; allowed: as many; quote a text with delimiters"),
        ("text,intent\na,b\n ,b\n", 3, "empty text; allowed: at least one character"),
        ("text,intent\na, \n", 2, "row without intent; allowed: an intent, or entities"),
        (
            'text,intent\na,b\n"c,d\ne,f\n',
            3,
            "not a table row (unexpected end of data); allowed: quotes closed and doubled within a quoted field",
        ),
        (
            'text,intent\n"a" b,c\n',
            2,
            "not a table row (',' expected after '\"'); allowed: quotes closed and doubled within a quoted field",
        ),
    ],
)
def test_malformed_csv(tmp_path: Path, source: str, line: int, error: str) -> None:
    path = write(tmp_path / "a.csv", source)
    with pytest.raises(DataError) as caught:
        read_tabular(path)
    assert str(caught.value) == f"{path}:{line}: {error}"


OBJECT = "allowed: one JSON object a line"
SPAN = "allowed: 0 <= start < end <= 5, whole numbers, around some letters"


def near(name: str, column: str) -> str:
    allowed = f"allowed: {column}, or a name less like it (such columns are not read)"
    return f"column '{name}' is nearly '{column}'; {allowed}"


def with_entities(entities: str) -> str:
    return '{"text": "a b c", "intent": "x", "entities": ' + entities + "}"


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("{", f"not JSON (Expecting property name enclosed in double quotes); {OBJECT}"),
        ("[" * 100_000, f"not JSON (nested too deeply); {OBJECT}"),
        ('["a"]', f"row is ['a']; {OBJECT}"),
        (
            '{"said": "a"}',
            f"no text column among 'said'; allowed: {TEXTS}, or name it with text_column (--text-column)",
        ),
        (
            '{"text": "a"}',
            f"no intent column among 'text'; allowed: {INTENTS}, or name it with intent_column (--intent-column)",
        ),
        ('{"text": "a", "intent": "b", "entitites": []}', near("entitites", "entities")),
        ('{"text": "a", "intent": "b", "Entites": []}', near("Entites", "entities")),
        ('{"text": "a", "label": 7, "intetn": "b"}', near("intetn", "intent")),
        ('{"texts": "a", "intent": "b"}', near("texts", "text")),
        ('{"text": 5, "intent": "a"}', "text is 5; allowed: a string"),
        ('{"text": "\\ud83d", "intent": "a"}', "text is '\\ud83d'; allowed: a string"),
        ('{"text": " ", "intent": "a"}', "empty text; allowed: at least one character"),
        ('{"text": "a", "intent": null}', "row without intent; allowed: an intent, or entities"),
        ('{"text": "a", "intent": {"name": "b"}}', "intent is {'name': 'b'}; allowed: a string"),
        ('{"text": "a", "intent": true}', "intent is True; allowed: a string"),
        (with_entities("{}"), 'entities is {}; allowed: a list of {"start", "end", "entity"}'),
        (
            with_entities('["a"]'),
            'entity is \'a\'; allowed: {"entity": "city"}, with "value", "role" and "group" where wanted',
        ),
        (
            with_entities('[{"start": 0, "end": 1}]'),
            'annotation without an entity name; allowed: {"entity": "city"}, with "value", "role" and "group" where '
            "wanted",
        ),
        (
            with_entities('[{"start": 0, "end": 1, "entity": "city#to"}]'),
            "the entity's entity is 'city#to'; allowed: names without '#', which joins entity, role and group in tags",
        ),
        (with_entities('[{"entity": "e"}]'), f"entity span None:None; {SPAN}"),
        (with_entities('[{"start": 0, "end": 0, "entity": "e"}]'), f"entity span 0:0; {SPAN}"),
        (with_entities('[{"start": -1, "end": 1, "entity": "e"}]'), f"entity span -1:1; {SPAN}"),
        (with_entities('[{"start": 4, "end": 6, "entity": "e"}]'), f"entity span 4:6; {SPAN}"),
        (with_entities('[{"start": 3, "end": 2, "entity": "e"}]'), f"entity span 3:2; {SPAN}"),
        (with_entities('[{"start": true, "end": 2, "entity": "e"}]'), f"entity span True:2; {SPAN}"),
        (with_entities('[{"start": 0.0, "end": 2, "entity": "e"}]'), f"entity span 0.0:2; {SPAN}"),
        (with_entities('[{"start": 1, "end": 2, "entity": "e"}]'), f"entity span 1:2 is blank; {SPAN}"),
        (
            with_entities('[{"start": 0, "end": 1, "entity": "e", "typ": "f"}]'),
            "entity has the unknown key 'typ'; allowed keys: entity, value, role, group",
        ),
        (
            with_entities('[{"start": 2, "end": 5, "entity": "e"}, {"start": 0, "end": 3, "entity": "e"}]'),
            "entities 0:3 and 2:5 overlap; allowed: each character in one entity",
        ),
    ],
)
def test_malformed_jsonl(tmp_path: Path, row: str, error: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine", "intent": "x"}\n\n' + row + "\n")
    with pytest.raises(DataError) as caught:
        read_tabular(path)
    message = str(caught.value)
    # Python 3.13 words some JSON errors differently.
    assert message == f"{path}:3: {error}" or ("not JSON (E" in error and message.startswith(f"{path}:3: not JSON ("))


def test_spans_that_touch_and_fill_the_text_are_allowed(tmp_path: Path) -> None:
    row = with_entities('[{"start": 0, "end": 2, "entity": "e"}, {"start": 2, "end": 5, "entity": "e"}]')
    assert read_tabular(write(tmp_path / "a.jsonl", row)).train[0].entities == (Entity(0, 2, "e"), Entity(2, 5, "e"))


def test_column_the_caller_names_is_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,intent\na,b\n")
    with pytest.raises(DataError) as caught:
        read_tabular(path, intent_column="goal")
    allowed = f"allowed: {INTENTS}, or name it with intent_column (--intent-column)"
    assert str(caught.value) == f"{path}:1: no column 'goal' among 'text', 'intent'; {allowed}"


@pytest.mark.parametrize(("name", "source"), [("a.csv", "text,intent\n\n"), ("a.jsonl", "\n")])
def test_no_rows(tmp_path: Path, name: str, source: str) -> None:
    path = write(tmp_path / name, source)
    with pytest.raises(DataError) as caught:
        read_tabular(path)
    assert str(caught.value) == f"{path}: no messages; allowed: at least one row with a text"


@pytest.mark.parametrize(("bom", "line"), [(b"", 3), (b"\xef\xbb\xbf", 3)])
def test_bytes_that_are_not_utf8(tmp_path: Path, bom: bytes, line: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(bom + b"text,intent\nhi,greet\nol\xe1,greet\n")
    with pytest.raises(DataError) as caught:
        read_tabular(path)
    assert str(caught.value) == f"{path}:{line}: byte 0xe1 is not UTF-8; {UTF8}"


def test_utf16_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for raw in (b"\xff\xfet\0e\0x\0t\0", b"\xfe\xff\0t\0e\0x\0t"):
        path.write_bytes(raw)
        with pytest.raises(DataError) as caught:
            read_tabular(path)
        found = f"{path}:1: byte 0x{raw[0]:x} is not UTF-8 (the file looks like UTF-16); "
        assert str(caught.value) == found + UTF8


def test_the_delimiter_of_a_tsv_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text,intent\n")
    with pytest.raises(DataError, match=r"header with the one column 'text,intent'; .* \(delimiters: tab\)$"):
        read_tabular(path)


@pytest.mark.parametrize("name", ["entities", "Entities", "ENTITIES"])
def test_entities_are_found_whatever_their_case(name: str, tmp_path: Path) -> None:
    row = with_entities('[{"start": 0, "end": 1, "entity": "e"}]').replace("entities", name)
    data = read_tabular(write(tmp_path / "a.jsonl", row))
    assert (data.train, data.notes) == ((Message("a b c", "x", (Entity(0, 1, "e"),)),), ())
    bare = read_tabular(write(tmp_path / "a.jsonl", '{"text": "a", "' + name + '": []}'))
    assert bare.train == (Message("a"),)


@pytest.mark.parametrize(
    ("name", "source", "notes"),
    [
        ("a.csv", "text,intent\na,b\n\n", ()),
        ("a.csv", "id,text,lang,intent\n1,a,en,b\n", ("columns that are not read: 'id', 'lang'",)),
        # A table holds no entities; content goes before input, label_text before label.
        (
            "a.csv",
            "Entities;input;content;label;label_text\n[];no;a;0;b\n",
            ("columns that are not read: 'Entities', 'input', 'label'",),
        ),
        ("a.csv", "text,intent\n,\na,b\n\n ,\n  \n,,,\n", ("blank rows that are skipped: 3",)),
        (
            "a.tsv",
            "text\tintent\tid\na\tb\t1\n\t\t\n",
            ("columns that are not read: 'id'", "blank rows that are skipped: 1"),
        ),
        # Each row of JSON has keys of its own; one that is nearly another is no loss where that one is there.
        (
            "a.jsonl",
            '{"text": "a", "intent": "b", "lang": 1}\n'
            '{"id": 1, "text": "a", "intent": "b", "intents": [], "lang": 2}\n',
            ("columns that are not read: 'lang', 'id', 'intents'",),
        ),
        ("a.jsonl", '{"text": "a", "intent_id": 3, "label": "b"}', ("columns that are not read: 'intent_id'",)),
        ("a.json", '[{"text": "a", "intent": "b", "a\\nb": 0}]', ("columns that are not read: 'a\\nb'",)),
    ],
)
def test_what_is_not_read_is_noted(name: str, source: str, notes: tuple[str, ...], tmp_path: Path) -> None:
    data = read_tabular(write(tmp_path / name, source))
    assert data.notes == notes
    assert {(m.text, m.intent) for m in data.train} == {("a", "b")}


def test_a_column_that_the_caller_names_may_nearly_be_another(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "texts,intents\na,b\n")
    assert read_tabular(path, text_column="texts", intent_column="intents").train == (Message("a", "b"),)


def test_banking77(real_data: Path) -> None:
    train = read_tabular(real_data / "banking77" / "train.csv").train
    test = read_tabular(real_data / "banking77" / "test.csv").train
    assert (len(train), len(test), len({m.intent for m in train})) == (10_003, 3_080, 77)


def test_sara_dedup(real_data: Path) -> None:
    train = read_tabular(real_data / "sara-dedup" / "train.jsonl").train
    test = read_tabular(real_data / "sara-dedup" / "test.jsonl").train
    assert (len(train), len(test)) == (3_855, 968)
    assert sum(len(m.entities) for m in train) == 869
