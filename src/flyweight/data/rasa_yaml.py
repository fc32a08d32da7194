"""Rasa NLU YAML (2.0 and 3.x): files, found below a folder by `rasa_files`.

    nlu:
    - intent: book_flight                  also synonym, regex, lookup; `a/b` (retrieval intents) is one name
      examples: |
        - to [Berlin](city)                entity
        - to [NYC](city:New York)          entity and value; the value becomes a synonym, as in Rasa
        - to [LA]{"entity": "city", "role": "to", "value": "Los Angeles"}
      # or a list:  - text: to [Berlin](city), with `metadata` where wanted (ignored)

As in Rasa a bracket that no `(` or `{` follows is plain text, there are no escapes, and `-text` is an example.
Unlike Rasa, what cannot be read is one DataError with file and line, never a warning and a dropped example.
The YAML is composed, not constructed: nodes know their lines, and `intent: no` stays the word "no".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flyweight.data.messages import Entity, Message, NLUData
from flyweight.data.source import entity_attributes, entity_synonyms, listed, make_entity, read_text, shown
from flyweight.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import yaml

SUFFIXES = (".yml", ".yaml")
ITEM_KEYS = {
    "intent": ("intent", "examples", "metadata"),
    "synonym": ("synonym", "examples", "metadata"),
    "regex": ("regex", "examples", "metadata"),
    "lookup": ("lookup", "examples", "metadata"),
}
_NLU_KEY = re.compile(rb"^[ \t{\xef\xbb\xbf]*[\"']?nlu[\"']?\s*:", re.MULTILINE)
_BRACKETS = re.compile(r"\[([^\[\]]*)\](?=\(|\{|\[\s*\{)")
_ANNOTATION_FORMS = 'allowed: [text](entity), [text](entity:value), [text]{"entity": "...", "role": "..."}'


def rasa_files(folder: Path) -> list[Path]:
    """The NLU files below `folder` in path order; hidden folders and YAML without `nlu:` are left out."""
    found = (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted((p for p in found if is_rasa_file(p)), key=lambda p: p.relative_to(folder).as_posix())


def is_rasa_file(path: Path) -> bool:
    """Whether `path` is a YAML file with a line that looks like the key `nlu:` (config, domain, stories have none)."""
    return path.suffix.lower() in SUFFIXES and path.is_file() and bool(_NLU_KEY.search(path.read_bytes()))


def read_rasa_files(paths: Sequence[Path]) -> NLUData:
    """NLU files as one unsplit train part; of two values for one written form the later counts, as in Rasa."""
    reader = _Reader()
    for path in paths:
        reader.read(path, optional=len(paths) > 1)
    return NLUData(tuple(reader.messages), synonyms=reader.synonyms, lookups=reader.lookups, regexes=reader.regexes)


class _Reader:
    """Collects what the files say; `path` is the file being read."""

    def __init__(self) -> None:
        self.path = Path()
        self.messages: list[Message] = []
        self.synonyms: dict[str, str] = {}
        self.lookups: dict[str, list[str]] = {}
        self.regexes: dict[str, list[str]] = {}

    def read(self, path: Path, *, optional: bool) -> None:
        """Read one file; an `optional` one may lack the nlu section (a domain with an indented `nlu:`, say)."""
        self.path = path
        root = _compose(path)
        nlu = self.mapping(root, "the file").get("nlu") if root is not None and root.id == "mapping" else None
        if nlu is None or (nlu.id == "scalar" and nlu.value in ("", "~", "null")):
            if not optional:
                self.fail("no nlu section", "allowed: Rasa YAML with a list under the key `nlu:`", 1)
            return
        if nlu.id != "sequence":
            self.fail("nlu is not a list", "allowed: items such as `- intent: greet`", _line(nlu))
        for item in nlu.value:
            self.item(item)

    def item(self, node: yaml.Node) -> None:
        """Read one `- intent: ...`, `- synonym: ...`, `- regex: ...` or `- lookup: ...`."""
        keys = f"allowed: {', '.join(ITEM_KEYS)}, each with examples"
        if node.id != "mapping":
            self.fail("nlu item is not a mapping", keys, _line(node))
        fields = self.mapping(node, "an nlu item")
        kind = next((kind for kind in ITEM_KEYS if kind in fields), None)
        if kind is None:
            self.fail(f"nlu item with the keys {listed(fields)}", keys, _line(node))
        for key_node, _ in node.value:
            if key_node.value not in ITEM_KEYS[kind]:
                found = f"unknown key {shown(key_node.value)} in nlu item '{kind}'"
                self.fail(found, f"allowed: {', '.join(ITEM_KEYS[kind])}", _line(key_node))
        name_node = fields[kind]
        name = name_node.value.strip() if name_node.id == "scalar" else ""
        if not name:
            self.fail(f"{kind} without a name", f"allowed: `- {kind}: name`", _line(name_node))
        examples = list(self.examples(fields["examples"])) if "examples" in fields else []
        if not examples:
            found = f"{kind} {shown(name)} has no examples"
            self.fail(found, "allowed: `examples: |` and below it lines that start with '- '", _line(name_node))
        for line, example in examples:
            self.example(kind, name, line, example)

    def example(self, kind: str, name: str, line: int, example: str) -> None:
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
            self.messages.append(Message(text, name, entities))
            self.synonyms |= entity_synonyms(self.messages[-1:])  # in file order: a later `synonym` item counts more

    def examples(self, node: yaml.Node) -> Iterator[tuple[int, str]]:
        """Line number and text of each example of a `|` block or of a list."""
        if node.id == "scalar":
            yield from self.block(node)
            return
        if node.id != "sequence":
            self.fail(
                "examples is a mapping", "allowed: a `|` block of '- ' lines or a list of `- text: ...`", _line(node)
            )
        for item in node.value:
            text = item
            if item.id == "mapping":
                fields = self.mapping(item, "an example")
                for key_node, _ in item.value:
                    if key_node.value not in ("text", "metadata"):
                        found = f"unknown key {shown(key_node.value)} in an example"
                        self.fail(found, "allowed: text, metadata", _line(key_node))
                text = fields.get("text")
            if text is None or text.id != "scalar":
                self.fail("example without text", "allowed: `- text: ...`, with `metadata` where wanted", _line(item))
            block = text.style in ("|", ">")
            head = len(text.value) - len(text.value.lstrip())  # blank lines before the text count as lines
            yield _line(text) + (1 + text.value.count("\n", 0, head) if block else 0), text.value.strip()

    def block(self, node: yaml.Node) -> Iterator[tuple[int, str]]:
        if node.style == ">":
            self.fail("examples is a folded block `>`", "allowed: a literal block `|`", _line(node))
        # In a literal block each line of the value is one line of the file, the first one below the `|`.
        # Elsewhere (a quoted string) only the line where it starts is known.
        literal = node.style == "|"
        for number, raw in enumerate(node.value.split("\n")):
            line = _line(node) + (1 + number if literal else 0)
            example = raw.strip()
            if not example:
                continue
            if not example.startswith("-"):
                self.fail(f"example line {shown(example)}", "allowed: lines that start with '- '", line)
            yield line, example[1:].strip()

    def mapping(self, node: yaml.Node, what: str) -> dict[str, Any]:
        """The mapping's nodes by key; a key written twice would silently lose the first."""
        fields: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if key.id == "scalar" else ""
            if name in fields:
                self.fail(f"key {shown(name)} twice in {what}", "allowed: each key once", _line(key))
            fields[name] = value
        return fields

    def fail(self, found: str, allowed: str, line: int) -> NoReturn:
        raise DataError(found, allowed=allowed, path=self.path, line=line)


def parse_annotations(example: str, *, path: Path, line: int) -> tuple[str, tuple[Entity, ...]]:
    """Plain text and entities of an annotated example; `line` is the line on which the example starts.

    A span is narrowed to what stands between its outer blanks: predicted spans start and end with a word.
    """
    plain: list[str] = []
    entities: list[Entity] = []
    done = length = 0  # `done` characters of the example are read, `length` characters of plain text are written
    while match := _BRACKETS.search(example, done):
        here = line + example.count("\n", 0, match.start())
        inner, before = match[1], example[done : match.start()]
        attributes, done = _annotation(example, match.end(), path, here)
        if not inner.strip():
            found = f"empty entity text in {shown(example[match.start() : done])}"
            raise DataError(found, allowed=_ANNOTATION_FORMS, path=path, line=here)
        plain += [before, inner]
        length += len(before) + len(inner)
        end = length - len(inner) + len(inner.rstrip())
        entities.append(make_entity("".join(plain), end - len(inner.strip()), end, attributes))
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
        item, end = json.JSONDecoder().raw_decode(example, at)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        found = f"annotation {shown(example[at:])} is not JSON ({reason})"
        raise DataError(found, allowed=_ANNOTATION_FORMS, path=path, line=line) from error
    if isinstance(item, list):  # Rasa 3 writes several entities on the same words like this; BIO tags hold one
        if len(item) != 1:
            found = f"{len(item)} entities on the same words"
            raise DataError(found, allowed="allowed: one", path=path, line=line)
        item = item[0]
    return entity_attributes(item, path=path, line=line), end


def _compose(path: Path) -> yaml.Node | None:
    """The file's root node (None for an empty file)."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML", "workshop", "reading Rasa YAML") from error
    text = read_text(path)
    try:
        # The C loader, where PyYAML was built with it, gives the same nodes and marks about 40 times faster
        # (2,341 lines in 0.8 ms instead of 32 ms).
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        control = yaml.reader.Reader.NON_PRINTABLE.search(text)
        if line is None and control:
            line = text.count("\n", 0, control.start()) + 1
        reason = getattr(error, "problem", None) or f"{error}".partition("\n")[0] or "nested too deeply"
        raise DataError(
            f"not YAML ({reason})", allowed="allowed: Rasa NLU YAML, see `nlu:`", path=path, line=line
        ) from error


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
