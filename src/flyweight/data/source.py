"""What every reader needs of a source file: its text, and checked entity attributes.

read_text(path)                 UTF-8 text (a BOM is dropped), or one DataError with the line of the bad byte
entity_attributes(item, ...)    entity, value, role, group out of a JSON object, as strings
entity_synonyms(messages)       written form in lower case -> value, of the entities that have one
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from flyweight.data.messages import Entity, Message
from flyweight.errors import DataError

ENTITY_KEYS = ("entity", "value", "role", "group")
NO_HASH = "allowed: names without '#', which joins entity, role and group in tags"
_SURROGATE = re.compile("[\ud800-\udfff]")  # "\ud83d" alone is legal JSON, but no text: it cannot be written as UTF-8


def read_text(path: Path) -> str:
    """The file as text with its line ends untouched; DataError if it cannot be opened or is not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error})", allowed="allowed: a readable file", path=path
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(raw) - len(error.object)  # utf-8-sig counts from behind the BOM
        found = f"byte 0x{raw[at]:02x} is not UTF-8"
        allowed = "allowed: text in UTF-8, with or without BOM"
        raise DataError(found, allowed=allowed, path=path, line=raw.count(b"\n", 0, at) + 1) from error


def is_text(value: object) -> bool:
    """Whether `value` is a string that can be written as UTF-8 (no lone surrogates)."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def entity_attributes(item: object, *, path: Path, line: int) -> dict[str, str]:
    """`entity` and, where given, `value`, `role`, `group` of a JSON object; numbers become strings.

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
        number = isinstance(value, int | float) and not isinstance(value, bool) and key != "entity"
        if not (is_text(value) or number):
            found = f"the entity's {key} is {shown(value)}"
            raise DataError(found, allowed="allowed: a string", path=path, line=line)
        attributes[key] = str(value).strip()
        if key != "value" and "#" in attributes[key]:
            raise DataError(f"the entity's {key} is {shown(attributes[key])}", allowed=NO_HASH, path=path, line=line)
    if not attributes.get("entity"):
        raise DataError("annotation without an entity name", allowed=allowed, path=path, line=line)
    return attributes


def make_entity(text: str, start: int, end: int, attributes: dict[str, str]) -> Entity:
    """The entity `text[start:end]`; empty attributes and a value equal to the text are left out."""
    value, role, group = (attributes.get(key) or None for key in ENTITY_KEYS[1:])
    return Entity(start, end, attributes["entity"], None if value == text[start:end] else value, role, group)


def entity_synonyms(messages: Iterable[Message]) -> dict[str, str]:
    """Written form (lower case) -> value, of all entities with a value; of two values the later counts, as in Rasa."""
    found = ((m.text[e.start : e.end], e.value) for m in messages for e in m.entities)
    return {written.strip().lower(): value for written, value in found if value}


def shown(value: object, limit: int = 60) -> str:
    """`value` in one line for an error message, cut at `limit` characters."""
    line = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def listed(names: Iterable[object]) -> str:
    """`'a', 'b', 'c'` for an error message, after eight names `and 5 more`."""
    items = [shown(name) for name in names]
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "") or "nothing"
