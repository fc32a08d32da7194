"""JSON whose values know their lines, which `json.loads` forgets.

    node = parse_json(text, path=path, allowed=...)     checks the whole text: a DataError where it is no JSON
    node.fields("the file", "allowed: ...")             {"key": node} of an object, with a DataError for anything else
    node.items("train", "allowed: ...")                 [node] of a list, likewise
    node.value()                                        the plain Python value

A key written twice in one object is an error: json.loads would silently lose the first. A node is a place in the text:
each level that is opened scans the values below it once more, at the speed of the C decoder.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flyweight.data.source import shown
from flyweight.errors import DataError

_ONCE = "allowed: each key once"
_BLANK = re.compile(r"[ \t\r\n]*")


class _KeyTwiceError(ValueError):
    """A key stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise _KeyTwiceError(f"key {shown(key)} twice in an object")
        fields[key] = value
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN = json.JSONDecoder()


def json_value(text: str, *, path: Path, line: int, allowed: str) -> Any:
    """The plain value of a JSON text that stands on the one line `line`; DataError for what is not JSON."""
    try:
        return DECODER.decode(text)
    except _KeyTwiceError as error:
        raise DataError(str(error), allowed=_ONCE, path=path, line=line) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({json_reason(error)})", allowed=allowed, path=path, line=line) from error


def json_reason(error: ValueError | RecursionError) -> str:
    """Why a text is not JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, _KeyTwiceError):
        return str(error)
    # Python refuses to convert integers of more than 4,300 digits: that would take quadratic time.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def parse_json(text: str, *, path: Path, allowed: str) -> JsonNode:
    """The root node of a JSON text; DataError with a line for what is not JSON."""
    try:
        _PLAIN.decode(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise DataError(f"not JSON ({json_reason(error)})", allowed=allowed, path=path, line=line) from error
    document = _Document(text, path, [match.start() for match in re.finditer("\n", text)])
    return JsonNode(document, document.skip(0))


@dataclass(frozen=True)
class _Document:
    text: str
    path: Path
    feeds: list[int]  # where the line feeds are

    def skip(self, at: int) -> int:
        """The next place at or behind `at` that is not white space."""
        match = _BLANK.match(self.text, at)
        return match.end() if match else at


@dataclass(frozen=True)
class JsonNode:
    """The value that starts at the character `start` of a valid JSON text."""

    document: _Document
    start: int

    @property
    def line(self) -> int:
        """The line, from 1, on which the value starts."""
        return bisect_left(self.document.feeds, self.start) + 1

    @property
    def is_null(self) -> bool:
        """Whether the value is null."""
        return self.document.text.startswith("null", self.start)

    def value(self) -> Any:
        """The plain Python value."""
        return self._decode(self.start, DECODER)[0]

    def fields(self, what: str, allowed: str) -> dict[str, JsonNode]:
        """The nodes of an object by key; `what` and `allowed` are words for the error about anything else."""
        document, fields = self.document, dict[str, JsonNode]()
        at = self._open("{", what, allowed)
        while document.text[at] != "}":
            key, behind = self._decode(at)
            if key in fields:
                JsonNode(document, at).fail(f"key {shown(key)} twice in {what}", _ONCE)
            fields[key] = JsonNode(document, document.skip(document.skip(behind) + 1))  # behind the colon
            at = self._next(fields[key].start)
        return fields

    def items(self, what: str, allowed: str) -> list[JsonNode]:
        """The nodes of a list; `what` and `allowed` are words for the error about anything else."""
        document, items = self.document, list[JsonNode]()
        at = self._open("[", what, allowed)
        while document.text[at] != "]":
            items.append(JsonNode(document, at))
            at = self._next(at)
        return items

    def fail(self, found: str, allowed: str) -> NoReturn:
        """Raise a DataError that names the line of the value."""
        raise DataError(found, allowed=allowed, path=self.document.path, line=self.line)

    def _open(self, bracket: str, what: str, allowed: str) -> int:
        if self.document.text[self.start] != bracket:
            self.fail(f"{what} is {shown(self.value())}", allowed)
        return self.document.skip(self.start + 1)

    def _next(self, at: int) -> int:
        """Where the element behind the value at `at` starts, or the closing bracket."""
        at = self.document.skip(self._decode(at)[1])
        return self.document.skip(at + 1) if self.document.text[at] == "," else at

    def _decode(self, at: int, decoder: json.JSONDecoder = _PLAIN) -> tuple[Any, int]:
        """The value at `at` and where it ends."""
        try:
            return decoder.raw_decode(self.document.text, at)
        except _KeyTwiceError as error:
            self.fail(str(error), _ONCE)
        except RecursionError:  # the whole text is JSON, but the call stack is deeper here
            self.fail("a value nested too deeply", "allowed: less depth")
