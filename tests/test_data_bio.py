"""CoNLL columns: golden files of each tagging scheme, what .txt files count, and every error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyweight.data import Entity, Message, load_data, read_messages
from flyweight.data.bio import TAG_FORMS, is_bio_file, plain_bio, read_bio
from flyweight.data.source import NO_HASH
from flyweight.errors import DataError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


GOLDEN = """\
-DOCSTART- -X- O
# id 7 domain=travel

# intent: book_flight
# text = fly to new york O
fly VB O
to TO O
new NN B-city
york NN I-city
. . O

# intent=chitchat/ask name


# # O
1 CD B-number
2 CD B-number
-DOCSTART- -X- O
u\u00a0s NN I-country


"""
MESSAGES = (
    Message("fly to new york .", "book_flight", (Entity(7, 15, "city"),)),
    Message("# 1 2", "chitchat/ask name", (Entity(2, 3, "number"), Entity(4, 5, "number"))),
    Message("u\u00a0s", None, (Entity(0, 3, "country"),)),
)


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.IOB", "a.iob2", "a.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_golden(tmp_path: Path, name: str, end: str) -> None:
    path = write(tmp_path / name, "\ufeff" + GOLDEN.replace("\n", end))
    assert is_bio_file(path)
    assert read_bio(path) == MESSAGES
    assert read_messages(path) == MESSAGES


def test_tabs_between_columns_leave_blanks_within_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "New York\t\tB-big city \n\tis\t O\t\n#\tO\n")
    assert read_bio(path) == (Message("New York is #", None, (Entity(0, 8, "big city"),)),)


@pytest.mark.parametrize(
    ("tags", "plain"),
    [
        ("O B-a I-a I-a O", "O B-a I-a I-a O"),
        ("I-a I-a O I-b I-a B-a", "B-a I-a O B-b B-a B-a"),  # IOB1: B- only where two entities of a name touch
        ("B-a E-a S-a S-a B-b I-b E-b", "B-a I-a B-a B-a B-b I-b I-b"),  # BIOES
        ("B-a L-a U-a O U-b", "B-a I-a B-a O B-b"),  # BILOU
        ("B-a E-a E-a I-a S-a I-a", "B-a I-a B-a B-a B-a B-a"),  # what an end closed, nothing goes on with
        ("B-a E-b L-b", "B-a B-b B-b"),
        ("B-a-b I-a-b", "B-a-b I-a-b"),
        ("", ""),
    ],
)
def test_tagging_schemes(tags: str, plain: str) -> None:
    assert plain_bio(tags.split()) == plain.split()


def test_entities_of_marked_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "a S-x\nb S-x\nc B-x\nd E-x\ne I-x\n")
    spans = read_bio(path)[0].entities
    assert spans == (Entity(0, 1, "x"), Entity(2, 3, "x"), Entity(4, 7, "x"), Entity(8, 9, "x"))


ONE = "allowed: one, before the words"
COLUMNS = "allowed: as many in each line"


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("a O\nb\n", 2, "'b' without a tag; allowed: a word, and its tag in the last column"),
        ("a\n", 1, "'a' without a tag; allowed: a word, and its tag in the last column"),
        ("a O\n\nb x O\n", 3, f"3 columns, the first word of the file has 2; {COLUMNS}"),
        ("a x O\nb O\n", 2, f"2 columns, the first word of the file has 3; {COLUMNS}"),
        ("a O\nNew York\tB-x\nb c O\n", 3, f"3 columns, the first word of the file has 2; {COLUMNS}"),
        ("a X-b\n", 1, f"tag 'X-b'; {TAG_FORMS}"),
        ("a B-\n", 1, f"tag 'B-'; {TAG_FORMS}"),
        ("a o\n", 1, f"tag 'o'; {TAG_FORMS}"),
        ("a B-city#to\n", 1, f"tag 'B-city#to'; {NO_HASH}"),
        ("a O\n# intent: b\nc O\n", 2, f"intent within a message; {ONE}"),
        ("# intent: a\n\n# intent: b\nc O\n", 3, f"a second intent, the first on line 1; {ONE}"),
        ("# intent:\na O\n", 1, "intent without a name; allowed: `# intent: name`"),
        ("a O\n\n# intent: b\n\n", 3, "intent without words; allowed: words below it"),
    ],
)
def test_malformed(tmp_path: Path, source: str, line: int, error: str) -> None:
    path = write(tmp_path / "a.conll", source)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == f"{path}:{line}: {error}"


@pytest.mark.parametrize("source", ["", "\n\n", "# id 5\n", "-DOCSTART- O\n\n"])
def test_no_messages(tmp_path: Path, source: str) -> None:
    path = write(tmp_path / "a.bio", source)
    with pytest.raises(DataError) as caught:
        read_bio(path)
    assert str(caught.value) == f"{path}: no messages; allowed: lines with a word and its tag"


@pytest.mark.parametrize(
    ("source", "is_bio"),
    [
        ("a O\n", True),
        ("# intent: x\n\na B-x\nb O\n", True),
        ("a O\n" * 100_000 + "and prose", True),  # the first 64 KiB count
        ("", False),
        ("# intent: x\n", False),
        ("O\n", False),
        ("a O\nb\n", False),
        ("a O\nb c O\n", False),
        ("Dear O\nthis is a letter\n", False),
        ("caf\xe9 O\n", True),
    ],
)
def test_txt_files_that_look_like_it(tmp_path: Path, source: str, is_bio: bool) -> None:
    assert is_bio_file(write(tmp_path / "a.txt", source)) == is_bio
    assert is_bio_file(write(tmp_path / "a.conll", source))
    assert not is_bio_file(write(tmp_path / "a.tsv", source))


def test_a_txt_file_of_prose_is_of_no_known_form(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Dear reader\n")
    with pytest.raises(DataError, match=r"a\.txt: a file of the unknown form '\.txt'; allowed: "):
        load_data(path)


@pytest.mark.parametrize("suffix", [".conll", ".txt"])
def test_parts(tmp_path: Path, suffix: str) -> None:
    for name, words in (("train", "abcdefghij"), ("valid", "kl"), ("test", "m")):
        write(tmp_path / (name + suffix), "".join(f"# intent: x\n{word} O\n\n" for word in words))
    write(tmp_path / "notes.txt", "prose\n")
    data = load_data(tmp_path)
    assert ["".join(m.text for m in part) for part in (data.train, data.validation, data.test)] == [
        "abcdefghij",
        "kl",
        "m",
    ]
    assert data.intents == ["x"]


def test_a_file_without_intents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "".join(f"to O\n{word} B-city\n\n" for word in "abcdefghij"))
    data = load_data(path)
    assert (data.intents, data.entity_labels) == ([], ["city"])
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 1, 2)
