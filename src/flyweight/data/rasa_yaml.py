"""Rasa NLU YAML (2.0 and 3.x): one file.

    nlu:
    - intent: book_flight                  also synonym, regex, lookup; `a/b` (retrieval intents) is one name
      examples: |
        - to [Berlin](city)                entity
        - to [NYC](city:New York)          entity and value; the value becomes a synonym, as in Rasa
        - to [LA]{"entity": "city", "role": "to", "value": "Los Angeles"}
      # or a list:  - text: to [Berlin](city), with `metadata` where wanted (counted, not read)

Annotations are those of flyweight.data.rasa_items, and `-text` is an example.
Unlike Rasa, what cannot be read is one DataError with file and line, never a warning and a dropped example.
The YAML is composed, not constructed: nodes know their lines, and `intent: no` stays the word "no".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyweight.data.rasa_items import KINDS, Collector
from flyweight.data.source import listed, read_text, shown
from flyweight.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import yaml

ITEM_KEYS = {kind: (kind, "examples", "metadata") for kind in KINDS}
MAX_DEPTH = 100  # lists and mappings within each other; NLU data have 5, and some more in metadata
# A line that looks like the key `nlu:`; config, domain and stories have none.
YAML_MARK = re.compile(rb"(?:^|\r)[ \t{\xef\xbb\xbf]*[\"']?nlu[\"']?\s*:", re.MULTILINE)


def read_rasa_yaml(path: Path, *, optional: bool = False) -> Collector:
    """What one file says; an `optional` one may lack the nlu section (a domain with `nlu:`, say)."""
    reader = _Reader(path)
    reader.read(optional)
    return reader


class _Reader(Collector):
    """Reads the nodes of one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_nodes: set[int] = set()

    def read(self, optional: bool) -> None:
        """Read the file, whose nlu section may be absent if `optional`."""
        root = _compose(self.path)
        nlu = self.mapping(root, "the file").get("nlu") if root is not None and root.id == "mapping" else None
        if nlu is None or (nlu.id == "scalar" and nlu.value in ("", "~", "null")):
            if not optional:
                self.fail("no nlu section", "allowed: Rasa YAML with a list under the key `nlu:`", 1)
            return
        if nlu.id != "sequence":
            self.fail("nlu is not a list", "allowed: items such as `- intent: greet`", _line(nlu))
        for item in nlu.value:
            self.item(self.once(item))

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
        self.unread.update(fields.keys() & {"metadata"})
        name_node = fields[kind]
        name = name_node.value.strip() if name_node.id == "scalar" else ""
        if not name:
            self.fail(f"{kind} without a name", f"allowed: `- {kind}: name`", _line(name_node))
        examples = list(self.examples(self.once(fields["examples"]))) if "examples" in fields else []
        if not examples:
            found = f"{kind} {shown(name)} has no examples"
            self.fail(found, "allowed: `examples: |` and below it lines that start with '- '", _line(name_node))
        for line, example in examples:
            self.example(kind, name, line, example)

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
                self.unread.update(fields.keys() & {"metadata"})
                text = fields.get("text")
            if text is None or text.id != "scalar":
                self.fail("example without text", "allowed: `- text: ...`, with `metadata` where wanted", _line(item))
            self.once(text)
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

    def once(self, node: yaml.Node) -> yaml.Node:
        """The node, unless an alias (`*name`) brought it before: 100 KB of aliases could mean 10 GB of examples."""
        if id(node) in self.read_nodes:
            self.fail("an alias repeats what starts here", "allowed: items and examples written out", _line(node))
        self.read_nodes.add(id(node))
        return node

    def mapping(self, node: yaml.Node, what: str) -> dict[str, Any]:
        """The mapping's nodes by key; a key written twice would silently lose the first."""
        fields: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if key.id == "scalar" else ""
            if name in fields:
                self.fail(f"key {shown(name)} twice in {what}", "allowed: each key once", _line(key))
            fields[name] = value
        return fields


def _compose(path: Path) -> yaml.Node | None:
    """The file's root node (None for an empty file)."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML", "workshop", "reading Rasa YAML") from error
    text = read_text(path)
    # The C loader, where PyYAML was built with it, gives the same nodes and marks about 40 times faster
    # (2,341 lines in 0.8 ms instead of 32 ms).
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(yaml.parse(text, Loader=loader), path)
        return yaml.compose(text, Loader=loader)
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


def _check_depth(events: Iterator[yaml.Event], path: Path) -> None:
    """DataError for a value within MAX_DEPTH others: composing one within 100,000 overflows the C loader's stack."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise DataError("YAML nested too deeply", allowed=f"allowed: {MAX_DEPTH} levels", path=path, line=line)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
