"""Rasa Markdown and JSON: golden files, folders of several forms, lookup files, and every error with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyweight.data import Entity, Message, load_data, read_messages
from flyweight.data.rasa import is_rasa_file, rasa_files, read_rasa_files
from flyweight.data.rasa_legacy import JSON_KEYS, read_rasa_json, read_rasa_markdown
from flyweight.data.source import NO_HASH
from flyweight.errors import DataError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


MARKDOWN = """\
# The bot's examples
Prose before the first section.

## intent:book_flight
- from [Berlin](city) to [San Francisco]{"entity": "city", "role": "to", "group": "1"}
* to [NYC](city:New York)
 + tight [one](number) <!-- - not an example
- nor this
-->
-no blank

##intent: chitchat/ask_name   <!-- a retrieval intent -->
- who are [you](bot)?
# a title between
- ## not a section
## synonym:New York City
- Big Apple
- NYC
## regex:zip
- [0-9]{5}
## lookup:city
- Berlin
* [not](an annotation)
## intent:book_flight
- again
"""
MESSAGES = (
    Message(
        "from Berlin to San Francisco",
        "book_flight",
        (Entity(5, 11, "city"), Entity(15, 28, "city", role="to", group="1")),
    ),
    Message("to NYC", "book_flight", (Entity(3, 6, "city", "New York"),)),
    Message("tight one", "book_flight", (Entity(6, 9, "number"),)),
    Message("no blank", "book_flight"),
    Message("who are you?", "chitchat/ask_name", (Entity(8, 11, "bot"),)),
    Message("## not a section", "chitchat/ask_name"),
    Message("again", "book_flight"),
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_golden_markdown(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "nlu.md", "\ufeff" + MARKDOWN.replace("\n", end))
    assert is_rasa_file(path)
    data = read_rasa_markdown(path).data()
    assert data.train == MESSAGES
    # The synonym section comes later in the file than the annotation [NYC](city:New York).
    assert data.synonyms == {"nyc": "New York City", "big apple": "New York City"}
    assert data.lookups == {"city": ["Berlin", "[not](an annotation)"]}
    assert data.regexes == {"zip": ["[0-9]{5}"]}
    assert read_messages(path) == data.train


SECTIONS = "allowed: ## intent:name, ## synonym:name, ## regex:name, ## lookup:name"
BULLETS = "allowed: bullets ('- ' and a text), or the next `## kind:name`"
FORMS = 'allowed: [text](entity), [text](entity:value), [text]{"entity": "...", "role": "..."}'
HEAD = "## intent:a\n- one\n"  # lines 1 and 2


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("", 1, f"no section; {SECTIONS}"),
        ("# Notes\n\nprose\n", 1, f"no section; {SECTIONS}"),
        ("<!--\n## intent:a\n- one\n-->", 1, f"no section; {SECTIONS}"),
        ("- one\n## intent:a\n- two\n", 1, f"example 'one' before the first section; {SECTIONS}"),
        (HEAD + "\n## greet\n- hi\n", 4, f"section '## greet'; {SECTIONS}"),
        (HEAD + "## story:greet\n- hi\n", 3, f"section '## story:greet'; {SECTIONS}"),
        (HEAD + "### intent:greet\n- hi\n", 3, f"section '### intent:greet'; {SECTIONS}"),
        (HEAD + "## intent: \n- hi\n", 3, "intent without a name; allowed: `## intent:name`"),
        (HEAD + "two\n", 3, f"line 'two' in intent 'a'; {BULLETS}"),
        (HEAD + "## synonym:b\n- c\n#d\n", 5, f"line '#d' in synonym 'b'; {BULLETS}"),
        (HEAD + "-\n", 3, "empty example; allowed: '- ' and a text"),
        (
            "## intent:a\n\n## intent:b\n- c\n",
            1,
            "intent 'a' has no examples; allowed: lines below it that start with '- '",
        ),
        (HEAD + "## regex:r\n", 3, "regex 'r' has no examples; allowed: lines below it that start with '- '"),
        (HEAD + "<!-- x\n\n y -->\n- [x](\n", 6, f"annotation '(' is not closed; {FORMS}"),
        (HEAD + "- [x](a#b)\n", 3, f"the entity's entity is 'a#b'; {NO_HASH}"),
        (HEAD + "- two\n<!-- x --> <!-- y\n", 4, "comment `<!--` is not closed; allowed: <!-- ... -->"),
        (
            HEAD + '- [x]{"entity": "a", "entity": "b"}\n',
            3,
            'annotation \'{"entity": "a", "entity": "b"}\' is not JSON (key \'entity\' twice in an object); ' + FORMS,
        ),
    ],
)
def test_malformed_markdown(tmp_path: Path, source: str, line: int, error: str) -> None:
    path = write(tmp_path / "nlu.md", source)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == f"{path}:{line}: {error}"


def test_markdown_without_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "nlu.md", "## lookup:l\n- z\n")
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == f"{path}: no messages; allowed: at least one intent with examples"


@pytest.mark.parametrize("place", ["data/nlu/lists/cities.txt", "data/lists/cities.txt", "lists/cities.txt"])
def test_lookup_files_lie_beside_the_nlu_file_or_above(tmp_path: Path, place: str) -> None:
    write(tmp_path / place, "\ufeffBerlin \r\n\r\nNew York\n")
    path = write(tmp_path / "data/nlu/nlu.md", HEAD + "## lookup:city\n  lists/cities.txt\n- Rome\n")
    assert read_rasa_markdown(path).lookups == {"city": ["Berlin", "New York", "Rome"]}
    table = {"name": "city", "elements": "lists/cities.txt"}
    path = write(tmp_path / "data/nlu/nlu.json", json.dumps({"rasa_nlu_data": {"lookup_tables": [table]}}))
    assert read_rasa_json(path).lookups == {"city": ["Berlin", "New York"]}


def test_the_nearest_lookup_file_counts(tmp_path: Path) -> None:
    write(tmp_path / "cities.txt", "far\n")
    write(tmp_path / "data/cities.txt", "near\n")
    path = write(tmp_path / "data/nlu.md", "## lookup:city\ncities.txt\n")
    assert read_rasa_markdown(path).lookups == {"city": ["near"]}


@pytest.mark.parametrize("name", ["gone.txt", "lists", "x" * 5_000, "\x00"])
def test_lookup_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "lists").mkdir()
    path = write(tmp_path / "nlu.md", HEAD + f"## lookup:city\n{name}\n")
    with pytest.raises(DataError) as caught:
        read_rasa_markdown(path)
    shown = ascii(name) if len(name) < 60 else "'" + "x" * 56 + "..."
    assert str(caught.value) == (
        f"{path}:4: lookup names the file {shown}, which is not there; "
        "allowed: a path from the folder of this file, or from one of the 3 above it"
    )


GOLDEN_JSON = """\
{
  "rasa_nlu_data": {
    "common_examples": [
      {"text": "from Berlin to San Francisco", "intent": "book_flight", "entities": [
        {"start": 15, "end": 28, "value": "San Francisco", "entity": "city", "role": "to", "group": "1"},
        {"start": 5, "end": 11, "value": "Berlin", "entity": "city", "extractor": "ner_crf", "confidence": null}
      ]},
      {"text": "to NYC", "intent": "book_flight", "metadata": {"by": 1},
       "entities": [{"start": 3, "end": 6, "entity": "city", "value": "New York"}]},
      {"text": "tight one", "intent": "book_flight", "entities": [{"start": 6, "end": 9, "entity": "number"}]}
    ],
    "intent_examples": [{"text": "no blank", "intent": "book_flight"}],
    "entity_examples": [{"text": "who are you?", "entities": [{"start": 8, "end": 11, "entity": "bot"}]}],
    "entity_synonyms": [{"value": "New York City", "synonyms": ["Big Apple", "NYC"]}],
    "regex_features": [{"name": "zip", "pattern": "[0-9]{5}"}, {"name": "zip", "pattern": "[A-Z]{2}"}],
    "lookup_tables": [{"name": "city", "elements": ["Berlin", "Rome"]}]
  }
}
"""


def test_golden_json(tmp_path: Path) -> None:
    path = write(tmp_path / "nlu.json", "\ufeff" + GOLDEN_JSON.replace("\n", "\r\n"))
    data = read_rasa_json(path).data()
    assert data.train == (*MESSAGES[:4], Message("who are you?", None, MESSAGES[4].entities))
    assert data.synonyms == {"nyc": "New York City", "big apple": "New York City"}
    assert data.lookups == {"city": ["Berlin", "Rome"]}
    assert data.regexes == {"zip": ["[0-9]{5}", "[A-Z]{2}"]}
    assert data.notes == ("keys that are not read: 'metadata' (1 in all)",)
    assert read_messages(path) == data.train


def test_keys_of_all_files_are_counted_together(tmp_path: Path) -> None:
    example = '{"text": "a", "intent": "b", %s}'
    sections = '"common_examples": [' + example % '"lang": 1, "Entities": []' + "," + example % '"lang": 2' + "]"
    write(tmp_path / "a.json", rasa_json(sections))
    write(
        tmp_path / "b.yml", "nlu:\n- intent: b\n  metadata: 1\n  examples:\n  - text: c\n    metadata: {d: e}\n  - f\n"
    )
    assert read_rasa_files(rasa_files(tmp_path)).notes == (
        "keys that are not read: 'Entities', 'lang', 'metadata' (5 in all)",
    )


def rasa_json(sections: str) -> str:
    return '{"rasa_nlu_data": {\n' + sections + "}}"  # sections start on line 2


NEAR = "allowed: entities, or a name less like it (such columns are not read)"
EXAMPLE = 'allowed: {"text": "...", "intent": "...", "entities": [...]}'
SYNONYM = 'allowed: {"value": "...", "synonyms": ["..."]}'
WHOLE = 'allowed: {"rasa_nlu_data": {"common_examples": [...], ...}}'


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        (
            rasa_json('"common_examples": [\n{"text": "a", "intent": "b", "entites": []}]'),
            3,
            f"column 'entites' is nearly 'entities'; {NEAR}",
        ),
        ('{"rasa_nlu_data": 5}', 1, f"rasa_nlu_data is 5; {WHOLE}"),
        ('{\n"a": {"rasa_nlu_data": {}}}', 1, f"no rasa_nlu_data; {WHOLE}"),
        (
            '{"rasa_nlu_data": {},\n "rasa_nlu_data": {}}',
            2,
            "key 'rasa_nlu_data' twice in the file; allowed: each key once",
        ),
        (
            rasa_json('"common_examples": [],\n"examples": []'),
            3,
            f"unknown key 'examples' in rasa_nlu_data; allowed: {', '.join(JSON_KEYS)}",
        ),
        (rasa_json('"common_examples": [\n{"text": "a" "b"}]'), 3, f"not JSON (Expecting ',' delimiter); {WHOLE}"),
        (rasa_json('"common_examples": {}'), 2, "common_examples is {}; allowed: a list"),
        (rasa_json('"common_examples": [\n\n5]'), 4, f"an example is 5; {EXAMPLE}"),
        (rasa_json('"common_examples": [{"intent": "a"}]'), 2, f"no text among 'intent'; {EXAMPLE}"),
        (
            rasa_json('"common_examples": [{\n"text": "a",\n"text": "b"}]'),
            4,
            "key 'text' twice in an example; allowed: each key once",
        ),
        (rasa_json('"common_examples": [{"intent": "a",\n"text": ["b"]}]'), 3, "text is ['b']; allowed: a string"),
        (
            rasa_json('"common_examples": [{"intent": "a",\n"text": "\\ud800"}]'),
            3,
            "text is '\\ud800'; allowed: a string",
        ),
        (
            rasa_json('"common_examples": [{"intent": "a",\n"text": " "}]'),
            2,
            "empty text; allowed: at least one character",
        ),
        (rasa_json('"common_examples": [{"text": "a"}]'), 2, "row without intent; allowed: an intent, or entities"),
        (rasa_json('"common_examples": [{"text": "a",\n"intent": {}}]'), 3, "intent is {}; allowed: a string"),
        (rasa_json('"common_examples": [{"text": "a",\n"entities": {}}]'), 3, "entities is {}; allowed: a list"),
        (
            rasa_json('"common_examples": [{"text": "a",\n"entities": [\n{"start": 0, "end": 2, "entity": "x"}]}]'),
            4,
            "entity span 0:2; allowed: 0 <= start < end <= 1, whole numbers, around some letters",
        ),
        (
            rasa_json('"common_examples": [{"text": "a",\n"entities": [{"start": 0, "end": 1, "end": 1}]}]'),
            3,
            "key 'end' twice in an object; allowed: each key once",
        ),
        (
            rasa_json(
                '"entity_examples": [{"text": "a", "entities": [\n{"start": 0, "end": 1, "entity": "e", "role": NaN}]}]'
            ),
            3,
            "the entity's role is nan; allowed: a string",
        ),
        (rasa_json('"entity_synonyms": [5]'), 2, f"an item of entity_synonyms is 5; {SYNONYM}"),
        (rasa_json('"entity_synonyms": [{"value": "a"}]'), 2, f"no synonyms among 'value'; {SYNONYM}"),
        (
            rasa_json('"entity_synonyms": [{"value": "", "synonyms": []}]'),
            2,
            "value is ''; allowed: a string that is not empty",
        ),
        (
            rasa_json('"entity_synonyms": [{"value": "a", "synonyms": "b"}]'),
            2,
            "synonyms is 'b'; allowed: a list of strings",
        ),
        (
            rasa_json('"entity_synonyms": [{"value": "a", "synonyms": ["b",\n7]}]'),
            3,
            "one of the synonyms is 7; allowed: a string that is not empty",
        ),
        (
            rasa_json('"regex_features": [{"name": "a"}]'),
            2,
            'no pattern among \'name\'; allowed: {"name": "...", "pattern": "..."}',
        ),
        (rasa_json('"lookup_tables": [{"name": "a", "elements": 5}]'), 2, "elements is 5; allowed: a list of strings"),
        (
            rasa_json('"lookup_tables": [{"name": "a",\n"elements": "gone.txt"}]'),
            3,
            "lookup names the file 'gone.txt', which is not there; "
            "allowed: a path from the folder of this file, or from one of the 3 above it",
        ),
    ],
)
def test_malformed_json(tmp_path: Path, source: str, line: int, error: str) -> None:
    path = write(tmp_path / "nlu.json", source)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == f"{path}:{line}: {error}"


def test_null_sections_say_nothing(tmp_path: Path) -> None:
    source = rasa_json('"lookup_tables": null, "common_examples": [{"text": "a", "intent": "b", "entities": null}]')
    assert read_rasa_json(write(tmp_path / "nlu.json", source)).messages == [Message("a", "b")]


def test_a_folder_of_all_forms_is_one_part(tmp_path: Path) -> None:
    synonym = '"entity_synonyms": [{"value": "one", "synonyms": ["X", "Y"]}]'
    examples = '"common_examples": [{"text": "a", "intent": "i"}]'
    write(tmp_path / "a.json", rasa_json(f"{examples}, {synonym}"))
    write(tmp_path / "b.md", "## intent:i\n- b\n## synonym:two\n- x\n## lookup:l\n- p\n## regex:r\n- p\n")
    write(
        tmp_path / "c/d.yml",
        "nlu:\n- intent: i\n  examples: '- c'\n- lookup: l\n  examples: '- q'\n- regex: r\n  examples: '- q'\n",
    )
    write(tmp_path / "out.md", "<!--\n## intent:old\n- gone\n-->\n")
    write(tmp_path / "stories.md", "## happy path\n* greet\n  - utter_greet\n")
    write(tmp_path / "README.md", "# A bot\n\nIt answers.\n")
    write(tmp_path / "package.json", '{"name": "bot"}')
    write(tmp_path / "test_data.md", "## intent:i\n- d\n")
    assert [p.name for p in rasa_files(tmp_path)] == ["a.json", "b.md", "d.yml", "out.md", "test_data.md"]
    data = read_rasa_files(rasa_files(tmp_path)[:-1])
    assert [m.text for m in data.train] == ["a", "b", "c"]
    # In path order, of two values for one written form the later counts.
    assert data.synonyms == {"x": "two", "y": "one"}
    assert (data.lookups, data.regexes) == ({"l": ["p", "q"]}, {"r": ["p", "q"]})
    loaded = load_data(tmp_path, validation=0)
    assert (loaded.train, [m.text for m in loaded.test]) == (data.train, ["d"])


@pytest.mark.parametrize(
    ("name", "n_messages", "n_intents", "n_entities"),
    [
        ("chitchat.md", 552, 15, 1),
        ("faq.md", 261, 12, 106),
        ("main.md", 1_489, 23, 554),
        ("niceties.md", 93, 2, 0),
        ("nlu.md", 2_333, 51, 600),
        (".", 4_728, 53, 1_261),
    ],
)
def test_real_markdown(real_data: Path, name: str, n_messages: int, n_intents: int, n_entities: int) -> None:
    messages = read_messages(real_data / "sara-2019" / name)
    assert len(messages) == n_messages
    assert len({m.intent for m in messages}) == n_intents
    assert sum(len(m.entities) for m in messages) == n_entities


def test_real_markdown_against_its_deduplicated_copy(real_data: Path) -> None:
    """The copy was made by another program: the same texts, and each with one of the labels that the files give it."""
    labels: dict[str, list[object]] = {}
    for m in read_messages(real_data / "sara-2019"):
        labels.setdefault(m.text.lower(), []).append((m.intent, [e.key for e in m.entities]))
    copy = {
        m.text.lower(): (m.intent, [e.key for e in m.entities]) for m in read_messages(real_data / "sara-2019-dedup")
    }
    assert copy.keys() == labels.keys()
    assert [text for text, label in copy.items() if label not in labels[text]] == []
