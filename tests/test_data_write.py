"""Writers: golden files, reading back equal (random and real data), and everything a form cannot hold."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flyweight.data import Entity, Message, NLUData, load_data, read_messages, split
from flyweight.data import write as write_module
from flyweight.data.write import write_data, write_file, write_parts
from flyweight.errors import DataError


def same(a: NLUData, b: NLUData) -> bool:
    """Equal in all that a file can say."""
    return all(
        getattr(a, name) == getattr(b, name)
        for name in ("train", "validation", "test", "synonyms", "lookups", "regexes")
    )


def read(path: Path) -> NLUData:
    return load_data(path, test=0, validation=0)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


GREET = Message("hello", "greet")
CITY = Message(
    "from LA to  Oslo ",
    "book/flight",
    (Entity(5, 7, "city", "Los Angeles", "from"), Entity(12, 16, "city", group="1")),
)
GOLDEN = NLUData(
    (
        GREET,
        Message("- 'hi' \"there\" [x] (y): #1", "greet"),
        Message('two\nlines\u2028\t\\ "x"', "greet"),
        Message("hey \U0001f44b\U0001f3fd", "greet"),
        Message("NYC", "no", (Entity(0, 3, "city", "New York"),)),
        Message("hello", "greet"),
    ),
    synonyms={"nyc": "New York", "big apple": "New York", "x": "yes"},
    lookups={"city": ["Oslo", "[not](an annotation)"]},
    regexes={"zip": ["[0-9]{5}", "a\nb"]},
)
GOLDEN_YAML = r"""version: "3.1"

nlu:
- intent: greet
  examples: |
    - hello
    - - 'hi' "there" [x] (y): #1
- intent: greet
  examples:
  - text: "two\nlines\U00002028\t\\ \"x\""
- intent: greet
  examples: |
    - hey 👋🏽
- intent: "no"
  examples: |
    - [NYC]{"entity": "city", "value": "New York"}
- intent: greet
  examples: |
    - hello
- synonym: New York
  examples: |
    - big apple
- synonym: "yes"
  examples: |
    - x
- lookup: city
  examples: |
    - Oslo
    - [not](an annotation)
- regex: zip
  examples: |
    - [0-9]{5}
- regex: zip
  examples:
  - text: "a\nb"
""".replace("synonym: New York\n", 'synonym: "New York"\n')


def test_golden_yaml(tmp_path: Path) -> None:
    path = write_file(GOLDEN, tmp_path / "nlu.yml")
    assert path.read_text(encoding="utf-8") == GOLDEN_YAML
    assert same(read(path), GOLDEN)


def test_golden_jsonl(tmp_path: Path) -> None:
    data = NLUData((Message(" a\u2028b\n ", None, (Entity(1, 4, "x", None, "r", "g"),)), GREET))
    path = write_file(data, tmp_path / "deep" / "nlu.JSONL")
    assert path.read_bytes().decode() == (
        '{"text": " a\u2028b\\n ", "intent": null, '
        '"entities": [{"start": 1, "end": 4, "entity": "x", "role": "r", "group": "g"}]}\n'
        '{"text": "hello", "intent": "greet", "entities": []}\n'
    )
    assert same(read(path), data)


@pytest.mark.parametrize("loader", ["C", "Python"])
@pytest.mark.parametrize(
    "text",
    [
        "- a", "-", "# a", "a: b", "'a'", '"a"', "a\\", "\\n", "|", "> a", "{a}", "[a]", "[a] (b)", "]( [", "a\tb",
        "\u200b", "\ufeff", "\ufeffa", "\x00", "a\x7f", "\x85a\x85b", "a\r\nb", "a\rb", "a\n\n\nb", "a\n- b", "\ue000",
        "\u2028\u2029x", "a\u2028b", "\ufffe\uffff", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0010ffff", "no",
        "~", "%YAML", "---", "...", "&a *b !c", "a" * 5000, "日本 東京",
    ],
)  # fmt: skip
def test_texts_read_back_equal(text: str, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "Python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    name = text.strip()
    entities = (Entity(0, 1, "e", f"{name}!"),)
    data = NLUData(
        (Message(name, name), Message(f"x {name} y", "i", entities)), synonyms={"x": name}, lookups={name: [name]}
    )
    assert same(read(write_file(data, tmp_path / "nlu.yml")), data)


def test_blanks_at_the_ends_go_into_a_span(tmp_path: Path) -> None:
    data = NLUData((Message("\n a  b ", "i", (Entity(2, 3, "x"), Entity(5, 6, "y"))),))
    path = write_file(data, tmp_path / "nlu.yml")
    assert '- text: "[\\n a](x)  [b ](y)"\n' in path.read_text(encoding="utf-8")
    assert same(read(path), data)


# random data ----------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *"aZ09 -:#'\"\\\n\r\t[](){}|&*é日\u2028\x85\ufeff\x00\u0130\u200d\U0001f468",
        "](",
        "- ",
        "[x](y)",
        '{"entity": "x"}',
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=12).map("".join)
FREE_NAMES = TEXTS.map(str.strip).filter(bool)
NAMES = FREE_NAMES.map(lambda name: name.replace("#", "+"))


@st.composite
def messages(draw: st.DrawFn, intents: st.SearchStrategy[str | None]) -> Message:
    """Any message that a reader can make."""
    text = draw(TEXTS.filter(str.strip))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    entities = []
    for start, end in list(pairwise(cuts))[:: draw(st.sampled_from([1, 2]))]:
        if text[start:end].strip():
            value, role, group = draw(st.none() | FREE_NAMES), draw(st.none() | NAMES), draw(st.none() | NAMES)
            value = None if value == text[start:end] else value
            entities.append(Entity(start, end, draw(NAMES), value, role, group))
    return Message(text, draw(intents), tuple(entities))


LISTS = st.dictionaries(FREE_NAMES, st.lists(FREE_NAMES, min_size=1, max_size=3), max_size=2)


@given(
    st.lists(messages(FREE_NAMES), min_size=1, max_size=3),
    st.dictionaries(FREE_NAMES.map(str.lower), FREE_NAMES),
    LISTS,
    LISTS,
)
@settings(max_examples=400)
def test_yaml_reads_back_equal_or_refuses(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[Message],
    synonyms: dict[str, str],
    lookups: dict[str, list[str]],
    regexes: dict[str, list[str]],
) -> None:
    folder = tmp_path_factory.mktemp("w")
    implied = {m.text[e.start : e.end].strip().lower(): e.value for m in found for e in m.entities if e.value}
    data = NLUData(tuple(found), synonyms=implied | synonyms, lookups=lookups, regexes=regexes)
    refusal = ""
    try:
        write_file(data, folder / "nlu.yml")
    except DataError as error:
        refusal = str(error)
    if refusal:
        assert names(folder) == []
        assert "\n" not in refusal
        assert re.search("has (a span with blanks|blanks at its ends|brackets that would be)", refusal)
    else:
        assert same(read(folder / "nlu.yml"), data)


@given(st.lists(messages(st.none() | FREE_NAMES), min_size=1, max_size=4))
@settings(max_examples=200)
def test_jsonl_holds_every_message(tmp_path_factory: pytest.TempPathFactory, found: list[Message]) -> None:
    path = write_file(NLUData(tuple(found)), tmp_path_factory.mktemp("w") / "nlu.jsonl")
    assert read(path).train == tuple(found)


SOURCE = st.sampled_from(
    [
        *"ab []{}()\n:",
        "[a](x)",
        "[ b ](x:y)",
        '{"entity": "x"}',
        '[c]{"entity": "x", "value": "v)"}',
        '[d][{"entity": "x"}]',
        "](",
    ]
)


@given(st.lists(st.lists(SOURCE, max_size=8).map("".join), min_size=1, max_size=3))
@settings(max_examples=400)
def test_whatever_the_yaml_reader_makes_can_be_written(
    tmp_path_factory: pytest.TempPathFactory, examples: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("w")
    items = "".join(f"  - text: {json.dumps(example)}\n" for example in examples)
    (folder / "nlu.yml").write_text(f"nlu:\n- intent: a\n  examples:\n{items}")
    try:
        data = read(folder / "nlu.yml")
    except DataError:
        assume(False)
    assert same(read(write_file(data, folder / "again.yml")), data)


def test_embedded_data_read_back_equal(tmp_path: Path) -> None:
    data = read(Path("assistant"))
    assert same(read(write_parts(data, tmp_path / "parts")), data)
    assert read_messages(write_file(data, tmp_path / "all.yml")) == data.messages


@pytest.mark.parametrize("form", ["yaml", "jsonl"])
@pytest.mark.parametrize("name", ["atis", "banking77", "sara", "sara-dedup", "sara-2019", "sara-2019-dedup", "snips"])
def test_real_data_read_back_equal(name: str, form: write_module.Form, real_data: Path, tmp_path: Path) -> None:
    data = read(real_data / name)
    if form == "jsonl" and (data.lookups or name == "sara-2019"):
        with pytest.raises(DataError, match="JSON Lines cannot hold it"):
            write_parts(data, tmp_path / name, form=form)
        assert names(tmp_path) == []
        data = replace(data, synonyms={}, lookups={}, regexes={})
        assert read(write_parts(data, tmp_path / name, form=form)).messages == data.messages
        return
    assert same(read(write_parts(data, tmp_path / name, form=form)), data)


# refusals -------------------------------------------------------------------------------------------------------------

USE_JSONL = "allowed there: write JSON Lines (.jsonl, --form jsonl), which holds it"
USE_YAML = "allowed there: write Rasa YAML (.yml, --form yaml), which holds it"
OR_BARE = f"{USE_YAML}, or the messages alone (--messages-only)"


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (Message("hi"), "no intent"),
        (Message(" hi", "i"), "blanks at its ends"),
        (Message("hi\u2003", "i"), "blanks at its ends"),
        (Message("[a](b)", "i"), "brackets that would be read as an annotation"),
        (Message("[a]{", "i"), "brackets that would be read as an annotation"),
        (Message("x [a][ {b}] y", "i"), "brackets that would be read as an annotation"),
        (Message("see [1]", "i", (Entity(4, 7, "ref"),)), "brackets that would be read as an annotation"),
        (Message("[a]{x", "i", (Entity(3, 5, "e"),)), "brackets that would be read as an annotation"),
        (Message("to Rome", "i", (Entity(2, 7, "city"),)), "a span with blanks at its edge"),
    ],
)
def test_what_yaml_cannot_hold(message: Message, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "nlu.yml"
    data = NLUData((GREET, message, message, message))
    with pytest.raises(DataError) as caught:
        write_file(data, path)
    told = f"the message {message.text!a} has {fault}; Rasa YAML cannot hold it (2 more messages are refused)"
    assert str(caught.value) == f"{path}: {told}; {USE_JSONL}"
    assert names(tmp_path) == []
    assert same(read(write_file(data, tmp_path / "nlu.jsonl")), data)


@pytest.mark.parametrize("suffix", [".yml", ".jsonl"])
@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (Message(" \n", "i"), "no letters, or half a surrogate pair"),
        (Message("a\ud83d", "i"), "no letters, or half a surrogate pair"),
        (Message("a", ""), "the intent ''"),
        (Message("a", "i "), "the intent 'i '"),
        (Message("abc", "i", (Entity(2, 4, "e"),)), "the span 2:4, blank or outside of its text"),
        (Message("abc", "i", (Entity(-1, 2, "e"),)), "the span -1:2, blank or outside of its text"),
        (Message("abc", "i", (Entity(2, 2, "e"),)), "the span 2:2, blank or outside of its text"),
        (Message("a  c", "i", (Entity(1, 3, "e"),)), "the span 1:3, blank or outside of its text"),
        (Message("abc", "i", (Entity(0, 2, "e"), Entity(1, 3, "e"))), "spans that overlap or are out of order"),
        (Message("abc", "i", (Entity(2, 3, "e"), Entity(0, 1, "e"))), "spans that overlap or are out of order"),
        (Message("abc", "i", (Entity(0, 3, "e#f"),)), "the entity 'e#f'"),
        (Message("abc", "i", (Entity(0, 3, " e"),)), "the entity ' e'"),
        (Message("abc", "i", (Entity(0, 3, "e", role="#"),)), "the role '#'"),
        (Message("abc", "i", (Entity(0, 3, "e", group=""),)), "the group ''"),
        (Message("abc", "i", (Entity(0, 3, "e", "v "),)), "the value 'v '"),
        (Message("abc", "i", (Entity(0, 3, "e", "abc"),)), "a value that is its text, 'abc'"),
    ],
)
def test_what_no_reader_makes(message: Message, fault: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"nlu{suffix}"
    with pytest.raises(DataError) as caught:
        write_file(NLUData((GREET, message)), path)
    allowed = (
        "allowed: a text with letters, an intent's name or None, spans in text order without overlap, names and values "
        "without blanks at their ends, names without '#', a value that differs from its text"
    )
    assert str(caught.value) == f"{path}: the message {message.text!a} has {fault}; no reader makes that; {allowed}"
    assert names(tmp_path) == []


NEW_YORK = Message("nyc", "i", (Entity(0, 3, "city", "New York"),))


@pytest.mark.parametrize(
    ("data", "suffix", "told"),
    [
        (NLUData((GREET,), lookups={"a": ["b"]}), ".jsonl", f"the lookup 'a'; JSON Lines cannot hold it; {OR_BARE}"),
        (NLUData((GREET,), regexes={"a": ["b"]}), ".jsonl", f"the regex 'a'; JSON Lines cannot hold it; {OR_BARE}"),
        (
            NLUData((GREET, NEW_YORK), synonyms={"nyc": "New York", "ny": "New York"}),
            ".jsonl",
            f"the synonym 'ny: New York', which no entity has; JSON Lines cannot hold it; {OR_BARE}",
        ),
        (
            NLUData((NEW_YORK,), synonyms={"nyc": "City"}),
            ".jsonl",
            f"the synonym 'nyc: City', which no entity has; JSON Lines cannot hold it; {OR_BARE}",
        ),
        (NLUData((GREET,), synonyms={"NYC": "New York"}), ".yml", "the synonym 'New York' with the example 'NYC'; "),
        (NLUData((GREET,), synonyms={"nyc": "York "}), ".yml", "the synonym 'York ' with the example 'nyc'; "),
        (NLUData((GREET,), lookups={"a": ["b", ""]}), ".yml", "the lookup 'a' with the example ''; "),
        (NLUData((GREET,), lookups={"a": []}), ".yml", "the lookup 'a' with the example ''; "),
        (NLUData((GREET,), regexes={"": ["b"]}), ".yml", "the regex '' with the example 'b'; "),
        (NLUData((GREET,), regexes={"a": [" b"]}), ".yml", "the regex 'a' with the example ' b'; "),
        (NLUData((), test=()), ".yml", "no training messages; allowed: at least one"),
    ],
)
def test_what_stands_beside_the_messages(data: NLUData, suffix: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / f"nlu{suffix}"
    with pytest.raises(DataError) as caught:
        write_file(data, path)
    assert str(caught.value).startswith(f"{path}: {told}")
    assert names(tmp_path) == []


def test_synonyms_that_entities_imply_need_no_item(tmp_path: Path) -> None:
    data = NLUData((NEW_YORK,), test=(Message("la", "i", (Entity(0, 2, "city", "Los Angeles"),)),))
    data = replace(data, synonyms={"nyc": "New York", "la": "Los Angeles"})
    jsonl = read(write_parts(data, tmp_path / "jsonl", form="jsonl"))
    assert jsonl.messages == data.messages
    assert jsonl.synonyms == {"nyc": "New York"}  # of a test part nothing is learned; its file still says the value
    folder = write_parts(data, tmp_path / "yaml")
    assert 'synonym: "Los Angeles"\n  examples: |\n    - la\n' in (folder / "train.yml").read_text()
    assert "synonym" not in (folder / "test.yml").read_text()
    assert same(read(folder), data)


# places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["yaml", "jsonl"])
def test_parts(form: write_module.Form, tiny_data: NLUData, tmp_path: Path) -> None:
    data = replace(tiny_data, synonyms={})
    folder = write_parts(data, tmp_path / "deep" / "parts", form=form)
    suffix = {"yaml": ".yml", "jsonl": ".jsonl"}[form]
    assert names(folder) == [f"test{suffix}", f"train{suffix}", f"validation{suffix}"]
    assert same(load_data(folder), data)


def test_a_part_without_messages_has_no_file(tmp_path: Path) -> None:
    train = tuple(Message(f"text {i}", "i") for i in range(10))
    folder = write_parts(NLUData(train), tmp_path / "parts")
    assert names(folder) == ["train.yml"]
    assert read(folder).messages == train
    assert load_data(folder).train == split(split(train, 0.2, 0)[0], 0.1, 0)[0]


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    one, two = NLUData((GREET,)), NLUData((CITY,), test=(GREET,))
    path, folder = write_file(one, tmp_path / "nlu.yml"), write_parts(one, tmp_path / "parts", form="jsonl")
    for target in (path, folder):
        with pytest.raises(DataError) as caught:
            write_data(two, target)
        what = (
            "already exists; choose another file"
            if target == path
            else "already holds 'train.jsonl'; choose another folder"
        )
        assert str(caught.value) == f"{target}: {what}, or add --overwrite"
        assert read(target).train == one.train
        write_data(replace(two, train=(NEW_YORK,)), target, overwrite=True)
    assert read(path).train == (NEW_YORK, GREET)
    assert names(folder) == ["test.yml", "train.yml"]  # parts of another form would be read beside the new ones
    assert names(tmp_path) == ["nlu.yml", "parts"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train.yml").mkdir()
    with pytest.raises(DataError) as caught:
        write_parts(NLUData((GREET,)), tmp_path, overwrite=True)
    allowed = "allowed: a folder with nothing but files of train, validation, test, which are replaced"
    assert str(caught.value) == f"{tmp_path}: holds 'notes.txt', 'train.yml'; {allowed}"
    assert names(tmp_path) == ["notes.txt", "train.yml"]


@pytest.mark.parametrize("name", ["nlu.yml", "parts"])
def test_written_whole_or_not_at_all(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not read back equal never replaces what is there, and leaves nothing behind."""
    old = write_data(NLUData((GREET,)), tmp_path / name)
    monkeypatch.setattr(write_module, "_annotated", lambda message: message.text.upper())
    monkeypatch.setattr(write_module, "_yaml_fault", lambda message, example: None)
    with pytest.raises(DataError, match="what was to be written does not read back equal; report it; allowed there: "):
        write_data(NLUData((NEW_YORK,)), old, overwrite=True)
    assert read(old).train == (GREET,)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "form", "told"),
    [
        ("nlu.csv", None, "a file of the form '.csv' cannot be written; allowed: .yml, .yaml, .jsonl"),
        ("nlu.yml", "jsonl", "the form jsonl; allowed: a file .jsonl, or a folder"),
        ("nlu.jsonl", "yaml", "the form yaml; allowed: a file .yml, or a folder"),
        ("file", None, "is a file; allowed: a folder"),
    ],
)
def test_wrong_targets(name: str, form: write_module.Form | None, told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        write_data(NLUData((GREET,)), tmp_path / name, form=form)
    assert str(caught.value) == f"{tmp_path / name}: {told}"
    assert names(tmp_path) == ["file"]


def test_a_folder_may_have_a_dot_and_a_file_may_not_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "v1.yml").mkdir()
    with pytest.raises(DataError, match=r"v1\.yml: is a folder; allowed: a file"):
        write_file(NLUData((GREET,)), tmp_path / "v1.yml")
    assert write_data(NLUData((GREET,)), tmp_path / "v1.yml") == tmp_path / "v1.yml"
    assert names(tmp_path / "v1.yml") == ["train.yml"]
