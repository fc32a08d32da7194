"""Plain text of the user's: a message a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyweight.data.messages import Message
from flyweight.data.unlabelled import read_unlabelled
from flyweight.errors import DataError


def test_lines_become_messages_each_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffBook it\r\n\n  will  it rain? \nbook  IT\n".encode())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "more.txt").write_text("a b\u2028c\nWill it rain?\nlast")
    (tmp_path / "b" / "notes.md").write_text("no message")
    found = read_unlabelled([tmp_path / "a.txt", tmp_path / "b"])
    assert found == (Message("Book it"), Message("will  it rain?"), Message("a b\u2028c"), Message("last"))
    assert read_unlabelled([tmp_path]) == found  # a folder: whatever lies below it


def test_what_is_judged_on_is_never_read(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Will it  rain?\nbook it\n")
    assert read_unlabelled([file], never=["will it rain?"]) == (Message("book it"),)
    with pytest.raises(DataError, match=r"text.txt: no message; give a file with a message a line that is not known"):
        read_unlabelled([file], never=["BOOK IT", "will it rain?"])


def test_what_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"fine\nPK\0\3\n")
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "empty.txt": r"empty.txt: no message; give a file with a message a line$",
        "binary.txt": r"binary.txt:2: 'PK\\x00\\x03'; allowed: plain text, a message a line",
        "latin.txt": r"latin.txt:2: byte 0xe9 is not UTF-8; allowed: text in UTF-8",
        "folder": r"folder: a folder without .txt files; give it some, or name a file .txt",
        "absent.txt": r"absent.txt: cannot be read \(No such file or directory\)",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read_unlabelled([tmp_path / name])
        assert "\n" not in str(caught.value)
