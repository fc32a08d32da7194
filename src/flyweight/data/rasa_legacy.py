"""Rasa NLU before YAML (up to 1.10): Markdown and JSON, one file.

    ## intent:book_flight                also synonym, regex, lookup; `a/b` (retrieval intents) is one name
    - to [Berlin](city)                  bullets are -, * and +; annotations as in Rasa YAML
    - to [NYC](city:New York)
    ## lookup:city                       <!-- comments may cover many lines -->
    lists/cities.txt                     a text file with an element a line, or bullets

    {"rasa_nlu_data": {
      "common_examples": [{"text": "to NYC", "intent": "book_flight",
                           "entities": [{"start": 3, "end": 6, "entity": "city", "value": "New York"}]}],
      "entity_synonyms": [{"value": "New York", "synonyms": ["Big Apple"]}],
      "regex_features": [{"name": "zip", "pattern": "[0-9]{5}"}],
      "lookup_tables": [{"name": "city", "elements": ["Berlin"]}]}}       or "elements": "lists/cities.txt"

A Markdown title (`# ...`) and prose before the first section say nothing and are skipped. Unlike Rasa, a line that is
neither in a section, nor a bullet, is an error: it would be an example lost.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from flyweight.data.json_nodes import JsonNode, parse_json
from flyweight.data.messages import Message
from flyweight.data.rasa_items import KINDS, Collector
from flyweight.data.source import entity_at_span, in_text_order, is_text, listed, read_text, shown, text_lines
from flyweight.data.tabular import check_row, intent_name, refuse_near_misses
from flyweight.errors import DataError

MARKDOWN_MARK = re.compile(rb"(?:^|\r)[ \t\xef\xbb\xbf]*##[ \t]*(intent|synonym|regex|lookup)[ \t]*:", re.MULTILINE)
JSON_MARK = re.compile(rb"\"rasa_nlu_data\"\s*:")
EXAMPLE_KEYS = ("common_examples", "intent_examples", "entity_examples")
JSON_KEYS = (*EXAMPLE_KEYS, "entity_synonyms", "regex_features", "lookup_tables")
EXAMPLE_FIELDS = ("text", "intent", "entities")
_ITEM_FORMS = {
    "entity_synonyms": '{"value": "...", "synonyms": ["..."]}',
    "regex_features": '{"name": "...", "pattern": "..."}',
    "lookup_tables": '{"name": "...", "elements": ["..."]}, or a path to a text file for elements',
}
# How far above the NLU file the path of a lookup table may start: Rasa takes it from the bot's folder, not the file's.
FOLDERS_ABOVE = 3
_COMMENT_END = re.compile("--!?>")
_JSON_FORM = 'allowed: {"rasa_nlu_data": {"common_examples": [...], ...}}'
_SECTION_FORMS = "allowed: ## intent:name, ## synonym:name, ## regex:name, ## lookup:name"


def read_rasa_markdown(path: Path, *, optional: bool = False) -> Collector:
    """One file's messages, and its synonyms, lookups and regexes; DataError with the line at fault.

    An `optional` file may be without sections (all of them in a comment, say).
    """
    reader = _Markdown(path)
    for line, text in enumerate(text_lines(_without_comments(read_text(path), path)), 1):
        if text.strip():
            reader.read(line, text.strip())
    reader.close()
    if not (reader.kind or optional):
        reader.fail("no section", _SECTION_FORMS, 1)
    return reader


def read_rasa_json(path: Path) -> Collector:
    """One file's messages, and its synonyms, lookups and regexes; DataError with the line at fault."""
    root = parse_json(read_text(path), path=path, allowed=_JSON_FORM)
    nlu = root.fields("the file", _JSON_FORM).get("rasa_nlu_data")
    if nlu is None:
        root.fail("no rasa_nlu_data", _JSON_FORM)
    reader = _Json(path)
    for name, section in nlu.fields("rasa_nlu_data", _JSON_FORM).items():
        if name not in JSON_KEYS:
            section.fail(f"unknown key {shown(name)} in rasa_nlu_data", f"allowed: {', '.join(JSON_KEYS)}")
        for item in _items(section, name):
            reader.read(name, item)
    return reader


def _without_comments(source: str, path: Path) -> str:
    """The source without `<!-- ... -->`; the line ends within stay, so lines keep their numbers."""
    kept, done = list[str](), 0
    while (opened := source.find("<!--", done)) >= 0:
        closed = _COMMENT_END.search(source, opened + 4)
        if closed is None:
            line = len(text_lines(source[:opened]))
            raise DataError("comment `<!--` is not closed", allowed="allowed: <!-- ... -->", path=path, line=line)
        kept += [source[done:opened], *re.findall("[\r\n]+", source[opened : closed.end()])]
        done = closed.end()
    return "".join([*kept, source[done:]])


class _Markdown(Collector):
    """Reads line after line; `kind` and `name` are those of the section, which starts on `header`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = self.name = ""
        self.header = self.n_items = 0

    def read(self, line: int, text: str) -> None:
        """Read one line, which is not blank."""
        if text.startswith("##"):
            self.close()
            self.open(line, text)
        elif text.startswith("# ") or text == "#":
            return
        elif text[0] in "-*+":
            self.item(line, text[1:].strip())
        elif self.kind == "lookup":
            self.lookups.setdefault(self.name, []).extend(_lookup_file(self.path, text, line))
            self.n_items += 1
        elif self.kind:
            found = f"line {shown(text)} in {self.kind} {shown(self.name)}"
            self.fail(found, "allowed: bullets ('- ' and a text), or the next `## kind:name`", line)

    def open(self, line: int, text: str) -> None:
        """Begin the section of the header line `text`."""
        kind, colon, name = (part.strip() for part in text[2:].partition(":"))
        if not colon or kind not in KINDS:
            self.fail(f"section {shown(text)}", _SECTION_FORMS, line)
        self.kind, self.name, self.header, self.n_items = kind, name, line, 0
        if not self.name:
            self.fail(f"{self.kind} without a name", f"allowed: `## {self.kind}:name`", line)

    def item(self, line: int, text: str) -> None:
        """Read the text of one bullet."""
        if not self.kind:
            self.fail(f"example {shown(text)} before the first section", _SECTION_FORMS, line)
        self.n_items += 1
        self.example(self.kind, self.name, line, text)

    def close(self) -> None:
        """End the section, which must have had items."""
        if self.kind and not self.n_items:
            found = f"{self.kind} {shown(self.name)} has no examples"
            self.fail(found, "allowed: lines below it that start with '- '", self.header)


class _Json(Collector):
    """Reads item after item of the sections."""

    def read(self, section: str, item: JsonNode) -> None:
        """Read one item of the list `section`."""
        if section in EXAMPLE_KEYS:
            self.labelled(item)
            return
        allowed = f"allowed: {_ITEM_FORMS[section]}"
        fields = item.fields(f"an item of {section}", allowed)
        if section == "entity_synonyms":
            value = _string(_field(item, fields, "value", allowed), "value")
            written = _strings(_field(item, fields, "synonyms", allowed), "synonyms")
            self.synonyms |= {form.lower(): value for form in written}
            return
        name = _string(_field(item, fields, "name", allowed), "name")
        if section == "regex_features":
            self.regexes.setdefault(name, []).append(_string(_field(item, fields, "pattern", allowed), "pattern"))
            return
        elements = _field(item, fields, "elements", allowed)
        if is_text(elements.value()):
            found = _lookup_file(self.path, _string(elements, "elements"), elements.line)
        else:
            found = _strings(elements, "elements")
        self.lookups.setdefault(name, []).extend(found)

    def labelled(self, item: JsonNode) -> None:
        """Read `{"text": ..., "intent": ..., "entities": [...]}`; other keys (metadata, say) are counted."""
        allowed = 'allowed: {"text": "...", "intent": "...", "entities": [...]}'
        fields = item.fields("an example", allowed)
        refuse_near_misses(list(fields), EXAMPLE_FIELDS, self.path, item.line)
        self.unread.update(fields.keys() - set(EXAMPLE_FIELDS))
        node = _field(item, fields, "text", allowed)
        text = node.value()
        if not is_text(text):
            node.fail(f"text is {shown(text)}", "allowed: a string")
        intent = ""
        if "intent" in fields:
            intent = intent_name(fields["intent"].value(), path=self.path, line=fields["intent"].line)
        check_row(text, intent, "entities" in fields, path=self.path, line=item.line)
        nodes = _items(fields["entities"], "entities") if "entities" in fields else []
        spans = [entity_at_span(node.value(), text, path=self.path, line=node.line) for node in nodes]
        self.message(Message(text, intent or None, in_text_order(spans, path=self.path, line=item.line)))


def _items(node: JsonNode, what: str) -> list[JsonNode]:
    """The nodes of a list; none for null."""
    return [] if node.is_null else node.items(what, "allowed: a list")


def _field(item: JsonNode, fields: dict[str, JsonNode], key: str, allowed: str) -> JsonNode:
    """The node at `key`, which must be there."""
    if key not in fields:
        item.fail(f"no {key} among {listed(fields)}", allowed)
    return fields[key]


def _strings(node: JsonNode, what: str) -> list[str]:
    return [_string(element, f"one of the {what}") for element in node.items(what, "allowed: a list of strings")]


def _string(node: JsonNode, what: str) -> str:
    """The string without its outer blanks, which must say something."""
    value = node.value()
    if not is_text(value) or not value.strip():
        node.fail(f"{what} is {shown(value)}", "allowed: a string that is not empty")
    return str(value).strip()


def _lookup_file(source: Path, written: str, line: int) -> list[str]:
    """The elements of a lookup table, one a line of the text file that the file `source` names on `line`."""
    above = source.resolve().parents
    places = [folder / written for folder in list(above)[: 1 + FOLDERS_ABOVE]]
    place = next((place for place in places if os.path.isfile(place)), None)
    if place is None:
        found = f"lookup names the file {shown(written)}, which is not there"
        allowed = f"allowed: a path from the folder of this file, or from one of the {FOLDERS_ABOVE} above it"
        raise DataError(found, allowed=allowed, path=source, line=line)
    return [element.strip() for element in text_lines(read_text(place)) if element.strip()]
