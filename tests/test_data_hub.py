"""Hub data sets: conversion of splits with the face of `datasets`, and what loading can end in.

The package itself is not needed: stand-ins have the few attributes of it that are used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from flyweight.data import Entity, Message, load_data, read_messages
from flyweight.data.hub import read_hub, read_splits
from flyweight.data.source import NO_HASH
from flyweight.errors import DataError, MissingExtraError


@dataclass
class ClassLabel:
    names: list[str]


@dataclass
class Value:
    dtype: str = "string"


@dataclass
class ListOf:
    """`Sequence` of datasets 2 and 3, `List` of later ones."""

    feature: Any


@dataclass
class Split:
    features: dict[str, Any]
    rows: list[tuple[Any, ...]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.features, row, strict=True)) for row in self.rows)


TAGS = ClassLabel(["O", "B-city", "I-city"])
GOALS = ClassLabel(["go", "stay"])
TEXTS = Split({"id": Value("int64"), "text": Value(), "label": GOALS}, [(0, "to Rome", 0), (1, "no", 1)])
TO_ROME = (Message("to Rome", "go"), Message("no", "stay"))
NEW_YORK = Message("to New York", "go", (Entity(3, 11, "city"),))


@pytest.mark.parametrize(
    ("split", "messages"),
    [
        (TEXTS, TO_ROME),
        (
            Split(
                {"Utterance": Value(), "label": Value("int64"), "intent": Value()},
                [("to Rome", 7, "go"), ("no", 8, "stay")],
            ),
            TO_ROME,
        ),
        (Split({"text": Value(), "label": Value("int64")}, [("to Rome", 7)]), (Message("to Rome", "7"),)),
        (
            Split(
                {"tokens": ListOf(Value()), "ner_tags": ListOf(TAGS), "intent": GOALS},
                [(["to", "New", "York"], [0, 1, 2], 0)],
            ),
            (NEW_YORK,),
        ),
        (
            Split({"words": [Value()], "tags": [TAGS], "intent": GOALS}, [(["to", "New", "York"], [0, 1, 2], 0)]),
            (NEW_YORK,),
        ),
        (
            Split(
                {"Tokens": ListOf(Value()), "slots": ListOf(Value()), "intent": Value()},
                [(["to", "New", "York"], ["O", "B-city", "E-city"], "go")],
            ),
            (NEW_YORK,),
        ),
        (
            Split({"text": Value(), "slots": Value(), "intent": Value()}, [("to New  York ", "O I-city I-city", "go")]),
            (NEW_YORK,),
        ),
        # Without an intent column, or where it says nothing, a row of words and tags has entities only.
        (
            Split({"tokens": ListOf(Value()), "ner_tags": ListOf(TAGS)}, [(["Rome"], [1])]),
            (Message("Rome", None, (Entity(0, 4, "city"),)),),
        ),
        (
            Split({"tokens": ListOf(Value()), "ner_tags": ListOf(TAGS), "intent": Value()}, [(["no"], [0], None)]),
            (Message("no"),),
        ),
        # `tags` without words are something else: keywords, say.
        (
            Split({"text": Value(), "tags": ListOf(Value()), "intent": Value()}, [("to Rome", ["travel"], "go")]),
            TO_ROME[:1],
        ),
        (
            Split(
                {"text": Value(), "intent": Value(), "entities": []},
                [("to NYC", "go", [{"start": 3, "end": 6, "entity": "city", "value": "New York", "role": None}])],
            ),
            (Message("to NYC", "go", (Entity(3, 6, "city", "New York"),)),),
        ),
    ],
)
def test_conversion(split: Split, messages: tuple[Message, ...]) -> None:
    assert read_splits({"train": split}, "hub:x") == {"train": messages}


def test_splits() -> None:
    parts = read_splits({"test": TEXTS, "unsupervised": Split({}, [()]), "dev": TEXTS, "train": TEXTS}, "hub:x")
    assert parts == {"train": TO_ROME, "validation": TO_ROME, "test": TO_ROME}
    assert list(read_splits({"train": TEXTS, "test": Split(TEXTS.features, [])}, "hub:x")) == ["train"]


def test_numbers_without_a_class_count_only_where_they_are_used() -> None:
    split = Split({"text": Value(), "label": GOALS, "tag": GOALS}, [("to Rome", 0, -1)])
    assert read_splits({"train": split}, "hub:x") == {"train": TO_ROME[:1]}
    with pytest.raises(DataError, match="hub:x, train, row 1: tag is -1; allowed: 0 to 1"):
        read_splits({"train": split}, "hub:x", intent_column="Tag")


def test_columns_named_by_the_caller() -> None:
    split = Split({"text": Value(), "phrase": Value(), "label": Value(), "goal": GOALS}, [("no", "to Rome", "no", 0)])
    assert read_splits({"train": split}, "hub:x", text_column="phrase", intent_column="goal") == {"train": TO_ROME[:1]}
    split = Split({"tokens": ListOf(Value()), "ner_tags": ListOf(TAGS), "goal": GOALS}, [(["no"], [0], 1)])
    assert read_splits({"train": split}, "hub:x", intent_column="goal") == {"train": (Message("no", "stay"),)}


def tagged(words: Any, tags: Any, feature: Any = TAGS) -> Split:
    return Split({"tokens": ListOf(Value()), "ner_tags": ListOf(feature)}, [(words, tags)])


BLANK = "allowed: strings that are not blank, or numbers whose names the data set gives"


@pytest.mark.parametrize(
    ("split", "error"),
    [
        (
            Split(TEXTS.features, [(0, "a", 0), (1, "b", 2)]),
            ", row 2: label is 2; allowed: 0 to 1, the classes of that column",
        ),
        (Split(TEXTS.features, [(0, "a", -1)]), ", row 1: label is -1; allowed: 0 to 1, the classes of that column"),
        (Split(TEXTS.features, [(0, "a", None)]), ", row 1: row without intent; allowed: an intent, or entities"),
        (Split(TEXTS.features, [(0, None, 0)]), ", row 1: text is None; allowed: a string"),
        (Split(TEXTS.features, [(0, " ", 0)]), ", row 1: empty text; allowed: at least one character"),
        (Split({"text": Value(), "label": Value("double")}, [("a", 0.5)]), ", row 1: intent is 0.5; allowed: a string"),
        (tagged([], []), ", row 1: empty text; allowed: at least one word"),
        (tagged(["a"], [0, 0]), ", row 1: 2 ner_tags for 1 tokens; allowed: one tag a word"),
        (tagged(["a"], [3]), ", row 1: ner_tags is 3; allowed: 0 to 2, the classes of that column"),
        (tagged(["a"], [0], Value("int64")), f", row 1: 0 among ner_tags; {BLANK}"),
        (tagged(["a", "\u00a0"], [0, 0]), f", row 1: '\\xa0' among tokens; {BLANK}"),
        (tagged(None, []), ", row 1: tokens is None; allowed: a list of strings"),
        (tagged(["a"], ["X"]), ", row 1: tag 'X'; allowed: O, B-name, I-name, also E-, L-, S-, U-"),
        (tagged(["a"], ["B-x#y"]), f", row 1: tag 'B-x#y'; {NO_HASH}"),
    ],
)
def test_malformed_rows(split: Split, error: str) -> None:
    with pytest.raises(DataError) as caught:
        read_splits({"train": split}, "hub:x")
    assert str(caught.value) == "hub:x, train" + error


def test_absent_columns_and_splits() -> None:
    split = Split({"title": Value(), "label": GOALS}, [("a", 0)])
    with pytest.raises(DataError, match="hub:x, train, row 1: no text column among 'title', 'label'; allowed: text, "):
        read_splits({"train": split}, "hub:x")
    with pytest.raises(DataError) as caught:
        read_splits({"default": TEXTS}, "hub:x")
    allowed = "allowed: train, validation, valid, val, dev, test"
    assert str(caught.value) == f"hub:x: no messages in the splits 'default'; {allowed}"
    with pytest.raises(DataError) as caught:
        read_splits({"train": TEXTS, "val": TEXTS, "dev": TEXTS}, "hub:x")
    assert str(caught.value) == "hub:x: the splits 'train', 'val', 'dev'; allowed: one validation split"


# loading ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a stand-in for the package was asked; "owner/lost" cannot be loaded."""
    calls: list[Any] = []

    def load_dataset(path: str, name: str | None = None, **options: Any) -> dict[str, Split]:
        calls.append((path, name, options))
        if path == "owner/lost":
            raise ConnectionError("Couldn't reach\nthe Hub")
        return {"train": Split(TEXTS.features, [(i, f"m{i}", i % 2) for i in range(20)]), "test": TEXTS}

    package = ModuleType("datasets")
    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)
    return calls


@pytest.mark.parametrize(
    ("name", "path", "config"),
    [
        ("hub:banking77", "banking77", None),
        ("hub:owner/name", "owner/name", None),
        ("hub:Owner-1/a.b_c:en-US", "Owner-1/a.b_c", "en-US"),
    ],
)
def test_loading(asked: list[Any], name: str, path: str, config: str | None) -> None:
    data = load_data(name)
    assert asked == [(path, config, {"trust_remote_code": False})]
    assert (len(data.train), len(data.validation), data.test) == (18, 2, TO_ROME)
    assert (data.source, data.split) == (name, {"validation": 0.1, "seed": 0})
    assert read_messages(name)[-2:] == TO_ROME


def test_what_cannot_be_loaded(asked: list[Any]) -> None:
    with pytest.raises(DataError) as caught:
        load_data("hub:owner/lost")
    assert str(caught.value) == (
        'hub:owner/lost: cannot be loaded ("ConnectionError: Couldn\'t reach the Hub"); '
        "allowed: the name of a public data set in a data format, and a connection or a copy in the cache"
    )


@pytest.mark.parametrize(
    "name", ["", "a b", "../etc", "/etc", "a/b/c", "a/", "a:", "a:b:c", "a\n", ".hidden", "x/..", "ä"]
)
def test_names_that_are_none(asked: list[Any], name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(f"hub:{name}")
    allowed = "allowed: hub:name, hub:owner/name, hub:owner/name:config"
    shown = ascii("hub:" + name) if name == "a\n" else f"'hub:{name}'"
    assert str(caught.value) == f"the name {shown}; {allowed}"
    assert asked == []


def test_a_file_of_that_name_goes_first(asked: list[Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub:x").mkdir()
    (tmp_path / "hub:x" / "train.csv").write_text("text,intent\nto Rome,go\nno,stay\n")
    assert read_messages("hub:x") == TO_ROME
    assert asked == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError) as caught:
        read_hub("hub:banking77")
    assert str(caught.value) == (
        "reading a data set of the Hub needs the package 'datasets'; install it with: pip install 'flyweight[hub]'"
    )
