"""Columns with one word a line (CoNLL): the word in the first, its tag in the last, a blank line between messages.

    # intent: book_flight      or `# intent=book_flight`, before the words; without it the message has entities only
    fly   O                    columns are separated by tabs, where a line has one, else by blanks
    to    O                    text = the words joined by one blank
    new   B-city
    york  I-city

Tags: O, B-name, I-name (an I- without its B- opens an entity, so IOB1 reads as it is meant), and with ends and single
words marked: E-name, S-name (BIOES) or L-name, U-name (BILOU). Other comments (`# id 7`) and lines that start with
-DOCSTART- say nothing. A `#` is a word where the line has the columns of the others and ends with a tag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flyweight.data.messages import Message
from flyweight.data.source import NO_HASH, read_bytes, read_text, shown, text_lines
from flyweight.data.tags import Span, tags_to_spans
from flyweight.errors import DataError

SUFFIXES = (".conll", ".bio", ".iob", ".iob2")  # beside .txt whose content looks like it
TAG_FORMS = "allowed: O, B-name, I-name, also E-, L-, S-, U-"
_INTENT = re.compile(r"#\s*intent\s*[:=](.*)", re.DOTALL)
_LOOKED_AT = 2**16  # bytes of a .txt file


def is_bio_file(path: Path) -> bool:
    """Whether the suffix says so, or the lines of a .txt file (of its first 64 KiB) are all words with tags."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix != ".txt":
        return suffix in SUFFIXES
    raw = read_bytes(path)
    lines = text_lines(raw[:_LOOKED_AT].decode("utf-8-sig", errors="replace"))
    rows = [columns for line in (lines[:-1] if len(raw) > _LOOKED_AT else lines) if (columns := _columns(line))]
    rows = [columns for columns in rows if columns[0][0] != "#" and not _is_break(columns)]
    return bool(rows) and all(len(columns) == max(2, len(rows[0])) and _is_tag(columns[-1]) for columns in rows)


def read_bio(path: Path) -> tuple[Message, ...]:
    """All messages of the file, in file order; raises DataError with the line at fault."""
    lines = [_columns(line) for line in text_lines(read_text(path))]
    width = next((len(columns) for columns in lines if not _is_break(columns) and columns[0][0] != "#"), 0)
    messages: list[Message] = []
    words, tags, intent, intent_line = list[str](), list[str](), None, 0

    for line, columns in enumerate([*lines, []], 1):
        if _is_break(columns):
            if words:
                messages.append(message_of_words(words, tags, intent))
                words, tags, intent = [], [], None
        elif columns[0][0] == "#" and (named := _INTENT.fullmatch(" ".join(columns))):
            if words or intent is not None:
                found = "intent within a message" if words else f"a second intent, the first on line {intent_line}"
                raise DataError(found, allowed="allowed: one, before the words", path=path, line=line)
            intent, intent_line = named[1].strip(), line
            if not intent:
                raise DataError("intent without a name", allowed="allowed: `# intent: name`", path=path, line=line)
        elif columns[0][0] != "#" or (len(columns) == width and _is_tag(columns[-1])):
            _check_row(columns, width, path, line)
            words.append(columns[0])
            tags.append(columns[-1])
    if intent is not None:
        raise DataError("intent without words", allowed="allowed: words below it", path=path, line=intent_line)
    if not messages:
        raise DataError("no messages", allowed="allowed: lines with a word and its tag", path=path)
    return tuple(messages)


def message_of_words(words: Sequence[str], tags: Sequence[str], intent: str | None) -> Message:
    """The message whose text is the words joined by one blank, with the entities of their tags (one a word)."""
    spans: list[Span] = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return Message(" ".join(words), intent, tuple(tags_to_spans(spans, plain_bio(tags))))


def plain_bio(tags: Sequence[str]) -> list[str]:
    """Tags with ends and single words marked as B- and I- tags: B-a E-a S-a O I-a -> B-a I-a B-a O B-a."""
    plain: list[str] = []
    opened = ""  # the name of the entity that the next word may go on with
    for tag in tags:
        side, _, name = tag.partition("-")
        goes_on = side in "IEL" and opened == name
        plain.append("O" if tag == "O" else f"{'I' if goes_on else 'B'}-{name}")
        opened = name if side in "BI" else ""
    return plain


def check_tag(tag: str, *, path: object, line: int | None) -> None:
    """DataError for what is no tag, and for a name with `#`."""
    if not _is_tag(tag):
        raise DataError(f"tag {shown(tag)}", allowed=TAG_FORMS, path=path, line=line)
    if "#" in tag:
        raise DataError(f"tag {shown(tag)}", allowed=NO_HASH, path=path, line=line)


def _check_row(columns: list[str], width: int, path: Path, line: int) -> None:
    if len(columns) < 2:
        found = f"{shown(columns[0])} without a tag"
        raise DataError(found, allowed="allowed: a word, and its tag in the last column", path=path, line=line)
    check_tag(columns[-1], path=path, line=line)
    if len(columns) != width:
        found = f"{len(columns)} columns, the first word of the file has {width}"
        raise DataError(found, allowed="allowed: as many in each line", path=path, line=line)


def _columns(line: str) -> list[str]:
    """The columns of a line, none for a blank one. A no-break space within a word is part of it."""
    if not line.strip():
        return []
    cells = line.split("\t") if "\t" in line.strip() else line.replace("\t", " ").split(" ")
    return [cell.strip() for cell in cells if cell.strip()]


def _is_break(columns: list[str]) -> bool:
    return not columns or columns[0].startswith("-DOCSTART-")


def _is_tag(tag: str) -> bool:
    return tag == "O" or (len(tag) > 2 and tag[0] in "BIELSU" and tag[1] == "-" and bool(tag[2:].strip()))
