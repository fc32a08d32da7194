"""Tables of messages: CSV, TSV, JSON Lines and a JSON list of rows.

    .csv    header line, then `text,intent`; the delimiter is `,`, `;` or tab, whichever splits the header most
    .tsv    the same with tabs; fields may be quoted as in CSV
    .jsonl  {"text": "...", "intent": "...", "entities": [{"start": 3, "end": 9, "entity": "city", ...}]}
    .json   one list of such objects

The columns are found by name, whatever their case; of several the first in TEXT_COLUMNS / INTENT_COLUMNS counts.
A row without intent is kept if it speaks of entities (also an empty list: "there are none here"), else refused:
nothing could be learned or measured on it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flyweight.data.json_nodes import json_value, parse_json
from flyweight.data.messages import Entity, Message
from flyweight.data.source import entity_at_span, in_text_order, is_text, listed, read_bytes, read_text, shown
from flyweight.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")  # beside .json with a list of rows
TEXT_COLUMNS = ("text", "utterance", "message", "query", "sentence", "content", "question", "example", "input")
INTENT_COLUMNS = ("intent", "intent_name", "label_text", "label_name", "category", "label", "class", "target", "tag")
_OBJECT_A_LINE = "allowed: one JSON object a line"
_JSON_LIST = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*\[")


def is_json_rows(path: Path) -> bool:
    """Whether `path` is a JSON file whose first character opens a list."""
    return path.suffix.lower() == ".json" and bool(_JSON_LIST.match(read_bytes(path)))


def read_tabular(
    path: Path, *, text_column: str | None = None, intent_column: str | None = None
) -> tuple[Message, ...]:
    """All messages of a CSV, TSV, JSONL or JSON file, in file order; raises DataError with the line at fault."""
    readers = {".jsonl": _read_jsonl, ".json": _read_json}
    messages = tuple(readers.get(path.suffix.lower(), _read_csv)(path, text_column, intent_column))
    if not messages:
        raise DataError("no messages", allowed="allowed: at least one row with a text", path=path)
    return messages


def _read_csv(path: Path, text_column: str | None, intent_column: str | None) -> Iterator[Message]:
    source = read_text(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(source)
    rows = _rows(path, source, delimiter)
    line, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    text_at = find_column(names, text_column, TEXT_COLUMNS, "text", path=path, line=line)
    intent_at = find_column(names, intent_column, INTENT_COLUMNS, "intent", path=path, line=line)
    for line, row in rows:
        if len(row) != len(header):
            found = f"row with {len(row)} fields, the header has {len(header)}"
            raise DataError(found, allowed="allowed: as many; quote a text with delimiters", path=path, line=line)
        text, intent = row[text_at].strip(), row[intent_at].strip()
        check_row(text, intent, False, path=path, line=line)
        yield Message(text, intent)


def _rows(path: Path, source: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record starts, and its fields; blank lines are left out."""
    reader = csv.reader(io.StringIO(source, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            allowed = "allowed: quotes closed and doubled within a quoted field"
            raise DataError(f"not a table row ({error})", allowed=allowed, path=path, line=line) from error
        if any(field.strip() for field in row):
            yield line, row


def _delimiter(source: str) -> str:
    """`,`, `;` or tab, whichever splits the first line that is not blank into most fields (`,` on a tie)."""
    header = next((line for line in source.splitlines() if line.strip()), "")
    return max(",;\t", key=header.count)


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


def _read_jsonl(path: Path, text_column: str | None, intent_column: str | None) -> Iterator[Message]:
    # Not splitlines(): U+2028 and its like may stand within a JSON string.
    for line, source in enumerate(read_text(path).split("\n"), 1):
        if not source.strip():
            continue
        row = json_value(source, path=path, line=line, allowed=_OBJECT_A_LINE)
        if not isinstance(row, dict):
            raise DataError(f"row is {shown(row)}", allowed=_OBJECT_A_LINE, path=path, line=line)
        yield json_message(row, text_column, intent_column, path=path, line=line)


def _read_json(path: Path, text_column: str | None, intent_column: str | None) -> Iterator[Message]:
    allowed = "allowed: a JSON list of objects"
    for node in parse_json(read_text(path), path=path, allowed=allowed).items("the file", allowed):
        row = node.value()
        if not isinstance(row, dict):
            node.fail(f"row is {shown(row)}", allowed)
        yield json_message(row, text_column, intent_column, path=path, line=node.line)


def json_message(
    row: dict[str, Any],
    text_column: str | None = None,
    intent_column: str | None = None,
    *,
    path: object,
    line: int | None,
) -> Message:
    """The message of one row with columns found by name; DataError with `path` and `line` for what is no message."""
    names = list(row)
    text = row[names[find_column(names, text_column, TEXT_COLUMNS, "text", path=path, line=line)]]
    if not is_text(text):
        raise DataError(f"text is {shown(text)}", allowed="allowed: a string", path=path, line=line)
    labelled = "entities" in row
    value: object = None
    if intent_column is not None or not labelled or any(name.lower() in INTENT_COLUMNS for name in names):
        value = row[names[find_column(names, intent_column, INTENT_COLUMNS, "intent", path=path, line=line)]]
    intent = intent_name(value, path=path, line=line)
    check_row(text, intent, labelled, path=path, line=line)
    return Message(text, intent or None, _entities(row.get("entities"), text, path, line))


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
