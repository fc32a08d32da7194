"""A JSON Lines file of logits, read with distrust; `logits.py` says what it looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from flyweight.data.source import read_text, shown
from flyweight.errors import ConfigError, DataError
from flyweight.training.taught import Classes, RowError


class LogitsFile:
    """Its classes, and what it says of each text. Errors: DataError with the line."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, Any] = {}
        found: Classes | None = None
        for line, source in enumerate(read_text(path).split("\n"), 1):
            if not source.strip():
                continue
            row = self._read_line(source, line)
            if found is None:
                found = self._read_head(row, line)
            else:
                self._read_row(row, line, found)
        if found is None or not self.rows:
            self._fail("no logits", "a line with the names of the classes, then one line a text", None)
        self.classes = found

    def look_up(self, texts: list[str]) -> list[Any]:
        """What the file says of each text. Errors: DataError for one that it does not hold."""
        missing = [text for text in texts if text not in self.rows]
        if missing:
            raise DataError(
                f"no logits of {shown(missing[0])} ({len(missing)} of {len(texts)} texts asked for)",
                allowed="a file of logits answers the texts that it holds, character by character; add a line for each",
                path=self.path,
            )
        return [self.rows[text] for text in texts]

    def _read_line(self, source: str, line: int) -> dict[str, Any]:
        try:
            row = json.loads(source)
        except (ValueError, RecursionError) as error:
            self._fail(f"not JSON ({type(error).__name__})", "one JSON object a line", line)
        if not isinstance(row, dict):
            self._fail(f"row is {shown(row)}", "one JSON object a line", line)
        return row

    def _read_head(self, row: dict[str, Any], line: int) -> Classes:
        allowed = 'a first line {"intents": [names], "tags": [names]}'
        for key in ("intents", "tags"):
            names = row.get(key, [] if key == "tags" else None)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                self._fail(f"{key} is {shown(names)}", allowed, line)
        try:
            return Classes(row["intents"], row.get("tags", []))
        except ConfigError as error:
            self._fail(str(error), allowed, line)

    def _read_row(self, row: dict[str, Any], line: int, classes: Classes) -> None:
        keys = ("text", "intent", "words", "tags") if classes.tags else ("text", "intent")
        missing = [key for key in keys if key not in row]
        if missing or not isinstance(row["text"], str):
            self._fail(f"row without {missing[0] if missing else 'text'}", f"the keys {', '.join(keys)}", line)
        found = (row["intent"], row["words"], row["tags"]) if classes.tags else row["intent"]
        text = row["text"]
        try:
            classes.checked(text, found)
        except RowError as error:
            self._fail(error.found, error.allowed, line)
        self.rows[text] = found

    def _fail(self, found: str, allowed: str, line: int | None) -> NoReturn:
        raise DataError(found, allowed=f"allowed: {allowed}", path=self.path, line=line)
