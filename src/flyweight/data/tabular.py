"""Tables of messages: CSV, TSV and JSON Lines.

    .csv    header line, then `text,intent`; the delimiter is `,`, `;` or tab, whichever splits the header most
    .tsv    the same with tabs; fields may be quoted as in CSV
    .jsonl  {"text": "...", "intent": "...", "entities": [{"start": 3, "end": 9, "entity": "city", ...}]}

The columns are found by name, whatever their case; of several the first in TEXT_COLUMNS / INTENT_COLUMNS counts.
A row without intent is kept if it speaks of entities (also an empty list: "there are none here"), else refused:
nothing could be learned or measured on it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from flyweight.data.messages import Entity, Message
from flyweight.data.source import entity_attributes, is_text, listed, make_entity, read_text, shown
from flyweight.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")
TEXT_COLUMNS = ("text", "utterance", "message", "query", "sentence", "content", "question", "example", "input")
INTENT_COLUMNS = ("intent", "intent_name", "label_text", "label_name", "category", "label", "class", "target", "tag")
# What Rasa's parse results say beside the span itself.
IGNORED_ENTITY_KEYS = (
    *("extractor", "confidence", "confidence_entity", "confidence_role", "confidence_group"),
    *("processors", "additional_info"),
)


def read_tabular(
    path: Path, *, text_column: str | None = None, intent_column: str | None = None
) -> tuple[Message, ...]:
    """All messages of a CSV, TSV or JSONL file, in file order; raises DataError with the line at fault."""
    if path.suffix.lower() == ".jsonl":
        messages = tuple(_read_jsonl(path, text_column, intent_column))
    else:
        messages = tuple(_read_csv(path, text_column, intent_column))
    if not messages:
        raise DataError("no messages", allowed="allowed: at least one row with a text", path=path)
    return messages


def _read_csv(path: Path, text_column: str | None, intent_column: str | None) -> Iterator[Message]:
    source = read_text(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(source)
    rows = _rows(path, source, delimiter)
    line, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    text_at = _column(names, text_column, TEXT_COLUMNS, "text", path, line)
    intent_at = _column(names, intent_column, INTENT_COLUMNS, "intent", path, line)
    for line, row in rows:
        if len(row) != len(header):
            found = f"row with {len(row)} fields, the header has {len(header)}"
            raise DataError(found, allowed="allowed: as many; quote a text with delimiters", path=path, line=line)
        text, intent = row[text_at].strip(), row[intent_at].strip()
        _check_row(text, intent, False, path, line)
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


def _column(names: Sequence[str], wanted: str | None, known: Sequence[str], kind: str, path: Path, line: int) -> int:
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
        try:
            row = json.loads(source)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            allowed = "allowed: one JSON object a line"
            raise DataError(f"not JSON ({reason})", allowed=allowed, path=path, line=line) from error
        if not isinstance(row, dict):
            raise DataError(f"row is {shown(row)}", allowed="allowed: one JSON object a line", path=path, line=line)
        yield _json_message(row, text_column, intent_column, path, line)


def _json_message(
    row: dict[str, Any], text_column: str | None, intent_column: str | None, path: Path, line: int
) -> Message:
    names = list(row)
    text = row[names[_column(names, text_column, TEXT_COLUMNS, "text", path, line)]]
    if not is_text(text):
        raise DataError(f"text is {shown(text)}", allowed="allowed: a string", path=path, line=line)
    labelled = "entities" in row
    value: object = None
    if intent_column is not None or not labelled or any(name.lower() in INTENT_COLUMNS for name in names):
        value = row[names[_column(names, intent_column, INTENT_COLUMNS, "intent", path, line)]]
    if type(value) is int:
        value = str(value)  # a class number
    if value is not None and not is_text(value):
        raise DataError(f"intent is {shown(value)}", allowed="allowed: a string", path=path, line=line)
    intent = str(value or "").strip()
    _check_row(text, intent, labelled, path, line)
    return Message(text, intent or None, _entities(row.get("entities"), text, path, line))


def _check_row(text: str, intent: str, labelled: bool, path: Path, line: int) -> None:
    if not text.strip():
        raise DataError("empty text", allowed="allowed: at least one character", path=path, line=line)
    if not (intent or labelled):
        raise DataError("row without intent", allowed="allowed: an intent, or entities", path=path, line=line)


def _entities(items: object, text: str, path: Path, line: int) -> tuple[Entity, ...]:
    """Checked spans in text order."""
    if items is None:
        return ()
    if not isinstance(items, list):
        allowed = 'allowed: a list of {"start", "end", "entity"}'
        raise DataError(f"entities is {shown(items)}", allowed=allowed, path=path, line=line)
    entities = sorted((_entity(item, text, path, line) for item in items), key=lambda e: (e.start, e.end))
    for left, right in pairwise(entities):
        if left.end > right.start:
            found = f"entities {left.start}:{left.end} and {right.start}:{right.end} overlap"
            raise DataError(found, allowed="allowed: each character in one entity", path=path, line=line)
    return tuple(entities)


def _entity(item: object, text: str, path: Path, line: int) -> Entity:
    def fail(found: str) -> NoReturn:
        allowed = f"allowed: 0 <= start < end <= {len(text)}, whole numbers, around some letters"
        raise DataError(found, allowed=allowed, path=path, line=line)

    fields = dict(item) if isinstance(item, dict) else {}
    start, end = fields.pop("start", None), fields.pop("end", None)
    named = {key: value for key, value in fields.items() if key not in IGNORED_ENTITY_KEYS}
    attributes = entity_attributes(named if isinstance(item, dict) else item, path=path, line=line)
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        fail(f"entity span {shown(start)}:{shown(end)}")
    if not text[start:end].strip():
        fail(f"entity span {start}:{end} is blank")
    return make_entity(text, start, end, attributes)
