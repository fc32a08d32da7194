"""What the command line's tests share: how it is called, what was printed, files that most tests use."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flyweight.data.messages import Message
from flyweight.runtime.native import facts


class Done(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Done]


def cells_of(printed: str) -> list[list[str]]:
    """Rows of the last table, at a width at which nothing folds."""
    lines = printed.splitlines()
    rule = max(i for i, line in enumerate(lines) if line and set(line) == {"─"})
    rows = [re.split(r" {2,}", line.strip()) for line in lines[rule + 1 :]]
    return [row for row in rows if len(row) == len(rows[0])]


def engine_title() -> str:
    """What answers .fly files here: "numpy", or "engine" and its level."""
    found = facts()
    return found["engine"] if found["level"] is None else f"{found['engine']} {found['level']}"


def command(*arguments: object) -> list[str]:
    """The same as its own process."""
    return [sys.executable, "-c", "from flyweight.cli.main import main; main()", *map(str, arguments)]


def write_csv(path: Path, messages: tuple[Message, ...]) -> Path:
    path.write_text("text,intent\n" + "".join(f'"{m.text}",{m.intent}\n' for m in messages))
    return path


class Place(NamedTuple):
    """Files that most tests share: data, the trained folder, two files of it."""

    csv: Path
    teacher: Path
    int8: Path
    codes: Path
    log: list[Done]
