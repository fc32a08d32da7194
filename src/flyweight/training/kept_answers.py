"""What a teacher has said, on disk: asked once, known to every later training.

One SQLite file a teacher, FOLDER/CONTENT.sqlite, with a row a text: SHA-256 of the text -> its Taught as bytes. SQLite
writes a block whole or not at all, so an interrupted process loses one block, and two processes may share a file. Texts
themselves are not stored.

    n_intents, n_words, n_tags (-1: no tags), bytes of an intent logit, of a tag logit      5 int32
    intent (C,) | words (W, 2) int32 | tags (W, n_tags)                                     little endian
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from flyweight.errors import DataError
from flyweight.training.taught import Taught

FORMAT = 1
HEAD = struct.Struct("<5i")
WAIT_SECONDS = 60.0  # for another process that is writing its block
ASKED_AT_ONCE = 500  # texts of one query: SQLite takes 999 values in its older builds


class Answers:
    """`with Answers(folder, content) as kept:` - the answers of the teacher of that content."""

    def __init__(self, folder: str | Path, content: str):
        """Errors: DataError for a file that is damaged or of another version."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.path = Path(folder) / f"{content}.sqlite"
        with self._reading():
            self.connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
            with self.connection:
                self.connection.execute("CREATE TABLE IF NOT EXISTS answers (text BLOB PRIMARY KEY, said BLOB)")
                [[version]] = self.connection.execute("PRAGMA user_version").fetchall()
                if version == 0:
                    self.connection.execute(f"PRAGMA user_version = {FORMAT}")
        if version not in (0, FORMAT):
            raise DataError(f"answers of format {version}", allowed=f"this version knows {FORMAT}", path=self.path)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts that have no answer, each once, in order."""
        keys = {_key(text): text for text in texts}
        known = {key for key, _ in self._rows(list(keys), "text, NULL")}
        return [text for key, text in keys.items() if key not in known]

    def keep(self, texts: Sequence[str], said: Sequence[Taught]) -> None:
        """Write answers, all of them or none; those that another process has written stay as they are."""
        rows = [(_key(text), packed(one)) for text, one in zip(texts, said, strict=True)]
        with self._reading(), self.connection:
            self.connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    def look_up(self, texts: Sequence[str]) -> list[Taught]:
        """The answers to texts that all have one, in order. Errors: DataError for damaged ones."""
        keys = [_key(text) for text in texts]
        found = {key: self._unpacked(said) for key, said in self._rows(list(dict.fromkeys(keys)), "text, said")}
        return [found[key] for key in keys]

    def _rows(self, keys: Sequence[bytes], columns: str) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), ASKED_AT_ONCE):
            part = keys[start : start + ASKED_AT_ONCE]
            query = f"SELECT {columns} FROM answers WHERE text IN ({','.join('?' * len(part))})"
            with self._reading():
                rows = self.connection.execute(query, part).fetchall()
            yield from rows

    def _unpacked(self, said: bytes) -> Taught:
        try:
            return unpacked(said)
        except (struct.error, ValueError, TypeError) as error:
            raise self._damaged("an answer of a wrong length") from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._damaged(" ".join(str(error).split())) from error

    def _damaged(self, why: str) -> DataError:
        return DataError(
            f"a teacher's answers cannot be read or written ({why})",
            allowed="delete the file to ask the teacher anew, or free it",
            path=self.path,
        )


def _key(text: str) -> bytes:
    # JSON can bring half a surrogate pair, which plain UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def packed(said: Taught) -> bytes:
    """See the module."""
    n_words, n_tags = (len(said.words), -1) if said.tags is None else said.tags.shape
    wide = 4 if said.tags is None else said.tags.itemsize
    parts = [said.intent.astype(f"<f{said.intent.itemsize}"), np.array(said.words, "<i4")]
    parts += [] if said.tags is None else [said.tags.astype(f"<f{wide}")]
    head = HEAD.pack(len(said.intent), n_words, n_tags, said.intent.itemsize, wide)
    return head + b"".join(part.tobytes() for part in parts)


def unpacked(said: bytes) -> Taught:
    """The inverse of `packed`. Errors: ValueError, TypeError, struct.error for other bytes."""
    n_intents, n_words, n_tags, intent_bytes, tag_bytes = HEAD.unpack_from(said)
    sizes = [intent_bytes * n_intents, 8 * n_words, tag_bytes * n_words * max(n_tags, 0)]
    if min(n_intents, n_words, n_tags + 1) < 0 or len(said) != HEAD.size + sum(sizes):
        raise ValueError("lengths")
    at = np.cumsum([HEAD.size, *sizes])
    intent = np.frombuffer(said[at[0] : at[1]], f"<f{intent_bytes}")
    words = [(s, e) for s, e in np.frombuffer(said[at[1] : at[2]], "<i4").reshape(n_words, 2).tolist()]
    if n_tags < 0:
        return Taught(intent, words)
    return Taught(intent, words, np.frombuffer(said[at[2] :], f"<f{tag_bytes}").reshape(n_words, n_tags))
