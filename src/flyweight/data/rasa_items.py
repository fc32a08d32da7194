"""What Rasa's NLU forms share: examples with annotated entities, and the four kinds of items.

    to [Berlin](city)                    entity
    to [NYC](city:New York)              entity and value; the value becomes a synonym, as in Rasa
    to [LA]{"entity": "city", "role": "to", "value": "Los Angeles"}

As in Rasa a bracket that no `(` or `{` follows is plain text, and there are no escapes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from flyweight.data.json_nodes import DECODER, json_reason
from flyweight.data.messages import Entity, Message, NLUData
from flyweight.data.source import entity_attributes, entity_synonyms, listed, make_entity, shown
from flyweight.errors import DataError

KINDS = ("intent", "synonym", "regex", "lookup")
_BRACKETS = re.compile(r"\[([^\[\]]*)\](?=\(|\{|\[\s*\{)")
_ANNOTATION_FORMS = 'allowed: [text](entity), [text](entity:value), [text]{"entity": "...", "role": "..."}'


class Collector:
    """Collects what the file `path` says; readers of a form extend it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Message] = []
        self.synonyms: dict[str, str] = {}
        self.lookups: dict[str, list[str]] = {}
        self.regexes: dict[str, list[str]] = {}
        self.unread = Counter[str]()  # keys of items and examples, which were not read so many times

    def data(self) -> NLUData:
        """All that was collected; the messages are in `train`."""
        data = NLUData(tuple(self.messages), synonyms=self.synonyms, lookups=self.lookups, regexes=self.regexes)
        if not self.unread:
            return data
        note = f"keys that are not read: {listed(sorted(self.unread))} ({self.unread.total()} in all)"
        return replace(data, notes=(note,))

    def add(self, other: Collector) -> None:
        """Add what another file says; of two values for one written form the later counts, as in Rasa."""
        self.messages += other.messages
        self.synonyms |= other.synonyms
        for merged, more in ((self.lookups, other.lookups), (self.regexes, other.regexes)):
            for name, elements in more.items():
                merged.setdefault(name, []).extend(elements)
        self.unread += other.unread

    def example(self, kind: str, name: str, line: int, example: str) -> None:
        """Add an example of one of the KINDS."""
        if not example:
            self.fail("empty example", "allowed: '- ' and a text", line)
        if kind == "synonym":
            self.synonyms[example.lower()] = name
        elif kind == "lookup":
            self.lookups.setdefault(name, []).append(example)
        elif kind == "regex":
            self.regexes.setdefault(name, []).append(example)
        else:
            text, entities = parse_annotations(example, path=self.path, line=line)
            self.message(Message(text, name, entities))

    def message(self, message: Message) -> None:
        """Add a message and the synonyms it brings, in file order: a later `synonym` item counts more."""
        self.messages.append(message)
        self.synonyms |= entity_synonyms([message])

    def fail(self, found: str, allowed: str, line: int) -> NoReturn:
        """Raise a DataError that names the line."""
        raise DataError(found, allowed=allowed, path=self.path, line=line)


def parse_annotations(example: str, *, path: Path, line: int) -> tuple[str, tuple[Entity, ...]]:
    """Plain text and entities of an annotated example; `line` is the line on which the example starts.

    A span is narrowed to what stands between its outer blanks: predicted spans start and end with a word.
    """
    plain: list[str] = []
    entities: list[Entity] = []
    done = length = 0  # `done` characters of the example are read, `length` characters of plain text are written
    counted = 0  # characters of the example whose line feeds `line` includes
    while match := _BRACKETS.search(example, done):
        line += example.count("\n", counted, match.start())
        counted = match.start()
        inner, before = match[1], example[done : match.start()]
        attributes, done = _annotation(example, match.end(), path, line)
        if not inner.strip():
            found = f"empty entity text in {shown(example[match.start() : done])}"
            raise DataError(found, allowed=_ANNOTATION_FORMS, path=path, line=line)
        plain += [before, inner]
        length += len(before) + len(inner)
        start = length - len(inner.lstrip())
        entities.append(make_entity(inner.strip(), start, attributes))
    return "".join([*plain, example[done:]]), tuple(entities)


def _annotation(example: str, at: int, path: Path, line: int) -> tuple[dict[str, str], int]:
    """The attributes in `(...)`, `{...}` or `[{...}]` that starts at `at`, and where it ends."""
    if example[at] == "(":
        end = example.find(")", at)
        if end < 0:
            found = f"annotation {shown(example[at:])} is not closed"
            raise DataError(found, allowed=_ANNOTATION_FORMS, path=path, line=line)
        entity, _, value = example[at + 1 : end].partition(":")
        return entity_attributes({"entity": entity, "value": value}, path=path, line=line), end + 1
    try:
        item, end = DECODER.raw_decode(example, at)
    except (ValueError, RecursionError) as error:
        found = f"annotation {shown(example[at:])} is not JSON ({json_reason(error)})"
        raise DataError(found, allowed=_ANNOTATION_FORMS, path=path, line=line) from error
    if isinstance(item, list):  # Rasa 3 writes several entities on the same words like this; BIO tags hold one
        if len(item) != 1:
            found = f"{len(item)} entities on the same words"
            raise DataError(found, allowed="allowed: one", path=path, line=line)
        item = item[0]
    return entity_attributes(item, path=path, line=line), end
