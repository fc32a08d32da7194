"""Plain text files given by the user, a message a line: text for a teacher to answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from flyweight.data.messages import Message
from flyweight.data.source import read_text, shown, text_lines
from flyweight.errors import DataError

SUFFIX = ".txt"  # of the files of a folder


def read_unlabelled(paths: Iterable[str | Path], never: Collection[str] = ()) -> tuple[Message, ...]:
    """The different messages of the files, in order, without intent and entities; blank lines are left out.

    paths: text files in UTF-8, and folders, whose .txt files are read in the order of their paths. never: the texts of
    validation and test; a line that equals one of them, whatever its case and white space, is left out.
    Errors: DataError for what cannot be read, for a line with a zero byte, and where no message is left.
    """
    named = [Path(path) for path in paths]
    taken = {Message(text).folded for text in never}
    n_known, found = len(taken), []
    for path in [file for name in named for file in _files(name)]:
        for number, line in enumerate(text_lines(read_text(path)), 1):
            message = Message(line.strip())
            if "\0" in line:
                raise DataError(shown(line), allowed="allowed: plain text, a message a line", path=path, line=number)
            if message.text and message.folded not in taken:
                taken.add(message.folded)
                found.append(message)
    if not found:
        also = " that is not known already" if n_known else ""
        names = named[0] if len(named) == 1 else f"{len(named)} files and folders"
        raise DataError("no message", allowed=f"give a file with a message a line{also}", path=names)
    return tuple(found)


def _files(path: Path) -> list[Path]:
    """The file, or the text files below a folder. Errors: DataError."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob(f"*{SUFFIX}") if file.is_file())
    if not found:
        raise DataError(f"a folder without {SUFFIX} files", allowed=f"give it some, or name a file {SUFFIX}", path=path)
    return found
