"""Tables of messages: CSV, TSV, JSON Lines and a JSON list of rows.

    .csv    header line, then `text,intent`; the delimiter is `,`, `;` or tab, whichever splits the header most
    .tsv    the same with tabs; fields may be quoted as in CSV
    .jsonl  {"text": "...", "intent": "...", "entities": [{"start": 3, "end": 9, "entity": "city", ...}]}
    .json   one list of such objects

The columns are found by name, whatever their case; of several the first in TEXT_COLUMNS / INTENT_COLUMNS counts. A name
that nearly is `text`, `intent` or `entities`, where that column is absent, is refused: its labels would be lost. Other
columns, and rows of blank fields, are left out and counted in the notes.
A row without intent is kept if it speaks of entities (also an empty list: "there are none here"), else refused:
nothing could be learned or measured on it.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyweight.data.json_nodes import json_value, parse_json
from flyweight.data.messages import Entity, Message, NLUData
from flyweight.data.source import (
    entity_at_span,
    entity_synonyms,
    in_text_order,
    is_text,
    listed,
    read_bytes,
    read_text,
    shown,
)
from flyweight.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")  # beside .json with a list of rows
TEXT_COLUMNS = ("text", "utterance", "message", "query", "sentence", "content", "question", "example", "input")
INTENT_COLUMNS = ("intent", "intent_name", "label_text", "label_name", "category", "label", "class", "target", "tag")
ENTITIES_COLUMN = "entities"
# difflib's ratio: a letter too many, too few or wrong in "entities" is 0.88 to 0.94, in "intent" 0.83 to 0.92;
# "intent_id" is 0.80.
NEAR = 0.82
_OBJECT_A_LINE = "allowed: one JSON object a line"
_JSON_LIST = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*\[")


def is_json_rows(path: Path) -> bool:
    """Whether `path` is a JSON file whose first character opens a list."""
    return path.suffix.lower() == ".json" and bool(_JSON_LIST.match(read_bytes(path)))


def read_tabular(path: Path, *, text_column: str | None = None, intent_column: str | None = None) -> NLUData:
    """All messages of a CSV, TSV, JSONL or JSON file in file order, in `train`, and notes on what was not read.

    Raises DataError with the line at fault.
    """
    table = _Table(path, text_column, intent_column)
    {".jsonl": table.read_jsonl, ".json": table.read_json}.get(path.suffix.lower(), table.read_csv)()
    if not table.messages:
        raise DataError("no messages", allowed="allowed: at least one row with a text", path=path)
    messages = tuple(table.messages)
    return NLUData(messages, synonyms=entity_synonyms(messages), notes=tuple(table.notes()))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the columns that are read stand in a row, and the names of the others."""

    text: int
    intent: int | None
    entities: int | None
    unread: tuple[str, ...]


class _Table:
    """Reads the rows of one file, and keeps account of what it does not read."""

    def __init__(self, path: Path, text_column: str | None, intent_column: str | None) -> None:
        self.path, self.text_column, self.intent_column = path, text_column, intent_column
        self.messages: list[Message] = []
        self.unread: dict[str, None] = {}  # names of columns, in the order in which they are met
        self.n_blank_rows = 0
        self.known: dict[tuple[str, ...], Columns] = {}  # of rows with these keys

    def notes(self) -> Iterator[str]:
        """What was left out, a line each."""
        if self.unread:
            yield f"columns that are not read: {listed(self.unread)}"
        if self.n_blank_rows:
            yield f"blank rows that are skipped: {self.n_blank_rows}"

    def columns(self, names: Sequence[str], line: int, *, entities: bool) -> Columns:
        """The columns of a row or header with these names, which are noted as unread where they are."""
        found = find_columns(names, self.text_column, self.intent_column, entities=entities, path=self.path, line=line)
        self.unread |= dict.fromkeys(found.unread)
        return found

    def read_csv(self) -> None:
        """Read a header and rows as long as it is."""
        is_tsv = self.path.suffix.lower() == ".tsv"
        source = read_text(self.path)
        rows = self.rows(source, "\t" if is_tsv else find_delimiter(source))
        line, header = next(rows, (1, []))
        if len(header) < 2:
            found = f"header with the one column {shown(header[0])}" if header else "no header"
            delimiters = "tab" if is_tsv else ", ; tab"
            allowed = f"allowed: a line such as text,intent (delimiters: {delimiters})"
            raise DataError(found, allowed=allowed, path=self.path, line=line)
        columns = self.columns([name.strip() for name in header], line, entities=False)
        assert columns.intent is not None
        for line, row in rows:
            if len(row) != len(header):
                found = f"row with {len(row)} fields, the header has {len(header)}"
                allowed = "allowed: as many; quote a text with delimiters"
                raise DataError(found, allowed=allowed, path=self.path, line=line)
            text, intent = row[columns.text].strip(), row[columns.intent].strip()
            check_row(text, intent, False, path=self.path, line=line)
            self.messages.append(Message(text, intent))

    def rows(self, source: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """The line on which each record starts, and its fields; blank lines are left out, blank rows counted too."""
        reader = csv.reader(io.StringIO(source, newline=""), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                allowed = "allowed: quotes closed and doubled within a quoted field"
                raise DataError(f"not a table row ({error})", allowed=allowed, path=self.path, line=line) from error
            if any(field.strip() for field in row):
                yield line, row
            else:
                self.n_blank_rows += len(row) > 1

    def read_jsonl(self) -> None:
        """Read an object a line."""
        # Not splitlines(): U+2028 and its like may stand within a JSON string.
        for line, source in enumerate(read_text(self.path).split("\n"), 1):
            if not source.strip():
                continue
            row = json_value(source, path=self.path, line=line, allowed=_OBJECT_A_LINE)
            if not isinstance(row, dict):
                raise DataError(f"row is {shown(row)}", allowed=_OBJECT_A_LINE, path=self.path, line=line)
            self.add(row, line)

    def read_json(self) -> None:
        """Read one list of objects."""
        allowed = "allowed: a JSON list of objects"
        for node in parse_json(read_text(self.path), path=self.path, allowed=allowed).items("the file", allowed):
            row = node.value()
            if not isinstance(row, dict):
                node.fail(f"row is {shown(row)}", allowed)
            self.add(row, node.line)

    def add(self, row: dict[str, Any], line: int) -> None:
        """Add the message of one object."""
        names = tuple(row)
        if names not in self.known:
            self.known[names] = self.columns(names, line, entities=True)
        self.messages.append(json_message(row, self.known[names], path=self.path, line=line))


def find_delimiter(source: str) -> str:
    """`,`, `;` or tab, whichever splits the first line that is not blank into most fields (`,` on a tie)."""
    header = next((line for line in source.splitlines() if line.strip()), "")
    return max(",;\t", key=header.count)


def find_columns(
    names: Sequence[str],
    text_column: str | None,
    intent_column: str | None,
    *,
    entities: bool,
    path: object,
    line: int | None,
) -> Columns:
    """The columns to read; `entities` tells whether the form can hold them. DataError for names that nearly are one.

    A column of intents may be absent where there is one of entities.
    """
    lower = [name.lower() for name in names]
    caller = {"text": text_column, "intent": intent_column, **({"entities": None} if entities else {})}
    refuse_near_misses(names, [name for name, given in caller.items() if given is None], path, line)
    text = find_column(names, text_column, TEXT_COLUMNS, "text", path=path, line=line)
    entities_at = lower.index(ENTITIES_COLUMN) if entities and ENTITIES_COLUMN in lower else None
    intent = None
    if intent_column is not None or entities_at is None or any(name in INTENT_COLUMNS for name in lower):
        intent = find_column(names, intent_column, INTENT_COLUMNS, "intent", path=path, line=line)
    unread = tuple(name for i, name in enumerate(names) if i not in (text, intent, entities_at))
    return Columns(text=text, intent=intent, entities=entities_at, unread=unread)


def refuse_near_misses(names: Sequence[str], wanted: Sequence[str], path: object, line: int | None) -> None:
    """DataError for a name that nearly is one of the `wanted`, where that one is absent, and is no known column's."""
    lower = [name.lower() for name in names]
    absent = [name for name in wanted if name not in lower]
    for name, folded in zip(names, lower, strict=True):
        if folded in (*TEXT_COLUMNS, *INTENT_COLUMNS, ENTITIES_COLUMN):
            continue
        near = difflib.get_close_matches(folded, absent, n=1, cutoff=NEAR)
        if near:
            found = f"column {shown(name)} is nearly {shown(near[0])}"
            allowed = f"allowed: {near[0]}, or a name less like it (such columns are not read)"
            raise DataError(found, allowed=allowed, path=path, line=line)


def find_column(
    names: Sequence[str], wanted: str | None, known: Sequence[str], kind: str, *, path: object, line: int | None
) -> int:
    """Index of the column `wanted` by the caller, or else of the first of the `known` names."""
    lower = [name.lower() for name in names]
    if wanted is not None and wanted in names:
        return names.index(wanted)
    for name in known if wanted is None else [wanted.lower()]:
        if name in lower:
            return lower.index(name)
    found = f"no {kind} column among {listed(names)}"
    if wanted is not None:
        found = f"no column {shown(wanted)} among {listed(names)}"
    allowed = f"allowed: {', '.join(known)}, or name it with {kind}_column (--{kind}-column)"
    raise DataError(found, allowed=allowed, path=path, line=line)


def json_message(row: dict[str, Any], columns: Columns, *, path: object, line: int | None) -> Message:
    """The message of one row; DataError with `path` and `line` for what is no message."""
    values = list(row.values())
    text = values[columns.text]
    if not is_text(text):
        raise DataError(f"text is {shown(text)}", allowed="allowed: a string", path=path, line=line)
    intent = intent_name(None if columns.intent is None else values[columns.intent], path=path, line=line)
    labelled = columns.entities is not None
    check_row(text, intent, labelled, path=path, line=line)
    items = None if columns.entities is None else values[columns.entities]
    return Message(text, intent or None, _entities(items, text, path, line))


def intent_name(value: object, *, path: object, line: int | None) -> str:
    """The intent that a JSON value names: a string, a class number, or "" for null."""
    if type(value) is int:
        value = str(value)  # a class number
    if value is not None and not is_text(value):
        raise DataError(f"intent is {shown(value)}", allowed="allowed: a string", path=path, line=line)
    return str(value or "").strip()


def check_row(text: str, intent: str, labelled: bool, *, path: object, line: int | None) -> None:
    """DataError for an empty text, and for a row without intent that is not `labelled`: it says nothing of entities."""
    if not text.strip():
        raise DataError("empty text", allowed="allowed: at least one character", path=path, line=line)
    if not (intent or labelled):
        raise DataError("row without intent", allowed="allowed: an intent, or entities", path=path, line=line)


def _entities(items: object, text: str, path: object, line: int | None) -> tuple[Entity, ...]:
    """Checked spans in text order."""
    if items is None:
        return ()
    if not isinstance(items, list):
        allowed = 'allowed: a list of {"start", "end", "entity"}'
        raise DataError(f"entities is {shown(items)}", allowed=allowed, path=path, line=line)
    return in_text_order((entity_at_span(item, text, path=path, line=line) for item in items), path=path, line=line)
