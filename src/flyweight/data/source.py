"""What every reader needs of a source file: its text, and checked entities.

read_text(path)                 UTF-8 text (a BOM is dropped), or one DataError with the line of the bad byte
text_lines(text)                its lines, however they end
entity_attributes(item, ...)    entity, value, role, group out of a JSON object, as strings
entity_at_span(item, ...)       an entity out of a JSON object that says start and end too
entity_synonyms(messages)       written form in lower case -> value, of the entities that have one
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from flyweight.data.messages import Entity, Message
from flyweight.errors import DataError

ENTITY_KEYS = ("entity", "value", "role", "group")
# What Rasa's parse results say beside the span itself.
IGNORED_ENTITY_KEYS = (
    *("extractor", "confidence", "confidence_entity", "confidence_role", "confidence_group"),
    *("processor", "processors", "additional_info"),
)
NO_HASH = "allowed: names without '#', which joins entity, role and group in tags"
_SURROGATE = re.compile("[\ud800-\udfff]")  # "\ud83d" alone is legal JSON, but no text: it cannot be written as UTF-8
_LINE_END = re.compile("\r\n?|\n")


def read_bytes(path: Path) -> bytes:
    """The file's bytes; DataError if it cannot be opened."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error})", allowed="allowed: a readable file", path=path
        ) from error


def read_text(path: Path) -> str:
    """The file as text with its line ends untouched; DataError if it cannot be opened or is not UTF-8."""
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(raw) - len(error.object)  # utf-8-sig counts from behind the BOM
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = f"byte 0x{raw[at]:02x} is not UTF-8{' (the file looks like UTF-16)' if utf16 else ''}"
        allowed = "allowed: text in UTF-8, with or without BOM; export it as UTF-8"
        raise DataError(found, allowed=allowed, path=path, line=raw.count(b"\n", 0, at) + 1) from error


def text_lines(text: str) -> list[str]:
    """The lines of a text. Not splitlines(): U+2028, form feeds and their like are no line ends in an editor."""
    return _LINE_END.split(text)


def is_text(value: object) -> bool:
    """Whether `value` is a string that can be written as UTF-8 (no lone surrogates)."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def entity_attributes(item: object, *, path: object, line: int | None) -> dict[str, str]:
    """`entity` and, where given, `value`, `role`, `group` of a JSON object; finite numbers become strings.

    Raises DataError for anything else: no object, no or an empty entity name, unknown keys, other types, and for a `#`
    in a name: Entity.label would be another entity's.
    """
    allowed = 'allowed: {"entity": "city"}, with "value", "role" and "group" where wanted'
    if not isinstance(item, dict):
        raise DataError(f"entity is {shown(item)}", allowed=allowed, path=path, line=line)
    unknown = [key for key in item if key not in ENTITY_KEYS]
    if unknown:
        found = f"entity has the unknown key {shown(unknown[0])}"
        raise DataError(found, allowed=f"allowed keys: {', '.join(ENTITY_KEYS)}", path=path, line=line)
    attributes: dict[str, str] = {}
    for key, value in item.items():
        if value is None and key != "entity":
            continue
        number = type(value) is int or (type(value) is float and math.isfinite(value))
        if not (is_text(value) or (number and key != "entity")):
            found = f"the entity's {key} is {shown(value)}"
            raise DataError(found, allowed="allowed: a string", path=path, line=line)
        attributes[key] = str(value).strip()
        if key != "value" and "#" in attributes[key]:
            raise DataError(f"the entity's {key} is {shown(attributes[key])}", allowed=NO_HASH, path=path, line=line)
    if not attributes.get("entity"):
        raise DataError("annotation without an entity name", allowed=allowed, path=path, line=line)
    return attributes


def make_entity(written: str, start: int, attributes: dict[str, str]) -> Entity:
    """The entity `written` at `start`; empty attributes and a value equal to what is written are left out."""
    value, role, group = (attributes.get(key) or None for key in ENTITY_KEYS[1:])
    value = None if value == written else value
    return Entity(start, start + len(written), attributes["entity"], value, role, group)


def entity_at_span(item: object, text: str, *, path: object, line: int | None) -> Entity:
    """The entity of `{"start": 3, "end": 9, "entity": "city", ...}`; DataError unless it lies around some letters."""

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
    return make_entity(text[start:end], start, attributes)


def in_text_order(entities: Iterable[Entity], *, path: object, line: int | None) -> tuple[Entity, ...]:
    """The entities by start; DataError where two overlap."""
    ordered = sorted(entities, key=lambda e: (e.start, e.end))
    for left, right in pairwise(ordered):
        if left.end > right.start:
            found = f"entities {left.start}:{left.end} and {right.start}:{right.end} overlap"
            raise DataError(found, allowed="allowed: each character in one entity", path=path, line=line)
    return tuple(ordered)


def entity_synonyms(messages: Iterable[Message]) -> dict[str, str]:
    """Written form (lower case) -> value, of all entities with a value; of two values the later counts, as in Rasa."""
    found = ((m.text[e.start : e.end], e.value) for m in messages for e in m.entities)
    return {written.strip().lower(): value for written, value in found if value}


def shown(value: object, limit: int = 60) -> str:
    """`value` in one line for an error message, cut at `limit` characters."""
    try:
        line = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except RecursionError:
        return "a value nested too deeply"
    return line if len(line) <= limit else line[: limit - 3] + "..."


def listed(names: Iterable[object]) -> str:
    """`'a', 'b', 'c'` for an error message, after eight names `and 5 more`."""
    items = [shown(name) for name in names]
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "") or "nothing"
