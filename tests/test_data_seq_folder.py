"""seq.in, seq.out, label: golden folder and every error with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyweight.data import Entity, Message
from flyweight.data.seq_folder import read_seq_folder
from flyweight.data.source import NO_HASH
from flyweight.errors import DataError


def make(folder: Path, words: str, tags: str, labels: str) -> Path:
    for name, text in (("seq.in", words), ("seq.out", tags), ("label", labels)):
        (folder / name).write_bytes(text.encode())
    return folder


def test_golden(tmp_path: Path) -> None:
    make(
        tmp_path,
        "fly to new york \n\tto  new\u00a0york now\r\nx y z w\n",
        "O O B-toloc.city I-toloc.city\nO I-toloc.city\tO\r\nB-a B-a I-b I-b \n",
        "flight\nflight#fare\r\n x\n\n",
    )
    assert read_seq_folder(tmp_path) == (
        Message("fly to new york", "flight", (Entity(7, 15, "toloc.city"),)),
        # A no-break space does not end a word; an I- without its B- opens an entity.
        Message("to new\u00a0york now", "flight#fare", (Entity(3, 11, "toloc.city"),)),
        Message("x y z w", "x", (Entity(0, 1, "a"), Entity(2, 3, "a"), Entity(4, 7, "b"))),
    )


LINES = "allowed: one line a message in each of seq.in, seq.out, label"


@pytest.mark.parametrize(
    ("words", "tags", "labels", "where", "error"),
    [
        ("a\nb\n", "O\n", "x\ny\n", "seq.out:2", f"the file ends after 1 lines, another has 2; {LINES}"),
        ("a\n", "O\nO\n", "x\ny\n", "seq.in:2", f"the file ends after 1 lines, another has 2; {LINES}"),
        ("a\nb\n", "O\nO\n", "x\n\n", "label:2", f"the file ends after 1 lines, another has 2; {LINES}"),
        ("a b\nc d\n", "O O\nO\n", "x\ny\n", "seq.out:2", "1 tags for 2 words; allowed: one tag a word"),
        ("a\n\nb\n", "O\n\nO\n", "x\ny\nz\n", "seq.in:2", "empty text; allowed: at least one word"),
        ("a\nb\nc", "O\nO\nO", "x\n \nz", "label:2", "empty intent; allowed: a name"),
        ("a\n", "S-x\n", "x\n", "seq.out:1", "tag 'S-x'; allowed: O, B-name, I-name"),
        ("a\n", "B-\n", "x\n", "seq.out:1", "tag 'B-'; allowed: O, B-name, I-name"),
        ("a\n", "o\n", "x\n", "seq.out:1", "tag 'o'; allowed: O, B-name, I-name"),
        ("a\n", "B-a#b\n", "x\n", "seq.out:1", f"tag 'B-a#b'; {NO_HASH}"),
    ],
)
def test_malformed(tmp_path: Path, words: str, tags: str, labels: str, where: str, error: str) -> None:
    make(tmp_path, words, tags, labels)
    with pytest.raises(DataError) as caught:
        read_seq_folder(tmp_path)
    assert str(caught.value) == f"{tmp_path / where}: {error}"


def test_empty_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_seq_folder(make(tmp_path, "", "\n", ""))
    assert str(caught.value) == f"{tmp_path / 'seq.in'}: no messages; allowed: at least one line"
    (tmp_path / "label").unlink()
    with pytest.raises(DataError) as caught:
        read_seq_folder(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no file label; allowed: a folder with seq.in, seq.out, label"


@pytest.mark.parametrize(
    ("name", "counts"), [("atis", (4_478, 500, 893)), ("snips", (13_084, 700, 700))], ids=["atis", "snips"]
)
def test_real_folders(real_data: Path, name: str, counts: tuple[int, ...]) -> None:
    parts = [read_seq_folder(real_data / name / part) for part in ("train", "valid", "test")]
    assert tuple(map(len, parts)) == counts


def test_first_atis_message(real_data: Path) -> None:
    message = read_seq_folder(real_data / "atis" / "train")[0]
    assert message.text == "i want to fly from baltimore to dallas round trip"
    assert [(message.text[e.start : e.end], e.entity) for e in message.entities] == [
        ("baltimore", "fromloc.city_name"),
        ("dallas", "toloc.city_name"),
        ("round trip", "round_trip"),
    ]
