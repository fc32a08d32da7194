"""Rasa YAML: golden files, what Rasa does with annotations, and every error with its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flyweight.data import Entity, Message
from flyweight.data.rasa import is_rasa_file, rasa_files, read_rasa_files
from flyweight.data.rasa_items import parse_annotations
from flyweight.data.source import NO_HASH
from flyweight.errors import DataError, MissingExtraError

HERE = Path("nlu.yml")

GOLDEN = """\
version: "3.1"

nlu:
- intent: book_flight
  examples: |
    - from [Berlin](city) to [San Francisco]{"entity": "city", "role": "to", "group": "1"}
    - to [NYC](city:New York)

    -tight
- intent: chitchat/ask_name  # a retrieval intent
  metadata: {sentiment: neutral}
  examples:
  - text: |
      who are [you](bot)?
    metadata:
      tone: plain
  - no
- intent: no
  examples: "- never\\n- [LA]{\\"entity\\": \\"city\\", \\"value\\": \\"Los Angeles\\"}"
- synonym: ' New York City '
  examples: |
    - Big Apple
    - NYC
- lookup: city
  examples: |
    - Berlin
    - [not](an annotation)
- regex: zip
  examples: |
    - [0-9]{5}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_golden_file(tmp_path: Path) -> None:
    data = read_rasa_files([write(tmp_path / "nlu.yml", GOLDEN)])
    assert data.train == (
        Message(
            "from Berlin to San Francisco",
            "book_flight",
            (Entity(5, 11, "city"), Entity(15, 28, "city", role="to", group="1")),
        ),
        Message("to NYC", "book_flight", (Entity(3, 6, "city", "New York"),)),
        Message("tight", "book_flight"),
        Message("who are you?", "chitchat/ask_name", (Entity(8, 11, "bot"),)),
        Message("no", "chitchat/ask_name"),
        Message("never", "no"),
        Message("LA", "no", (Entity(0, 2, "city", "Los Angeles"),)),
    )
    # Keys are lower case; the synonym item comes later in the file than the annotation [NYC](city:New York).
    assert data.synonyms == {"nyc": "New York City", "la": "Los Angeles", "big apple": "New York City"}
    assert data.lookups == {"city": ["Berlin", "[not](an annotation)"]}
    assert data.regexes == {"zip": ["[0-9]{5}"]}
    assert data.notes == ("keys that are not read: 'metadata' (2 in all)",)


@pytest.mark.parametrize(
    ("example", "text", "entities"),
    [
        ("plain", "plain", ()),
        ("[a](x)[b](x)", "ab", (Entity(0, 1, "x"), Entity(1, 2, "x"))),
        ("[ New York ](city) now", " New York  now", (Entity(1, 9, "city"),)),
        ("[Rasa](product:Rasa)", "Rasa", (Entity(0, 4, "product"),)),
        ("[x](a: b:c )", "x", (Entity(0, 1, "a", "b:c"),)),
        ("[x](a:)", "x", (Entity(0, 1, "a"),)),
        ('[x]{"entity": "a", "value": 3}', "x", (Entity(0, 1, "a", "3"),)),
        ('[x]{"entity": "a", "value": "}", "role": null}', "x", (Entity(0, 1, "a", "}"),)),
        ("[x](a:#1)", "x", (Entity(0, 1, "a", "#1"),)),
        ('[x][{"entity": "a"}]', "x", (Entity(0, 1, "a"),)),
        ("[no] (annotation) [here], [0-9]", "[no] (annotation) [here], [0-9]", ()),
        ("[outer [in](a)", "[outer in", (Entity(7, 9, "a"),)),
        ("a human \\", "a human \\", ()),
        ("日本 [東京](city)", "日本 東京", (Entity(3, 5, "city"),)),
    ],
)
def test_annotations(example: str, text: str, entities: tuple[Entity, ...]) -> None:
    assert parse_annotations(example, path=HERE, line=1) == (text, entities)


FORMS = 'allowed: [text](entity), [text](entity:value), [text]{"entity": "...", "role": "..."}'
NAMED = 'allowed: {"entity": "city"}, with "value", "role" and "group" where wanted'


@pytest.mark.parametrize(
    ("example", "error"),
    [
        ("[](city)", f"empty entity text in '[](city)'; {FORMS}"),
        ("go [ ](city:x) to", f"empty entity text in '[ ](city:x)'; {FORMS}"),
        ("[x]()", f"annotation without an entity name; {NAMED}"),
        ("[x](:y)", f"annotation without an entity name; {NAMED}"),
        ('[x]{"value": "y"}', f"annotation without an entity name; {NAMED}"),
        ("[x](city", f"annotation '(city' is not closed; {FORMS}"),
        (
            '[x]{"entity": city}',
            f"annotation '{{\"entity\": city}}' is not JSON (Expecting value); {FORMS}",
        ),
        ("[x]{5}", f"annotation '{{5}}' is not JSON (Expecting property name enclosed in double quotes); {FORMS}"),
        (
            '[x]{"entity": "a", "rol": "b"}',
            "entity has the unknown key 'rol'; allowed keys: entity, value, role, group",
        ),
        ('[x]{"entity": 5}', "the entity's entity is 5; allowed: a string"),
        ('[x]{"entity": "a", "role": ["b"]}', "the entity's role is ['b']; allowed: a string"),
        ("[x](a#b)", f"the entity's entity is 'a#b'; {NO_HASH}"),
        ('[x]{"entity": "a", "role": "#"}', f"the entity's role is '#'; {NO_HASH}"),
        ('[x]{"entity": "a", "group": "1#2", "value": "#3"}', f"the entity's group is '1#2'; {NO_HASH}"),
        ('[x][{"entity": "a"}, {"entity": "b"}]', "2 entities on the same words; allowed: one"),
    ],
)
def test_broken_annotations(example: str, error: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_annotations(example, path=HERE, line=7)
    message = str(caught.value)
    # Python versions word JSON errors a little differently after the first clause.
    assert message == f"nlu.yml:7: {error}" or ("not JSON" in error and message.startswith("nlu.yml:7: annotation"))


HEAD = 'version: "3.1"\nnlu:\n'  # lines 1 and 2
ITEMS = "allowed: intent, synonym, regex, lookup, each with examples"


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("stories: []\n", 1, "no nlu section; allowed: Rasa YAML with a list under the key `nlu:`"),
        ("", 1, "no nlu section; allowed: Rasa YAML with a list under the key `nlu:`"),
        ("- a\n", 1, "no nlu section; allowed: Rasa YAML with a list under the key `nlu:`"),
        (HEAD, 1, "no nlu section; allowed: Rasa YAML with a list under the key `nlu:`"),
        ("a: 1\nnlu:\n  intent: x\n", 3, "nlu is not a list; allowed: items such as `- intent: greet`"),
        (HEAD + "nlu: []\n", 3, "key 'nlu' twice in the file; allowed: each key once"),
        (HEAD + "- greet\n", 3, f"nlu item is not a mapping; {ITEMS}"),
        (HEAD + "- examples: |\n    - a\n", 3, f"nlu item with the keys 'examples'; {ITEMS}"),
        (
            HEAD + "- intent: a\n  exampels: |\n    - a\n",
            4,
            "unknown key 'exampels' in nlu item 'intent'; allowed: intent, examples, metadata",
        ),
        (HEAD + "- intent:\n  examples: |\n    - a\n", 3, "intent without a name; allowed: `- intent: name`"),
        (
            HEAD + "- intent: a\n  examples: |\n\n- intent: b\n",
            3,
            "intent 'a' has no examples; allowed: `examples: |` and below it lines that start with '- '",
        ),
        (
            HEAD + "- synonym: a\n",
            3,
            "synonym 'a' has no examples; allowed: `examples: |` and below it lines that start with '- '",
        ),
        (
            HEAD + "- intent: a\n  examples: |\n    - one\n\n    two\n",
            7,
            "example line 'two'; allowed: lines that start with '- '",
        ),
        (HEAD + "- intent: a\n  examples: | # x\n\n    - one\n    - \n", 7, "empty example; allowed: '- ' and a text"),
        (
            HEAD + "- intent: a\n  examples: |\n    - one\n    - [x]()\n",
            6,
            f"annotation without an entity name; {NAMED}",
        ),
        (
            HEAD + "- intent: a\n  examples:\n  - text: |\n\n      one\n      and [x]()\n",
            8,
            f"annotation without an entity name; {NAMED}",
        ),
        (
            HEAD + "- intent: a\n  examples: >\n    - one\n",
            4,
            "examples is a folded block `>`; allowed: a literal block `|`",
        ),
        (
            HEAD + "- intent: a\n  examples:\n    b: c\n",
            5,
            "examples is a mapping; allowed: a `|` block of '- ' lines or a list of `- text: ...`",
        ),
        (
            HEAD + "- intent: a\n  examples:\n  - txt: b\n",
            5,
            "unknown key 'txt' in an example; allowed: text, metadata",
        ),
        (
            HEAD + "- intent: a\n  examples:\n  - text: b\n  - metadata: b\n",
            6,
            "example without text; allowed: `- text: ...`, with `metadata` where wanted",
        ),
        (HEAD + "- intent: a\n  intent: b\n", 4, "key 'intent' twice in an nlu item; allowed: each key once"),
    ],
)
def test_malformed_files(tmp_path: Path, source: str, line: int, error: str) -> None:
    path = write(tmp_path / "nlu.yml", source)
    with pytest.raises(DataError) as caught:
        read_rasa_files([path])
    assert str(caught.value) == f"{path}:{line}: {error}"


@pytest.mark.parametrize(
    ("source", "line"),
    [(HEAD + "- intent: a\n  examples: [b\n- c: d\n", 5), (HEAD + "- intent: a\n\tb: c\n", 4), ("nlu: \x07\n", 1)],
)
def test_bad_yaml_has_a_line(tmp_path: Path, source: str, line: int) -> None:
    path = write(tmp_path / "nlu.yml", source)
    with pytest.raises(DataError) as caught:
        read_rasa_files([path])
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: not YAML (")
    assert message.endswith("); allowed: Rasa NLU YAML, see `nlu:`")
    assert "\n" not in message


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "nlu.yml"
    path.write_bytes(b"nlu:\n- intent: caf\xe9\n")
    with pytest.raises(DataError) as caught:
        read_rasa_files([path])
    assert (
        str(caught.value)
        == f"{path}:2: byte 0xe9 is not UTF-8; allowed: text in UTF-8, with or without BOM; export it as UTF-8"
    )


def test_windows_file(tmp_path: Path) -> None:
    path = tmp_path / "nlu.yml"
    path.write_bytes(b"\xef\xbb\xbfnlu:\r\n- intent: a\r\n  examples: |\r\n    - one\r\n    - two\r\n")
    assert is_rasa_file(path)
    assert [m.text for m in read_rasa_files([path]).train] == ["one", "two"]


def test_folder_takes_nlu_files_in_path_order(tmp_path: Path) -> None:
    write(tmp_path / "b.yml", "nlu:\n- intent: b\n  examples: |\n    - b\n- synonym: two\n  examples: |\n    - X\n")
    write(
        tmp_path / "a" / "a.yaml", "nlu:\n- synonym: one\n  examples: |\n    - x\n- intent: a\n  examples: |\n    - a\n"
    )
    write(tmp_path / "config.yml", "pipeline:\n- name: Tokenizer\n")
    write(tmp_path / "domain.yml", "slots:\n  nlu: {type: text}\n")
    write(tmp_path / "broken.yml", "stories: [\n")
    write(tmp_path / "notes.txt", "nlu:\n")
    write(tmp_path / ".git" / "old.yml", "nlu:\n- broken")
    assert [p.name for p in rasa_files(tmp_path)] == ["a.yaml", "b.yml", "domain.yml"]
    data = read_rasa_files(rasa_files(tmp_path))
    assert [m.text for m in data.train] == ["a", "b"]
    assert data.synonyms == {"x": "two"}


def test_missing_pyyaml_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = write(tmp_path / "nlu.yml", GOLDEN)
    with pytest.raises(MissingExtraError) as caught:
        read_rasa_files([path])
    assert str(caught.value) == (
        "reading Rasa YAML needs the package 'PyYAML'; install it with: pip install 'flyweight[workshop]'"
    )


def test_sara(real_data: Path) -> None:
    train = read_rasa_files(rasa_files(real_data / "sara" / "nlu"))
    test = read_rasa_files([real_data / "sara" / "test_nlu.yml"])
    assert (len(train.train), len(test.train)) == (4997, 508)
    # Pooled and deduplicated on lower-cased text this is sara-dedup: 3,855 + 968.
    assert len({m.text.lower() for m in train.train + test.train}) == 4823
    assert train.synonyms["durations"] == "duration"
    assert train.synonyms["rasa x"] == "x"
    assert train.regexes == {"greet": [r"hey[^\s]*"], "zipcode": ["[0-9]{5}"]}
    assert train.lookups == {"products": ["core", "dialogue management", "nlu", "x", "rasa x", "both", "all"]}
