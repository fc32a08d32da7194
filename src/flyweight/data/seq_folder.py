"""Folders with `seq.in`, `seq.out` and `label`: one message a line, words and BIO tags separated by blanks.

seq.in    fly to new york            text = the words joined by one blank, spans are characters of that text
seq.out   O O B-toloc I-toloc        an I- without its B- opens an entity (seqeval's rule)
label     atis_flight                the intent, kept whole (`a#b` is one intent; a tag must not have a `#`)
"""

from __future__ import annotations

from pathlib import Path

from flyweight.data.bio import message_of_words
from flyweight.data.messages import Message
from flyweight.data.source import NO_HASH, read_text, shown
from flyweight.errors import DataError

FILES = ("seq.in", "seq.out", "label")


def read_seq_folder(folder: Path) -> tuple[Message, ...]:
    """All messages of the folder, in file order; raises DataError with the file and line at fault."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"no file {missing[0]}", allowed=f"allowed: a folder with {', '.join(FILES)}", path=folder)
    words, tags, labels = (_lines(folder / name) for name in FILES)
    longest = max((words, tags, labels), key=len)
    for name, lines in zip(FILES, (words, tags, labels), strict=True):
        if len(lines) != len(longest):
            found = f"the file ends after {len(lines)} lines, another has {len(longest)}"
            allowed = f"allowed: one line a message in each of {', '.join(FILES)}"
            raise DataError(found, allowed=allowed, path=folder / name, line=len(lines) + 1)
    if not words:
        raise DataError("no messages", allowed="allowed: at least one line", path=folder / "seq.in")
    return tuple(_message(folder, i + 1, *row) for i, row in enumerate(zip(words, tags, labels, strict=True)))


def _lines(path: Path) -> list[str]:
    """The lines without the blank ones at the end. Not splitlines(): only a line feed separates messages."""
    text = read_text(path).rstrip()
    return text.split("\n") if text else []


def _message(folder: Path, line: int, text: str, tag_line: str, label: str) -> Message:
    words, tags, intent = _fields(text), _fields(tag_line), label.strip()
    if not words:
        raise DataError("empty text", allowed="allowed: at least one word", path=folder / "seq.in", line=line)
    for word in words:
        if not word.strip():
            found = f"the word {shown(word)} is blank"
            raise DataError(found, allowed="allowed: words of letters", path=folder / "seq.in", line=line)
    if len(tags) != len(words):
        found = f"{len(tags)} tags for {len(words)} words"
        raise DataError(found, allowed="allowed: one tag a word", path=folder / "seq.out", line=line)
    if not intent:
        raise DataError("empty intent", allowed="allowed: a name", path=folder / "label", line=line)
    for tag in tags:
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:].strip()):
            found, allowed = f"tag {shown(tag)}", "allowed: O, B-name, I-name"
            raise DataError(found, allowed=allowed, path=folder / "seq.out", line=line)
        if "#" in tag:
            raise DataError(f"tag {shown(tag)}", allowed=NO_HASH, path=folder / "seq.out", line=line)
    return message_of_words(words, tags, intent)


def _fields(line: str) -> list[str]:
    """Split at blanks and tabs only: a no-break space within a word is part of it."""
    return [word for word in line.rstrip("\r").replace("\t", " ").split(" ") if word]
