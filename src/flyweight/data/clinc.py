"""CLINC150 (data_full.json and its sisters): one JSON file with all parts, out-of-scope messages beside them.

    {"train": [["text", "intent"], ...], "val": [...], "test": [...],
     "oos_train": [...], "oos_val": [...], "oos_test": [...]}

An oos list belongs to the part in its name; its messages keep the intent that the file gives them ("oos").
"""

from __future__ import annotations

import re
from pathlib import Path

from flyweight.data.json_nodes import JsonNode, parse_json
from flyweight.data.messages import Message
from flyweight.data.source import is_text, read_bytes, read_text, shown
from flyweight.errors import DataError

PARTS = {
    **dict.fromkeys(("train", "oos_train"), "train"),
    **dict.fromkeys(("val", "oos_val"), "validation"),
    **dict.fromkeys(("test", "oos_test"), "test"),
}
_MARK = re.compile(rb"[{,]\s*\"(oos_)?train\"\s*:\s*\[")


def is_clinc_file(path: Path) -> bool:
    """Whether `path` is a JSON file with a list under a key "train"."""
    return path.suffix.lower() == ".json" and bool(_MARK.search(read_bytes(path)))


def read_clinc(path: Path) -> dict[str, tuple[Message, ...]]:
    """The messages of each part, empty parts left out; raises DataError with the line at fault."""
    allowed = 'allowed: {"train": [["text", "intent"], ...], "val": ..., "test": ..., "oos_train": ..., ...}'
    parts: dict[str, list[Message]] = {}
    for name, node in parse_json(read_text(path), path=path, allowed=allowed).fields("the file", allowed).items():
        if name not in PARTS:
            node.fail(f"unknown key {shown(name)}", f"allowed: {', '.join(PARTS)}")
        messages = [_message(row) for row in node.items(name, 'allowed: a list of ["text", "intent"]')]
        if messages:
            parts.setdefault(PARTS[name], []).extend(messages)
    if not parts:
        raise DataError("no messages", allowed=allowed, path=path)
    return {name: tuple(messages) for name, messages in parts.items()}


def _message(node: JsonNode) -> Message:
    row = node.value()
    if not isinstance(row, list) or len(row) != 2 or not all(is_text(cell) and cell.strip() for cell in row):
        node.fail(f"row is {shown(row)}", 'allowed: ["text", "intent"], two strings that are not empty')
    text, intent = row
    return Message(text.strip(), intent.strip())
