"""Data sets of the Hugging Face Hub by name, read with the package `datasets` (the extra `hub`).

    hub:banking77      hub:owner/name      hub:owner/name:config

Columns are found by name, as in a table (flyweight.data.tabular); a ClassLabel's numbers become its names. Words and
tags in columns of their own (`tokens` with `ner_tags`, `tags` or `slots`) are read as BIO. The splits train, validation
and test are the source's own; others are left out. No data set's own code is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from flyweight.data.bio import check_tag, message_of_words
from flyweight.data.messages import Message
from flyweight.data.source import is_text, listed, shown
from flyweight.data.tabular import INTENT_COLUMNS, TEXT_COLUMNS, find_column, find_columns, intent_name, json_message
from flyweight.errors import DataError, MissingExtraError

PREFIX = "hub:"
SPLITS = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "slots")
_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*(:[\w.+-]+)?", re.ASCII)


class Split(Protocol):
    """What is used of a `datasets.Dataset`."""

    features: Mapping[str, Any]

    def __iter__(self) -> Any:
        """The rows, as dictionaries."""


def read_hub(
    name: str, *, text_column: str | None = None, intent_column: str | None = None
) -> dict[str, tuple[Message, ...]]:
    """The messages of each part of the data set `name` ("hub:owner/name:config"), empty ones left out.

    Raises MissingExtraError without the package `datasets`, DataError for a data set that cannot be loaded or read.
    """
    if not _NAME.fullmatch(name.removeprefix(PREFIX)):
        raise DataError(f"the name {shown(name)}", allowed="allowed: hub:name, hub:owner/name, hub:owner/name:config")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", "reading a data set of the Hub") from error
    path, _, config = name.removeprefix(PREFIX).partition(":")
    try:
        splits = datasets.load_dataset(path, config or None, trust_remote_code=False)
    except Exception as error:  # the package's own, the network's, the file system's: they have no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        allowed = "allowed: the name of a public data set in a data format, and a connection or a copy in the cache"
        raise DataError(f"cannot be loaded ({shown(reason, limit=200)})", allowed=allowed, path=name) from error
    return read_splits(splits, name, text_column=text_column, intent_column=intent_column)


def read_splits(
    splits: Mapping[str, Split], name: str, *, text_column: str | None = None, intent_column: str | None = None
) -> dict[str, tuple[Message, ...]]:
    """The messages of each part; `splits` is a `datasets.DatasetDict`, or what behaves like one."""
    found = {part: split for part, split in splits.items() if part.lower() in SPLITS}
    parts: dict[str, tuple[Message, ...]] = {}
    for part, split in found.items():
        if SPLITS[part.lower()] in parts:
            raise DataError(f"the splits {listed(found)}", allowed="allowed: one validation split", path=name)
        messages = tuple(_messages(split, f"{name}, {part}", text_column, intent_column))
        if messages:
            parts[SPLITS[part.lower()]] = messages
    if not parts:
        raise DataError(
            f"no messages in the splits {listed(splits)}", allowed=f"allowed: {', '.join(SPLITS)}", path=name
        )
    return parts


def _messages(split: Split, where: str, text_column: str | None, intent_column: str | None) -> Iterator[Message]:
    names = list(split.features)
    tag_column = _first(names, TAG_COLUMNS)
    word_column = _first(names, WORD_COLUMNS)
    if word_column is None and tag_column == "slots":  # a string of tags beside the text
        word_column = names[find_column(names, text_column, TEXT_COLUMNS, "text", path=where, line=None)]
    asked_for = INTENT_COLUMNS if intent_column is None else (intent_column.lower(),)
    found = {column: _classes(split.features[column]) for column in (tag_column, _first(names, asked_for)) if column}
    classes = {column: known for column, known in found.items() if known}
    columns = None  # those of a table are found at its first row: a split without rows may lack them
    for number, raw in enumerate(split, 1):
        place = f"{where}, row {number}"
        row = {c: _named(v, classes[c], c, place) if c in classes else v for c, v in raw.items()}
        if word_column is None or tag_column is None:
            columns = columns or find_columns(names, text_column, intent_column, entities=True, path=place, line=None)
            yield json_message(row, columns, path=place, line=None)
        else:
            yield _tagged(row, word_column, tag_column, intent_column, place)


def _tagged(row: dict[str, Any], word_column: str, tag_column: str, intent_column: str | None, place: str) -> Message:
    """The message of a row with words and tags."""
    words, tags = (_strings(row[column], column, place) for column in (word_column, tag_column))
    if not words:
        raise DataError("empty text", allowed="allowed: at least one word", path=place)
    if len(words) != len(tags):
        found = f"{len(tags)} {tag_column} for {len(words)} {word_column}"
        raise DataError(found, allowed="allowed: one tag a word", path=place)
    for tag in tags:
        check_tag(tag, path=place, line=None)
    names, intent = list(row), ""
    if intent_column is not None or _first(names, INTENT_COLUMNS):
        column = names[find_column(names, intent_column, INTENT_COLUMNS, "intent", path=place, line=None)]
        intent = intent_name(row[column], path=place, line=None)
    return message_of_words(words, tags, intent or None)


def _first(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The name of the first of the `known` columns that is there, whatever its case."""
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)


def _classes(feature: Any) -> Sequence[str] | None:
    """The class names of a ClassLabel, or of a list of them (`Sequence`, `List`, or a Python list of one feature)."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _named(value: Any, classes: Sequence[str], column: str, place: str) -> Any:
    """The class names of a number or of a list of them; what is no number stays."""
    if isinstance(value, list):
        return [_named(element, classes, column, place) for element in value]
    if type(value) is not int:
        return value
    if not 0 <= value < len(classes):
        found = f"{column} is {value}"
        raise DataError(found, allowed=f"allowed: 0 to {len(classes) - 1}, the classes of that column", path=place)
    return classes[value]


def _strings(value: Any, column: str, place: str) -> list[str]:
    """The strings of a list, or those that blanks separate in one string; none of them is blank."""
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, list):
        raise DataError(f"{column} is {shown(value)}", allowed="allowed: a list of strings", path=place)
    for item in items:
        if not is_text(item) or not item.strip():
            allowed = "allowed: strings that are not blank, or numbers whose names the data set gives"
            raise DataError(f"{shown(item)} among {column}", allowed=allowed, path=place)
    return items
